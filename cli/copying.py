"""How far a new node is with copying the links: what `join` shows, and what `member add` and `replace` wait for.

A member votes on what it has. One that lacks most links when it becomes a member copies them while the others need its
votes, and they need it again whenever they start.
"""

from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
import msgspec

from cli.home import Network
from cli.members import LOOK_AGAIN_S, Picture, look, reason_of
from cli.output import CommandFailed, Exit
from hopchain import Client, ClientError, RemoteFault, Status

CLOSE_LINKS: Final = 64  # that may still be on their way when the node asks to be a member: payments go on meanwhile
LEVEL_LINKS: Final = 500  # the same, for who looks from elsewhere: what nodes say of themselves is a moment old
LEVEL_S: Final = 2.0  # or as many as the members make in this time
RATE_S: Final = 10.0  # over which speeds are measured
SAMPLES: Final = 200
TELL_S: Final = 2.0  # between two lines of progress when nobody looks at a terminal


class Copied(msgspec.Struct, frozen=True):
    """How far the copying is: `links` here of `of` (the most that a reachable member has; None while none is).
    `growth`: links a second that the members make, 0 until it was measured over LEVEL_S."""

    links: int
    of: int | None
    bytes: int
    seconds_left: float | None
    growth: float = 0.0

    @property
    def complete(self) -> bool:
        """True when nothing but the newest links can be missing."""
        return self.of is not None and self.of - self.links <= CLOSE_LINKS

    @property
    def level(self) -> bool:
        """True when it is as good as complete, as others see it."""
        return self.of is not None and self.of - self.links <= max(LEVEL_LINKS, LEVEL_S * self.growth)


class CopyMeter:
    """Turns what nodes say of themselves into progress; time is an argument, in seconds."""

    def __init__(self) -> None:
        self._samples: deque[tuple[float, int, int | None]] = deque(maxlen=SAMPLES)

    def note(self, at_s: float, links: int, most: int | None, size: int) -> Copied:
        """The progress at `at_s`: the node has `links` in a database of `size` bytes, a member `most`."""
        self._samples.append((at_s, links, most))
        while self._samples[-1][0] - self._samples[0][0] > RATE_S:
            self._samples.popleft()
        begin_s, begin, first = self._samples[0]
        left_s = None
        if most is not None and most <= links:
            left_s = 0.0
        elif most is not None and links > begin:
            left_s = (most - links) * (at_s - begin_s) / (links - begin)
        growth = 0.0
        if most is not None and first is not None and at_s - begin_s >= LEVEL_S:
            growth = max(0.0, (most - first) / (at_s - begin_s))
        return Copied(links, most, size, left_s, growth)


def most_heard(status: Status) -> int | None:
    """The most links that a member has, as far as the node itself has heard; None when it has heard none."""
    heard = [peer.links for peer in status.peers if peer.alive and (peer.links > 0 or peer.rtt_ms >= 0)]
    return max(heard, default=None)


def progress_line(copied: Copied) -> str:
    """`1,200 of 4,000 links, 3.1 MiB, 12 s left`."""
    size = f"{copied.bytes / 1024 / 1024:.1f} MiB"
    if copied.of is None:
        return f"{copied.links:,} links, {size}; no member answers yet"
    left = "" if copied.seconds_left is None else f", {copied.seconds_left:.0f} s left"
    return f"{copied.links:,} of {max(copied.of, copied.links):,} links, {size}{left}"


async def wait_level(
    client: Client, network: Network, node: bytes, timeout_s: float, on_wait: Callable[[str], None]
) -> Picture:
    """Return when a member has contact with `node`, which has nearly all links, or when it has become a member
    meanwhile.

    `on_wait` is told what it waits for, every TELL_S. `CommandFailed` after `timeout_s`: nothing was sent.
    """
    meter = CopyMeter()
    deadline = anyio.current_time() + timeout_s
    told_at = -TELL_S
    while True:
        try:
            picture = await look(client, network)
        except (ClientError, RemoteFault) as error:
            code, why = "unreachable", reason_of(error)
        else:
            lacks = _lacks(picture, node, meter, anyio.current_time())
            if lacks is None:
                return picture
            code, why = lacks
        at_s = anyio.current_time()
        if at_s >= deadline:
            raise CommandFailed(
                Exit.UNREACHABLE,
                code,
                f"{why}: it was not added within {timeout_s:g} s, and nothing was sent. Run the same command again to keep "
                "waiting, with --wait SECONDS for longer",
            )
        if at_s - told_at >= TELL_S:
            told_at = at_s
            on_wait(why)
        await anyio.sleep(LOOK_AGAIN_S)


def _lacks(picture: Picture, node: bytes, meter: CopyMeter, at_s: float) -> tuple[str, str] | None:
    """What the node lacks to become a member: a code, as nodes give it, and words. None when it lacks nothing, or is
    one.

    A node whose client port nobody knows cannot be asked: then the members alone judge, who take none that lacks many
    links.
    """
    if node in picture.members:
        return None
    told = f"node {picture.network.told(node)}"
    members = [health for member, health in picture.health.items() if member in picture.members]
    if not any(peer.id == node and peer.alive for health in members for peer in health.peers):
        return "not_connected", f"{told} is not connected to a member: start it with `hopchain join`"
    said = picture.health.get(node)
    if said is None:
        place = next((known for known in picture.nodes if known.id == node and known.client_port), None)
        if place is None:
            return None
        where = f"{place.host}:{place.client_port}"
        return (
            "unreachable",
            f"{told} does not say how many links it has: {where}: {picture.silent.get(node, 'no answer')}",
        )
    copied = meter.note(at_s, said.links, max(health.links for health in members), said.database_bytes)
    return None if copied.level else ("behind", f"{told} has {progress_line(copied)}")
