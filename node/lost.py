"""What to do about a file of a node, or of the network's directory, that is gone or cannot be used: one phrase for
each.

None of them is made anew by `hopchain init`: that makes another network. docs/operations.md has the same in its first
table.
"""

import errno
from pathlib import Path
from typing import Final

_ELSEWHERE: Final = "put it back from a copy, for nothing makes it anew"
# By the name of the file. What names no directory is about the file itself.
LOST: Final[dict[str, str]] = {
    "node.key": "it is nowhere else: put back the directory's own, or replace the node (`hopchain invite`, `hopchain join`, "
    "`hopchain replace`)",
    "node.crt": "make one for the same key with `hopchain certificate renew` where the network's ca.key is",
    "config.toml": "copy it from the node's directory at the operator, or write it anew after that of another node; if this is no "
    "node's directory, name one",
    "genesis.json": "copy it from another node",
    "network.toml": "copy it from another node",
    "network.key": "copy it from another node, mode 0600: all have the same",
    "ca.key": "put it back from a copy: nobody can be invited and no certificate renewed without it",
    "operator.key": "put it back from a copy: members cannot be added or removed without it (a node can still leave)",
}


def what_to_do(path: Path) -> str:
    """The advice for a file that is not there, or does not hold what it must."""
    return LOST.get(path.name, _ELSEWHERE)


def unreadable(path: Path, error: OSError, advice: str = "") -> str:
    """What to tell of a file that cannot be read, with what to do (`advice`, else by its name). One that is there is
    not lost."""
    advice = advice or what_to_do(path)
    if error.errno in (errno.EACCES, errno.EPERM):
        advice = "it must belong to the user who runs this"
    elif error.errno == errno.EIO:
        advice = f"look at the disk first; when the file is lost: {advice}"
    return f"{path} cannot be read ({error.strerror}); {advice}"
