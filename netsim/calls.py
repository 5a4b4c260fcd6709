"""What clients ask of simulated nodes, and how each gets its answer; for both tiers.

A call has a number. The observer hears of it before the node does, and of its answer before the client does; both are
in the trace. A node that is down refuses the connection: that is a number, too, but nothing was asked.
"""

from collections.abc import Callable
from typing import Protocol

from hopchain.wire import AskBalance, ReplyBody, Submit, SubmitChange

Asked = Submit | AskBalance | SubmitChange
Done = Callable[[ReplyBody], None]


class CallObserver(Protocol):
    """Who hears of calls."""

    def submitted(self, call: int, node: int, submit: Asked, now: float) -> None: ...
    def answered(self, call: int, body: ReplyBody, now: float) -> None: ...


class CallHost(Protocol):
    """The simulated network in which calls are made."""

    @property
    def now(self) -> float: ...
    @property
    def observer(self) -> CallObserver: ...
    def note(self, *fields: object) -> None: ...


class Calls:
    """All calls of one run."""

    def __init__(self, host: CallHost) -> None:
        self._host = host
        self._last = 0
        self._waiting: dict[int, Done] = {}

    def begin(self, node: int, asked: Asked, done: Done | None, *, refused: bool) -> int:
        """The number of a new call, which the caller hands to the node unless it is `refused`. `done` gets the answer,
        if there is one."""
        self._last += 1
        call = self._last
        if refused:
            return call
        self._host.note("call", call, node)
        self._host.observer.submitted(call, node, asked, self._host.now)
        if done is not None:
            self._waiting[call] = done
        return call

    def end(self, call: int, body: ReplyBody) -> None:
        """The answer has come."""
        self._host.note("answer", call, body)
        self._host.observer.answered(call, body, self._host.now)
        done = self._waiting.pop(call, None)
        if done is not None:
            done(body)
