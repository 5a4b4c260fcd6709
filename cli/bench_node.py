"""One node under a profiler, for `hopchain bench --profile-out FILE`: `python -m cli.bench_node DIRECTORY FILE`.

Both kinds measure CPU, not waiting, and look at all threads. By the ending of FILE:

* `.prof`: cProfile with each thread's own CPU clock (for pstats and its viewers). Exact, and slows the node down.
* `.svg`, a flame graph, or `.txt`, its stacks: a sample after every SAMPLE_S of CPU; each stack weighs what its thread
  used since the last sample. Nearly free. Time in C (SQLite, OpenSSL) belongs to the line that called it. A thread that
  is not the main one is seen where it lets others run, so only its functions can be told apart, not its lines.
"""

import cProfile
import pstats
import signal
import sys
import threading
import time
from collections import Counter
from html import escape
from pathlib import Path
from types import FrameType
from typing import Final

from chain.errors import LocalMisuse
from cli.main import main as command_line

SAMPLE_S: Final = 0.002
ENDINGS: Final = (".prof", ".svg", ".txt")
WIDTH: Final = 1600
ROW: Final = 16
LEAST_WIDTH: Final = 0.4  # pixels; narrower boxes are left out

# Where a thread waits for work. What it used before it got there belongs to its next sample at work: the signal comes
# when any thread has used enough, and its handler runs in the main thread, which may just have been waiting.
WAITING: Final = frozenset({"_io_epoll.EpollIOManager.get_events", "core._connection_worker_thread", "database._serve"})

Stacks = Counter[tuple[str, ...]]  # outermost first -> nanoseconds of CPU


def check_profile_file(path: Path) -> None:
    """`LocalMisuse` unless the ending says what to write."""
    if path.suffix not in ENDINGS:
        raise LocalMisuse(f"{path} must end in {', '.join(ENDINGS)}: the ending says what is written")


class Sampler:
    """Samples all threads of this process while it is entered. Only in the main thread."""

    def __init__(self) -> None:
        self.stacks: Stacks = Counter()
        self._used: dict[int, int] = {}

    def __enter__(self) -> "Sampler":
        signal.signal(signal.SIGPROF, self._on_signal)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0.0)
        signal.signal(signal.SIGPROF, signal.SIG_IGN)

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        frames: dict[int, FrameType | None] = dict(sys._current_frames())
        frames[threading.main_thread().ident or 0] = frame
        for thread in threading.enumerate():
            if thread.native_id is None or thread.ident not in frames:
                continue
            try:
                used = cpu_ns(thread.native_id)
            except (OSError, ValueError):  # it has just ended
                continue
            stack = stack_of(frames[thread.ident])
            if stack[-1] not in WAITING:
                self._charge(thread, stack, used)

    def _charge(self, thread: threading.Thread, stack: list[str], used: int) -> None:
        assert thread.native_id is not None
        grown = used - self._used.get(thread.native_id, used)
        self._used[thread.native_id] = used
        if grown:
            self.stacks[(thread_name(thread), *stack)] += grown


class ThreadProfiles:
    """cProfile in every thread that starts while it is entered, and in this one."""

    def __init__(self) -> None:
        self._profiles: list[cProfile.Profile] = []

    def __enter__(self) -> "ThreadProfiles":
        threading.setprofile(self._begin)
        self._begin()
        return self

    def __exit__(self, *_: object) -> None:
        threading.setprofile(None)

    def _begin(self, *_: object) -> None:
        """The first event of a new thread: from here on its own profile hears the others."""
        if threading.current_thread().daemon:  # waits for the parent to go
            return
        profile = cProfile.Profile(time.thread_time)
        self._profiles.append(profile)
        profile.enable()

    def write(self, path: Path) -> None:
        """All threads added up."""
        merged, *others = self._profiles
        stats = pstats.Stats(merged)
        for profile in others:
            stats.add(profile)
        stats.dump_stats(path)


def cpu_ns(native_id: int) -> int:
    """Nanoseconds that a thread of this process has run, by the scheduler's count."""
    return int(Path(f"/proc/self/task/{native_id}/schedstat").read_text().split()[0])


def thread_name(thread: threading.Thread) -> str:
    """`main`, or the thread's name without the number that differs from run to run."""
    return "main" if thread is threading.main_thread() else thread.name.rstrip("0123456789-")


def stack_of(frame: FrameType | None) -> list[str]:
    """Functions of a stack, outermost first."""
    found: list[str] = []
    while frame is not None:
        code = frame.f_code
        found.append(f"{Path(code.co_filename).stem}.{code.co_qualname}")
        frame = frame.f_back
    return found[::-1]


def collapsed(stacks: Stacks) -> str:
    """One line a stack: functions joined by semicolons, then microseconds."""
    return "".join(f"{';'.join(stack)} {ns // 1000}\n" for stack, ns in sorted(stacks.items()))


def flame_graph(stacks: Stacks, title: str) -> str:
    """An SVG: each box is a function, as wide as its share of the CPU, on top of its caller. Hover to read one."""
    total = max(1, stacks.total())
    boxes: list[tuple[int, float, float, str, int]] = []  # depth, left, width, name, ns

    def place(parts: list[tuple[tuple[str, ...], int]], depth: int, left: float) -> None:
        groups: dict[str, list[tuple[tuple[str, ...], int]]] = {}
        for stack, ns in parts:
            if len(stack) > depth:
                groups.setdefault(stack[depth], []).append((stack, ns))
        for name, group in sorted(groups.items()):
            ns = sum(n for _, n in group)
            width = ns / total * WIDTH
            if width >= LEAST_WIDTH:
                boxes.append((depth, left, width, name, ns))
                place(group, depth + 1, left)
            left += width

    place(sorted(stacks.items()), 0, 0.0)
    height = (max((depth for depth, *_ in boxes), default=0) + 1) * ROW + 30
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" font-family="monospace" font-size="11">',
        f'<rect width="100%" height="100%" fill="#fff"/><text x="4" y="16" font-size="13">{escape(title)}</text>',
    ]
    for depth, left, width, name, ns in boxes:
        y = height - (depth + 1) * ROW
        label = escape(name[: int(width / 6.7)]) if width > 20 else ""
        lines.append(
            f"<g><title>{escape(name)}: {ns / 1e6:.0f} ms, {100 * ns / total:.1f} %</title>"
            f'<rect x="{left:.1f}" y="{y}" width="{width:.1f}" height="{ROW - 1}" fill="{_colour(name)}"/>'
            f'<text x="{left + 2:.1f}" y="{y + 11}">{label}</text></g>'
        )
    return "\n".join([*lines, "</svg>", ""])


def _colour(name: str) -> str:
    """One colour for the functions of one module."""
    return f"hsl({sum(name.partition('.')[0].encode()) * 37 % 360} 65% 75%)"


def main(directory: Path, target: Path) -> None:
    """Run the node until it is told to end; then write the profile."""
    words = ["node", str(directory), "--supervised"]
    if target.suffix == ".prof":
        with ThreadProfiles() as profiles:
            command_line(words, standalone_mode=False)
        profiles.write(target)
        return
    with Sampler() as sampler:
        command_line(words, standalone_mode=False)
    title = f"CPU of {directory.name}: {sampler.stacks.total() / 1e9:.1f} s"
    text = flame_graph(sampler.stacks, title) if target.suffix == ".svg" else collapsed(sampler.stacks)
    target.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
