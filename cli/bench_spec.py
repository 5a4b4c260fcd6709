"""What `hopchain bench` is to do, what it and its load generators say to each other, and the accounts that they use."""

import enum
import hashlib
import sys
from collections.abc import Callable
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.request import SignedRequest
from cli.bench_profiles import Profile
from hopchain.pools import Choice
from hopchain.wire import Submit

AMOUNT: Final = 1  # minor units of each posting
PROGRESS_S: Final = 1.0  # between two lines of progress
AGAIN_S: Final = 0.02  # before a request that was not started is sent again; doubles
LAST_AGAIN_S: Final = 0.5
SHOWN_S: Final = 5.0  # for another node to show a link that was answered
TAILS_FILE: Final = "tails"  # in `Spec.place`: the tail hash of each account, as it was prepared


class Settings(msgspec.Struct, frozen=True):
    """What is done. `sources` and `choice` are of a pool, else None; `route` is None where nothing is sent that has a
    sender."""

    profile: str
    nodes: int
    k: int
    clients: int
    accounts: int
    batch: int
    sources: int | None
    choice: str | None
    warm_up_s: float
    duration_s: float
    processes: int
    connections: int
    seed: int
    route: bool | None


class Job(enum.StrEnum):
    """What this process does."""

    PREPARE = "prepare"
    MEASURE = "measure"


class Spec(msgspec.Struct, frozen=True):
    """Everything a generator needs. Binary fields travel as base64. `secret`: keys of the accounts are derived from
    it; `run`: different in every run, so that no two runs make the same request; `issuer_key`: raw private key, only
    for `prepare`. `place`: directory for the files with the raw results. `route`: requests go to the node that makes
    the sender's next link, as those of `hopchain.Client(spread=True)` do; else, and with `read`, each client stays with
    one. `first_client`: how many clients the workers before this one have, so that together they take nodes and sources
    as one worker would."""

    job: Job
    nodes: tuple[tuple[str, int], ...]
    ca: str
    network: bytes
    asset: str
    prefix: str
    secret: bytes
    run: bytes
    accounts: int
    sources: int
    place: str
    issuer: str = ""
    issuer_key: bytes = b""
    profile: Profile = Profile.UNIFORM
    worker: int = 0
    workers: int = 1
    first_client: int = 0
    clients: int = 1
    batch: int = 1
    connections: int = 1
    route: bool = True
    warm_up_s: float = 0.0
    duration_s: float = 1.0
    timeout_s: float = 10.0
    choice: Choice = Choice.LEAST_ACTIVE
    max_failures: int | None = None
    seed: int = 0


class News(msgspec.Struct, frozen=True, omit_defaults=True):
    """One line of output. `completed`: transfers (or reads), of `progress` a second since the last one, with the
    latencies of these (None: nothing was completed), of `done` in the window."""

    event: str
    completed: int = 0
    total: int = 0
    p50_ms: float | None = None
    p99_ms: float | None = None
    error: str = ""
    message: str = ""
    result: "Result | None" = None


class Result(msgspec.Struct, frozen=True):
    """Of one generator. Counts but the last block are of the measured window, by the time of the answer; `rejected`,
    `unknown` and what follows are of the whole run. `per_second`: completed in each second since the start, up to the
    end of the window, which may cut the last one short; `missed`: links that another node did not show in time."""

    requests: int
    completed: int
    window_s: float
    client_cpu_s: float
    client_bytes: int
    rejected: int
    reasons: dict[str, int]
    unknown: int
    unknown_settled: int
    refused: int
    retried: int
    answered: int
    completed_in_all: int
    signed_before: int
    signed_during: int
    signing_s: float
    most_in_flight: int
    per_second: list[int]
    missed: int


def account_name(prefix: str, number: int) -> str:
    """The name of account `number` of a run."""
    return f"{prefix}{number:07d}"


def account_key(secret: bytes, number: int) -> Ed25519PrivateKey:
    """Its key: a different one for each account, so that no cache of keys makes the nodes look faster."""
    return Ed25519PrivateKey.from_private_bytes(hashlib.sha256(secret + number.to_bytes(8, "big")).digest())


def tell(news: News) -> None:
    """Print one line for the process that started this one."""
    sys.stdout.buffer.write(msgspec.json.encode(news) + b"\n")
    sys.stdout.buffer.flush()


class Ports(msgspec.Struct, frozen=True):
    """What a generator touches beside its connections: seconds of a monotonic clock and of CPU, and its parent."""

    clock: Callable[[], float]
    cpu: Callable[[], float]
    tell: Callable[[News], None]
    wait_for_go: Callable[[], None]


def submit_call(signed: SignedRequest, timeout_s: float) -> Submit:
    """The call that has a request executed."""
    return Submit(signed.raw, signed.signature, int(timeout_s * 1000))
