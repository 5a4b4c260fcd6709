"""The messages between nodes: one msgpack frame holds a list of them, in the order they were sent.

Nodes trust each other's word, not each other's bytes: `decode_frame_untrusted` raises only `RemoteFault`.
Links travel as their canonical bytes. A slot is always named with its account and height, so that a receiver can
look up what it knows about it without an index over hashes.
"""

from collections.abc import Iterator, Sequence
from typing import Annotated, Final

import msgspec

from chain.errors import RemoteFault
from chain.names import NAME_BYTES
from hopchain.framing import MAX_FRAME_BYTES
from node.paxos import Ballot
from routing.keyspace import NodeId

MAX_MESSAGE_BYTES: Final = MAX_FRAME_BYTES - 5  # one message in a frame of its own
MAX_EARLIER: Final = 64  # logs that an Offer names beside its own
MAX_MESSAGES: Final = 20_000  # of one frame; more wait for the next turn

# What numbers, hashes and names from elsewhere may be, so that they fit SQLite and the view; anything else is no
# message.
Count = Annotated[int, msgspec.Meta(ge=0, le=2**63 - 1)]
Hash = Annotated[bytes, msgspec.Meta(min_length=32, max_length=32)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=NAME_BYTES)]


class _Message(msgspec.Struct, frozen=True, gc=False, array_like=True):
    pass


class SlotName(_Message, frozen=True):
    """The place after one link: `slot` is that link's hash (or the opening slot), `height` that of the link to come."""

    slot: Hash
    account: Name
    height: Count


class Item(_Message, frozen=True):
    """A client's request on its way to an owner; `gateway` is the node that answers the client. `number`: which of its
    hand-overs this is; whoever does not take the request names it again."""

    raw: bytes
    signature: bytes
    gateway: bytes
    number: Count = 0


# --- consensus (node.slots) ----------------------------------------------------------------------------------------


class Prepare(_Message, frozen=True, tag="prepare"):
    """Phase 1: promise nothing below `ballot`, and tell what you voted for."""

    at: SlotName
    ballot: Ballot


class Promise(_Message, frozen=True, tag="promise"):
    """Answer to Prepare; `link` are the bytes of the vote at ballot `accepted`."""

    slot: bytes
    ballot: Ballot
    accepted: Ballot | None
    link: bytes | None


class Accept(_Message, frozen=True, tag="accept"):
    """Phase 2: vote for `link` at `ballot`."""

    at: SlotName
    ballot: Ballot
    link: bytes


class Accepted(_Message, frozen=True, tag="accepted"):
    """Answer to Accept: the vote is durable."""

    slot: bytes
    ballot: Ballot


class Refuse(_Message, frozen=True, tag="refuse"):
    """Answer to Prepare or Accept: `promised` is higher than `ballot` (or its epoch is not installed here)."""

    slot: bytes
    ballot: Ballot
    promised: Ballot


class Decided(_Message, frozen=True, tag="decided"):
    """`link` is decided. `by` counted the votes; `depth` is for the broadcast tree (routing.broadcast)."""

    link: bytes
    by: NodeId
    depth: int


class DecidedHash(_Message, frozen=True, tag="decided_hash"):
    """`Decided` for a member that votes, and so has the link: the one with this hash is decided in this slot (ADR
    26)."""

    at: SlotName
    link: Hash


# --- gateway and owner (node.gateway, node.forwarding, node.owner) -------------------------------------------------


class Forward(_Message, frozen=True, tag="forward"):
    """Requests for the owner of a slot. `takeover`: the sender could not reach the ranks before the receiver."""

    at: SlotName
    items: tuple[Item, ...]
    takeover: bool


class Moved(_Message, frozen=True, tag="moved"):
    """Answer to Forward: the slot has a successor. `links` are what the sender lacked, from `height` on."""

    account: Name
    height: Count
    links: tuple[bytes, ...]


class Declined(_Message, frozen=True, tag="declined"):
    """Answer to Forward: these requests were dropped and nothing of them is recorded. `numbers`: of each, the number of
    its Item."""

    account: Name
    request_ids: tuple[bytes, ...]
    code: str
    reason: str
    numbers: tuple[Count, ...] = ()


class NotOwner(_Message, frozen=True, tag="not_owner"):
    """Answer to Forward: by the view of `epoch` the slot's group is `group`, and the receiver is not the one to ask.
    `numbers` as in Declined."""

    at: SlotName
    request_ids: tuple[bytes, ...]
    epoch: int
    group: tuple[NodeId, ...]
    numbers: tuple[Count, ...] = ()


# --- majority reads (node.inquiry) ---------------------------------------------------------------------------------


class AskSlot(_Message, frozen=True, tag="ask_slot"):
    """Has this slot a successor, or a vote for one? Asked in `epoch`: an answer of another one would not count."""

    number: int
    at: SlotName
    epoch: Count


class SlotAnswer(_Message, frozen=True, tag="slot_answer"):
    """Answer to AskSlot: decided links from the slot on, or `voted` when a vote here is not decided yet. `epoch`: which
    one the answering node has installed, and is ACTIVE in for this slot."""

    number: int
    voted: bool
    links: tuple[bytes, ...]
    epoch: Count


class AskIncome(_Message, frozen=True, tag="ask_income"):
    """Which incoming money of `account` do you know? `digest` is that of the list I know (node.income_inquiry). Asked
    in `epoch`."""

    number: int
    account: Name
    digest: bytes
    epoch: Count


class IncomeAnswer(_Message, frozen=True, tag="income_answer"):
    """Answer to AskIncome: for each sender the height of its newest link that pays the account and is not confirmed,
    votes for undecided links included (no sender whose links are decided when the asker's digest says that it knows the
    same); and the account itself with the height of its tip, whose links have confirmed the rest."""

    number: int
    senders: tuple[tuple[Name, Count], ...]
    epoch: Count


# --- views (node.membership, node.view_ballots, node.syncing) ------------------------------------------------------


class ViewPrepare(_Message, frozen=True, tag="view_prepare"):
    """Phase 1 for the view after that of epoch `ballot.epoch`, among all its members (design R1)."""

    ballot: Ballot


class ViewPromise(_Message, frozen=True, tag="view_promise"):
    """Answer to ViewPrepare; `view` are the bytes of the vote at ballot `accepted`."""

    ballot: Ballot
    accepted: Ballot | None
    view: bytes | None


class ViewAccept(_Message, frozen=True, tag="view_accept"):
    """Phase 2: vote for `view` at `ballot`."""

    ballot: Ballot
    view: bytes


class ViewAccepted(_Message, frozen=True, tag="view_accepted"):
    """Answer to ViewAccept: the vote is durable."""

    ballot: Ballot


class ViewRefuse(_Message, frozen=True, tag="view_refuse"):
    """Answer to ViewPrepare or ViewAccept: `promised` is higher than `ballot`."""

    ballot: Ballot
    promised: Ballot


class AskViews(_Message, frozen=True, tag="ask_views"):
    """Which views follow that of epoch `after`?"""

    after: Count


class Views(_Message, frozen=True, tag="views"):
    """Decided views, epoch by epoch."""

    views: tuple[bytes, ...]


class SyncVote(_Message, frozen=True):
    """A vote: the undecided slot, the ballot and the link."""

    at: SlotName
    ballot: Ballot
    link: bytes


class AskSync(_Message, frozen=True, tag="ask_sync"):
    """What did you vote for before you installed `epoch`? (design R8) Tell me `part` of it. The number is the same for
    all parts of an answer."""

    number: int
    epoch: Count
    part: Count = 0


class SyncPart(_Message, frozen=True, tag="sync_part"):
    """Answer to AskSync, `part` of `parts`, all of one moment: the votes on undecided slots, the length of the log
    (what is decided is no vote any more: the asker needs those links too), and where the sender was ACTIVE in the epoch
    before and, `active_now`, is in `epoch`. `log_id`: which log that is, as in Offer. `moment`: drawn for each answer
    in more than one part, for a source that was started again begins anew."""

    number: int
    epoch: Count
    part: Count
    parts: Count
    active: bytes
    log: Count
    votes: tuple[SyncVote, ...]
    active_now: bytes = b""
    log_id: Count = 0
    moment: Count = 0


# --- replication (node.replica, node.pulling) -----------------------------------------------------------------------


class Want(_Message, frozen=True, tag="want"):
    """Send decided links: chains from a height on, links by hash, links that hold a posting."""

    chains: tuple[tuple[Name, Count], ...] = ()
    links: tuple[bytes, ...] = ()
    postings: tuple[bytes, ...] = ()


class Links(_Message, frozen=True, tag="links"):
    """Decided links, an account's in ascending order."""

    links: tuple[bytes, ...]


class Pull(_Message, frozen=True, tag="pull"):
    """What have you applied after `after` of your log `log_id` (or from the start, when that is not your log)? I have
    `count` links whose hashes XOR to `accumulator`."""

    after: Count
    count: Count
    accumulator: bytes
    log_id: Count = 0


class Offer(_Message, frozen=True, tag="offer"):
    """Answer to Pull: hashes of the log behind `after` up to `upto`; `head` is where the log of `count` links ends.
    Equal replicas: no hashes. `log_id`: drawn by each process of a node. `earlier`, when `after` is 0: the last logs of
    that disk, newest first, and for how many links each of them is the same as this one. `accumulator`: when the
    replicas are equal, of both: a late answer may come to another process than asked."""

    hashes: tuple[bytes, ...]
    upto: Count
    head: Count
    count: Count
    after: Count
    log_id: Count
    earlier: Annotated[tuple[tuple[Count, Count], ...], msgspec.Meta(max_length=MAX_EARLIER)] = ()
    accumulator: Annotated[bytes, msgspec.Meta(max_length=32)] = b""


class Ping(_Message, frozen=True, tag="ping"):
    """Liveness and round-trip time; `links` the sender has applied, `votes` how often it has made votes durable; the
    `epoch` it has installed, and whether it is ACTIVE in it in all its regions; its wall clock, Unix milliseconds."""

    sent: float
    links: Count
    votes: Count
    epoch: Count
    active: bool
    time_ms: Count


class Pong(_Message, frozen=True, tag="pong"):
    """Answer to Ping, with its `sent`; `seen` is the highest `votes` that the answering node ever saw of the asker.
    `boot`: the process of the asker that it vouches for, as nobody it can ask sees another one (node.doubles); None:
    not yet. Whichever process of the asker is connected gets the word, and heeds it when it is that one."""

    sent: float
    links: Count
    seen: Count
    boot: bytes | None = b""


class AskBoot(_Message, frozen=True, tag="ask_boot"):
    """I see `node` with this `boot` (of its hello): do you see another one? To `node` itself, from who does: others see
    this boot of you. (node.doubles)"""

    node: NodeId
    boot: bytes


class BootAnswer(_Message, frozen=True, tag="boot_answer"):
    """Answer to AskBoot: `twice` when another boot of `node` is connected here and answers; `later`: that one was there
    first."""

    node: NodeId
    boot: bytes
    twice: bool
    later: bool = False


class Twice(_Message, frozen=True, tag="twice"):
    """To a node: another process of yours, with another boot than this, runs too; `later`: it was there first."""

    boot: bytes
    later: bool = False


class Closing(_Message, frozen=True, tag="closing"):
    """This process ends, as it was told to: its node may be back at once under another boot (node.doubles)."""


Message = (
    Prepare
    | Promise
    | Accept
    | Accepted
    | Refuse
    | Decided
    | DecidedHash
    | Forward
    | Moved
    | Declined
    | NotOwner
    | AskSlot
    | SlotAnswer
    | AskIncome
    | IncomeAnswer
    | Want
    | Links
    | Pull
    | Offer
    | Ping
    | Pong
    | ViewPrepare
    | ViewPromise
    | ViewAccept
    | ViewAccepted
    | ViewRefuse
    | AskViews
    | Views
    | AskSync
    | SyncPart
    | AskBoot
    | BootAnswer
    | Twice
    | Closing
)

_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(tuple[Message, ...])
_ARRAY32: Final = b"\xdd"  # msgpack: an array whose length is the next four bytes


def encode_message(message: Message) -> bytes:
    """One message, as it stands in a frame."""
    return _encoder.encode(message)


def encode_frames(messages: Sequence[bytes]) -> Iterator[bytes]:
    """Encoded messages for one peer in as few frames as MAX_FRAME_BYTES and MAX_MESSAGES allow, in order.

    A message is at most a few links long, so each fits a frame.
    """
    batch: list[bytes] = []
    size = 0
    for message in messages:
        if batch and (size + len(message) > MAX_FRAME_BYTES - 5 or len(batch) == MAX_MESSAGES):
            yield _frame(batch)
            batch, size = [], 0
        batch.append(message)
        size += len(message)
    if batch:
        yield _frame(batch)


def _frame(batch: Sequence[bytes]) -> bytes:
    return b"".join((_ARRAY32, len(batch).to_bytes(4, "big"), *batch))


def decode_frame_untrusted(payload: bytes) -> tuple[Message, ...]:
    """The messages of a frame; `RemoteFault("malformed")` when it is not one."""
    try:
        messages = _decoder.decode(payload)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        raise RemoteFault("malformed", f"a frame of {len(payload)} bytes cannot be read: {error}") from None
    if len(messages) > MAX_MESSAGES:
        raise RemoteFault("malformed", f"a frame with {len(messages)} messages: at most {MAX_MESSAGES}")
    return messages
