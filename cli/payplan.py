"""What a run of a payment file is made of, of any kind: the rows, what the command line asked for, and what it works
with."""

from collections.abc import Sequence
from typing import Final

import msgspec

from cli.payfile import Payment
from cli.progress import Progress
from cli.sources import Pools, Sources
from cli.wallet import Wallet
from hopchain import Choice

MAX_ATTEMPTS: Final = 1000  # of one request that was rejected, over all runs


class Settings(msgspec.Struct, frozen=True):
    """What the command line asked for. `choice`: how pools choose, None when it does not say."""

    label: str
    asset: str
    scale: int
    open_missing: bool
    fund_from: str | None
    retry_rejected: bool
    concurrency: int
    timeout_s: float
    max_failures: int | None = None
    pools: Pools = {}
    choice: Choice | None = None


class Plan(msgspec.Struct, frozen=True):
    """Everything that a run is made of."""

    wallet: Wallet
    rows: Sequence[Payment]
    settings: Settings
    sources: Sources
    progress: Progress
