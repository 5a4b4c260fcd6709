"""The nodes of a client: which is asked next, and the connections to them.

* A node is dialled by a task of the client's own. Whoever wants its connection waits for that dial, as long as it may:
  a node whose cable is cut costs all who wait one dial together, and who is cancelled or has less time spoils it for
  nobody.
* Only closing the client ends that task and its connection, not what cancels the client's body: a call there that is
  shielded from it gets its answer.
* One host that takes connections and says nothing must not use up a call's time while others would answer: who has
  several nodes left to try waits for one dial no longer than its share (`share_s`). A node that somebody has waited for
  in vain counts as failing until it is open.
* Failing nodes are asked last. As long as another is open they are dialled again beside the calls, after a rest.
* Without `spread` the node that answered last is asked first, until it leaves a call in doubt (`doubted`): it may be
  cut off from the others. With it the first of the list moves on with every call, and a request goes to the node that
  makes its sender's next link (hopchain.tails).
"""

import ssl
from collections.abc import Sequence
from typing import Final

import anyio
from anyio.abc import TaskGroup

from chain.request import RequestId
from hopchain.addresses import Address
from hopchain.calls import Calls, Timing, dial
from hopchain.connection import ConnectionFailed, shown_s
from hopchain.errors import NO_REQUEST, Unreachable
from hopchain.home import Home
from routing.keyspace import Key, distance

FIRST_REST_S: Final = 0.1  # of a node that failed, before it is dialled again while others answer; doubles
LONGEST_REST_S: Final = 2.0
CLOSED: Final = "was not asked: the client was closed"


class _Dial:
    """One try to reach a node, and those who wait for it."""

    def __init__(self, address: Address) -> None:
        self.done = anyio.Event()
        self.line = anyio.Lock()  # who came first goes on first: calls leave in the order in which they were made
        self.failure = ConnectionFailed(str(address), CLOSED)  # unless it ends otherwise


class Node:
    """One node as the client knows it: its connection, if any, and how long it rests after failures."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.id = b""  # of whoever answered there last; empty when nobody did, or said none
        self.connection: Calls | None = None
        self.dial: _Dial | None = None  # under way
        self.rest_s = 0.0  # after the last failure; 0 when there was none since it was open
        self.rest_until = 0.0
        self.doubted_at = 0.0  # when it last left a call in doubt; 0 when it never did

    @property
    def open(self) -> bool:
        """It can be asked at once."""
        return self.connection is not None and self.connection.lost is None

    @property
    def full(self) -> bool:
        """Its connection has no room for another call."""
        return self.connection is not None and self.connection.full

    @property
    def failing(self) -> bool:
        """It could not be reached, or was lost: others are asked first until it is back."""
        return self.rest_s > 0 and not self.open

    def failed(self) -> None:
        """Remember a failure: the node rests for a while."""
        self.rest_s = min(max(2 * self.rest_s, FIRST_REST_S), LONGEST_REST_S)
        self.rest_until = anyio.current_time() + self.rest_s

    def opened(self, connection: Calls) -> None:
        """It can be asked again."""
        self.connection = connection
        self.id = connection.node_id
        self.rest_s = 0.0
        self.rest_until = 0.0


class Nodes:
    """The nodes of a list, and those beside it that calls are pinned to, as long as these are connected."""

    def __init__(
        self, addresses: Sequence[Address], context: ssl.SSLContext, network: bytes, *, spread: bool, timing: Timing
    ) -> None:
        self._listed = [Node(address) for address in dict.fromkeys(addresses)]
        self._pinned: dict[Address, Node] = {}
        self._context = context
        self._network = network
        self._spread = spread
        self._timing = timing
        self._turn = 0
        self._tasks: TaskGroup | None = None
        self._serving: set[anyio.CancelScope] = set()  # one for each task of it that has begun
        self.home: Home | None = None  # while nodes can be asked

    @property
    def open(self) -> bool:
        """Nodes can be asked: between `start` and `aclose`."""
        return self._tasks is not None

    async def start(self) -> None:
        """Nodes may be asked from now on, until the same task calls `aclose`."""
        assert self._tasks is None
        self.home = Home()
        self._tasks = await anyio.create_task_group().__aenter__()

    async def aclose(self) -> None:
        """Close all connections. `LocalMisuse`, and nothing is closed, in another task than that of `start`: its task
        group cannot end there, and trying to would end trio itself."""
        assert self._tasks is not None and self.home is not None
        self.home.check_task()
        tasks, self._tasks, self.home = self._tasks, None, None
        for scope in self._serving:
            scope.cancel()
        await tasks.__aexit__(None, None, None)

    # --- whom to ask -------------------------------------------------------------------------------------------

    def take_turn(self, at: Address | None = None, key: Key | None = None) -> list[Node]:
        """The nodes to try for one call, once each: the pinned one, or all of the list from the one whose turn it is,
        those that failed last. `key`: the tail of a request's sender, with `spread`: who makes the link after it comes
        first. The next call gets another one first, with `spread`; nodes that have rested are dialled."""
        if at is not None:
            return [self._node_at(at)]
        rotated = self._listed[self._turn :] + self._listed[: self._turn]
        if self._spread:
            self._turn = (self._turn + 1) % len(self._listed)
        if self.open and any(node.open for node in rotated):  # otherwise the call itself dials them
            self._dial_rested(rotated)
        working = [node for node in rotated if not node.failing]
        if self._spread and key is not None and all(node.id for node in working):
            # One that has no room comes after the others. While a node has not said its id all stay in turn, and so
            # each of them is dialled in the end.
            working.sort(key=lambda node: (node.full, distance(node.id, key)))
        elif not self._spread:
            working.sort(key=lambda node: node.doubted_at)
        return working + [node for node in rotated if node.failing]

    def answered(self, node: Node, at: Address | None) -> None:
        """Without `spread` it is kept: asked first from now on, so that a dead one before it is not dialled each time.
        Not so when the call was pinned to it."""
        if not self._spread and at is None:
            self._turn = self._listed.index(node)

    def doubted(self, node: Node, at: Address | None) -> None:
        """It had a call and gave no answer in its time, or said that it does not know. Without `spread` those that did
        so longer ago, or never, are asked before it from now on. Not so when the call was pinned to it. With `spread`
        all are asked in turn anyway, and the sender's next request is (hopchain.tails)."""
        if at is None:
            node.doubted_at = anyio.current_time()

    def _node_at(self, address: Address) -> Node:
        listed = next((node for node in self._listed if node.address == address), None)
        return listed or self._pinned.setdefault(address, Node(address))

    def _dial_rested(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            if node.failing and node.dial is None and node.rest_until <= anyio.current_time():
                self._start_dial(node)

    # --- connections -------------------------------------------------------------------------------------------

    async def connect(self, node: Node, patience_s: float) -> Calls:
        """The node's open connection; when there is none it is dialled, and waited for so long. Raises
        `ConnectionFailed`. One that is open is returned without letting others run: of many requests at once each sees
        the room that those before it left."""
        if node.connection is not None and node.open:
            return node.connection
        if not self.open:  # closed meanwhile: a node may have the request, so this is no misuse
            raise ConnectionFailed(str(node.address), CLOSED)
        dial = node.dial or self._start_dial(node)
        with anyio.move_on_after(patience_s):
            async with dial.line:
                await dial.done.wait()
        if node.connection is not None and node.open:
            return node.connection
        if not dial.done.is_set():
            node.failed()
            raise ConnectionFailed(str(node.address), f"did not answer in {shown_s(patience_s)}")
        raise dial.failure

    def _start_dial(self, node: Node) -> _Dial:
        assert self._tasks is not None
        node.dial = dial = _Dial(node.address)
        self._tasks.start_soon(self._serve, node, dial, self._tasks)
        return dial

    async def _serve(self, node: Node, attempt: _Dial, tasks: TaskGroup) -> None:
        """Dial the node, and serve the connection until it ends. Only `aclose`, of the same `tasks`, cancels that."""
        with anyio.CancelScope(shield=True) as scope:
            if self._tasks is not tasks:  # closed before this began, perhaps opened again: nobody else cancels it
                scope.cancel()
            self._serving.add(scope)
            try:
                await self._dial_and_run(node, attempt)
            finally:
                self._serving.discard(scope)

    async def _dial_and_run(self, node: Node, attempt: _Dial) -> None:
        try:
            connection = await dial(node.address, self._context, self._network, self._timing)
            node.opened(connection)
            attempt.failure = ConnectionFailed(str(node.address), "closed the connection at once")
        except ConnectionFailed as error:
            attempt.failure = error
            node.failed()
            self._forget(node)
            return
        finally:
            node.dial = None
            attempt.done.set()
        await connection.run()
        if node.connection is connection and node.dial is None:  # nobody has dialled it again meanwhile
            node.failed()
            self._forget(node)

    def _forget(self, node: Node) -> None:
        """Only those of the list are kept: calls may be pinned to ever new addresses."""
        if self._pinned.get(node.address) is node:
            del self._pinned[node.address]


def share_s(deadline: float, nodes_left: int) -> float:
    """How long a call that ends at `deadline` waits for one dial while so many nodes, this one included, are to be
    tried."""
    return max(0.0, deadline - anyio.current_time()) / nodes_left


class Tried:
    """What went wrong with the nodes that one call tried."""

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes
        self._tried: list[tuple[str, str]] = []
        self._reached = False  # some node listens

    def failed(self, node: Node, error: ConnectionFailed) -> None:
        """It could not be asked, or was lost."""
        self.add(node, error.cause, reached=error.reached)

    def add(self, node: Node, why: str, *, reached: bool = True) -> None:
        """It gave no answer that counts."""
        self._tried.append((str(node.address), why))
        self._reached = self._reached or reached

    def unreachable(self, request_id: RequestId = NO_REQUEST) -> Unreachable:
        """What the caller is told when no node is left to try."""
        return Unreachable(self._tried, request_id, reached=self._reached, closed=not self._nodes.open)
