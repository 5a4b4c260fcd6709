"""hopchain, the Python client: `from hopchain import Client`. Works on trio and on asyncio."""

from chain.link import Outcome
from chain.request import Posting, SignedRequest
from hopchain.calls import Timing
from hopchain.client import Answer, Client
from hopchain.errors import CallRefused, ClientError, HopchainError, RemoteFault, Unreachable
from hopchain.pools import Choice, Ended, Outflow, PooledSender, SourcePool, TooManyFailures
from hopchain.wire import (
    AccountLine,
    Accounts,
    Balance,
    Chain,
    Digest,
    NotFound,
    NotStarted,
    Recorded,
    Refused,
    Route,
    Stale,
    Status,
    Unknown,
)

__all__ = [
    "AccountLine",
    "Accounts",
    "Answer",
    "Balance",
    "CallRefused",
    "Chain",
    "Choice",
    "Client",
    "ClientError",
    "Digest",
    "Ended",
    "HopchainError",
    "NotFound",
    "NotStarted",
    "Outcome",
    "Outflow",
    "PooledSender",
    "Posting",
    "Recorded",
    "Refused",
    "RemoteFault",
    "Route",
    "SignedRequest",
    "SourcePool",
    "Stale",
    "Status",
    "Timing",
    "TooManyFailures",
    "Unknown",
    "Unreachable",
]
