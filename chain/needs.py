"""What one turn reads: `Needs` names the rows, `Loaded` has the answers; `chain.load` fetches them."""

import msgspec

from chain.link import Link, LinkHash, PostingHash
from chain.request import RequestId
from chain.rows import AccountHead, Credit, Forming, OutcomeRow
from chain.seal import LogHead


class Needs(msgspec.Struct):
    """What a turn will look at. Fill the sets, then `load`."""

    heads: set[str] = msgspec.field(default_factory=set)  # account names
    # Names of accounts of which no more matters than that they are here, and what they hold.
    assets: set[str] = msgspec.field(default_factory=set)
    # (account, request id): an id counts only for the account whose link records it, because anybody may cancel an id
    # that is not theirs.
    outcomes: set[tuple[str, RequestId]] = msgspec.field(default_factory=set)
    # Those that a client may be told: as their links have them, in this order, as far as `TOLD_BYTES` of links go.
    told: dict[tuple[str, RequestId], None] = msgspec.field(default_factory=dict)
    postings: dict[str, set[PostingHash]] = msgspec.field(default_factory=dict)  # that a link of this account confirms
    # Hashes of postings of links that this turn may apply: for these no search by hash.
    made: set[PostingHash] = msgspec.field(default_factory=set)
    links_at: set[tuple[str, int]] = msgspec.field(default_factory=set)  # (account, height)
    chains: set[tuple[str, int]] = msgspec.field(default_factory=set)  # (account, from height)
    accounts_of: set[LinkHash] = msgspec.field(default_factory=set)  # for whose links these are
    # What other nodes asked for: chains, links, and the links that hold these postings; of each kind in this order, as
    # far as `WANTED_BYTES` go.
    wanted_chains: dict[tuple[str, int], None] = msgspec.field(default_factory=dict)
    wanted_links: dict[LinkHash, None] = msgspec.field(default_factory=dict)
    wanted_postings: dict[PostingHash, None] = msgspec.field(default_factory=dict)
    known: set[LinkHash] = msgspec.field(default_factory=set)  # which of these are here
    forming: set[str] = msgspec.field(default_factory=set)  # account names
    # `forming` and `income`, but only of accounts that at most `FEW` postings wait for, because the others cost much.
    forming_few: set[str] = msgspec.field(default_factory=set)
    income: set[str] = msgspec.field(default_factory=set)  # account names
    funds: set[str] = msgspec.field(default_factory=set)  # account names
    log: set[int] = msgspec.field(default_factory=set)  # after which seq
    log_head: bool = False  # the end of the log


class Income(msgspec.Struct, frozen=True, gc=False):
    """Of all unconfirmed postings to one account: for each sender the greatest height of its links that hold one."""

    senders: tuple[tuple[str, int], ...]


class LogPage(msgspec.Struct, frozen=True, gc=False):
    """Link hashes in the order in which they were applied here; `last_seq` is the seq of the last of them, or the
    seq asked for when nothing is after it."""

    hashes: tuple[LinkHash, ...]
    last_seq: int


class Loaded(msgspec.Struct):
    """The answers to `Needs`, under the same names. An absent key is not there; `chains`, `forming`, `income` and `log`
    hold every key that was asked for (with nothing in it, where there is nothing). Raw links are header | body, as
    `decode_link_untrusted` takes them.
    """

    heads: dict[str, AccountHead] = msgspec.field(default_factory=dict)
    assets: dict[str, str] = msgspec.field(default_factory=dict)
    outcomes: dict[tuple[str, RequestId], OutcomeRow] = msgspec.field(default_factory=dict)
    # Of `told`: for their links, of so many bytes, there was no room. Their outcomes are as their rows have them.
    untold: dict[tuple[str, RequestId], int] = msgspec.field(default_factory=dict)
    postings: dict[PostingHash, Credit] = msgspec.field(default_factory=dict)
    links_at: dict[tuple[str, int], LinkHash] = msgspec.field(default_factory=dict)
    chains: dict[tuple[str, int], tuple[bytes, ...]] = msgspec.field(default_factory=dict)
    accounts_of: dict[LinkHash, str] = msgspec.field(default_factory=dict)  # by their headers
    wanted_chains: dict[tuple[str, int], tuple[bytes, ...]] = msgspec.field(default_factory=dict)
    wanted_links: dict[LinkHash, bytes] = msgspec.field(default_factory=dict)
    wanted_postings: dict[PostingHash, bytes] = msgspec.field(default_factory=dict)
    # What of that which is wanted for others was not looked for, because there was no room for it.
    cut: set[tuple[str, int] | bytes] = msgspec.field(default_factory=set)
    known: set[LinkHash] = msgspec.field(default_factory=set)
    forming: dict[str, Forming] = msgspec.field(default_factory=dict)  # with what `forming_few` asked for, as `income`
    income: dict[str, Income] = msgspec.field(default_factory=dict)
    # Balance and what waits for the account; MAX_AMOUNT where more waits than one link takes up, which is not counted.
    funds: dict[str, int] = msgspec.field(default_factory=dict)
    log: dict[int, LogPage] = msgspec.field(default_factory=dict)
    log_head: LogHead | None = None
    applied: dict[LinkHash, bytes] = msgspec.field(default_factory=dict)  # raw links, since the turn began
    made: dict[PostingHash, Link] = msgspec.field(default_factory=dict)  # see `note_made`
    # Of streams (sender, recipient), the id of the last posting that waits: where this turn may make the next one, and
    # few wait.
    ends: dict[tuple[str, str], int] = msgspec.field(default_factory=dict)
    taken: set[int] = msgspec.field(default_factory=set)  # ids of the postings that links of this turn confirm

    def link(self, link: LinkHash) -> bytes | None:
        """A raw link that was wanted for others, or that this turn has applied."""
        return self.wanted_links.get(link) or self.applied.get(link)

    def posting(self, posting: PostingHash) -> Credit | None:
        """The row of a posting that was asked for, or that a link made since (`note_made`)."""
        row = self.postings.get(posting)
        if row is None and posting in self.made:
            link = self.made[posting]
            made = link.posting(link.number_of[posting])
            before = self.ends.get((link.account, made.recipient), 0)
            row = self.postings[posting] = Credit(posting, link.account, made.recipient, made.amount, before=before)
        return row

    def note_made(self, link: Link) -> None:
        """The postings of a link that is applied in this turn are as good as loaded. Few are ever looked at, so rows
        are made for those only."""
        self.made.update(dict.fromkeys(link.posting_hashes, link))
