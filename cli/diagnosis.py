"""What is wrong with a network, judged from what its nodes say (pure): each finding says what, with numbers, and what
to do."""

from collections.abc import Mapping
from statistics import median_low
from typing import Final

import msgspec

from cli.home import SHORT_ID
from hopchain.wire import Health

CLOCK_MS: Final = 2_000  # apart: links of one account are dated by different clocks; datagrams have room for more
DISK_SHARE: Final = 0.05  # free: below it file systems slow down, and an operator has little time left
DISK_BYTES: Final = 1024**3  # free: a day of payments on a busy node
RESERVES: Final = 2  # free, of what a node keeps free: with less than one it takes no new requests
CERTIFICATE_MS: Final = 30 * 24 * 3600 * 1000  # left: a month to renew it
CA_MS: Final = 365 * 24 * 3600 * 1000  # left: a year to move to a new network
LINKS_BEHIND: Final = 1_000  # a second or so of a busy network

_DAY_MS: Final = 24 * 3600 * 1000
_MIB: Final = 1024 * 1024
Numbers = dict[str, int | float | str]


class Finding(msgspec.Struct, frozen=True):
    """One thing that is wrong. `code` is stable; `node`: the name of the node it is about, empty for the network."""

    code: str
    node: str
    what: str
    do: str
    numbers: Numbers


class Known(msgspec.Struct, frozen=True):
    """A node and what it said: its health, or why it said nothing. `member`: it is one of the newest view. `asked` is
    False for one whose client port nobody knows: what the others say of it has to do then."""

    name: str
    id: bytes
    member: bool
    said: Health | str
    asked: bool = True

    @property
    def told(self) -> str:
        """Its name and short id, or that alone."""
        short = self.id.hex()[:SHORT_ID]
        return short if self.name == short else f"{self.name} ({short})"


def diagnose(nodes: list[Known], ca_until_ms: int, now_ms: int) -> list[Finding]:
    """All that is wrong, in the order of what to do first. `now_ms`: this machine's clock."""
    names = {node.id: node.name for node in nodes}
    healthy = [(node, node.said) for node in nodes if isinstance(node.said, Health)]
    found = _views(names, [said for _, said in healthy])
    for node, said in healthy:
        found += _standing(node, said)
    for node in nodes:
        if node.member and isinstance(node.said, str):
            found += _unreachable(node, node.said, healthy)
    newest = max((said.epoch for _, said in healthy), default=0)
    most = max((said.links for _, said in healthy), default=0)
    for node, said in healthy:
        found += _progress(node, said, newest, most)
    for node, said in healthy:
        found += [*_disk(node, said), *_clock(node, said), *_certificate(node, said, now_ms)]
    return found + _ca(ca_until_ms, now_ms)


def _views(names: Mapping[bytes, str], said: list[Health]) -> list[Finding]:
    """Nodes that have another view of the same epoch decide with other owners: nothing is worse."""
    found = []
    for epoch in sorted({h.epoch for h in said}):
        views: dict[bytes, list[str]] = {}
        for health in said:
            if health.epoch == epoch:
                views.setdefault(health.view_hash, []).append(names[health.node])
        if len(views) > 1:
            sides = "; ".join(f"{view.hex()[:16]}: {', '.join(sorted(who))}" for view, who in sorted(views.items()))
            found.append(
                Finding(
                    "views_differ",
                    "",
                    f"nodes disagree about the members, and so about owners: epoch {epoch} is {len(views)} views ({sides})",
                    "stop the nodes of all but one side at once, keep copies of their directories, and compare "
                    "`hopchain member list --at NODE`; the side with a majority of the epoch before is the network, the others "
                    "return under new ids (`hopchain invite`)",
                    {"epoch": epoch, "views": len(views)},
                )
            )
    return found


def _standing(node: Known, said: Health) -> list[Finding]:
    """Quarantined, removed, or without majorities."""
    found = []
    if said.role == "removed":
        found.append(
            Finding(
                "removed",
                node.name,
                f"{node.name} still runs but has not been a member since epoch {said.removed_in}: its answers are marked stale",
                "wait: it ends when the others no longer need it; stop it if it reaches none of them. To have that machine back, "
                "invite it under a new id (`hopchain invite`, `hopchain join`)",
                {"removed_in": said.removed_in},
            )
        )
    elif said.role == "member" and not said.verified:
        found.append(
            Finding(
                "not_verified",
                node.name,
                f"{node.name} is not verified, so it does not vote: its disk may be older than what others saw of it, or "
                "too few of them have answered",
                "start enough other nodes; if it stays so, or its log says quarantined: `hopchain invite`, `hopchain join` on "
                f"that machine, then `hopchain replace {node.id.hex()[:SHORT_ID]} --with` the invitation",
                {},
            )
        )
    if said.role == "member" and said.regions_without_majority:
        found.append(
            Finding(
                "no_majority",
                node.name,
                f"{node.name} reaches no majority in {said.regions_without_majority} regions: accounts whose next link "
                "belongs there cannot pay",
                "start the nodes that are down, or repair the network between them; nothing is lost meanwhile",
                {"regions": said.regions_without_majority},
            )
        )
    return found


def _unreachable(node: Known, why: str, healthy: list[tuple[Known, Health]]) -> list[Finding]:
    seen = sum(peer.alive for _, said in healthy for peer in said.peers if peer.id == node.id)
    if not node.asked and 2 * seen > len(healthy):
        return []
    contact = f"{seen} of {len(healthy)} nodes that answer have contact with it"
    return [
        Finding(
            "unreachable",
            node.name,
            f"member {node.told} does not answer here: {why}; {contact}",
            "it runs: open its client port to this machine"
            if seen
            else "start it (`hopchain node DIR`) and look at its log. If it ended with exit code 4 it was quarantined or "
            "removed: do not start it. Then, or if its machine is lost for good, replace it: `hopchain replace "
            f"{node.id.hex()[:SHORT_ID]} --with INVITATION`",
            {"seen_by": seen, "of": len(healthy)},
        )
    ]


def _progress(node: Known, said: Health, newest: int, most: int) -> list[Finding]:
    """Behind in views, in sync, or in links."""
    found = []
    if said.role != "removed" and said.epoch < newest:
        found.append(
            Finding(
                "epoch_skew",
                node.name,
                f"{node.name} is in epoch {said.epoch}, the newest is {newest}: it does not vote until it has the views",
                "wait a few seconds; if it stays so, check whether it reaches the other members",
                {"epoch": said.epoch, "newest": newest},
            )
        )
    elif said.role == "member" and not said.active:
        found.append(
            Finding(
                "not_active",
                node.name,
                f"{node.name} is not active in epoch {said.epoch}: {said.syncing_regions} regions are not synced yet",
                "wait; syncing needs a majority of each region's old group, so start the members that are down",
                {"epoch": said.epoch, "regions": said.syncing_regions},
            )
        )
    if most - said.links > LINKS_BEHIND:
        found.append(
            Finding(
                "behind",
                node.name,
                f"{node.name} has {said.links} links, the most is {most}: {most - said.links} behind",
                "it fetches them; if the number does not fall, check its disk, its log and its network",
                {"links": said.links, "most": most},
            )
        )
    return found


def _disk(node: Known, said: Health) -> list[Finding]:
    floor = max(DISK_SHARE * said.disk_total, min(DISK_BYTES, said.disk_total / 2), RESERVES * said.disk_reserve)
    if not said.disk_total or said.disk_free >= floor:
        return []
    share = 100 * said.disk_free / said.disk_total
    no_more = "" if said.disk_free >= said.disk_reserve else ", and it takes no new requests"
    reserve = f"below {said.disk_reserve // _MIB} MiB it takes no new requests, and " if said.disk_reserve else ""
    return [
        Finding(
            "disk",
            node.name,
            f"the disk of {node.name} has {said.disk_free // _MIB} MiB free of {said.disk_total // _MIB} ({share:.1f} %); its "
            f"database has {said.database_bytes // _MIB} MiB{no_more}",
            f"free space or enlarge the disk: {reserve}a node stops when it cannot write",
            {
                "free": said.disk_free,
                "total": said.disk_total,
                "database": said.database_bytes,
                "reserve": said.disk_reserve,
            },
        )
    ]


def _clock(node: Known, said: Health) -> list[Finding]:
    """Whose clock is apart from most of those that it has contact with."""
    apart = [peer.clock_ms_apart for peer in said.peers if peer.alive]
    if not apart:
        return []
    off_ms = -median_low(apart)
    others_apart = sum(abs(ms) > CLOCK_MS for ms in apart)
    if abs(off_ms) <= CLOCK_MS or 2 * others_apart <= len(apart):
        return []
    return [
        Finding(
            "clock",
            node.name,
            f"the clock of {node.name} is {abs(off_ms) / 1000:.1f} s {'ahead of' if off_ms > 0 else 'behind'} the others' "
            f"({others_apart} of {len(apart)} of them)",
            "set it with NTP (`timedatectl`): certificates and expiry are judged by it, though links are not",
            {"off_ms": off_ms},
        )
    ]


def _certificate(node: Known, said: Health, now_ms: int) -> list[Finding]:
    """The one that it shows, and the one that lies in its directory."""
    found = []
    left_ms = said.certificate_until_ms - now_ms
    numbers: Numbers = {"until_ms": said.certificate_until_ms, "days": round(left_ms / _DAY_MS, 1)}
    renew = (
        f"`hopchain certificate renew {node.name}` where ca.key is, then put node.crt into the node's directory: the node uses it "
        "without a restart"
    )
    if left_ms <= CERTIFICATE_MS:
        when = f"ends in {left_ms / _DAY_MS:.1f} days" if left_ms > 0 else f"ended {-left_ms / _DAY_MS:.1f} days ago"
        what = f"the certificate of {node.name} {when}; without one no other node and no client talks to it"
        found.append(Finding("certificate", node.name, what, renew, numbers))
    if said.certificate_unusable:
        what = (
            f"node.crt in the directory of {node.name} cannot be used: the node still runs with its earlier one, and would not "
            "start with this one; its log says what is wrong"
        )
        found.append(Finding("certificate_file", node.name, what, renew, numbers))
    return found


def _ca(ca_until_ms: int, now_ms: int) -> list[Finding]:
    left_ms = ca_until_ms - now_ms
    if left_ms > CA_MS:
        return []
    if left_ms > 0:
        what = (
            f"the network's CA ends in {left_ms / _DAY_MS:.0f} days: after that no certificate signed by it is accepted"
        )
    else:
        what = f"the network's CA ended {-left_ms / _DAY_MS:.0f} days ago: no certificate signed by it is accepted any more"
    return [
        Finding(
            "ca",
            "",
            what,
            f"it is part of genesis.json and cannot be renewed: make a new network and move the balances{' before that day' * (left_ms > 0)}",
            {"until_ms": ca_until_ms, "days": round(left_ms / _DAY_MS, 1)},
        )
    ]
