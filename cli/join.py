"""`hopchain join`: a new node gets its files from an invitation, copies the ledger, and becomes a member.

It is a normal node from the start, first as a guest. So a join that was killed at any moment is the same command again:
the files that are there stay, links that are there are not copied again, and the change that adds the node can be sent
twice.

    node process starts -> copies links -> its database is verified -> the invitation's change -> member -> active ->
    runs on

`member add` and `replace` may make it a member before it is verified. It is verified all the same, once
(`cli.verified`).
"""

import ipaddress
import shlex
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Final, NoReturn

import anyio
import anyio.abc
import anyio.from_thread
import click
import msgspec

from chain.errors import HopchainError, LocalMisuse
from cli.command import HopCommand, run
from cli.copying import TELL_S, Copied, CopyMeter, most_heard, progress_line
from cli.home import KnownNode, load_network, remember_if_none
from cli.invite import open_invitation
from cli.leave import local_address
from cli.members import LOOK_AGAIN_S, now_ms, open_patiently, reason_of, submit_change
from cli.names import add_names
from cli.output import CommandFailed, Exit, JsonValue, Output, console, counted
from cli.ports import choose_ports
from cli.supervisor import LOG_NAME, last_words, node_command, stop
from cli.verified import verify_copy
from hopchain import Client, ClientError, Status, Timing, Unreachable
from hopchain.wire import Health
from node.config import CONFIG_FILE, read_config
from node.invite import Invitation, check_expiry, is_begun, make_node_directory
from node.signals import ending_signals

LOOPBACK: Final = "127.0.0.1"
TIMING: Final = Timing(dial_s=2.0, read_s=5.0)
ADD_S: Final = 15.0  # to look again at what the node itself knows, while its change is being made
UNUSED_S: Final = 3.0  # for a process that was ended to let go of the directory


@click.command(
    cls=HopCommand,
    examples=[
        "hopchain join node-6.invite --data node-6",
        "hopchain join node-6.invite --data /srv/hopchain --host 0.0.0.0 --port 7400 --client-port 7401 --advertise-host n6.lan",
        "hopchain join reports.invite --data reports --observer --json",
    ],
    own_signals=True,
)
@click.argument("invite", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="INVITE")
@click.option(
    "--data",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    metavar="D",
    help="The new node's directory.",
)
@click.option(
    "--host", help="Address to listen on. Default: 127.0.0.1, when all nodes of the network are on this machine."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=0,
    help="Port for members. Default: any free one (from HOPCHAIN_PORTS=FROM-TO).",
)
@click.option("--client-port", type=click.IntRange(0, 65535), default=0, help="Port for clients. Default: likewise.")
@click.option("--advertise-host", help="Address at which the others reach it. Default: that of --host.")
@click.option(
    "--observer",
    is_flag=True,
    help="Get all links, but do not become a member: only `hopchain replace` or `member add` makes it one.",
)
@click.option("--exit", "exit_after", is_flag=True, help="Stop the node when it has joined; `hopchain node D` runs it.")
def join(
    out: Output,
    invite: Path,
    data: Path,
    host: str | None,
    port: int,
    client_port: int,
    advertise_host: str | None,
    observer: bool,
    exit_after: bool,
) -> None:
    """Become a node of a network: make the directory D, copy all links, verify them, become a member, and run.

    If it is killed or interrupted, run the same command again: it continues where it was. SIGTERM or Ctrl-C ends the
    node; later `hopchain node D` runs it. With --json: one document a line.
    """
    invitation = open_invitation(invite)
    observer = observer or invitation.observer
    if is_begun(invitation, data):
        if host or port or client_port or advertise_host:
            out.note(f"{data} exists already and keeps its addresses: edit {data / CONFIG_FILE} to change them")
    else:
        check_expiry(invitation, now_ms(), str(invite))
        host = host or default_host([seed.host for seed in invitation.seeds])
        port, client_port = ports_of(host, port, client_port)
        make_node_directory(invitation, data, host, port, client_port, advertise_host)
    add_names(data, {invitation.key.id: invitation.name})  # where that is not possible its id has to do
    _Join(out, invitation, data, observer, exit_after).run()


def default_host(seeds: Sequence[str]) -> str:
    """127.0.0.1 when all nodes are on this machine; `LocalMisuse` when they are elsewhere and could not reach that."""
    for host in seeds:
        try:
            local = ipaddress.ip_address(host).is_loopback
        except ValueError:
            local = host == "localhost"
        if not local:
            raise LocalMisuse(
                f"the network has a node at {host}, which cannot reach {LOOPBACK}: give --host with this machine's address (or "
                "--host 0.0.0.0 and --advertise-host)"
            )
    return LOOPBACK


def ports_of(host: str, port: int, client_port: int) -> tuple[int, int]:
    """The two ports of the node: as named, a free one in place of each 0."""
    named = (port, client_port)
    free = choose_ports(named.count(0), host, besides=named) if 0 in named else []
    return port or free[0], client_port or free[-1]


class _Join:
    """One run of the command."""

    def __init__(self, out: Output, invitation: Invitation, data: Path, observer: bool, exit_after: bool) -> None:
        config = read_config(data)
        self.out = out
        self.invitation = invitation
        self.data = data
        self.observer = observer
        self.exit_after = exit_after
        self.network = load_network(data)
        self.id: bytes = invitation.key.id
        self.told = self.network.told(self.id)
        self.address = local_address(config)
        self.listens = f"{config.host}:{config.port}, clients {config.host}:{config.client_port}"
        self.meter = CopyMeter()

    def run(self) -> None:
        """Start the node and see it through. `LocalMisuse` when its directory is in use: what answers then is another
        process."""
        remember_if_none(self.data)
        run(self._main)

    async def _main(self) -> None:
        await wait_unused(self.data)
        with (self.data / LOG_NAME).open("ab") as log:
            process = await anyio.open_process(
                node_command(self.data),
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._tell("started", f"node {self.told} runs ({self.listens}), log in {self.data / LOG_NAME}", pid=process.pid)
        try:
            with anyio.open_signal_receiver(*ending_signals()) as signals:
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(self._until_ended, process, tasks.cancel_scope)
                    tasks.start_soon(self._follow, tasks.cancel_scope)
                    async for _ in signals:
                        break
                    tasks.cancel_scope.cancel()
        finally:
            with anyio.CancelScope(shield=True):
                code = await stop(process)
        epoch = removed_in(self.data, self.id)
        after = (
            f"it was removed in epoch {epoch} and must not be started again; {self.data} may be kept or deleted"
            if epoch
            else f"`hopchain node {shlex.quote(str(self.data))}` runs it"
        )
        self._tell("ended", f"node {self.told} has ended; {after}", code=code, epoch=epoch or None)

    async def _until_ended(self, process: anyio.abc.Process, scope: anyio.CancelScope) -> None:
        code = await process.wait()
        if code != 0:
            raise CommandFailed(
                Exit(code) if code in (Exit.USAGE, Exit.OUT_FOR_GOOD, Exit.BUG) else Exit.REJECTED,
                "node_ended",
                f"the node ended with exit code {code}: {last_words(self.data / LOG_NAME)} (log: {self.data / LOG_NAME})",
            )
        scope.cancel()

    async def _follow(self, scope: anyio.CancelScope) -> None:
        """The stages of a join; returns when the node is what it is to be."""
        here = KnownNode(self.invitation.name, self.id, *self.address)
        around = msgspec.structs.replace(self.network, nodes=(here,))
        async with open_patiently(around, TIMING) as client:
            health = await self._copy(client)
            await self._verify()
            if self.observer:
                self._tell("observing", f"observer {self.told} has all links and follows", epoch=health.epoch)
            else:
                if health.role == "guest":
                    await self._add(client)
                await self._activate(client)
        if self.exit_after:
            scope.cancel()

    async def _copy(self, client: Client) -> Health:
        """Wait until the node has (nearly) all links."""
        told_at = -TELL_S
        with _Bar(self.out) as bar:
            while True:
                seen = await self._look(client)
                if seen is not None:
                    status, health = seen
                    at_s = anyio.current_time()
                    copied = self.meter.note(at_s, status.log_height, most_heard(status), health.database_bytes)
                    bar.show(copied)
                    if copied.complete or at_s - told_at >= TELL_S:
                        told_at = at_s
                        self._tell(
                            "progress",
                            "" if self.out.fancy else progress_line(copied),
                            links=copied.links,
                            of=copied.of,
                            bytes=copied.bytes,
                            seconds_left=None if copied.seconds_left is None else round(copied.seconds_left, 1),
                        )
                    if copied.complete:
                        return health
                await anyio.sleep(LOOK_AGAIN_S)

    async def _verify(self) -> None:
        """Derive everything again from the links that were copied, once. `CommandFailed`, which stops the node, when
        they do not hold up: others may have made it a member by now, and what it then knows of that may be old."""
        report = await anyio.to_thread.run_sync(
            verify_copy,
            self.data,
            self.network.genesis,
            self.id,
            anyio.from_thread.check_cancelled,  # millions of links take minutes
        )
        if report is None:
            return
        if report.fault is not None:
            raise CommandFailed(
                Exit.REJECTED,
                "corruption",
                f"the copy in {self.data} does not hold up after {counted(report.links, 'link')}: {report.fault}. Its node was "
                f"stopped; do not start it again. If `hopchain member list` shows it ({self.id.hex()}), replace it; else move the "
                "directory away and join again with this invitation",
            )
        self._tell(
            "verified",
            f"verified what is on disk now: {counted(report.links, 'link')}; later ones are checked as they arrive",
            links=report.links,
        )

    async def _add(self, client: Client) -> None:
        """Send the invitation's change to a member, and wait until the node itself knows that it is one."""
        assert self.invitation.change is not None
        members = [(seed.host, seed.client_port) for seed in self.network_seeds()]
        async with open_patiently(self.network, TIMING) as others:
            while True:
                try:
                    await submit_change(others, self.invitation.change, lambda: members, ADD_S)
                except CommandFailed as error:
                    if error.code == "removed":
                        await self._until_over(0)
                    if error.exit_code is not Exit.UNREACHABLE:
                        raise
                    self.out.note(f"not a member yet: {error}")
                seen = await self._look(client)
                if seen is not None and seen[1].role == "member":
                    self._tell(
                        "member", f"node {self.told} is a member since epoch {seen[1].epoch}", epoch=seen[1].epoch
                    )
                    return
                await anyio.sleep(LOOK_AGAIN_S)

    async def _activate(self, client: Client) -> None:
        """Wait until the node votes wherever it has to."""
        while True:
            seen = await self._look(client)
            if seen is not None and seen[1].role == "member" and seen[1].active:
                self._tell(
                    "active",
                    f"node {self.told} is a member of network {self.network.genesis.name} and active in epoch {seen[1].epoch}",
                    epoch=seen[1].epoch,
                )
                return
            await anyio.sleep(LOOK_AGAIN_S)

    async def _look(self, client: Client) -> tuple[Status, Health] | None:
        """As `_seen`; does not return when the node was removed."""
        seen = await self._seen(client)
        if seen is not None and seen[1].role == "removed":
            await self._until_over(seen[1].removed_in)
        return seen

    async def _seen(self, client: Client) -> tuple[Status, Health] | None:
        """What the node says of itself; None while it does not."""
        try:
            return await client.status(at=self.address), await client.health(at=self.address)
        except Unreachable:
            return None
        except ClientError as error:
            raise CommandFailed(Exit.REJECTED, "fault", f"the node answers strangely: {reason_of(error)}") from None

    def network_seeds(self) -> tuple[KnownNode, ...]:
        """The nodes that the invitation named."""
        return tuple(node for node in self.network.nodes if node.id != self.id)

    async def _until_over(self, epoch: int) -> NoReturn:
        """The node was removed. Others may still need what it knows: it ends by itself, with the reason, when they do
        not."""
        when = f" in epoch {epoch}" if epoch else ""
        self._tell("removed", f"node {self.told} was removed{when}: it ends when nobody needs it any more", epoch=epoch)
        await anyio.sleep_forever()
        raise AssertionError("the node's end ends this")

    def _tell(self, event: str, text: str, **more: JsonValue) -> None:
        if self.out.as_json:
            self.out.event({"event": event, "node": self.id.hex(), **more})
        elif text:
            self.out.say(text, bold=event in ("active", "observing"))


async def wait_unused(data: Path) -> None:
    """Wait until no process holds a node's directory: one that was ended may take a moment. `LocalMisuse` when one goes
    on."""
    from node.lock import lock_holder

    deadline = anyio.current_time() + UNUSED_S
    while (pid := lock_holder(data)) is not None:
        if anyio.current_time() >= deadline:
            raise LocalMisuse(f"{data} is in use by process {pid}: the node runs already; stop that process first")
        await anyio.sleep(LOOK_AGAIN_S)


def removed_in(data: Path, node: bytes) -> int:
    """The epoch in which a node that has ended was removed, as far as its own database knows; else 0."""
    import sqlite3

    from chain.disk import open_database
    from chain.seal import load_views
    from node.layout import DATABASE
    from routing.errors import RoutingError
    from routing.keyspace import NodeId
    from routing.view import decode_view

    try:
        conn = open_database(data / DATABASE, writer=False)
        try:
            views = [decode_view(raw) for _, _, raw in load_views(conn)]
        finally:
            conn.close()
    except (HopchainError, RoutingError, sqlite3.Error):
        return 0  # this is for a remark only
    last = max((view.epoch for view in views if view.is_member(NodeId(node))), default=None)
    return 0 if last is None or last == views[-1].epoch else last + 1


class _Bar:
    """A bar on a terminal; nothing elsewhere."""

    def __init__(self, out: Output) -> None:
        self._fancy = out.fancy
        self._show: Callable[[Copied], None] = lambda copied: None
        self._close: Callable[[], None] = lambda: None

    def __enter__(self) -> "_Bar":
        if self._fancy:
            from rich.progress import BarColumn, Progress, TextColumn

            columns = (TextColumn("copying"), BarColumn(), TextColumn("{task.description}"))
            bar = Progress(*columns, console=console(), transient=True)
            task = bar.add_task("", total=None)
            bar.start()
            self._show = lambda copied: bar.update(
                task, description=progress_line(copied), completed=copied.links, total=copied.of
            )
            self._close = bar.stop
        return self

    def __exit__(self, *_: object) -> None:
        self._close()

    def show(self, copied: Copied) -> None:
        """Draw it anew."""
        self._show(copied)
