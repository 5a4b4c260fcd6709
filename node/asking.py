"""Asking: the facts without which requests cannot be judged, asked of the network before their link is formed (design
section 2, step 5).

One answer may lead to the next question: money is needed only once a recipient is found. There is one time for all of
them, which a gateway waits out before it hands the requests to somebody else (`HOLDER_S`).
"""

from collections.abc import Callable
from typing import Final

import msgspec

from chain.request import NetworkId
from chain.rules import Formed
from node.askers import Purpose
from node.inquiry import ASK_DEADLINE_S, Inquiries, SlotDone, SlotState
from node.slots import birth_epoch, next_slot
from node.turn import Turn

MAX_NAMES_ASKED: Final = 64  # at once; a request that pays thousands of unknown names waits a round trip for each lot


class Asked(msgspec.Struct):
    """What has been asked for one link of an account, and what is known of it by now."""

    since: float  # requests that came later wait for the next link
    under_way: int = 0  # inquiries
    names: set[str] = msgspec.field(default_factory=set)
    absent: set[str] = msgspec.field(default_factory=set)  # those of them that nobody has opened
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
    names = sorted(formed.ask_recipients - asked.names)[:MAX_NAMES_ASKED]
    income = formed.ask_income and not asked.income
    until = asked.since + ASK_DEADLINE_S
    if turn.now.mono >= until or (not names and not income):
        return False
    asked.names.update(names)
    asked.income = asked.income or income
    asked.under_way = len(names) + int(income)

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

    for name in names:
        inquiries.ask_slot(
            turn, next_slot(network, name, None), birth_epoch(None), on_slot(name), Purpose.PAYMENT, until=until
        )
    if income:
        inquiries.ask_income(turn, account, on_income, Purpose.PAYMENT, until=until)
    return True
