"""The client protocol: what travels on a node's client port.

TLS 1.3, then frames (u32 length | msgpack). The client opens with `Hello`, the node answers with its own. After that
each frame of the client is one `Call`, each frame of the node one `Reply` with the number of its call; replies come
in any order. All structs are msgpack arrays whose first element is the tag.

Every amount is an integer of minor units, every hash 32 raw bytes, every node id 20 raw bytes.
"""

from typing import Final

import msgspec

PROTOCOL_VERSION: Final = 1
MAX_CLIENT_FRAME_BYTES: Final = 4 * 1024 * 1024  # twice the largest link
MAX_PAGE: Final = 1000  # rows of one list answer


class _Message(msgspec.Struct, frozen=True, array_like=True):
    pass


class Hello(_Message, frozen=True, tag="hello"):
    """First frame each way. A node of another network answers `Refused` and closes."""

    version: int
    network: bytes


# --- calls ---------------------------------------------------------------------------------------------------------


class Submit(_Message, frozen=True, tag="submit"):
    """Execute a signed request. Answers: Recorded, Stale, NotStarted, Unknown or Refused."""

    raw: bytes
    signature: bytes
    timeout_ms: int


class AskOutcome(_Message, frozen=True, tag="outcome"):
    """What became of a request, as this node knows it; `account` is who sent it, empty when that is not known.
    Answers: Recorded or NotFound."""

    request_id: bytes
    account: str = ""


class AskBalance(_Message, frozen=True, tag="balance"):
    """Balance of an account. `linearizable` asks a majority; otherwise this node's replica answers, once it has at
    least link `min_height` of the account (0: at once). Answers: Balance, NotFound, Unknown."""

    account: str
    linearizable: bool = False
    min_height: int = 0
    timeout_ms: int = 5000


class AskChain(_Message, frozen=True, tag="chain"):
    """Links of an account from `from_height`, ascending, at most `limit`. Answers: Chain or NotFound."""

    account: str
    from_height: int
    limit: int


class AskAccounts(_Message, frozen=True, tag="accounts"):
    """Accounts in name order after `after`, at most `limit`. Answers: Accounts."""

    after: str
    limit: int


class AskRoute(_Message, frozen=True, tag="route"):
    """A Kademlia lookup of a 20-byte key, of the first 20 bytes of a hash, or of an account's tail (`account` not
    empty). Answers: Route or NotFound."""

    account: str
    key: bytes


class AskStatus(_Message, frozen=True, tag="status"):
    """How this node is. Answers: Status."""


class AskDigest(_Message, frozen=True, tag="digest"):
    """Digest over all chains of this replica. Answers: Digest."""


CallBody = Submit | AskOutcome | AskBalance | AskChain | AskAccounts | AskRoute | AskStatus | AskDigest


class Call(_Message, frozen=True, tag="call"):
    """One call; `number` is the client's, unique on its connection."""

    number: int
    body: CallBody


# --- replies -------------------------------------------------------------------------------------------------------


class Recorded(_Message, frozen=True, tag="recorded"):
    """The request's one outcome, final. `outcome`: 0 completed, else a rejection (chain.link.Outcome).

    `balance` is the account's after link `link_hash` of `height`, made at `time_ms`. `decided_by` is the node that
    made it (empty when this node learned of it otherwise); `hops`: lookup hops and hand-overs on the way;
    `repeated`: the outcome was recorded before this call.
    """

    request_id: bytes
    account: str
    outcome: int
    link_hash: bytes
    height: int
    balance: int
    time_ms: int
    decided_by: bytes
    hops: int
    repeated: bool


class Stale(_Message, frozen=True, tag="stale"):
    """Final: the request expected a tip that has a successor already, so it can never execute."""

    request_id: bytes
    tip: bytes
    height: int


class NotStarted(_Message, frozen=True, tag="not_started"):
    """Nothing is recorded; the same request may be sent again, here or at any node. `reason` is for people."""

    request_id: bytes
    code: str
    reason: str


class Unknown(_Message, frozen=True, tag="unknown"):
    """The deadline passed. Ask later with AskOutcome, or settle it with a cancel."""

    request_id: bytes
    reason: str


class Refused(_Message, frozen=True, tag="refused"):
    """Refused at admission, nothing recorded: the call itself is wrong. `code` is stable, `reason` says what to do."""

    code: str
    reason: str


class NotFound(_Message, frozen=True, tag="not_found"):
    """This node knows nothing of that name, hash or request (yet)."""

    what: str


class Balance(_Message, frozen=True, tag="balance_is"):
    """`settled` + `incoming` = `available`; `as_of_ms` is this node's clock when it read."""

    account: str
    asset: str
    scale: int
    issuer: bool
    settled: int
    incoming: int
    incoming_count: int
    tip: bytes
    height: int
    link_epoch: int
    time_ms: int
    epoch: int
    as_of_ms: int
    linearizable: bool


class ChainPosting(_Message, frozen=True):
    """One posting of a link; `confirmation` is the recipient's link that took it up, empty while incoming."""

    hash: bytes
    number: int
    recipient: str
    amount: int
    memo: str
    request_id: bytes
    confirmation: bytes
    prev_confirmed_hash: bytes


class ChainEntry(_Message, frozen=True):
    """One request of a link: kind and outcome as in chain.request.Kind and chain.link.Outcome."""

    request_id: bytes
    kind: int
    outcome: int
    total: int


class ChainIncome(_Message, frozen=True):
    """One posting that a link confirmed."""

    hash: bytes
    sender: str
    amount: int


class ChainLink(_Message, frozen=True):
    """One link as a person reads it."""

    hash: bytes
    height: int
    prev_hash: bytes
    balance: int
    incoming_checksum: bytes
    epoch: int
    time_ms: int
    entries: tuple[ChainEntry, ...]
    postings: tuple[ChainPosting, ...]
    income: tuple[ChainIncome, ...]


class Chain(_Message, frozen=True, tag="chain_is"):
    """A page of an account's chain; `height` is the tip's."""

    account: str
    asset: str
    scale: int
    height: int
    links: tuple[ChainLink, ...]


class AccountLine(_Message, frozen=True):
    """One account of a list; `incoming` is not yet confirmed."""

    name: str
    asset: str
    scale: int
    issuer: bool
    public_key: bytes
    height: int
    tip: bytes
    settled: int
    incoming: int


class Accounts(_Message, frozen=True, tag="accounts_are"):
    """A page of accounts; ask again after the last name while `more`."""

    accounts: tuple[AccountLine, ...]
    more: bool


class RouteNode(_Message, frozen=True):
    """A node on the way or in the group. `rank`: 0 owner, 1.. standby, -1 not of the group."""

    id: bytes
    host: str
    port: int
    rank: int
    alive: bool


class Route(_Message, frozen=True, tag="route_is"):
    """A Kademlia lookup: nodes asked in order, hops, and the group that decides, owner first."""

    key: bytes
    slot: bytes
    asked: tuple[bytes, ...]
    hops: int
    found: tuple[RouteNode, ...]
    group: tuple[RouteNode, ...]
    epoch: int


class PeerStatus(_Message, frozen=True):
    """Another member as this node sees it. `rtt_ms` < 0: not measured. `behind`: links it said it had fewer than
    this node (replication lag, at its last ping)."""

    id: bytes
    host: str
    port: int
    alive: bool
    rtt_ms: float
    links: int
    behind: int


class Status(_Message, frozen=True, tag="status_is"):
    """How a node is. `log_height`: links applied here; `accounts`: opened accounts; queues are counts of items."""

    id: bytes
    epoch: int
    k: int
    log_height: int
    accounts: int
    undecided: int
    waiting_links: int
    queued_requests: int
    client_requests: int
    clients: int
    uptime_s: float
    peers: tuple[PeerStatus, ...]
    counters: dict[str, int]


class AssetTotal(_Message, frozen=True):
    """Money of one asset on one replica: the sum of all balances and all incoming postings, always 0, because what
    issuers paid out is their negative balance."""

    asset: str
    total: int


class Digest(_Message, frozen=True, tag="digest_is"):
    """SHA-256 over (account, height, tip) of all accounts in name order."""

    digest: bytes
    accounts: int
    links: int
    epoch: int
    totals: tuple[AssetTotal, ...]


ReplyBody = (
    Recorded | Stale | NotStarted | Unknown | Refused | NotFound | Balance | Chain | Accounts | Route | Status | Digest
)


class Reply(_Message, frozen=True, tag="reply"):
    """The answer to call `number`."""

    number: int
    body: ReplyBody


ClientFrame = Hello | Call
NodeFrame = Hello | Refused | Reply

encode = msgspec.msgpack.Encoder().encode
_client_frames: msgspec.msgpack.Decoder[ClientFrame] = msgspec.msgpack.Decoder(ClientFrame)
_node_frames: msgspec.msgpack.Decoder[NodeFrame] = msgspec.msgpack.Decoder(NodeFrame)


def decode_client_frame_untrusted(payload: bytes) -> ClientFrame:
    """A frame that a client sent. Raises `msgspec.MsgspecError`, nothing else."""
    return _client_frames.decode(payload)


def decode_node_frame_untrusted(payload: bytes) -> NodeFrame:
    """A frame that a node sent to a client. Raises `msgspec.MsgspecError`, nothing else."""
    return _node_frames.decode(payload)
