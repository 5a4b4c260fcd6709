"""One request on its way: handed to node after node until one has its outcome, or the time is up.

A node that answers the client and is cut off from the others gets no outcome, and does not know it. So each has half of
the time that is left, and the next one is handed the same bytes, which are executed once however many nodes have them.
`Unknown` is the answer only when none of them gave an outcome; once any node may have taken the request, "it did not
happen" is never concluded from another node's refusal.
"""

from collections.abc import Sequence
from typing import Final

import anyio

from chain.request import SignedRequest
from hopchain.addresses import Address
from hopchain.calls import Calls, ConnectionLost
from hopchain.connection import ConnectionFailed, shown_s
from hopchain.nodes import Node, Nodes, Tried, share_s
from hopchain.tails import Tails
from hopchain.wire import NOT_COVERED, NotStarted, Recorded, Refused, Stale, Submit, Unknown

Answer = Recorded | Stale | NotStarted | Unknown | Refused

NODE_SHARE: Final = 0.9  # of the time that is left is given to a node, so that its own answer arrives in time
FIRST_PAUSE_S: Final = 0.05  # between rounds over all nodes; doubles
LAST_PAUSE_S: Final = 0.5


def ms_for_node(left_s: float) -> int:
    """The `timeout_ms` of a call that must be answered within `left_s`."""
    return max(1, int(left_s * NODE_SHARE * 1000))


def patience_s(left_s: float, timeout_s: float, *, last: bool) -> float:
    """How long the next node has, of a call of `timeout_s` of which `left_s` are left. Halves end where a node could no
    longer say in time that it has no answer: what none can settle is handed to four nodes, not to all of a large
    network."""
    half_s = left_s / 2
    return left_s if last or half_s < timeout_s * (1 - NODE_SHARE) else half_s


class Submission:
    """One request while it is being submitted, and what is known about it."""

    def __init__(self, nodes: Nodes, tails: Tails, signed: SignedRequest, sender: str, at: Address | None) -> None:
        self._nodes = nodes
        self._tails = tails
        self._signed = signed
        self._sender = sender
        self._at = at
        self._timeout_s = 0.0
        self._deadline = 0.0
        self._doubt: str | None = None  # why an earlier attempt may still execute
        self._refusal = ""  # of another node, after that
        self._not_started: NotStarted | None = None
        self._codes: set[str] = set()  # of those of this round over the nodes
        self._tried = Tried(nodes)

    @property
    def _left_s(self) -> float:
        return self._deadline - anyio.current_time()

    async def run(self, timeout_s: float) -> Answer:
        """The answer, within `timeout_s`. Raises `Unreachable` when no node was handed the request."""
        self._timeout_s = timeout_s
        self._deadline = anyio.current_time() + timeout_s
        pause_s = FIRST_PAUSE_S
        while True:
            asked = False
            self._codes.clear()
            nodes = self._nodes.take_turn(self._at, self._tails.key(self._sender))
            for number, node in enumerate(nodes):
                if self._left_s <= 0:
                    return self._at_the_end()
                try:
                    connection = await self._nodes.connect(node, share_s(self._deadline, self._to_try(nodes, number)))
                except ConnectionFailed as error:
                    self._tried.failed(node, error)
                    continue
                asked = True
                answer = await self._attempt(
                    node, connection, patience_s(self._left_s, self._timeout_s, last=number == len(nodes) - 1)
                )
                if answer is not None and not self._may_be_asked_again(answer):
                    if not isinstance(answer, Unknown):
                        self._nodes.answered(node, self._at)
                    return answer
            if (not asked and not self._worth_waiting()) or self._is_uncovered():
                return self._at_the_end()
            await anyio.sleep(max(0.0, min(pause_s, self._left_s)))
            pause_s = min(2 * pause_s, LAST_PAUSE_S)

    def _to_try(self, nodes: Sequence[Node], number: int) -> int:
        """How many nodes share the time for dials. A request in doubt leaves some for another round: a slow node that
        had it may know its outcome by then."""
        return len(nodes) - number + (self._doubt is not None)

    def _may_be_asked_again(self, answer: Answer) -> bool:
        """A node that stops says Unknown at once, and others may know more. At the end of the time its words are the
        answer."""
        return isinstance(answer, Unknown) and self._left_s >= self._timeout_s * (1 - NODE_SHARE)

    def _is_uncovered(self) -> bool:
        """Each node that was asked says that its sender lacks the money, or that it has expired: sent again at once, it
        is told the same."""
        return self._doubt is None and self._codes == {NOT_COVERED}

    def _worth_waiting(self) -> bool:
        """When no node can be reached: a request that some node had, or was too busy for, may still be settled. One
        that none had is not held back until the deadline: the caller learns at once that the network is down."""
        return self._nodes.open and (self._doubt is not None or self._not_started is not None)

    def _at_the_end(self) -> Answer:
        """The answer when no node is asked any more."""
        if self._doubt is not None:
            why = f"no answer within {shown_s(self._timeout_s)}: {self._doubt}{self._refusal}"
            return Unknown(self._signed.request_id, why)
        if self._not_started is not None:
            return self._not_started
        raise self._tried.unreachable(self._signed.request_id)

    async def _attempt(self, node: Node, connection: Calls, patience_s: float) -> Answer | None:
        """Hand the request to one node: its answer, or None when another node should be asked."""
        where = node.address
        call = Submit(self._signed.raw, self._signed.signature, ms_for_node(patience_s))
        try:
            answer = await connection.call(call, anyio.current_time() + patience_s)
        except ConnectionLost as error:
            self._doubt = f"{where} had it when the connection was lost ({error.cause})"
            return None
        except ConnectionFailed as error:
            self._tried.failed(node, error)
            return None
        match answer:
            case None:
                self._doubt = self._doubt or f"{where} had it and did not answer"
                self._nodes.doubted(node, self._at)
            case Recorded(request_id=about) | Stale(request_id=about) if about == self._signed.request_id:
                return answer
            case NotStarted(request_id=about) if about == self._signed.request_id:
                self._not_started = answer
                self._codes.add(answer.code)
            case Unknown(request_id=about) if about == self._signed.request_id:
                self._doubt = answer.reason
                self._nodes.doubted(node, self._at)
                return answer
            case Refused():
                if self._doubt is None:
                    return answer
                self._refusal = f"; then {where} refused it: {answer.reason} [{answer.code}]"
            case _:
                self._doubt = self._doubt or f"{where} had it and answered something else"
                connection.lose(f"broke the protocol: {type(answer).__name__} to a request")
        return None
