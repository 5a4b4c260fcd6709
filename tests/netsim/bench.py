"""An observer without a network: links, votes and answers are made by hand and told to it."""

from collections.abc import Sequence

from chain.link import Entry, Link, Outcome, Slot, build_link, opening_slot
from chain.request import (
    ANY_TIP,
    Posting,
    Request,
    SignedRequest,
    opening,
    sign,
    transfer,
)
from chain.rows import ActiveRow, Applied, ViewRow, VoteRow
from hopchain.change import Change, ChangeAction, sign_change
from hopchain.wire import AT_ONCE, AskBalance, Balance, Recorded, ReplyBody, Submit, SubmitChange
from netsim.checks import Watch, node_ids
from netsim.names import EPOCH_MS, ISSUER, OPERATOR, key_of, make_genesis, public_key
from routing.keyspace import node_id_of
from routing.regions import RING, encode_ranges
from routing.view import View, encode_view, first_view, member_of, with_member, without_member

FUNDS = 100


class Bench:
    """A `Watch` of `nodes` nodes in one group, and the accounts a and b, both open; a has FUNDS coming in. `spares`:
    nodes that are in no view yet."""

    def __init__(self, nodes: int = 3, spares: int = 0) -> None:
        names = [f"node {i}" for i in range(nodes)]
        self.genesis = make_genesis(names, nodes)
        self.network = self.genesis.network_id
        self.view = first_view(self.network, nodes, [member_of(public_key(name)) for name in names])
        guests = [node_id_of(public_key(f"node {i}")) for i in range(nodes, nodes + spares)]
        self.watch = Watch(self.genesis, self.view, guests)
        self.ids = [*node_ids(self.genesis), *guests]
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
        epoch: int = 1,
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
            epoch,
            tip.time_ms + 1 if tip else EPOCH_MS,
            entries,
            list(confirmed),  # type: ignore[arg-type]
        )

    def posting(self, link: Link) -> bytes:
        """The hash of its first posting."""
        return next(h for _, h, _, _ in link.postings())

    # --- what nodes do ---

    def row(
        self, node: int, link: Link, round_: int = 0, by: int = 0, promised: int | None = None, epoch: int = 1
    ) -> VoteRow:
        """A vote of `node` for the link at ballot (epoch, round, by)."""
        ballot = (epoch, round_, self.ids[by])
        above = ballot if promised is None else (epoch, promised, self.ids[by])
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

    # --- views ---

    def next_view(self, *, add: int | None = None, remove: int | None = None, after: View | None = None) -> View:
        """The view after `after` (by default the newest), with one member more or fewer."""
        before = after or self.watch.views[-1]
        if add is not None:
            return with_member(before, member_of(public_key(f"node {add}")), 0, self.ids[0])
        assert remove is not None
        return without_member(before, self.ids[remove], 0, self.ids[0])

    def view_vote(self, view: View, round_: int = 1, by: int = 0) -> VoteRow:
        """A vote for the view after the one that it follows."""
        ballot = (view.epoch - 1, round_, self.ids[by])
        return VoteRow(Slot(view.prev_hash), "", view.epoch, ballot, ballot, encode_view(view))

    def view_row(self, view: View) -> ViewRow:
        return ViewRow(view.epoch, view.hash, view.prev_hash, encode_view(view))

    def choose_view(self, view: View, *voters: int, installing: Sequence[int] = ()) -> View:
        """The voters vote for it; they and others install it."""
        for node in voters:
            self.watch.committed(node, (self.view_vote(view),), 1.0)
        for node in (*voters, *installing):
            self.watch.committed(node, (self.view_row(view),), 1.0)
        return view

    def activate(self, view: View, *nodes: int) -> None:
        """They are ACTIVE everywhere in it."""
        for node in nodes:
            self.watch.committed(node, (ActiveRow(view.epoch, encode_ranges(RING)),), 1.0)

    # --- what clients do ---

    def change(self, node: int, *, add: bool, at: int = 0) -> int:
        """The operator asks node `at` to add or remove a node."""
        self._calls += 1
        action = ChangeAction.ADD if add else ChangeAction.REMOVE
        change = Change(self.network, action, public_key(f"node {node}"), 1, 2**60)
        signed = sign_change(change, key_of(OPERATOR))
        self.watch.submitted(self._calls, at, SubmitChange(signed.raw, signed.signature, 1000), 1.0)
        return self._calls

    def submit(self, signed: SignedRequest, node: int = 0) -> int:
        self._calls += 1
        self.watch.submitted(self._calls, node, Submit(signed.raw, signed.signature, 1000), 1.0)
        return self._calls

    def ask(self, account: str, *, linearizable: bool = False, min_height: int = AT_ONCE) -> int:
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
