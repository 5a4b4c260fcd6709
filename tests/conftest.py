"""Generated examples are the same in every run: what fails once fails again, and the suite answers for this tree alone.
`HOPCHAIN_EXAMPLES=random` draws new ones. Ports are this process's own (`tests.ports`); tests that start real nodes run
on one worker (`tests.groups`); files are in memory (`tests.files`). Ctrl-C works in the processes that tests start,
also where a shell runs the suite in its background, and so ignores it; SIGHUP, also under `nohup`."""

import os
import signal

from hypothesis import settings

from tests.files import FILES
from tests.groups import pytest_xdist_make_scheduler as pytest_xdist_make_scheduler
from tests.ports import COMMANDS

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile("random" if os.environ.get("HOPCHAIN_EXAMPLES") == "random" else "same")
os.environ.update(COMMANDS)
os.environ.update(FILES)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # else it is the handler of Python, which no process inherits
    signal.signal(signal.SIGINT, signal.default_int_handler)
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
