"""Where tests have their files: in memory, where there is room for them. Nodes and commands sync what they write, some
tests forty times before they begin, and what one sync takes is up to the machine's disk. No test cuts the power, so
none sees a difference.

TMPDIR says it to pytest and to all that tests start; one that is set already stays.
"""

import os
from pathlib import Path
from typing import Final

MEMORY: Final = Path("/dev/shm")
ROOM_BYTES: Final = 4 << 30  # four times what is there at once


def is_fit(place: Path, room_bytes: int = ROOM_BYTES) -> bool:
    """It has room, files may be made in it, and programs among them may run."""
    try:
        found = os.statvfs(place)
    except OSError:
        return False
    forbids_programs = found.f_flag & getattr(os, "ST_NOEXEC", 0)
    return os.access(place, os.W_OK) and not forbids_programs and found.f_bavail * found.f_frsize >= room_bytes


# In the environment
FILES: Final = {"TMPDIR": str(MEMORY)} if "TMPDIR" not in os.environ and is_fit(MEMORY) else {}
