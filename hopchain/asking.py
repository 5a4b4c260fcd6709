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

from typing import Final, TypeVar

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
    tried = Tried(nodes)
    deadline = anyio.current_time() + timeout_s
    turn = nodes.take_turn(at)
    unknown: _T | None = None
    waited_s: dict[Node, float] = {}
    pause_s = FIRST_PAUSE_S
    may_be_unknown = isinstance(question, AskBalance) and question.waits

    def left_s() -> float:
        """In which a node may be asked. With `Unknown` in hand the end is left out: no node could say more by then."""
        unused_s = 0.0 if unknown is None else timeout_s * (1 - NODE_SHARE)
        return deadline - unused_s - anyio.current_time()

    while turn and left_s() > 0:
        again: list[Node] = []  # who may know when asked again
        for number, node in enumerate(turn):
            if left_s() <= 0:
                break
            began = anyio.current_time()
            last = number == len(turn) - 1 or not may_be_unknown
            try:
                connection = await nodes.connect(node, share_s(deadline, len(turn) - number))
                now = anyio.current_time()
                until = now + patience_s(deadline - now, timeout_s, last=last)
                answer = await _call(connection, question, until)
            except ConnectionFailed as error:
                tried.failed(node, error)
                continue
            if answer is None:
                waited_s[node] = waited_s.get(node, 0.0) + until - began
                tried.add(node, f"no answer within {shown_s(waited_s[node])}")
                nodes.doubted(node, at)
                again.append(node)
                continue
            if isinstance(answer, Refused):
                raise CallRefused(str(node.address), answer.code, answer.reason)
            if isinstance(answer, kinds):
                found: _T = answer
                _note(nodes, node, found, at)
                if not isinstance(found, Unknown):
                    return found
                unknown = found
                again.append(node)
                continue
            _lose(node, connection, question, answer, tried)
        turn = again
        if turn and left_s() > 0:
            await anyio.sleep(max(0.0, min(pause_s, left_s())))
            pause_s = min(2 * pause_s, LAST_PAUSE_S)
    if unknown is not None:
        return unknown
    raise tried.unreachable()


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
