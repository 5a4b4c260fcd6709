"""Where a node's CPU goes: the stacks of `hopchain bench --profile-out FILE.txt`, added up by what they are in.

    hopchain bench uniform --profile-out uniform.txt
    hopchain bench uniform --clients 512 --profile-out uniform-512.txt
    hopchain bench hot-sender --profile-out hot-sender.txt
    python bench/shares.py uniform.txt uniform-512.txt hot-sender.txt --keep docs/performance/shares.json

A stack belongs to the outermost of its frames that one of the parts below names; but a signature check within
`core.step` or `core.needs` is a part of its own. Stacks of the start (imports, what comes before the node runs) are
left out.
"""

import argparse
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Final

import kept

PARTS: Final = {  # which frames begin with what
    "commit": ("store.commit",),
    "step": ("core.Core.step",),
    "wire": ("tls.", "channel.", "ssl.", "client_port.", "transport."),
    "hops": (),  # see HOPS
    "needs": ("core.Core.needs",),
    "signatures": (),  # see SIGNATURE
    "load": ("load.load",),
    "rest": (),
}
SIGNATURE: Final = "request.is_signed_by"
# How the frames of a hop begin that is none of PARTS
HOPS: Final = ("database.", "_entry_queue.", "_wakeup_socketpair.", "core._connection_worker_thread")
DATABASE_THREAD: Final = "_connection_worker_thread"  # in its name
NODE: Final = "process.run_node"
IMPORT: Final = "importlib"


def part_of(stack: Sequence[str]) -> str | None:
    """One of PARTS for the frames of a stack, outermost first, after the name of its thread; None for one of the
    start."""
    if any(IMPORT in frame for frame in stack) or (NODE not in stack and "Thread" not in stack[0]):
        return None
    for frame in stack:
        for part, begins in PARTS.items():
            if frame.startswith(begins):
                return "signatures" if part in ("step", "needs") and SIGNATURE in stack else part
    hops = DATABASE_THREAD in stack[0] or any(frame.startswith(HOPS) for frame in stack)
    return "hops" if hops else "rest"


def shares(lines: Iterable[str]) -> dict[str, float]:
    """Per cent of the CPU for each of PARTS, of lines "frame;frame;frame WEIGHT". Raises `ValueError`."""
    weights: Counter[str] = Counter()
    for line in lines:
        stack, _, weight = line.rpartition(" ")
        part = part_of(stack.split(";"))
        if part is not None:
            weights[part] += int(weight)
    total = weights.total()
    if not total:
        raise ValueError("no stack of a node in it")
    return {part: round(100 * weights[part] / total, 3) for part in PARTS}


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stacks", nargs="+", type=Path, metavar="FILE.txt", help="that --profile-out wrote")
    kept.options(parser)
    asked = parser.parse_args()
    kept.prepare(parser, asked)
    found: dict[str, Any] = {}
    for path in asked.stacks:
        try:
            found[path.stem] = shares(path.read_text(encoding="utf-8").splitlines())
        except (OSError, ValueError) as error:
            parser.error(f"{path} is not what `hopchain bench --profile-out FILE.txt` wrote: {error}")
        told = ", ".join(f"{part} {share} %" for part, share in found[path.stem].items())
        sys.stdout.write(f"{path.stem}: {told}\n")
    kept.write(asked, {"shares": found})


if __name__ == "__main__":
    main()
