"""Is a node's memory flat? `hopchain bench uniform` for ten minutes: each minute's largest memory, and its rate.

    python bench/memory.py              eleven minutes; other programs may run meanwhile
    python bench/memory.py --keep docs/performance/memory.json       and then bench/tables.py

Memory is that of the largest of the three nodes, looked at once a second; it does not depend on what else the machine
does, but the number of transfers does, which is told with it.
"""

import argparse
import json
import sys
from typing import Any, Final

import compare
import kept

PROFILE: Final = "uniform"
MINUTE: Final = 60
SPARE_S: Final = 5  # so that the last minute has a look for each of its seconds
CLIENTS: Final = 32
ACCOUNTS: Final = 10_000


def minutes(document: dict[str, Any], length: int = MINUTE) -> dict[str, Any]:
    """Of a document of `hopchain bench`: MB at its start, and each minute's most and its transfers a second. A minute
    that the run did not end is left out."""
    each_s = document["memory_mb_each_s"]
    starts = range(0, len(each_s) - length + 1, length)
    most = [max(each_s[at : at + length]) for at in starts]
    return {
        "transfers": document["completed"],
        "completed_per_s": document["completed_per_s"],
        "at_start_mb": round(each_s[0]),
        "minutes_mb": list(map(round, most)),
        "minutes_per_s": [round(sum(document["per_second"][at : at + length]) / length) for at in starts],
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=int, default=10)
    parser.add_argument("--json", action="store_true", help="print one JSON document")
    kept.options(parser)
    asked = parser.parse_args()
    if asked.minutes < 1:
        parser.error(f"--minutes {asked.minutes}: take 1 or more")
    kept.prepare(parser, asked)
    run = argparse.Namespace(clients=CLIENTS, accounts=ACCOUNTS, warm_up=0, duration=asked.minutes * MINUTE + SPARE_S)
    found = minutes(compare.measure_hopchain(PROFILE, run))
    kept.write(asked, found)
    text = f"{found['transfers']:,} transfers; {found['at_start_mb']} MB, then {found['minutes_mb']}"
    sys.stdout.write((json.dumps(found) if asked.json else text) + "\n")


if __name__ == "__main__":
    main()
