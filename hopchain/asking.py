"""Questions, which any node may answer, and changes of the members, which one node is handed.

A question that gets no answer from one node is asked of the next: asking twice does no harm. A balance that must be
made certain, or waits for a link, is the one question that a node which is cut off from the others answers with
`Unknown`, late. So each node has half of the time that is left, as with a request (hopchain.submitting), and that is
the answer only when none gave another. When no other node could be reached, those that were asked are asked again, with
what is left.

A change may be sent twice, too, but what another node says of it does not tell what became of it at the first one. So
it goes on to the next node only while it was certainly not handed over, and then the answer is that node's, or
`Unknown`.
"""

from typing import Final, Generic, TypeVar

import anyio
import msgspec

from chain.errors import LocalMisuse
from chain.request import RequestId
from hopchain.addresses import Address
from hopchain.calls import Calls, ConnectionLost
from hopchain.change import SignedChange
from hopchain.connection import ConnectionFailed, shown_s
from hopchain.errors import CallRefused
from hopchain.nodes import Node, Nodes, Tried, share_s
from hopchain.submitting import FIRST_PAUSE_S, LAST_PAUSE_S, NODE_SHARE, ms_for_node, patience_s
from hopchain.wire import (
    MAX_CLIENT_FRAME_BYTES,
    AskBalance,
    Call,
    CallBody,
    Changed,
    NotStarted,
    Refused,
    ReplyBody,
    SubmitChange,
    Unknown,
    decode_client_frame_untrusted,
    encode,
)

_T = TypeVar("_T")
_HEAD_BYTES: Final = 16  # more than a call's number and tags


async def ask_for(
    kinds: tuple[type[_T], ...], question: CallBody, nodes: Nodes, at: Address | None, timeout_s: float
) -> _T:
    """The first answer of one of `kinds` that a node gives within `timeout_s`; `Unknown` only when no other came.

    Raises `Unreachable` when none does, `CallRefused` with the words of a node, `LocalMisuse` for what cannot be sent.
    """
    check_can_be_sent(question)
    return await _Asking(kinds, question, nodes, at, timeout_s).ask()


class _Asking(Generic[_T]):
    """One question while it is being asked, and what came of it so far."""

    def __init__(
        self, kinds: tuple[type[_T], ...], question: CallBody, nodes: Nodes, at: Address | None, timeout_s: float
    ) -> None:
        self._kinds = kinds
        self._question = question
        self._nodes = nodes
        self._at = at
        self._timeout_s = timeout_s
        self._deadline = anyio.current_time() + timeout_s
        self._may_be_unknown = isinstance(question, AskBalance) and question.waits
        self._unknown: _T | None = None
        self._again: list[Node] = []  # who may know when asked again
        self._waited_s: dict[Node, float] = {}
        self._tried = Tried(nodes)

    @property
    def _left_s(self) -> float:
        """In which a node may be asked. With `Unknown` in hand the end is left out: no node could say more by then."""
        unused_s = 0.0 if self._unknown is None else self._timeout_s * (1 - NODE_SHARE)
        return self._deadline - unused_s - anyio.current_time()

    async def ask(self) -> _T:
        """As `ask_for`."""
        turn = self._nodes.take_turn(self._at)
        pause_s = FIRST_PAUSE_S
        while turn and self._left_s > 0:
            self._again = []
            for number, node in enumerate(turn):
                if self._left_s <= 0:
                    break
                answer = await self._ask_node(node, len(turn) - number)
                if answer is not None:
                    return answer
            turn = self._again
            if turn and self._left_s > 0:
                await anyio.sleep(max(0.0, min(pause_s, self._left_s)))
                pause_s = min(2 * pause_s, LAST_PAUSE_S)
        if self._unknown is not None:
            return self._unknown
        raise self._tried.unreachable()

    async def _ask_node(self, node: Node, to_ask: int) -> _T | None:
        """The answer of this node, unless it is `Unknown` or none that counts. `to_ask`: how many nodes are to be asked
        in this round, with this one."""
        began = anyio.current_time()
        try:
            connection = await self._nodes.connect(node, share_s(self._deadline, to_ask))
            now = anyio.current_time()
            last = to_ask == 1 or not self._may_be_unknown
            until = now + patience_s(self._deadline - now, self._timeout_s, last=last)
            answer = await _call(connection, self._question, until)
        except ConnectionFailed as error:
            self._tried.failed(node, error)
            return None
        if answer is None:
            self._waited_s[node] = self._waited_s.get(node, 0.0) + until - began
            self._tried.add(node, f"no answer within {shown_s(self._waited_s[node])}")
            self._nodes.doubted(node, self._at)
            self._again.append(node)
        elif isinstance(answer, Refused):
            raise CallRefused(str(node.address), answer.code, answer.reason)
        elif isinstance(answer, self._kinds):
            found: _T = answer
            _note(self._nodes, node, found, self._at)
            if not isinstance(found, Unknown):
                return found
            self._unknown = found
            self._again.append(node)
        else:
            _lose(node, connection, self._question, answer, self._tried)
        return None


async def propose(
    signed: SignedChange, nodes: Nodes, at: Address | None, timeout_s: float
) -> Changed | Refused | NotStarted | Unknown:
    """What the node says that the change is handed to. `Unknown` when it says nothing within `timeout_s`.
    Raises `Unreachable` when it could be handed to none, so nothing will happen; `LocalMisuse` for what cannot be
    sent."""
    change = SubmitChange(signed.raw, signed.signature, 0)
    check_can_be_sent(change)
    tried = Tried(nodes)
    deadline = anyio.current_time() + timeout_s
    turn = nodes.take_turn(at)
    for number, node in enumerate(turn):
        if anyio.current_time() >= deadline:
            break
        why = f"did not answer within {shown_s(timeout_s)}"
        try:
            connection = await nodes.connect(node, share_s(deadline, len(turn) - number))
            answer = await _call(connection, change, deadline)
        except ConnectionLost as error:
            answer, why = None, error.cause
        except ConnectionFailed as error:
            tried.failed(node, error)
            continue
        if isinstance(answer, Changed | Refused | NotStarted | Unknown):
            _note(nodes, node, answer, at)
            return answer
        if answer is None:
            nodes.doubted(node, at)
        else:
            why = _lose(node, connection, change, answer, tried)
        return Unknown(signed.id, f"{node.address} had the change and {why}")
    raise tried.unreachable(RequestId(signed.id))


def check_can_be_sent(body: CallBody) -> None:
    """Raise `LocalMisuse` for values of another type than the call has, which would end the connection that others
    share."""
    name = type(body).__name__
    try:
        raw = encode(Call(1, body))
        decode_client_frame_untrusted(raw)
    except (msgspec.MsgspecError, TypeError, ValueError, OverflowError) as error:
        raise LocalMisuse(f"{name} cannot be sent with these values: {str(error).partition(' - at ')[0]}") from None
    if len(raw) + _HEAD_BYTES > MAX_CLIENT_FRAME_BYTES:
        raise LocalMisuse(f"{name} of {len(raw)} bytes cannot be sent: at most {MAX_CLIENT_FRAME_BYTES}")


async def _call(connection: Calls, body: CallBody, deadline: float) -> ReplyBody | None:
    """As `Calls.call`. A call that the node limits itself is told a little less than what is left."""
    if isinstance(body, AskBalance | SubmitChange):
        body = msgspec.structs.replace(body, timeout_ms=ms_for_node(deadline - anyio.current_time()))
    return await connection.call(body, deadline)


def _note(nodes: Nodes, node: Node, answer: object, at: Address | None) -> None:
    """Whether the node that gave this answer is asked again."""
    if isinstance(answer, Unknown):
        nodes.doubted(node, at)
    else:
        nodes.answered(node, at)


def _lose(node: Node, connection: Calls, body: CallBody, answer: ReplyBody, tried: Tried) -> str:
    """Give up a node that answers something else, as one that breaks the protocol in any other way: why."""
    why = f"broke the protocol: it answered {type(answer).__name__} to {type(body).__name__}"
    connection.lose(why)
    tried.add(node, why)
    return why
