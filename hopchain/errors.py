"""What the client raises. Everything that a node *answers* is a value, not an exception: see `hopchain.client`.

`RemoteFault` (a node broke the protocol) comes from `chain.errors` and is the same everywhere.
"""

from collections.abc import Sequence
from typing import Final

from chain.errors import HopchainError, RemoteFault
from chain.request import RequestId

__all__ = ["CallRefused", "ClientError", "HopchainError", "RemoteFault", "Unreachable"]

_NO_REQUEST: Final = RequestId(b"")


class ClientError(HopchainError):
    """Base of the errors of this package."""


class Unreachable(ClientError):
    """No node could be asked. For a submitted request: nothing was handed to any node, so nothing will happen.

    `tried`: (node, what went wrong) in order; `request_id` is the request's, empty for a question.
    """

    def __init__(self, tried: Sequence[tuple[str, str]], request_id: RequestId = _NO_REQUEST) -> None:
        self.tried = tuple(tried)
        self.request_id = request_id
        told = "; ".join(f"{node}: {why}" for node, why in self.tried[-5:]) or "there was no time to try any"
        count = len({node for node, _ in self.tried})
        super().__init__(
            f"no node could be reached ({count} tried): {told}. Is the network up? `hopchain up` starts it"
        )


class CallRefused(ClientError):
    """A node refused a question. `code` is stable; the text says what to do."""

    def __init__(self, node: str, code: str, reason: str) -> None:
        self.node = node
        self.code = code
        self.reason = reason
        super().__init__(f"{node} refused: {reason} [{code}]")
