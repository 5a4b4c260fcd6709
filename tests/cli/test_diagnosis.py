"""The doctor's findings from made-up answers: each is found with its numbers, and only when it is so."""

import msgspec
import pytest

from cli.diagnosis import CA_MS, CERTIFICATE_MS, CLOCK_MS, LINKS_BEHIND, Finding, Known, diagnose
from cli.output import Exit
from hopchain.wire import Health, PeerHealth

NOW_MS = 1_700_000_000_000
DAY_MS = 86_400_000
LATER_MS = NOW_MS + 1000 * DAY_MS
GIB = 1024**3
IDS = [bytes([number]) * 20 for number in range(1, 6)]


def health(number: int, **fields: object) -> Health:
    """A sound node: it sees the others alive and has room, time and majorities."""
    found = Health(
        node=IDS[number - 1],
        epoch=4,
        view_hash=b"v" * 32,
        role="member",
        active=True,
        syncing_regions=0,
        regions_without_majority=0,
        verified=True,
        now_ms=NOW_MS,
        disk_free=50 * GIB,
        disk_total=100 * GIB,
        database_bytes=GIB,
        certificate_until_ms=LATER_MS,
        links=5_000,
        peers=tuple(PeerHealth(i, True, 4, True, 0, "127.0.0.1", 1) for i in IDS if i != IDS[number - 1]),
        removed_in=0,
    )
    return msgspec.structs.replace(found, **fields)


def known(number: int, said: Health | str | None = None, **fields: object) -> Known:
    said = health(number, **fields) if said is None else said
    return Known(f"node-{number}", IDS[number - 1], not isinstance(said, Health) or said.role == "member", said)


def found(*special: Known, ca_ms: int = LATER_MS) -> list[Finding]:
    """What is said of five nodes, of which those given are special."""
    nodes = {number: known(number) for number in range(1, 6)}
    nodes |= {int(node.name.removeprefix("node-")): node for node in special}
    return diagnose([nodes[number] for number in sorted(nodes)], ca_ms, NOW_MS)


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    return findings[0]


def apart(number: int, **clocks: int) -> Known:
    """A node that sees the others' clocks so: n2=3000 is node-2, three seconds ahead."""
    peers = tuple(msgspec.structs.replace(p, clock_ms_apart=clocks.get(f"n{p.id[0]}", 0)) for p in health(number).peers)
    return known(number, peers=peers)


def test_nothing_is_wrong_with_sound_nodes() -> None:
    assert found() == []
    assert diagnose([known(1, peers=())], LATER_MS, NOW_MS) == []


def test_one_epoch_with_two_views_is_the_first_to_be_told() -> None:
    first, *others = found(known(2, view_hash=b"w" * 32), known(5, disk_free=0))
    assert (first.code, first.node, first.numbers) == ("views_differ", "", {"epoch": 4, "views": 2})
    assert "node-2" in first.what
    assert "stop the nodes of all but one side" in first.do
    assert [f.code for f in others] == ["disk"]


def test_other_epochs_have_other_views() -> None:
    finding = only(found(known(3, epoch=3, view_hash=b"w" * 32)))
    assert (finding.code, finding.node, finding.numbers) == ("epoch_skew", "node-3", {"epoch": 3, "newest": 4})


def test_a_member_that_is_not_active() -> None:
    finding = only(found(known(1, active=False, syncing_regions=3)))
    assert (finding.code, finding.numbers) == ("not_active", {"epoch": 4, "regions": 3})


def test_regions_without_a_majority() -> None:
    finding = only(found(known(1, regions_without_majority=7)))
    assert (finding.code, finding.node, finding.numbers) == ("no_majority", "node-1", {"regions": 7})


def test_who_is_not_verified_and_what_replaces_it() -> None:
    finding = only(found(known(4, verified=False)))
    assert (finding.code, finding.node) == ("not_verified", "node-4")
    assert f"hopchain replace {IDS[3].hex()[:8]} --with" in finding.do


def test_a_removed_node_that_runs() -> None:
    finding = only(found(known(4, role="removed", removed_in=3, active=False, epoch=3, verified=False)))
    assert (finding.code, finding.numbers) == ("removed", {"removed_in": 3})


def test_a_guest_is_no_fault() -> None:
    assert found(known(4, role="guest", active=False, verified=False, regions_without_majority=9)) == []


def test_a_member_that_does_not_answer_here_or_anywhere() -> None:
    finding = only(found(known(3, "nobody listens")))
    assert (finding.code, finding.node, finding.numbers) == ("unreachable", "node-3", {"seen_by": 4, "of": 4})
    assert "nobody listens" in finding.what and "open its client port" in finding.do
    assert "exit code" not in finding.do  # it runs
    dead = [
        known(n, peers=tuple(msgspec.structs.replace(p, alive=p.id != IDS[2]) for p in health(n).peers))
        for n in (1, 2, 4, 5)
    ]
    finding = only(found(known(3, "nobody listens"), *dead))
    assert finding.numbers == {"seen_by": 0, "of": 4}
    assert f"hopchain replace {IDS[2].hex()[:8]} --with" in finding.do
    assert f"exit code {Exit.OUT_FOR_GOOD:d} it was quarantined or removed: do not start it. Then, or if" in finding.do
    unasked = Known("node-3", IDS[2], True, "nobody knows where", False)
    assert found(unasked) == []
    assert only(found(unasked, *dead)).numbers == {"seen_by": 0, "of": 4}
    gone = Known("node-3", IDS[2], False, "nobody listens")
    assert found(gone) == []


@pytest.mark.parametrize(
    ("free", "total", "full"),
    [
        (0, 100 * GIB, True),
        (5 * GIB - 1, 100 * GIB, True),
        (5 * GIB, 100 * GIB, False),
        (GIB - 1, 8 * GIB, True),
        (GIB, 8 * GIB, False),
        (400, 1000, True),
        (500, 1000, False),
        (0, 0, False),
    ],
)
def test_a_disk_that_is_nearly_full(free: int, total: int, full: bool) -> None:
    findings = found(known(2, disk_free=free, disk_total=total))
    assert [f.code for f in findings] == ["disk"] * full
    if full:
        assert findings[0].numbers == {"free": free, "total": total, "database": GIB, "reserve": 0}
        assert "requests" not in findings[0].what + findings[0].do


@pytest.mark.parametrize(
    ("free", "refuses"), [(6 * GIB - 1, False), (3 * GIB, False), (3 * GIB - 1, True), (6 * GIB, None)]
)
def test_a_disk_so_full_that_its_node_takes_no_new_requests(free: int, refuses: bool | None) -> None:
    """It is told before that."""
    findings = found(known(2, disk_free=free, disk_total=20 * GIB, disk_reserve=3 * GIB))
    assert [f.code for f in findings] == ["disk"] * (refuses is not None)
    for finding in findings:
        assert finding.numbers["reserve"] == 3 * GIB
        assert finding.what.endswith(", and it takes no new requests") is refuses
        assert "below 3072 MiB it takes no new requests, and a node stops when it cannot write" in finding.do


@pytest.mark.parametrize(("off_ms", "word"), [(CLOCK_MS + 1, "ahead of"), (-CLOCK_MS - 1, "behind")])
def test_a_clock_apart_is_the_one_nodes(off_ms: int, word: str) -> None:
    others = [apart(n, n2=off_ms) for n in (1, 3, 4, 5)]
    finding = only(found(apart(2, n1=-off_ms, n3=-off_ms, n4=-off_ms, n5=-off_ms), *others))
    assert (finding.code, finding.node, finding.numbers) == ("clock", "node-2", {"off_ms": off_ms})
    assert word in finding.what


def test_clocks_within_the_limit_and_of_the_dead_do_not_count() -> None:
    near = {f"n{n}": CLOCK_MS for n in range(1, 6)}
    assert found(apart(2, **near)) == []
    far = health(2)
    peers = tuple(msgspec.structs.replace(p, alive=False, clock_ms_apart=9_999_999) for p in far.peers)
    assert found(known(2, peers=peers)) == []


@pytest.mark.parametrize(
    ("left_ms", "text"),
    [(CERTIFICATE_MS, "ends in 30.0 days"), (0, "ended 0.0 days ago"), (-DAY_MS, "ended 1.0 days ago")],
)
def test_a_certificate_that_ends(left_ms: int, text: str) -> None:
    finding = only(found(known(1, certificate_until_ms=NOW_MS + left_ms)))
    assert (finding.code, finding.node) == ("certificate", "node-1")
    assert text in finding.what
    assert "hopchain certificate renew node-1" in finding.do
    assert found(known(1, certificate_until_ms=NOW_MS + CERTIFICATE_MS + 1)) == []


def test_a_certificate_in_the_directory_that_cannot_be_used() -> None:
    finding = only(found(known(1, certificate_unusable=True)))
    assert (finding.code, finding.node) == ("certificate_file", "node-1")
    assert "hopchain certificate renew node-1" in finding.do and "would not start with this one" in finding.what


def test_a_ca_that_ends() -> None:
    finding = only(found(ca_ms=NOW_MS + CA_MS))
    assert (finding.code, finding.node, finding.numbers["days"]) == ("ca", "", 365)
    assert found(ca_ms=NOW_MS + CA_MS + 1) == []
    ended = only(found(ca_ms=NOW_MS - 3 * 86_400_000))
    assert "CA ended 3 days ago" in ended.what and "before that day" not in ended.do


def test_a_node_far_behind() -> None:
    assert found(known(1, links=5_000 - LINKS_BEHIND)) == []
    finding = only(found(known(1, links=4_999 - LINKS_BEHIND)))
    assert (finding.code, finding.numbers) == ("behind", {"links": 3_999, "most": 5_000})


def test_all_that_is_wrong_is_told() -> None:
    findings = found(known(1, regions_without_majority=1, active=False, disk_free=0), known(2, "silent"), ca_ms=NOW_MS)
    assert [f.code for f in findings] == ["no_majority", "unreachable", "not_active", "disk", "ca"]
