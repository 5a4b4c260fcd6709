"""The client protocol: what travels on a node's client port.

TLS 1.3, then frames (u32 length | msgpack). The client opens with `Hello`, the node answers with its own. After that
each frame of the client is one `Call`, each frame of the node one `Reply` with the number of its call; replies come
in any order. All structs are msgpack arrays whose first element is the tag.

Every amount is an integer of minor units, every hash 32 raw bytes, every node id 20 raw bytes.

`stale` in what a node read from its replica: others may have gone on without it. It has no contact with a majority of
the members, or was removed, or it is a guest that has not caught up with them. `Recorded` has none: an outcome is
final, wherever it is known. `Status` and `Health` are about the node itself, and say more.
"""

from typing import Final, Literal

import msgspec

from chain.link import Outcome

PROTOCOL_VERSION: Final = 1
MAX_CLIENT_FRAME_BYTES: Final = 4 * 1024 * 1024  # twice the largest link
MAX_PAGE: Final = 1000  # rows of one list answer
MAX_VIEWS_PAGE: Final = 100  # views of one `Members`
# Calls of one connection: a node reads no further while so many are not answered, signs of life neither
MAX_UNANSWERED: Final = 1024
MAX_UNANSWERED_BYTES: Final = 8 * 1024 * 1024  # of those calls, as frames without their length; one alone may be larger
AT_ONCE: Final = -1  # a balance that waits for no link: every link is newer


class _Message(msgspec.Struct, frozen=True, gc=False, array_like=True):
    pass


class Hello(_Message, frozen=True, tag="hello"):
    """First frame each way. A node of another network answers `Refused` and closes. `node`: in a node's own, its id; it
    is empty in a client's, and may be left out."""

    version: int
    network: bytes
    node: bytes = b""


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
    least link `min_height` of the account; the first link is 0, and AT_ONCE waits for none. Answers: Balance, NotFound,
    Unknown (its `request_id` is empty: no request is in doubt)."""

    account: str
    linearizable: bool = False
    min_height: int = AT_ONCE
    timeout_ms: int = 5000

    @property
    def waits(self) -> bool:
        """The node may have to wait for others before it answers."""
        return self.linearizable or self.min_height > AT_ONCE


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


class SubmitChange(_Message, frozen=True, tag="change"):
    """Change the members as the signed bytes say (hopchain.change). Sending the same again is safe: it answers
    `Changed` when the view is as asked. Answers: Changed, Refused, NotStarted or Unknown."""

    raw: bytes
    signature: bytes
    timeout_ms: int


class AskMembers(_Message, frozen=True, tag="members"):
    """The views from `from_epoch` on, as this node knows them, ascending. Answers: Members."""

    from_epoch: int


class AskHealth(_Message, frozen=True, tag="health"):
    """What this node says of itself and sees of the others. Answers: Health."""


CallBody = (
    Submit
    | AskOutcome
    | AskBalance
    | AskChain
    | AskAccounts
    | AskRoute
    | AskStatus
    | AskDigest
    | SubmitChange
    | AskMembers
    | AskHealth
)


class Call(_Message, frozen=True, tag="call"):
    """One call; `number` is the client's, unique on its connection."""

    number: int
    body: CallBody


# --- replies -------------------------------------------------------------------------------------------------------


class Recorded(_Message, frozen=True, tag="recorded"):
    """The request's one outcome, final, and perhaps a rejection: money moved only when it is `completed`.

    `outcome`: hopchain.Outcome, a number on the wire; 0 is completed, everything else says why it was rejected.

    `balance` is the account's after link `link_hash` of `height`, made at `time_ms`. `decided_by` is the node that
    made it (empty when this node was not told, or had the outcome before this call); `hops`: 1 when the node that was
    asked handed the request to another one, and 1 more for each link that it waited for; `repeated`: this node had the
    outcome before this call. One that lags learns it during the call, and says False.
    """

    request_id: bytes
    account: str
    outcome: Outcome
    link_hash: bytes
    height: int
    balance: int
    time_ms: int
    decided_by: bytes
    hops: int
    repeated: bool

    @property
    def completed(self) -> bool:
        """It was executed; otherwise it was rejected, and nothing moved."""
        return self.outcome == Outcome.COMPLETED


class Stale(_Message, frozen=True, tag="stale"):
    """Final: the request expected a tip that has a successor already, so it can never execute."""

    request_id: bytes
    tip: bytes
    height: int


class NotStarted(_Message, frozen=True, tag="not_started"):
    """Nothing is recorded; the same request may be sent again, here or at any node. `reason` is for people.
    To a `SubmitChange`, `request_id` is the SHA-256 of its `raw`."""

    request_id: bytes
    code: str
    reason: str


NOT_COVERED: Final = "not_covered"  # `code` of one that has expired, or that its sender's money there does not cover


class Unknown(_Message, frozen=True, tag="unknown"):
    """The deadline passed. Ask later with AskOutcome, or settle it with a cancel. To a `SubmitChange`, `request_id` is
    the SHA-256 of its `raw`; send the same change again, or look with AskMembers."""

    request_id: bytes
    reason: str


class Refused(_Message, frozen=True, tag="refused"):
    """Refused at admission, nothing recorded: the call itself is wrong. `code` is stable, `reason` says what to do."""

    code: str
    reason: str


class NotFound(_Message, frozen=True, tag="not_found"):
    """This node knows nothing of that name, hash or request (yet); when it is `stale`, others may well know it."""

    what: str
    stale: bool = False


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
    stale: bool = False


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
    """One request of a link: kind and outcome as in hopchain.Kind and hopchain.Outcome."""

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
    stale: bool = False


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
    stale: bool = False


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
    stale: bool = False


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
    stale: bool = False


class Changed(_Message, frozen=True, tag="changed"):
    """The members are as the change asked, in the view of `epoch`. `member`: the change's node is one of them now."""

    epoch: int
    view_hash: bytes
    member: bool


class MemberLine(_Message, frozen=True):
    """A member of a view: node id, raw Ed25519 public key, incarnation (design R12)."""

    id: bytes
    public_key: bytes
    incarnation: int


class ViewLine(_Message, frozen=True):
    """One view: `by` is the node that proposed it at `time_ms` of its clock (zeros in the first view)."""

    epoch: int
    hash: bytes
    time_ms: int
    by: bytes
    members: tuple[MemberLine, ...]


class Members(_Message, frozen=True, tag="members_are"):
    """A page of views, at most MAX_VIEWS_PAGE; `epoch` is the newest that this node knows."""

    epoch: int
    views: tuple[ViewLine, ...]
    stale: bool = False


class PeerHealth(_Message, frozen=True):
    """Another node as this one sees it. `epoch`, `active` and `clock_ms_apart` (its clock minus ours) are from its last
    ping; `host`, `port`: where members reach it; `client_port`: where clients do (0: not known, as when there is no
    host)."""

    id: bytes
    alive: bool
    epoch: int
    active: bool
    clock_ms_apart: int
    host: str
    port: int
    client_port: int = 0


class Health(_Message, frozen=True, tag="health_is"):
    """What is to be known of a node to say what is wrong.

    `role`: "member" of the newest view it knows; "guest": never was one; "removed": was one, until epoch `removed_in`
    (0 otherwise). `active`: it may vote everywhere it has to; `syncing_regions`: how many regions it is not ACTIVE in
    yet (design R7); `regions_without_majority`: regions of the view of whose group it reaches no majority. `verified`:
    others have vouched for its disk (R12). Sizes are bytes, and `disk_total` is 0 when they are not known;
    `certificate_until_ms`: when the certificate ends that it shows, which may not be the one in its directory;
    `certificate_unusable`: the one there cannot be taken up, so that it would not start with it. `disk_reserve`: with
    less of its disk free it takes no new requests; 0: it does not say.
    """

    node: bytes
    epoch: int
    view_hash: bytes
    role: Literal["member", "guest", "removed"]
    active: bool
    syncing_regions: int
    regions_without_majority: int
    verified: bool
    now_ms: int
    disk_free: int
    disk_total: int
    database_bytes: int
    certificate_until_ms: int
    links: int
    peers: tuple[PeerHealth, ...]
    removed_in: int
    certificate_unusable: bool = False
    disk_reserve: int = 0


ReplyBody = (
    Recorded
    | Stale
    | NotStarted
    | Unknown
    | Refused
    | NotFound
    | Balance
    | Chain
    | Accounts
    | Route
    | Status
    | Digest
    | Changed
    | Members
    | Health
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
