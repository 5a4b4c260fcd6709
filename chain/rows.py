"""What the store hands to the rules and takes from them: plain frozen records, one per kind of row."""

import msgspec

from chain.link import Link, LinkHash, Outcome, PostingHash, Slot
from chain.request import RequestId


class AccountHead(msgspec.Struct, frozen=True, gc=False):
    """An account as its last decided link leaves it. `balance` is settled money; incoming is not in it."""

    name: str
    asset: str
    public_key: bytes
    issuer: bool
    height: int
    tip: LinkHash
    balance: int
    epoch: int
    time_ms: int

    @property
    def slot(self) -> Slot:
        """The slot of the account's next link."""
        return Slot(self.tip)


class PostingRow(msgspec.Struct, frozen=True, gc=False):
    """A posting of a decided link, as people read it: a row of `transfers`. `time_ms` and `height` are its link's."""

    hash: PostingHash
    link_hash: LinkHash
    number: int
    sender: str
    height: int
    time_ms: int
    recipient: str
    amount: int
    memo: str
    confirmation: LinkHash | None = None
    prev_confirmed_hash: PostingHash | None = None


class OutcomeRow(msgspec.Struct, frozen=True, gc=False):
    """The recorded outcome of a request and the link that holds it."""

    request_id: RequestId
    account: str
    outcome: Outcome
    link_hash: LinkHash
    height: int
    balance: int
    time_ms: int


class Credit(msgspec.Struct, frozen=True, gc=False):
    """A posting as its recipient's next link needs it. `id`: where this replica keeps it, 0 for one that a link of this
    turn has just made; `sender_id`: the sender's number in this replica, 0 like it. `before`: the id of the posting
    that waits just before it in the stream from this sender to this recipient, 0 when none does."""

    hash: PostingHash
    sender: str
    recipient: str
    amount: int
    id: int = 0
    confirmation: LinkHash | None = None
    sender_id: int = 0
    before: int = 0


class Incoming(msgspec.Struct, frozen=True, gc=False):
    """An unconfirmed posting with what the second-thread check needs.

    `link_hash`, `height`, `time_ms` and `link_header` are the stored ones of the sender's link; `before` is the posting
    before this one in the stream from this sender to this recipient: one that waits too, or the last one that was
    confirmed (None when this is the first of the stream).
    """

    posting: Credit
    link_hash: LinkHash
    height: int
    time_ms: int
    link_header: bytes
    before: Credit | None

    @property
    def age(self) -> tuple[int, str, int]:
        """Sorts postings oldest first; each sender's are in the order of its chain."""
        return (self.time_ms, self.posting.sender, self.posting.id)


def thread_text(incoming: Incoming, what: str) -> str:
    """What to say of an incoming posting that cannot be taken up."""
    posting = incoming.posting
    sender = f"{posting.sender} (link {incoming.height})"
    return refused_text(posting.hash.hex()[:16], posting.amount, sender, posting.recipient, what)


def refused_text(posting: str, amount: int, sender: str, recipient: str, what: str) -> str:
    """The same for one of which not all is here: it is named by what is."""
    return (
        f"posting {posting} of {amount} from {sender} to {recipient} is refused: {what}; this database is damaged: "
        "run `hopchain verify` on it"
    )


class Forming(msgspec.Struct, frozen=True, gc=False):
    """Everything on this node's disk that the next link of one account depends on.

    `head` is None for an account that has no link here. `tip_income`: hashes of the postings whose confirmation is
    the tip, in age order. `incoming`: the oldest MAX_CONFIRMED unconfirmed postings, in age order;
    `incoming_count` is of all of them.
    """

    head: AccountHead | None
    tip_checksum: bytes
    tip_income: tuple[PostingHash, ...]
    incoming: tuple[Incoming, ...]
    incoming_count: int


class VoteRow(msgspec.Struct, frozen=True, gc=False):
    """What an acceptor must never forget about one undecided slot (design R4). A ballot is (epoch, round, node id);
    `accepted` and `link` are both None or both set."""

    slot: Slot
    account: str
    height: int
    promised: tuple[int, int, bytes]
    accepted: tuple[int, int, bytes] | None = None
    link: bytes | None = None


class Applied(msgspec.Struct, frozen=True, gc=False):
    """A decided link that is to become part of this replica (design R11: decided only). `confirmed`: the postings that
    it confirms, as they were read; the store looks for those that are not given, or have no id."""

    link: Link
    confirmed: tuple[Credit, ...] = ()


class ViewRow(msgspec.Struct, frozen=True, gc=False):
    """The view that follows the one with hash `prev_hash`: decided, and to be installed (design R5, R6).
    `raw`: its canonical bytes, which `chain` does not read; `hash` is their SHA-256."""

    epoch: int
    hash: bytes
    prev_hash: bytes
    raw: bytes


class ActiveRow(msgspec.Struct, frozen=True, gc=False):
    """For which keys this node is ACTIVE in `epoch` (design R7): the bytes of all their ranges, which replace those
    before."""

    epoch: int
    ranges: bytes
