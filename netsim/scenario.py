"""Scenarios: what a person wants to see happen to a network, as a TOML file.

    title, about, learn     for people          [accounts]   name = money before the faults
    nodes, k, seed, ...     the plan's numbers  [load]       random requests (netsim.plan.Load)
    [weather]               the network         [sides]      name = words that name nodes (netsim.roles)
    [[fault]]               what breaks, when   [[request]]  who asks what, when, through which node
    [[expect]]              what must have come of it, besides all invariants

Times are simulated seconds from the start of the fault phase. `fault.when` and `request.when` wait, from `at` on, for
something to happen to an account. A file is read strictly: an error names the key and what it may be. The format is
described in docs/simulator.md.
"""

import tomllib
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Final, Literal

import msgspec

from chain.errors import LocalMisuse, RemoteFault
from chain.link import Outcome
from chain.names import check_name_untrusted
from netsim.plan import ERRORS, MAX_NODES, OTHER_DISKS, POINTS, SHARES, Error, Load, OtherDisk, Plan, Point, Weather
from netsim.scenario_names import check_names
from netsim.strict import Table, meant

MAX_TIMES: Final = 10_000  # repetitions of one fault or request
TOP: Final = (
    "title", "about", "learn", "nodes", "k", "seed", "fault_s", "heal_s", "files", "spares",
    "weather", "load", "sides", "accounts", "fault", "request", "expect",
)  # fmt: skip
RECORDED: Final = tuple(outcome.name.lower() for outcome in Outcome)
ANSWERS: Final = (
    *RECORDED,
    "stale",
    "not_started",
    "unknown",
    "refused",
    "balance",
    "stale_balance",
    "not_found",
    "none",
)
MESSAGES: Final = (
    "prepare", "promise", "accept", "accepted", "refuse", "decided", "decided_hash", "forward", "moved", "declined", "not_owner",
    "ask_slot", "slot_answer", "ask_income", "income_answer", "want", "links", "pull", "offer", "ping", "pong",
    "view_prepare", "view_promise", "view_accept", "view_accepted", "view_refuse", "ask_views", "views", "ask_sync", "sync_part",
    "ask_boot", "boot_answer", "twice",
)  # fmt: skip
MOMENTS: Final = ("proposed", "voted", "decided")

FaultKind = Literal[
    "cut",
    "ring",
    "clog",
    "hold",
    "kill",
    "pause",
    "clock_jump",
    "slow_disk",
    "disk_error",
    "rollback",
    "weather",
    "add",
    "remove",
    "die",
    "bury",
]
RequestKind = Literal["pay", "open", "cancel", "again", "read"]
FAULTS: Final[dict[FaultKind, tuple[str, ...]]] = {  # kind -> the keys it has besides at, when, every_s and times
    "cut": ("between", "until", "one_way"),
    "ring": ("until",),
    "clog": ("source", "target", "until"),
    "hold": ("messages", "source", "target", "until", "drop"),
    "kill": ("nodes", "until", "point", "stagger_s"),
    "pause": ("nodes", "until", "stagger_s"),
    "clock_jump": ("nodes", "ms", "stagger_s"),
    "slow_disk": ("nodes", "commit_s", "until", "stagger_s"),
    "disk_error": ("nodes", "error", "until", "stagger_s"),
    "rollback": ("nodes", "disk", "until"),
    "weather": ("weather", "until"),
    "add": ("nodes", "fresh", "stagger_s"),
    "remove": ("nodes", "stop", "force", "stagger_s"),
    "die": ("nodes", "stagger_s"),
    "bury": ("nodes", "spare"),
}
REQUESTS: Final[dict[RequestKind, tuple[str, ...]]] = {  # kind -> the keys it has besides the common ones
    "pay": ("account", "to", "amount", "expect_tip"),
    "open": ("account",),
    "cancel": ("target",),
    "again": ("target",),
    "read": ("account", "linearizable"),
}
EXPECTS: Final[dict[str, tuple[str, ...]]] = {  # that -> the keys it has
    "answers": ("request", "is", "on", "from", "until", "at_least", "at_most", "exactly"),
    "recorded": ("request", "is", "at_least", "at_most", "exactly"),
    "unavailable_s": ("on", "at_least", "at_most"),
    "latency_s": ("request", "on", "at_least", "at_most"),
    "window_s": ("at_least", "at_most"),
    "balance": ("account", "at_least", "at_most", "exactly"),
    "links": ("account", "at_least", "at_most", "exactly"),
    "messages": ("message", "at_least", "at_most", "exactly"),
    "lost": ("at_least", "at_most", "exactly"),
    "made_without_majority": ("at_least", "at_most", "exactly"),
    "repeated": ("at_least", "at_most", "exactly"),
    "crashes": ("at_least", "at_most", "exactly"),
    "clock_ms": ("at_least", "at_most"),
    "changes": ("at_least", "at_most", "exactly"),
    "members": ("at_least", "at_most", "exactly"),
}


class Moment(msgspec.Struct, frozen=True):
    """Something that happens to an account: its next link is proposed, voted for, or decided."""

    what: str
    account: str


class FaultStep(msgspec.Struct, frozen=True):
    """A fault before it is known which nodes it hits. `groups`: the words for its nodes, in the order of its keys."""

    kind: FaultKind
    at: float
    last_s: float  # how long it lasts
    when: Moment | None
    groups: tuple[tuple[str, ...], ...]
    every_s: float
    times: int
    stagger_s: float = 0.0
    one_way: bool = False
    point: Point = "idle"
    ms: int = 0
    commit_s: float = 0.0
    error: Error = "full"
    disk: OtherDisk = "old"
    weather: Weather = Weather()
    messages: tuple[str, ...] = ()
    drop: bool = False
    fresh: bool = False
    stop: bool = False
    force: bool = False


class RequestStep(msgspec.Struct, frozen=True):
    """A request of a client. With `times`, the gateways of `via` take turns."""

    name: str
    kind: RequestKind
    at: float
    when: Moment | None
    via: tuple[str, ...]
    timeout_s: float
    every_s: float
    times: int
    account: str = ""
    to: str = ""
    amount: int = 0
    expect_tip: str = "any"
    target: str = ""
    linearizable: bool = False


class Expect(msgspec.Struct, frozen=True):
    """One thing that must be true in the end; the bounds are on a count, seconds or minor units. `any_size`: also when
    the command line changes the number of nodes or k; the others are about the file's."""

    that: str
    request: tuple[str, ...] = ()
    is_: tuple[str, ...] = ()
    on: tuple[str, ...] = ()
    from_s: float = 0.0
    until: float = float("inf")
    account: str = ""
    message: str = ""
    at_least: float | None = None
    at_most: float | None = None
    exactly: float | None = None
    any_size: bool = False


class Scenario(msgspec.Struct, frozen=True):
    """A scenario as read. `plan` holds its numbers, weather and load; its faults are in `faults`."""

    name: str
    title: str
    about: str
    learn: str
    plan: Plan
    accounts: dict[str, int]
    sides: dict[str, tuple[str, ...]]
    has_load: bool
    faults: tuple[FaultStep, ...]
    requests: tuple[RequestStep, ...]
    expects: tuple[Expect, ...]
    resized: str = ""  # the file's sizes, when the command line asks for others


def shipped() -> list[str]:
    """The names of the scenarios that ship, sorted."""
    return sorted(f.name.removesuffix(".toml") for f in _directory().iterdir() if f.name.endswith(".toml"))


def shipped_text(name: str) -> str:
    """The TOML of a scenario that ships."""
    if name not in shipped():
        raise LocalMisuse(
            f"there is no scenario {name!r} among those that ship (`hopchain sim list`), and a file's name ends in .toml "
            f"or .json{meant(name, shipped())}"
        )
    return (_directory() / f"{name}.toml").read_text(encoding="utf-8")


def load_scenario(name: str, *, nodes: int | None = None, k: int | None = None, seed: int | None = None) -> Scenario:
    """The scenario that ships under this name, or a file that ends in .toml; the numbers replace the file's."""
    if name.endswith(".toml"):
        try:
            text = Path(name).read_text(encoding="utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise LocalMisuse(f"{name} cannot be read: {getattr(error, 'strerror', None) or error}") from None
    else:
        text = shipped_text(name)
    return read_scenario(text, Path(name).stem, nodes=nodes, k=k, seed=seed)


def read_scenario(
    text: str, name: str, *, nodes: int | None = None, k: int | None = None, seed: int | None = None
) -> Scenario:
    """A scenario from its text. `LocalMisuse` names what is wrong and what would be right."""
    try:
        top = Table(f"scenario {name}", tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise LocalMisuse(f"scenario {name} is not TOML: {error}") from None
    top.only(TOP, "a scenario")
    has_load = top.has("load")
    own = (top.integer("nodes", 5, 1, MAX_NODES), top.integer("k", 5, 1, MAX_NODES))
    sizes = (own[0] if nodes is None else nodes, own[1] if k is None else k)
    own_seed = top.integer("seed", 1, 0, 2**63 - 1)
    plan = Plan(
        seed=own_seed if seed is None else seed,
        nodes=sizes[0],
        k=sizes[1],
        weather=_weather(top.table("weather")),
        load=_load(top.table("load")),
        fault_s=top.number("fault_s", 10.0, 0.1, 3600),
        heal_s=top.number("heal_s", 20.0, 1, 3600),
        files=top.flag("files"),
        spares=top.integer("spares", 0, 0, MAX_NODES),
    )
    sides_table, accounts_table = top.table("sides"), top.table("accounts")
    for table in (sides_table, accounts_table):
        _check_not_of_the_scenario(table)
    sides = {side: sides_table.texts(side) for side in sides_table.names}
    accounts = {_name(accounts_table, a): accounts_table.integer(a, 0, 0, 2**62) for a in accounts_table.names}
    read = Scenario(
        name=name,
        title=top.text("title"),
        about=top.text("about", "").strip(),
        learn=top.text("learn", "").strip(),
        plan=plan,
        accounts=accounts,
        sides=sides,
        has_load=has_load,
        faults=tuple(_fault(t, plan.fault_s) for t in top.tables("fault")),
        requests=tuple(_request(t, plan.fault_s) for t in top.tables("request")),
        expects=tuple(_expect(t) for t in top.tables("expect")),
        resized="" if sizes == own else f"{own[0]} nodes and k {own[1]}",
    )
    for table in (sides_table, accounts_table, top):
        table.done()
    check_names(read)
    return read


def _directory() -> Traversable:
    return files("netsim") / "scenarios"


# --- the parts -----------------------------------------------------------------------------------------------------


def _weather(table: Table) -> Weather:
    calm = Weather()
    weather = Weather(
        loss=table.number("loss", calm.loss, 0, 1),
        repeat=table.number("repeat", calm.repeat, 0, 1),
        delay_min_s=table.number("delay_min_s", calm.delay_min_s, 0, 10),
        delay_mean_s=table.number("delay_mean_s", calm.delay_mean_s, 0.000001, 10),
    )
    table.done()
    return weather


def _load(table: Table) -> Load:
    usual = Load()
    load = Load(
        accounts=table.integer("accounts", usual.accounts, 2, 1000),
        requests=table.integer("requests", usual.requests, 0, 100_000),
        funds=table.integer("funds", usual.funds, 1, 2**40),
        max_postings=table.integer("max_postings", usual.max_postings, 1, 100),
    )
    shares = {share: table.number(share, getattr(usual, share), 0, 1) for share in SHARES}
    table.done()
    return msgspec.structs.replace(load, **shares)


def _check_not_of_the_scenario(table: Table) -> None:
    """A key of the scenario that stands below the head of a table is, for TOML, one of the table."""
    for name in table.names:
        if name in TOP:
            raise table.wrong(
                name,
                "is a key of the scenario and no name; write it above all tables: in TOML a key belongs to the table before it",
            )


def _times(table: Table, fault_s: float) -> tuple[float, float, int]:
    """When something happens first, seconds until it does so again, and how often: all of it before everything
    heals."""
    at = table.number("at", None, 0, 3600)
    every_s = table.number("every_s", 1.0, 0.0001, 3600)
    times = table.integer("times", 1, 1, MAX_TIMES)
    if at >= fault_s:
        raise table.wrong("at", f"is {at:g}; it must be before fault_s, {fault_s:g}, when everything heals")
    last = at + (times - 1) * every_s
    if last >= fault_s:
        raise table.wrong(
            "times",
            f"is {times}: from {at:g} on, every {every_s:g} s, the last one is at {last:g}; it must be before fault_s, "
            f"{fault_s:g}, when everything heals",
        )
    return at, every_s, times


def _fault(table: Table, fault_s: float) -> FaultStep:
    kind = table.choice("kind", FAULTS)
    keys = FAULTS[kind]
    table.only(("kind", "at", "when", "every_s", "times", *keys), f"a fault of kind {kind}")
    at, every_s, times = _times(table, fault_s)
    groups: tuple[tuple[str, ...], ...] = ()
    if "between" in keys:
        groups = table.lists("between")
        if len(groups) < 2:
            raise table.wrong("between", "must name two sides or more, for example ['majority', 'minority']")
    elif "source" in keys:
        groups = (table.texts("source"), table.texts("target"))
    elif "nodes" in keys:
        groups = (table.texts("nodes"),)
        if kind == "bury":
            groups = (*groups, table.texts("spare"))
            dead, spares = map(len, groups)
            if dead != spares:
                raise table.wrong("spare", f"names {spares}, and nodes {dead}: each dead node needs its own")
    until = table.number("until", None, at, 3600) if "until" in keys else at
    step = FaultStep(
        kind=kind,
        at=at,
        last_s=until - at,
        when=_moment(table),
        groups=groups,
        every_s=every_s,
        times=times,
        stagger_s=table.number("stagger_s", 0.0, 0, 3600),
        one_way=table.flag("one_way"),
        point=table.choice("point", POINTS, "idle"),
        ms=table.integer("ms", None if "ms" in keys else 0, -(10**11), 10**11),
        commit_s=table.number("commit_s", None if "commit_s" in keys else 0.0, 0, 60),
        error=table.choice("error", ERRORS, "full"),
        disk=table.choice("disk", OTHER_DISKS, "old"),
        weather=_weather(table.table("weather")),
        messages=table.texts("messages", allowed=MESSAGES) if "messages" in keys else (),
        drop=table.flag("drop"),
        fresh=table.flag("fresh"),
        stop=table.flag("stop"),
        force=table.flag("force"),
    )
    table.done()
    return step


def _request(table: Table, fault_s: float) -> RequestStep:
    kind = table.choice("kind", REQUESTS, "pay")
    keys = REQUESTS[kind]
    table.only(
        ("name", "kind", "at", "when", "via", "timeout_s", "every_s", "times", *keys), f"a request of kind {kind}"
    )
    at, every_s, times = _times(table, fault_s)
    step = RequestStep(
        name=table.text("name"),
        kind=kind,
        at=at,
        when=_moment(table),
        via=table.texts("via"),
        timeout_s=table.number("timeout_s", 5.0, 0.001, 600),
        every_s=every_s,
        times=times,
        account=_name(table, table.text("account")) if "account" in keys else "",
        to=_name(table, table.text("to")) if "to" in keys else "",
        amount=table.integer("amount", None, 1, 2**62) if "amount" in keys else 0,
        expect_tip=table.choice("expect_tip", ("any", "current", "old"), "any"),
        target=table.text("target") if "target" in keys else "",
        linearizable=table.flag("linearizable"),
    )
    table.done()
    return step


def _expect(table: Table) -> Expect:
    that = table.choice("that", EXPECTS)
    keys = EXPECTS[that]
    table.only(("that", "any_size", *keys), f"an expectation of {that}")
    is_ = table.texts("is", allowed=ANSWERS if that == "answers" else (*RECORDED, "none")) if "is" in keys else ()
    from_s = table.number("from", 0.0, 0, 3600)
    expect = Expect(
        that=that,
        request=table.texts("request", default=()) if that != "recorded" else table.texts("request"),
        is_=is_,
        on=table.texts("on", default=()) if that != "unavailable_s" else table.texts("on"),
        from_s=from_s,
        until=table.number("until", float("inf"), from_s, 3600),
        account=table.text("account") if "account" in keys else "",
        message=table.choice("message", MESSAGES) if "message" in keys else "",
        at_least=table.maybe("at_least"),
        at_most=table.maybe("at_most"),
        exactly=table.maybe("exactly"),
        any_size=table.flag("any_size"),
    )
    if (expect.at_least, expect.at_most, expect.exactly) == (None, None, None) and not is_:
        raise table.wrong("at_least", "or at_most" + (" or exactly" if "exactly" in keys else "") + " must be given")
    if expect.at_least is not None and expect.at_most is not None and expect.at_least > expect.at_most:
        raise table.wrong("at_least", f"is {expect.at_least:g}; it must be at most at_most, {expect.at_most:g}")
    table.done()
    return expect


def _moment(table: Table) -> Moment | None:
    text = table.text("when", "")
    if not text:
        return None
    what, _, account = text.partition(":")
    if what not in MOMENTS or not account:
        allowed = ", ".join(f"{moment}:ACCOUNT" for moment in MOMENTS)
        raise table.wrong("when", f"is {text!r}; it may be {allowed}")
    return Moment(what, account)


def _name(table: Table, name: str) -> str:
    try:
        return check_name_untrusted(name)
    except RemoteFault as fault:
        raise LocalMisuse(f"{table.path}: {fault.text}") from None
