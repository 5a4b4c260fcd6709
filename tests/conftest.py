"""Generated examples are the same in every run: what fails once fails again, and the suite answers for this tree alone.
`HOPCHAIN_EXAMPLES=random` draws new ones. Ports are this process's own (`tests.ports`)."""

import os

from hypothesis import settings

from tests.ports import COMMANDS

settings.register_profile("same", derandomize=True, deadline=None)
settings.register_profile("random", deadline=None)
settings.load_profile("random" if os.environ.get("HOPCHAIN_EXAMPLES") == "random" else "same")
os.environ.update(COMMANDS)
