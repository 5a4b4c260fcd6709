"""Names in a scenario file: every word of it must name a side, a node, an account or a request that there is."""

from typing import TYPE_CHECKING

from chain.errors import LocalMisuse
from netsim.names import ISSUER
from netsim.roles import REST, check_side, check_word

if TYPE_CHECKING:
    from netsim.scenario import FaultStep, RequestStep, Scenario


def check_names(scenario: "Scenario") -> None:
    """Raise `LocalMisuse`, which lists what there is, for the first word that names nothing."""
    where = f"scenario {scenario.name}"
    count, spares, sides = len(scenario.plan.everybody), scenario.plan.spares, scenario.sides
    accounts = {*scenario.accounts, ISSUER, *(r.account for r in scenario.requests if r.kind == "open")}
    if scenario.has_load:
        accounts |= {f"acct-{i}" for i in range(scenario.plan.load.accounts)}
    for side, words in sides.items():
        check_side(f"{where}: sides", side, words)
        for word in words:
            check_word(f"{where}: sides.{side}", word, count, (REST,), accounts, spares)
    if sum(REST in words for words in sides.values()) > 1:
        raise LocalMisuse(f"{where}: sides: only one of them may be {REST!r}")
    for i, fault in enumerate(scenario.faults):
        for word in (w for group in fault.groups for w in group):
            check_word(f"{where}: fault[{i}]", word, count, sides, accounts, spares)
    names: set[str] = set()
    for i, request in enumerate(scenario.requests):
        for word in request.via:
            check_word(f"{where}: request[{i}].via", word, count, sides, accounts, spares)
        if request.name in names:
            raise LocalMisuse(f"{where}: request[{i}].name {request.name!r} is used before; each needs its own")
        if request.target and request.target not in names:
            raise LocalMisuse(f"{where}: request[{i}].target {request.target!r} must be one before it: {_list(names)}")
        names.add(request.name)
        if request.account and request.account not in accounts:
            raise LocalMisuse(f"{where}: request[{i}].account {request.account!r} must be one of {_list(accounts)}")
    steps: list[FaultStep | RequestStep] = [*scenario.faults, *scenario.requests]
    for moment in (step.when for step in steps):
        if moment is not None and moment.account not in accounts:
            raise LocalMisuse(f"{where}: when names account {moment.account!r}; it must be one of {_list(accounts)}")
    for i, expect in enumerate(scenario.expects):
        for word in expect.on:
            check_word(f"{where}: expect[{i}].on", word, count, sides, accounts, spares)
        for name in expect.request:
            if name not in names:
                raise LocalMisuse(f"{where}: expect[{i}].request {name!r} must be one of {_list(names)}")
        if expect.account and expect.account not in accounts:
            raise LocalMisuse(f"{where}: expect[{i}].account {expect.account!r} must be one of {_list(accounts)}")


def _list(names: set[str]) -> str:
    return ", ".join(sorted(names)) or "(there is none)"
