"""What the clients were told: each answer was true, nothing chosen later shows otherwise, and every call ends (I3, I6,
I10, I11, I13)."""

import math
from collections import defaultdict
from typing import Final

import msgspec

from chain.errors import RemoteFault
from chain.genesis import Genesis
from chain.link import Link, Outcome, opening_slot
from chain.request import ANY_TIP, Request, decode_request_untrusted, request_id
from hopchain.change import ChangeAction, decode_change_untrusted
from hopchain.wire import (
    AskBalance,
    Balance,
    Changed,
    NotFound,
    NotStarted,
    Recorded,
    Refused,
    ReplyBody,
    Stale,
    SubmitChange,
    Unknown,
)
from netsim.calls import Asked
from netsim.chosen import Chosen
from netsim.durable import Durable
from netsim.violation import Violation
from routing.keyspace import route_key
from routing.regions import covers, holds, regions
from routing.view import majority

ENDS_WITHIN_S: Final = 7.0  # in a healed network: a suspicion, some hand-overs, an inquiry that is answered


class Call(msgspec.Struct):
    """One call of a client. `told`: how much clients had been told before it was made (see `Told`);
    `views`: how many views clients had been told of."""

    node: int
    life: int
    at: float
    body: Asked
    told: int
    views: int = 1
    account: str = ""
    request: Request | None = None
    request_id: bytes = b""
    answered_at: float | None = None
    answer: ReplyBody | None = None


class _First(msgspec.Struct):
    """A request when it was first submitted: what any client had been told before."""

    told: int
    floor: int


class Told:
    """Hears what clients ask (`submitted`), what they are told (`answered`), and what is chosen (`check_rejections`).

    Time is counted in answers: when a call is made, clients know what answers with numbers below its `told` said.
    """

    def __init__(self, genesis: Genesis, chosen: Chosen, durable: Durable) -> None:
        self.calls: dict[int, Call] = {}
        self._network = genesis.network_id
        self._chosen = chosen
        self._durable = durable
        self._answers = 0  # grows with every answer
        self._views_told = 1  # of how many views a client was told
        self._lives = [0 for _ in chosen.ids]
        self._healed_at = math.inf
        self._told_postings: dict[bytes, int] = {}
        self._told_height: dict[str, int] = defaultdict(lambda: -1)
        self._told_opening = {issuer.name: 0 for issuer in genesis.issuers}
        self._first: dict[tuple[str, bytes], _First] = {}
        self._copies: dict[tuple[str, bytes], int] = defaultdict(int)

    # --- calls ---

    def submitted(self, call: int, node: int, submit: Asked, now: float) -> None:
        entry = Call(node, self._lives[node], now, submit, self._answers, self._views_told)
        self.calls[call] = entry
        if isinstance(submit, SubmitChange):
            return
        if isinstance(submit, AskBalance):
            entry.account = submit.account
            return
        try:
            entry.request = decode_request_untrusted(submit.raw)
        except RemoteFault:
            return
        entry.request_id = request_id(submit.raw)
        entry.account = entry.request.sender
        key = (entry.account, entry.request_id)
        self._copies[key] += 1
        self._first.setdefault(key, _First(self._answers, self._told_height[entry.account]))

    def answered(self, call: int, body: ReplyBody, now: float) -> None:
        entry = self.calls[call]
        if entry.answered_at is not None:
            raise Violation("I10", f"call {call} is answered twice")
        entry.answered_at, entry.answer = now, body
        match body:
            case Recorded():
                self._check_recorded(entry, body)
            case Stale():
                self._check_stale(entry, body)
            case NotStarted():
                key = (entry.account, entry.request_id)
                if self._copies[key] == 1 and self._is_recorded(key):
                    raise Violation("I10", f"call {call} is told not_started, but its outcome is chosen")
            case Refused():
                self._check_refused(entry, body)
            case Balance():
                self._check_balance(entry, body)
            case NotFound():
                certain = isinstance(entry.body, AskBalance) and entry.body.linearizable
                if certain and self._told_opening.get(entry.account, entry.told) < entry.told:
                    raise Violation("I11", f"{entry.account} is not found after its opening was answered")
            case Unknown():
                pass
            case Changed():
                self._check_changed(entry, body)
            case _:
                raise Violation("I10", f"call {call} is answered with {type(body).__name__}")
        self._answers += 1

    def _check_recorded(self, call: Call, body: Recorded) -> None:
        key = (call.account, body.request_id)
        found = self._chosen.ledger.outcomes.get(key)
        if body.request_id != call.request_id or body.account != call.account or found is None:
            raise Violation("I10", f"a client is told an outcome of {call.account} that is not chosen")
        outcome, link = found
        if (int(outcome), link.hash, link.height, link.balance) != (
            body.outcome,
            body.link_hash,
            body.height,
            body.balance,
        ):
            raise Violation("I10", f"a client is told {body.outcome} in link {body.height}, chosen is {outcome.name}")
        self._check_survives(link)
        first = self._first[key]
        if link.height <= first.floor and outcome is not Outcome.CANCELLED:  # a cancel may come before its target
            raise Violation(
                "I6", f"{call.account}: link {link.height} holds a request made after link {first.floor} was answered"
            )
        self._told_height[call.account] = max(self._told_height[call.account], link.height)
        if outcome is not Outcome.COMPLETED:
            return
        if link.height == 0:
            self._told_opening.setdefault(call.account, self._answers)
        for _, posting, _, request in link.postings():
            if request == body.request_id:
                self._told_postings.setdefault(posting, self._answers)

    def _check_survives(self, link: Link) -> None:
        """I3: any (g-1)//2 disks of the group may be lost now, and the link is still known."""
        if link.height == 0 and link.account in self._chosen.ledger.issuers:
            return
        key = route_key(link.prev_hash)
        for view in reversed(self._chosen.views):  # a view that is not ACTIVE yet relies on the one before
            group = [self._chosen.index[node] for node in view.group(key)]
            holders = sum(self._durable.holds(node, link) for node in group)
            may_be_lost = (len(group) - 1) // 2 - sum(self._durable[node].lost for node in group)
            if holders > max(0, may_be_lost):
                return
            left = [self._durable[node] for node in group if not self._durable[node].lost]
            active = sum(holds(disk.active.get(view.epoch, ()), key) for disk in left)
            if active >= majority(len(group)) or view is self._chosen.views[0]:
                raise Violation("I3", f"link {link.height} of {link.account} is answered and on {holders} disks only")

    def _check_changed(self, call: Call, body: Changed) -> None:
        """The view is as the change asked, ACTIVE where it changed something, and none that a client knew was over."""
        assert isinstance(call.body, SubmitChange)
        change = decode_change_untrusted(call.body.raw)
        number = body.epoch - self._chosen.views[0].epoch + 1
        if number > len(self._chosen.views) or self._chosen.view_of(body.epoch).hash != body.view_hash:
            raise Violation("I10", f"a change is answered with a view of epoch {body.epoch} that is not chosen")
        view = self._chosen.view_of(body.epoch)
        if not view.is_member(change.node_id) == body.member == (change.action is ChangeAction.ADD):
            raise Violation("I10", f"a change is said to be made in epoch {body.epoch}, and is not")
        if number < call.views:
            raise Violation("I10", f"a change is answered with epoch {body.epoch} after epoch {call.views} was")
        self._views_told = max(self._views_told, number)
        if number == 1:
            return
        for region in regions(self._chosen.views[number - 2], view):
            active = [
                n
                for n in region.after
                if covers(self._durable.active_in(n, body.epoch), ((region.first, region.last),))
            ]
            if region.before != region.after and len(active) < majority(len(region.after)):
                raise Violation(
                    "I10", f"a change is answered, and a group of epoch {body.epoch} has no ACTIVE majority"
                )

    def _check_stale(self, call: Call, body: Stale) -> None:
        request = call.request
        if request is None or request.expect_tip == ANY_TIP:
            raise Violation("I10", "stale, but the request pinned no tip")
        successor = self._chosen.successors.get(request.expect_tip)
        if successor is None:
            raise Violation("I10", f"stale, but the tip that {call.account} expected has no successor")
        if self._is_recorded((call.account, call.request_id)):
            raise Violation("I10", f"stale, but the request of {call.account} has an outcome")

    def _is_recorded(self, key: tuple[str, bytes]) -> bool:
        """True when the request itself has an outcome; one that a cancel gave it does not count."""
        outcome = self._chosen.ledger.outcomes.get(key)
        return outcome is not None and outcome[0] is not Outcome.CANCELLED

    def _check_refused(self, call: Call, body: Refused) -> None:
        if body.code == "name_taken":
            key = (call.account, call.request_id)
            if self._chosen.successors.get(opening_slot(self._network, call.account)) is None or self._is_recorded(key):
                raise Violation("I10", f"{call.account} is said to be taken, and is not")
        elif body.code == "unknown_sender" and self._told_opening.get(call.account, call.told) < call.told:
            raise Violation("I10", f"{call.account} is said not to exist after its opening was answered")
        elif (
            body.code == "unknown_tip"
            and call.request is not None
            and call.request.expect_tip in self._chosen.chosen_at
        ):
            link = self._chosen.links[call.request.expect_tip]
            if self._told_height[link.account] >= link.height:
                raise Violation("I10", f"link {link.height} of {link.account} is said to be no link")

    def _knows_it_was_removed(self, node: int) -> bool:
        views = [self._chosen.view_of(epoch) for epoch in range(1, self._durable[node].epoch + 1)]
        return not views[-1].is_member(self._chosen.ids[node]) and any(
            view.is_member(self._chosen.ids[node]) for view in views
        )

    def _check_balance(self, call: Call, body: Balance) -> None:
        chain = self._chosen.ledger.chains[body.account]
        if body.height >= len(chain) or chain[body.height].balance != body.settled:
            raise Violation("I10", f"balance {body.settled} of {body.account} at link {body.height} is not chosen")
        assert isinstance(call.body, AskBalance)
        if not body.stale and self._knows_it_was_removed(call.node):
            raise Violation("I11", f"node {call.node} was removed and knows it; its balance is not said to be stale")
        if body.height < call.body.min_height:
            raise Violation("I11", f"a session read of {body.account} is older than link {call.body.min_height}")
        if not call.body.linearizable:
            return
        told = [h for h, when in self._told_postings.items() if when < call.told]
        due = 0
        for h in told:
            credit = self._chosen.ledger.credits[h]
            if credit.recipient == body.account and not self._used(credit.confirmed_by, body.height):
                due += credit.amount
        floor = max(
            (
                c.answer.height
                for c in self.calls.values()
                if c.account == body.account
                and isinstance(c.answer, Recorded)
                and c.answered_at is not None
                and c.answered_at < call.at
            ),
            default=-1,
        )
        if body.height < floor or body.incoming < due:
            raise Violation(
                "I11",
                f"a linearizable read of {body.account} shows link {body.height} and {body.incoming} incoming; "
                f"answered before it were link {floor} and {due}",
            )

    def _used(self, confirmed_by: bytes | None, height: int) -> bool:
        return confirmed_by is not None and self._chosen.links[confirmed_by].height <= height

    def check_rejections(self, link: Link) -> None:
        """What a client could see, it can spend; whom it could see, it can pay."""
        chain = self._chosen.ledger.chains[link.account]
        if link.height >= len(chain) or link.height == 0:
            return
        funds = chain[link.height - 1].balance + sum(self._chosen.ledger.credits[h].amount for h in link.confirmed)
        for entry in link.entries:
            first = self._first.get((link.account, entry.request_id))
            if entry.outcome is Outcome.COMPLETED:
                funds -= entry.request.total
            elif entry.outcome is Outcome.INSUFFICIENT_FUNDS and first is not None:
                seen = sum(
                    credit.amount
                    for h, credit in self._chosen.ledger.credits.items()
                    if credit.recipient == link.account
                    and self._told_postings.get(h, first.told) < first.told
                    and not self._used(credit.confirmed_by, link.height)
                )
                if funds + seen >= entry.request.total:
                    raise Violation(
                        "I10",
                        f"insufficient_funds for {entry.request.total} of {link.account} in link {link.height}, which had "
                        f"{funds} and {seen} that a client had been told of",
                    )
            elif entry.outcome is Outcome.UNKNOWN_RECIPIENT and first is not None:
                recipients = [posting.recipient for posting in entry.request.postings]
                if all(self._known(recipient, first.told) for recipient in recipients):
                    raise Violation("I10", f"unknown_recipient {recipients[0]}, whose opening was answered")

    def _known(self, account: str, told: int) -> bool:
        return self._told_opening.get(account, told) < told

    # --- the end ---

    def crashed(self, node: int) -> None:
        """Its connections broke: whoever waits for an answer knows that none will come."""
        self._lives[node] += 1

    def healed(self, now: float) -> None:
        """From now on nothing fails any more."""
        self._healed_at = now

    def all_ended(self, now: float) -> None:
        """I13: every call whose node lived was answered, and for good when it ended well after healing."""
        for number, call in self.calls.items():
            if call.answered_at is None:
                if self._lives[call.node] == call.life:
                    raise Violation("I13", f"call {number} at node {call.node} got no answer in {now - call.at:.1f} s")
            elif (
                isinstance(call.answer, Unknown | NotStarted)
                and call.answered_at > self._healed_at + ENDS_WITHIN_S
                and self._chosen.is_member(call.node)
            ):
                what = f"{type(call.answer).__name__} ({call.answer.reason})"
                raise Violation("I13", f"call {number} at node {call.node} ends with {what} in a healed network")
