"""Plans: one seed is one plan; what can happen, happens often enough; a plan survives its JSON."""

from collections import Counter
from itertools import pairwise

import msgspec
import pytest

from netsim.draw import draw_plan
from netsim.plan import (
    POINTS,
    Add,
    Bury,
    Cut,
    DiskError,
    Kill,
    KillAtCommit,
    Plan,
    Remove,
    Rollback,
    Weather,
    decode_plan,
    encode_plan,
    nodes_of,
    without,
)

PLANS = [draw_plan(seed) for seed in range(1000)]
STEADY = [plan for plan in PLANS if not plan.spares]
FAULTS = [fault for plan in PLANS for fault in plan.faults]


def test_one_seed_is_one_plan() -> None:
    assert [draw_plan(seed) for seed in range(50)] == PLANS[:50]
    assert len({encode_plan(plan) for plan in PLANS}) == len(PLANS)


def test_a_quarter_of_those_whose_members_stay_has_no_faults() -> None:
    calm = sum(not plan.faults and plan.weather == Weather() for plan in STEADY)
    assert 0.2 <= calm / len(STEADY) <= 0.33, calm


def changes(plan: Plan) -> int:
    """How many changes of the members the operator is to ask for."""
    return sum(isinstance(fault, Add | Remove) for fault in plan.faults) + 2 * sum(
        isinstance(fault, Bury) for fault in plan.faults
    )


def test_a_fifth_or_more_changes_its_members_three_times_or_more() -> None:
    assert sum(changes(plan) >= 3 for plan in PLANS) >= 0.2 * len(PLANS)
    assert all(changes(plan) == 0 for plan in STEADY)


def test_what_is_rare_about_changes_is_drawn() -> None:
    """Chained, at takeovers, joiners that die within a commit, below the group size, from one member, undone,
    replaced."""
    changing = [plan for plan in PLANS if plan.spares]
    rare = {"chained": 0, "with kills": 0, "joiner dies": 0, "below k": 0, "from one": 0, "undone": 0, "replaced": 0}
    for plan in changing:
        wishes = [fault for fault in plan.faults if isinstance(fault, Add | Remove)]
        removed = {fault.node for fault in wishes if isinstance(fault, Remove)}
        added = {fault.node for fault in wishes if isinstance(fault, Add)}
        rare["chained"] += any(b.at - a.at < 0.05 for a, b in pairwise(wishes))
        rare["with kills"] += any(
            isinstance(f, Kill) and any(abs(f.at - wish.at) < 0.6 for wish in wishes) for f in plan.faults
        )
        rare["joiner dies"] += any(isinstance(f, KillAtCommit) and f.node in added for f in plan.faults)
        rare["below k"] += plan.nodes + len(added) - len(removed) < plan.k
        rare["from one"] += plan.nodes == 1
        rare["undone"] += bool(added & removed)
        rare["replaced"] += any(isinstance(f, Bury) for f in plan.faults)
    assert len(changing) >= 200
    assert min(rare.values()) >= 10, rare


def test_every_kind_of_fault_is_drawn() -> None:
    kinds = Counter(type(fault).__name__ for fault in FAULTS)
    assert kinds.pop("Rollback") >= 15
    assert all(kinds.pop(kind) >= 20 for kind in ("Add", "Remove", "Die", "Bury", "KillAtCommit"))
    assert {fault.disk for fault in FAULTS if isinstance(fault, Rollback)} == {"old", "emptied"}
    assert set(kinds) == {"Cut", "Clog", "Kill", "Pause", "ClockJump", "SlowDisk", "DiskError", "WeatherChange"}
    assert min(kinds.values()) >= 100, kinds
    points = Counter(fault.point for fault in FAULTS if isinstance(fault, Kill))
    assert set(points) == set(POINTS)
    assert {fault.error for fault in FAULTS if isinstance(fault, DiskError)} == {"full", "fsync"}
    assert {fault.one_way for fault in FAULTS if isinstance(fault, Cut)} == {True, False}


def test_sizes() -> None:
    assert {plan.nodes for plan in PLANS} == set(range(1, 8))
    assert {plan.k for plan in PLANS} == set(range(1, 6))
    assert {plan.files for plan in PLANS} == {True, False}
    assert {plan.max_confirmed for plan in PLANS} == {0, 1, 3}
    assert {(plan.max_queue, plan.spares > 0) for plan in PLANS} == {
        (n, s) for n in (0, 1, 2, 4) for s in (True, False)
    }
    assert max(plan.weather.loss for plan in PLANS) == 0.3


def test_in_half_of_those_whose_groups_can_be_without_a_member_a_core_is_alone() -> None:
    can = [plan for plan in PLANS if min(plan.k, len(plan.everybody)) >= 3]
    for plans in ([plan for plan in can if not plan.spares], [plan for plan in can if plan.spares]):
        assert 0.4 <= sum(plan.core_alone for plan in plans) / len(plans) <= 0.6
    assert not any(plan.core_alone for plan in PLANS if plan not in can)


def test_faults_are_of_nodes_that_exist_and_end_after_they_began() -> None:
    for plan in PLANS:
        for fault in plan.faults:
            assert nodes_of(fault) <= set(plan.everybody), (plan.seed, fault)
            assert getattr(fault, "until", fault.at) >= fault.at, (plan.seed, fault)
        assert list(plan.faults) == sorted(plan.faults, key=lambda fault: fault.at)


def test_json_round_trip() -> None:
    for plan in PLANS[:100]:
        assert decode_plan(encode_plan(plan)) == plan


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (b'{"seed": 1, "nods": 5}', "nods"),
        (b'{"seed": 1, "faults": [{"kind": "flood", "at": 1}]}', "flood"),
        (b'{"nodes": 5}', "seed"),
        (b'{"seed": 1, "nodes": -3}', r"`int` >= 1 - at `\$.nodes`"),
        (b'{"seed": 1, "k": 65}', r"`int` <= 64 - at `\$.k`"),
        (b'{"seed": 1, "core_alone": 1}', r"Expected `bool`, got `int` - at `\$.core_alone`"),
        (b'{"seed": 1, "load": {"hot": 2}}', r"`float` <= 1.0 - at `\$.load.hot`"),
        (b'{"seed": 1, "load": {"accounts": 1}}', r"`int` >= 2 - at `\$.load.accounts`"),
        (b'{"seed": 1, "faults": [{"kind": "die", "at": -1, "node": 0}]}', r"`float` >= 0.0 - at `\$.faults\[0\].at`"),
        (b'{"seed": 1, "faults": [{"kind": "kill", "at": 1, "node": 0, "until": 2, "point": "lunch"}]}', "'lunch'"),
        (b'{"seed": 1, "faults": [{"kind": "die", "at": 1, "node": 5}]}', r"no node 5 of 5 - at `\$.faults\[0\]`"),
    ],
)
def test_a_bad_plan_is_refused_by_the_name_of_its_field(raw: bytes, text: str) -> None:
    with pytest.raises(msgspec.ValidationError, match=text):
        decode_plan(raw)


def test_without() -> None:
    plan = next(plan for plan in PLANS if len(plan.faults) >= 3)
    assert without(plan, [0, 2]).faults == (plan.faults[1], *plan.faults[3:])
    assert isinstance(without(plan, []), Plan)
