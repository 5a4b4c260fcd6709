"""An observer without a network: links, votes and answers are made by hand and told to it."""

from collections.abc import Sequence

from chain.link import Entry, Link, Outcome, build_link, opening_slot
from chain.request import (
    ANY_TIP,
    Posting,
    Request,
    SignedRequest,
    opening,
    sign,
    transfer,
)
from chain.rows import Applied, VoteRow
from hopchain.wire import AskBalance, Balance, Recorded, ReplyBody, Submit
from netsim.checks import Watch, node_ids
from netsim.load import ISSUER
from netsim.world import EPOCH_MS, key_of, make_genesis, public_key
from routing.view import first_view, member_of

FUNDS = 100


class Bench:
    """A `Watch` of `nodes` nodes in one group, and the accounts a and b, both open; a has FUNDS coming in."""

    def __init__(self, nodes: int = 3) -> None:
        names = [f"node {i}" for i in range(nodes)]
        self.genesis = make_genesis(names, nodes)
        self.network = self.genesis.network_id
        self.view = first_view(self.network, nodes, [member_of(public_key(name)) for name in names])
        self.watch = Watch(self.genesis, self.view)
        self.ids = node_ids(self.genesis)
        self.nodes = nodes
        self._calls = 0
        self._nonce = 0
        for name in ("a", "b"):
            self.choose(self.open(name))
        self.funding = self.choose(self.pay(ISSUER, "a", FUNDS))

    # --- requests and links ---

    def nonce(self) -> bytes:
        self._nonce += 1
        return self._nonce.to_bytes(32, "big")

    def transfer(self, sender: str, recipient: str, amount: int, tip: bytes = ANY_TIP) -> Request:
        return transfer(self.network, sender, [Posting(recipient, amount)], self.nonce(), expect_tip=tip)

    def entry(self, request: Request, outcome: Outcome = Outcome.COMPLETED, key: str = "") -> Entry:
        signed = sign(request, key_of(key or request.sender))
        return Entry(signed, request, signed.request_id, outcome)

    def open(self, name: str) -> Link:
        request = opening(self.network, name, "CZK", public_key(name), self.nonce())
        return self.link(name, [self.entry(request)])

    def pay(self, sender: str, recipient: str, amount: int) -> Link:
        return self.link(sender, [self.entry(self.transfer(sender, recipient, amount))])

    def link(
        self,
        account: str,
        entries: Sequence[Entry],
        confirmed: Sequence[bytes] = (),
        *,
        after: Link | None = None,
        wrong_by: int = 0,
    ) -> Link:
        """The next link of the account, after its tip (or `after`); its balance is right but for `wrong_by`."""
        tip = after or self.watch.ledger.tips.get(account)
        income = sum(self.watch.ledger.credits[h].amount for h in confirmed)
        debit = sum(e.request.total for e in entries if e.outcome is Outcome.COMPLETED)
        return build_link(
            self.network,
            account,
            tip.height + 1 if tip else 0,
            tip.next_slot if tip else opening_slot(self.network, account),
            (tip.balance if tip else 0) + income - debit + wrong_by,
            1,
            tip.time_ms + 1 if tip else EPOCH_MS,
            entries,
            list(confirmed),  # type: ignore[arg-type]
        )

    def posting(self, link: Link) -> bytes:
        """The hash of its first posting."""
        return next(h for _, h, _, _ in link.postings())

    # --- what nodes do ---

    def row(self, node: int, link: Link, round_: int = 0, by: int = 0, promised: int | None = None) -> VoteRow:
        """A vote of `node` for the link at ballot (1, round, by)."""
        ballot = (1, round_, self.ids[by])
        above = ballot if promised is None else (1, promised, self.ids[by])
        return VoteRow(link.prev_hash, link.account, link.height, above, ballot, link.raw)

    def promise(self, node: int, link: Link, round_: int) -> VoteRow:
        return VoteRow(link.prev_hash, link.account, link.height, (1, round_, self.ids[0]))

    def vote(self, node: int, link: Link, round_: int = 0, by: int = 0) -> None:
        self.watch.committed(node, (self.row(node, link, round_, by),), 1.0)

    def apply(self, node: int, link: Link) -> None:
        self.watch.committed(node, (Applied(link),), 1.0)

    def choose(self, link: Link) -> Link:
        """All vote for it and apply it."""
        for node in range(self.nodes):
            self.vote(node, link)
        for node in range(self.nodes):
            self.apply(node, link)
        return link

    # --- what clients do ---

    def submit(self, signed: SignedRequest, node: int = 0) -> int:
        self._calls += 1
        self.watch.submitted(self._calls, node, Submit(signed.raw, signed.signature, 1000), 1.0)
        return self._calls

    def ask(self, account: str, *, linearizable: bool = False, min_height: int = 0) -> int:
        self._calls += 1
        self.watch.submitted(self._calls, 0, AskBalance(account, linearizable, min_height, 1000), 1.0)
        return self._calls

    def answer(self, call: int, body: ReplyBody) -> None:
        self.watch.answered(call, body, 2.0)

    def recorded(self, link: Link, entry: Entry, **wrong: int) -> Recorded:
        """The true answer for an entry of a link, but for what is given."""
        values = {"outcome": int(entry.outcome), "height": link.height, "balance": link.balance, **wrong}
        return Recorded(
            entry.request_id,
            link.account,
            values["outcome"],
            link.hash,
            values["height"],
            values["balance"],
            link.time_ms,
            b"",
            0,
            False,
        )

    def balance(
        self, account: str, *, height: int, settled: int, incoming: int = 0, linearizable: bool = False
    ) -> Balance:
        return Balance(
            account=account,
            asset="CZK",
            scale=2,
            issuer=False,
            settled=settled,
            incoming=incoming,
            incoming_count=0,
            tip=self.watch.ledger.chains[account][height].hash,
            height=height,
            link_epoch=1,
            time_ms=EPOCH_MS,
            epoch=1,
            as_of_ms=EPOCH_MS,
            linearizable=linearizable,
        )
