"""Members that come and go while a cluster of processes runs: invited, added, removed, as the commands do it."""

import datetime
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from hopchain import Client, Unreachable
from hopchain.change import Change, ChangeAction, SignedChange, sign_change
from hopchain.wire import Changed, MemberLine, Refused
from node.invite import Invite, load_invite, make_invite, make_node_directory, write_invite
from node.layout import CA_KEY, NETWORK_KEY, OPERATOR_KEY, NodePlace
from node.pki import read_private_key, read_secret
from tests.cluster.cluster import Cluster, NodeProcess, until
from tests.ports import take

LIFE_MS = 3_600_000
CHANGE_S = 60.0
TRY_S = 5.0
CLOSE_LINKS = 64


def unix_ms() -> int:
    return int(datetime.datetime.now(datetime.UTC).timestamp() * 1000)


class Growing(Cluster):
    """A cluster whose `nodes` are the members of now, in the order in which they came; `gone`: those that were."""

    def __init__(self, directory: Path, nodes: int, k: int = 5) -> None:
        super().__init__(directory, nodes, k)
        self.gone: list[NodeProcess] = []
        self._operator = read_private_key(directory / OPERATOR_KEY)
        self._invited = len(self.nodes)

    @asynccontextmanager
    async def growing(self) -> AsyncIterator["Growing"]:
        """Have all nodes running; end them all."""
        try:
            async with self.opened(), trio.open_nursery() as self._nursery:
                yield self
                self._nursery.cancel_scope.cancel()
        finally:
            for node in self.gone:
                node.kill()
            self.close()

    def invite(self) -> Path:
        """A new invitation's file."""
        self._invited += 1
        directory = self.network.directory
        made: Invite = make_invite(
            f"node-{self._invited}",
            self.network.genesis,
            read_secret(directory / CA_KEY),
            self._operator,
            read_secret(directory / NETWORK_KEY),
            [node.place for node in self.nodes],
            now_ms=unix_ms(),
            expires_ms=unix_ms() + LIFE_MS,
        )
        path = directory / f"{made.name}.invite"
        write_invite(path, made)
        return path

    def guest(self, invite: Path) -> NodeProcess:
        """The invited node with its directory, not yet started."""
        invitation = load_invite(invite)
        port, client_port = take(2)
        directory = self.network.directory / invitation.name
        make_node_directory(invitation, directory, "127.0.0.1", port, client_port)
        place = NodePlace(invitation.name, invitation.key.id.hex(), "127.0.0.1", port, client_port)
        return NodeProcess(place, directory)

    async def add(self) -> None:
        """Invite a node, let it copy the links, make it a member, and wait until all are active."""
        invite = self.invite()
        node = self.guest(invite)
        node.start()
        self.gone.append(node)  # until it is a member: ended with the rest, whatever happens
        client = await self._client_of(node)
        await until(f"{node.place.name} has the links", lambda: self._has_links(client), CHANGE_S)
        change = load_invite(invite).change
        assert change is not None
        await self.change(change)
        self.gone.remove(node)
        await self._count_in(node, client)

    async def adopt(self, node: NodeProcess) -> None:
        """Run a node that has become a member already."""
        node.start()
        await self._count_in(node, await self._client_of(node))

    async def _count_in(self, node: NodeProcess, client: Client) -> None:
        self.nodes.append(node)
        self.clients.append(client)
        await self._spread()
        await self.wait_active()

    async def removal(self, number: int) -> SignedChange:
        """The operator's word that a member is to be removed. The member is asked for its key."""
        node = self.nodes[number]
        key = next(m for m in (await self._members(self.clients[number])) if m.id == node.place.node_id)
        wanted = Change(self.id, ChangeAction.REMOVE, key.public_key, key.incarnation, unix_ms() + LIFE_MS)
        return sign_change(wanted, self._operator)

    async def remove(self, number: int) -> None:
        """Remove a member; its process ends, by itself or told to."""
        node = self.nodes[number]
        await self.change(await self.removal(number), last=number)
        del self.nodes[number]
        del self.clients[number]
        self.gone.append(node)
        await self._spread()
        await self.wait_active()
        node.kill()

    async def change(self, signed: SignedChange, last: int = -1) -> None:
        """Have the change made by any member; the one that goes is asked last."""
        order = sorted(range(len(self.clients)), key=lambda number: number == last)
        seen: object = None

        async def look() -> tuple[bool, object]:
            nonlocal seen
            for number in order:
                try:
                    seen = await self.clients[number].change(signed, timeout_s=TRY_S)
                except Unreachable as error:
                    seen = error
                    continue
                assert not isinstance(seen, Refused), seen
                if isinstance(seen, Changed):
                    return True, seen
            return False, seen

        await until("the change is made", look, CHANGE_S)

    async def wait_active(self) -> None:
        """All members are in one epoch with exactly these members, and ACTIVE."""
        ids = {node.place.node_id for node in self.nodes}

        async def look() -> tuple[bool, object]:
            try:
                health = [await client.health() for client in self.clients]
                views = [await client.all_views() for client in self.clients]
            except Unreachable as error:
                return False, error
            holds = all(h.active and h.role == "member" for h in health) and len({h.epoch for h in health}) == 1
            members = [{m.id for m in view[-1].members} for view in views]
            return holds and all(found == ids for found in members), health

        await until(f"{len(ids)} members are active", look, CHANGE_S)

    async def _client_of(self, node: NodeProcess) -> Client:
        client = Client([node.client_address], self.network.genesis.ca, self.id)
        await self._nursery.start(_keep_open, client)
        return client

    async def _spread(self) -> None:
        client = self.new_client(range(len(self.nodes)), spread=True)
        await self._nursery.start(_keep_open, client)
        self.client = client

    async def _has_links(self, client: Client) -> tuple[bool, object]:
        try:
            health = await client.health()
            most = (await self.clients[0].health()).links
        except Unreachable as error:
            return False, error
        return health.links > 0 and most - health.links <= CLOSE_LINKS, (health.links, most)

    async def _members(self, client: Client) -> tuple[MemberLine, ...]:
        return (await client.all_views())[-1].members


async def _keep_open(client: Client, task_status: trio.TaskStatus[None]) -> None:
    """A client lives in a task of its own: it is opened while others pay."""
    async with client:
        task_status.started()
        await trio.sleep_forever()
