"""The observer of a simulated network: it sees every commit, message and answer of every node, and never forgets.

    I1   agreement    no two values are chosen in one slot. Chosen: votes of a majority of its group at one ballot are
                      on disk, whether anybody learned of it or not
    I2   parents      votes are only for links whose parent is chosen (R11)
    I3   money        no balance below zero, each posting confirmed once, by the account that it pays
    I4   ballots      one value per ballot, for ever (R4)
    I5   outcomes     one outcome per request and account, for ever (R13)
    I6   seen, spent  no rejection for money or a name that was decided before the client asked (design section 2)
    I8   memory       an acceptor never goes back on what it sent, across restarts; what it sends is on disk (R2, R4)
    I9   decided only nothing but chosen links is applied or sent as decided (R11)
    I10  truth        every answer to a client is true (R13)
    I12  views        installed in order by every node, each with the votes of a majority of the members before it, one
                      an epoch

`Broken` names the rule. The observer is told the truth by the world; it knows nothing of how a node works.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from chain.genesis import Genesis, issuer_links
from chain.link import Link, Outcome, decode_link_untrusted, opening_slot
from chain.reads import Balance
from chain.request import ANY_TIP, Kind, Request, SignedRequest
from chain.rows import ActiveRow, Applied, ViewRow, VoteRow
from chain.store import Write
from hopchain.wire import AskBalance, NotStarted, Recorded, Refused, ReplyBody, Stale, Unknown
from node.messages import Accept, Accepted, Decided, DecidedHash, Links, Message, Moved, Promise, SlotAnswer
from node.paxos import Ballot
from routing.keyspace import NodeId, route_key
from routing.regions import EMPTY, RING, Ranges, decode_ranges, holds
from routing.view import View, check_next, decode_view, majority


class Broken(AssertionError):
    """One of the rules above does not hold."""


@dataclass
class Call:
    """One call of a client. `forged`: its request is not sound, so a refusal is true. `gone`: its node died since."""

    node: NodeId
    at: float
    signed: SignedRequest | None = None
    request: Request | None = None
    ask: AskBalance | None = None
    forged: bool = False
    gone: bool = False
    answer: ReplyBody | Balance | None = None


@dataclass
class _Account:
    links: list[Link] = field(default_factory=list)
    debits: list[int] = field(default_factory=list)  # up to and with the link of the same height
    income: list[tuple[float, int]] = field(default_factory=list)  # (when it was chosen, amount)


def _must(holds: bool, rule: str, what: object) -> None:
    if not holds:
        raise Broken(f"{rule}: {what}")


def _holds(link: Link, signed: SignedRequest) -> bool:
    return any(entry.request_id == signed.request_id for entry in link.entries)


class Watch:
    """What was chosen, and what was said."""

    def __init__(self, genesis: Genesis, view: View) -> None:
        self._network = genesis.network_id
        self._limits = {issuer.name: genesis.issuer_limit(issuer.asset) for issuer in genesis.issuers}
        self.views = [view]
        self.epochs: dict[NodeId, int] = {}  # installed
        self._active: dict[tuple[NodeId, int], Ranges] = {}
        self._view_voters: dict[bytes, dict[Ballot, set[NodeId]]] = {}
        self._links: dict[bytes, Link] = {}
        self._voters: dict[tuple[bytes, Ballot], set[NodeId]] = {}
        self._values: dict[tuple[bytes, Ballot], bytes] = {}
        self._votes: set[tuple[NodeId, bytes, Ballot]] = set()
        self._best: dict[tuple[NodeId, bytes], Ballot] = {}  # highest ballot that a node voted for
        self._promised: dict[tuple[NodeId, bytes], Ballot] = {}  # on disk
        self._said: dict[tuple[NodeId, bytes], Ballot] = {}  # highest ballot that a node answered
        self.chosen: dict[bytes, Link] = {}  # by slot
        self.chosen_at: dict[bytes, float] = {}  # by link hash
        self.accounts: dict[str, _Account] = {}
        self.outcomes: dict[tuple[str, bytes], tuple[Outcome, Link]] = {}
        self._unconfirmed: dict[bytes, tuple[str, int]] = {}  # posting -> recipient, amount
        self.first_asked: dict[bytes, float] = {}  # by request id
        for link in issuer_links(genesis):
            self._choose(link, float("-inf"))

    def link(self, raw: bytes) -> Link:
        link = self._links.get(raw)
        if link is None:
            link = self._links[raw] = decode_link_untrusted(raw)
        return link

    # --- disk ---

    def on_commit(self, node: NodeId, writes: Sequence[Write], now: float) -> None:
        for place, write in enumerate(writes):
            if isinstance(write, VoteRow) and not write.account:
                self._on_view_vote(node, write)
            elif isinstance(write, VoteRow):
                self._on_vote(node, write, now, merged=self._is_merged(node, write, writes[place:]))
            elif isinstance(write, ViewRow):
                self._on_view(node, write)
            elif isinstance(write, ActiveRow):
                self._active[node, write.epoch] = decode_ranges(write.ranges)
            elif isinstance(write, Applied):
                link = write.link
                _must(self.is_chosen(link), "I9", f"link {link.height} of {link.account} is applied, but not chosen")

    def _is_merged(self, node: NodeId, row: VoteRow, rest: Sequence[Write]) -> bool:
        """It comes from a sync: the ACTIVE mark that covers its slot is written after it, in the same transaction."""
        key = route_key(row.slot)
        marks = [write for write in rest if isinstance(write, ActiveRow)]
        return any(
            holds(decode_ranges(m.ranges), key) and not holds(self._active.get((node, m.epoch), EMPTY), key)
            for m in marks
        )

    def _on_view(self, node: NodeId, row: ViewRow) -> None:
        """I12."""
        view = decode_view(row.raw)
        epoch = self.epochs.get(node, 1)
        _must(view.epoch == epoch + 1, "I12", f"epoch {view.epoch} is installed after {epoch}")
        _must(view.epoch <= len(self.views) + 1, "I12", f"epoch {view.epoch}: {len(self.views)} are known")
        if view.epoch > len(self.views):
            check_next(self.views[-1], view)
            voters = self._view_voters.get(view.hash, {})
            most = max(map(len, voters.values()), default=0)
            _must(most >= majority(len(self.views[-1].members)), "I12", f"epoch {view.epoch} has {most} votes")
            self.views.append(view)
        _must(self.views[view.epoch - 1].hash == view.hash, "I12", f"two views of epoch {view.epoch}")
        self.epochs[node] = view.epoch

    def _on_view_vote(self, node: NodeId, row: VoteRow) -> None:
        if row.accepted is None or row.link is None:
            return
        ballot = Ballot(row.accepted[0], row.accepted[1], NodeId(row.accepted[2]))
        self._value(row.slot, ballot, row.link)
        view = decode_view(row.link)
        _must(self.views[view.epoch - 2].is_member(node), "I12", "a vote on a view by no member")
        self._view_voters.setdefault(view.hash, {}).setdefault(ballot, set()).add(node)

    def _on_vote(self, node: NodeId, row: VoteRow, now: float, *, merged: bool) -> None:
        key = (node, bytes(row.slot))
        promised = Ballot(row.promised[0], row.promised[1], NodeId(row.promised[2]))
        _must(promised >= self._promised.get(key, promised), "I8", f"a promise is lowered to {promised}")
        self._promised[key] = promised
        if row.accepted is None:
            _must(key not in self._best, "I8", f"a vote in {row.account}/{row.height} is forgotten")
            return
        assert row.link is not None
        ballot = Ballot(row.accepted[0], row.accepted[1], NodeId(row.accepted[2]))
        _must(ballot >= self._best.get(key, ballot), "I8", f"a vote is lowered to {ballot}")
        self._value(row.slot, ballot, row.link)
        self._best[key] = ballot
        self._votes.add((node, bytes(row.slot), ballot))
        link = self.link(row.link)
        _must(link.height == 0 or link.prev_hash in self.chosen_at, "I2", f"a vote for {link.height} of {link.account}")
        epoch = self.epochs.get(node, 1)
        if merged or ballot.epoch < epoch:
            return  # what others voted for, or a promise above an old vote
        _must(ballot.epoch == epoch, "R2", f"a vote at {ballot} with epoch {epoch}")
        voters = self._voters.setdefault((row.slot, ballot), set())
        voters.add(node)
        group = self.views[epoch - 1].group(route_key(row.slot))
        active = self._active.get((node, epoch), RING if epoch == 1 else EMPTY)
        _must(holds(active, route_key(row.slot)), "R7", "a vote of a node that is not ACTIVE")
        _must(node in group, "R2", "a vote from outside the group")
        if len(voters) >= majority(len(group)):
            self._choose(link, now)

    def _value(self, slot: bytes, ballot: Ballot, raw: bytes) -> None:
        known = self._values.setdefault((slot, ballot), raw)
        _must(known == raw, "I4", f"two values at ballot {ballot}")

    # --- what is chosen ---

    def is_chosen(self, link: Link) -> bool:
        known = self.chosen.get(link.prev_hash)
        return known is not None and known.hash == link.hash

    def _choose(self, link: Link, now: float) -> None:
        known = self.chosen.setdefault(link.prev_hash, link)
        _must(known.hash == link.hash, "I1", f"two successors of {link.prev_hash.hex()[:16]} of {link.account}")
        if link.hash in self.chosen_at:
            return
        self.chosen_at[link.hash] = now
        account = self.accounts.setdefault(link.account, _Account())
        _must(
            link.height == len(account.links), "I1", f"link {link.height} of {link.account} after {len(account.links)}"
        )
        balance = account.links[-1].balance if account.links else 0
        for posting in link.confirmed:
            recipient, amount = self._unconfirmed.pop(posting, ("nobody", 0))
            _must(recipient == link.account, "I3", f"{link.account} confirms a posting of {recipient}")
            balance += amount
        _must(
            link.balance == balance - link.debit, "I3", f"{link.account}: {link.balance} is not {balance - link.debit}"
        )
        _must(link.balance >= 0 or link.account in self._limits, "I3", f"{link.account}: {link.balance}")
        self._judge(link, account)
        for _, hash_, paid, _ in link.postings():
            self._unconfirmed[hash_] = (paid.recipient, paid.amount)
            self.accounts.setdefault(paid.recipient, _Account()).income.append((now, paid.amount))
        account.links.append(link)
        account.debits.append((account.debits[-1] if account.debits else 0) + link.debit)

    def _judge(self, link: Link, account: _Account) -> None:
        """I5, I6."""
        spent = account.debits[-1] if account.debits else 0
        for entry in link.entries:
            asked = self.first_asked.get(entry.request_id, float("inf"))
            recipients = {p.recipient for p in entry.request.postings}
            if entry.outcome in (Outcome.INSUFFICIENT_FUNDS, Outcome.ISSUER_LIMIT):
                had = self.income_before(link.account, asked) - spent + self._limits.get(link.account, 0)
                _must(
                    entry.request.total > had,
                    "I6",
                    f"{link.account} had {had}, was refused {entry.request.total} of it",
                )
            elif entry.outcome is Outcome.UNKNOWN_RECIPIENT:
                _must(
                    not all(self.is_open_before(name, asked) for name in recipients),
                    "I6",
                    f"{recipients} were all open",
                )
            elif entry.outcome is Outcome.COMPLETED:
                tip = entry.request.expect_tip
                _must(tip in (ANY_TIP, link.prev_hash), "R13", f"{link.account}: a request for another tip executed")
                _must(
                    link.height <= entry.request.valid_until_height,
                    "R13",
                    f"{link.account}: an expired request executed",
                )
                spent += entry.request.total
        for request_id, outcome in link.outcomes():
            known = self.outcomes.setdefault((link.account, request_id), (outcome, link))
            _must(known == (outcome, link), "I5", f"{known[0].name}, then {outcome.name} for one request")
        for entry in link.entries:
            if entry.outcome is Outcome.ALREADY_DECIDED:
                _must((link.account, entry.request.target) in self.outcomes, "I5", "a cancel finds what is not there")

    def income_before(self, account: str, when: float) -> int:
        """All that was ever paid to an account by links chosen before `when`."""
        return sum(amount for at, amount in self.accounts[account].income if at < when)

    def is_open_before(self, name: str, when: float) -> bool:
        account = self.accounts.get(name)
        return account is not None and bool(account.links) and self.chosen_at[account.links[0].hash] < when

    def spendable(self, account: str) -> int:
        """Everything chosen so far that pays an account, less what it has spent."""
        known = self.accounts[account]
        return sum(amount for _, amount in known.income) - (known.debits[-1] if known.debits else 0)

    # --- messages ---

    def on_send(self, node: NodeId, message: Message) -> None:
        match message:
            case Accept():
                slot = message.at.slot
                self._value(slot, message.ballot, message.link)
                _must(
                    (node, slot, message.ballot) in self._votes, "R4", f"{message.ballot} is sent before it is on disk"
                )
            case Promise():
                self._said_ballot(node, message.slot, message.ballot)
                best = self._best.get((node, message.slot))
                later = best is not None and (message.accepted is None or message.accepted < best)
                _must(
                    not later or (best or message.ballot) >= message.ballot, "I8", f"a promise hides the vote at {best}"
                )
                if message.accepted is not None and message.link is not None:
                    self._value(message.slot, message.accepted, message.link)
            case Accepted():
                self._said_ballot(node, message.slot, message.ballot)
                _must(
                    (node, message.slot, message.ballot) in self._votes, "R4", f"{message.ballot} is sent, not on disk"
                )
            case Decided():
                self._only_chosen((message.link,), message)
            case DecidedHash():
                known = self.chosen.get(message.at.slot)
                _must(known is not None and known.hash == message.link, "I9", f"{message.at} is not decided so")
            case Links() | Moved() | SlotAnswer():
                self._only_chosen(message.links, message)
            case _:
                pass

    def _said_ballot(self, node: NodeId, slot: bytes, ballot: Ballot) -> None:
        key = (node, slot)
        said = self._said.get(key, ballot)
        _must(ballot >= said, "I8", f"{ballot} is answered after {said}")
        self._said[key] = ballot
        promised = self._promised.get(key)
        _must(promised is not None and promised >= ballot, "R4", f"{ballot} is answered, on disk is {promised}")

    def _only_chosen(self, raws: Iterable[bytes], message: Message) -> None:
        for raw in raws:
            link = self.link(raw)
            what = f"{type(message).__name__} holds link {link.height} of {link.account}, which is not decided"
            _must(self.is_chosen(link), "I9", what)

    # --- clients ---

    def on_call(self, call: Call) -> None:
        if call.signed is not None and not call.forged:
            self.first_asked.setdefault(call.signed.request_id, call.at)

    def on_answer(self, call: Call, body: ReplyBody | Balance, now: float) -> None:
        """I10."""
        call.answer = body
        if call.ask is not None:
            self._on_read(call, call.ask, body, now)
            return
        assert call.signed is not None
        if call.forged:
            _must(isinstance(body, Refused), "I10", f"a forged request is answered {body}")
            return
        request = call.request
        assert request is not None
        match body:
            case Recorded():
                known = self.outcomes.get((body.account, body.request_id))
                _must(known is not None, "I10", f"{body} is recorded nowhere")
                assert known is not None
                outcome, link = known
                said = (body.outcome, body.link_hash, body.height, body.balance, body.time_ms)
                _must(
                    said == (outcome, link.hash, link.height, link.balance, link.time_ms),
                    "I10",
                    f"{body} is not {known}",
                )
                _must(body.account == request.sender, "I10", body)
            case Stale():
                successor = self.chosen.get(request.expect_tip)
                _must(request.expect_tip != ANY_TIP and successor is not None, "I10", f"{body}: it has no successor")
                ended = self.outcomes.get((request.sender, call.signed.request_id))
                never = ended is None or ended[0] is Outcome.CANCELLED  # cancelled later, it is stale all the same
                _must(never, "I10", f"{body}: it has an outcome")
                links = self.accounts[request.sender].links
                _must(body.height < len(links) and links[body.height].hash == body.tip, "I10", body)
            case Refused():
                self._on_refused(call, request, body)
            case NotStarted() | Unknown():
                pass
            case _:
                raise Broken(f"I10: {body} to a request")

    def _on_refused(self, call: Call, request: Request, body: Refused) -> None:
        assert call.signed is not None
        if body.code == "name_taken":
            link = self.chosen.get(opening_slot(self._network, request.sender))
            _must(link is not None and request.kind is Kind.OPEN, "I10", body)
            _must(link is not None and not _holds(link, call.signed), "I10", f"{body}: by this request")
        elif body.code == "unknown_sender":
            _must(not self.is_open_before(request.sender, call.at), "I10", body)
        elif body.code == "unknown_tip":
            tips = {link.hash for link in self.accounts[request.sender].links}
            known = request.expect_tip in tips and self.chosen_at[request.expect_tip] < call.at
            _must(not known, "I10", body)
        else:
            raise Broken(f"I10: a sound request is refused: {body}")

    def _on_read(self, call: Call, ask: AskBalance, body: ReplyBody | Balance, now: float) -> None:
        if isinstance(body, Unknown):
            return
        _must(isinstance(body, Balance), "I10", f"a read is answered {body}")
        assert isinstance(body, Balance)
        account = self.accounts[ask.account]
        link = account.links[body.height]
        _must((body.tip, body.settled) == (link.hash, link.balance), "I10", f"{body} is not link {link}")
        _must(body.height >= ask.min_height, "I10", f"{body}: height {ask.min_height} was asked")
        _must(self.chosen_at[link.hash] <= now, "I10", body)
        if ask.linearizable:
            before = [
                at for at in map(self.chosen_at.__getitem__, (known.hash for known in account.links)) if at < call.at
            ]
            _must(body.height >= len(before) - 1, "I10", f"{body}: link {len(before) - 1} was decided before the read")
            seen = body.available + account.debits[body.height]
            least = self.income_before(ask.account, call.at)
            _must(seen >= least, "I10", f"{body}: {least} was paid before the read, it shows {seen}")
