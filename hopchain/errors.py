"""What the client raises. Everything that a node *answers* is a value, not an exception: see `hopchain.client`.

`ClientError` is the base of all that is nobody's mistake in the calling program. What is one is a `LocalMisuse`
(chain.errors), whose text names the value: it is raised before anything is sent.
"""

from collections.abc import Iterable, Sequence
from typing import Final

from chain.errors import HopchainError, RemoteFault
from chain.request import RequestId

__all__ = ["CallRefused", "ClientError", "HopchainError", "RemoteFault", "Unreachable"]

NO_REQUEST: Final = RequestId(b"")
_SHOWN: Final = 5  # nodes in a text


def each_reason(tried: Iterable[tuple[str, str]]) -> str:
    """What went wrong with each (node, what), in one line: each reason once, behind all its nodes."""
    nodes: dict[str, list[str]] = {}
    for node, why in tried:
        nodes.setdefault(why, []).append(node)
    return "; ".join(f"{', '.join(alike)}: {why}" for why, alike in nodes.items())


class ClientError(HopchainError):
    """Base of the errors of this package."""


class Unreachable(ClientError):
    """No node could be asked, or none answered the question. For a submitted request: nothing was handed to any node,
    so nothing will happen.

    `tried`: (node, what went wrong) in order; `reached`: some node listens, but did not answer or refused this client;
    `closed` (only in the text): this program closed the client meanwhile; `request_id` is the request's, empty for a
    question.
    """

    def __init__(
        self,
        tried: Sequence[tuple[str, str]],
        request_id: RequestId = NO_REQUEST,
        *,
        reached: bool = False,
        closed: bool = False,
    ) -> None:
        self.tried = tuple(tried)
        self.request_id = request_id
        self.reached = reached
        self.closed = closed
        super().__init__(self.told("DIR"))

    def told(self, directory: str) -> str:
        """The text. `directory`: the network's, as a shell takes it, for the command that starts its nodes; without it
        that would be another network's, perhaps."""
        last = dict(self.tried)  # what went wrong last with each node
        told = each_reason(list(last.items())[-_SHOWN:])
        if not last:
            return "no node was asked: there was no time to try any"
        if self.closed:
            return f"the client was closed before any node answered: {told}. Keep it open until its calls have ended"
        if self.reached:
            return f"no node answered ({len(last)} tried): {told}. `hopchain doctor` says what is wrong"
        return (
            f"no node could be reached ({len(last)} tried): {told}. Is the network up? `hopchain up {directory}` starts its nodes on "
            "one machine"
        )


class CallRefused(ClientError):
    """A node refused a question. `code` is stable; the text says what to do."""

    def __init__(self, node: str, code: str, reason: str) -> None:
        self.node = node
        self.code = code
        self.reason = reason
        super().__init__(f"{node} refused: {reason} [{code}]")
