"""Asking: the facts without which requests cannot be judged, asked of the network before their link is formed (design
section 2, step 5).

One answer may lead to the next question: money is needed only once a recipient is found. Of a request that pays several
unknown names one is asked for first: when nobody has opened it, that is the end of the request, whatever the others
are. When it exists, or no majority has answered after a while, all others are asked for. There is one time for all of
these, which a gateway waits out before it hands the requests to somebody else (`HOLDER_S`).
"""

from collections.abc import Callable
from typing import Final

import msgspec

from chain.request import NetworkId
from chain.rules import Formed
from node.askers import Purpose
from node.inquiry import ASK_DEADLINE_S, Inquiries
from node.slot_inquiry import SlotDone, SlotState
from node.slots import birth_epoch, next_slot
from node.turn import Turn

MAX_NAMES_ASKED: Final = 64  # at once; a request that pays thousands of unknown names waits a round trip for each lot
FIRST_NAME_S: Final = 1.0  # then the others of its request are asked for, too: one of them may be absent for sure


class Asked(msgspec.Struct):
    """What has been asked for one link of an account, and what is known of it by now."""

    since: float  # requests that came later wait for the next link
    under_way: int = 0  # inquiries
    tried: set[str] = msgspec.field(default_factory=set)  # names that were asked for
    names: set[str] = msgspec.field(default_factory=set)  # those of them that had all the time that there was
    absent: set[str] = msgspec.field(default_factory=set)  # that nobody has opened
    income: bool = False
    complete: bool = False  # and all of the income is here


def ask(
    turn: Turn,
    asked: Asked,
    formed: Formed,
    account: str,
    network: NetworkId,
    inquiries: Inquiries,
    on_end: Callable[[Turn], None],
) -> bool:
    """Ask for what `formed` lacks; `on_end` is called once all of it is answered, maybe at once. False when the time is
    over, or all was asked for already."""
    first, others = _names(asked, formed)
    income = formed.ask_income and not asked.income
    until = asked.since + ASK_DEADLINE_S
    if turn.now.mono >= until or not (first or others or income):
        return False
    asked.tried.update(first, others)
    asked.names.update(others)
    asked.income = asked.income or income
    asked.under_way = len(first) + len(others) + int(income)

    def answered(turn: Turn) -> None:
        asked.under_way -= 1
        if not asked.under_way:
            on_end(turn)

    def on_income(turn: Turn, complete: bool) -> None:
        asked.complete = complete
        answered(turn)

    def on_slot(name: str) -> SlotDone:
        def done(turn: Turn, state: SlotState) -> None:
            if state is SlotState.FREE:
                asked.absent.add(name)
            answered(turn)

        return done

    for names, by in ((first, min(until, turn.now.mono + FIRST_NAME_S)), (others, until)):
        for name in names:
            at = next_slot(network, name, None)
            inquiries.ask_slot(turn, at, birth_epoch(None), on_slot(name), Purpose.PAYMENT, until=by)
    if income:
        inquiries.ask_income(turn, account, on_income, Purpose.PAYMENT, until=until)
    return True


def _names(asked: Asked, formed: Formed) -> tuple[list[str], list[str]]:
    """Names to ask for now: one each of requests of which none was asked for, and all of the others."""
    first: set[str] = set()
    others: set[str] = set()
    for item in formed.unjudged:
        recipients = item.request.recipients
        unknown = (recipients & formed.ask_recipients) - asked.names
        if len(unknown) > 1 and asked.tried.isdisjoint(recipients):
            first.add(min(unknown))
        else:
            others |= unknown
    one_each = sorted(first - others)[:MAX_NAMES_ASKED]
    return one_each, sorted(others)[: MAX_NAMES_ASKED - len(one_each)]
