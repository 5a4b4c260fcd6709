"""The load generators of `hopchain bench`, as the process sees them that starts them: what each is to do, and what it
says (`cli.bench_load`)."""

import sys
import tempfile
from collections.abc import AsyncIterator

import anyio
import anyio.abc
import msgspec

from cli.bench_spec import Job, News, Settings, Spec
from cli.output import CommandFailed, Exit
from cli.supervisor import stop


class Generator:
    """A load generator process."""

    def __init__(self, spec: Spec) -> None:
        self._spec = spec
        self._process: anyio.abc.Process | None = None
        # no pipe: nobody reads it before the process has ended
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 (it is closed with the process)

    async def __aenter__(self) -> "Generator":
        self._process = await anyio.open_process([sys.executable, "-P", "-m", "cli.bench_load"], stderr=self._errors)
        assert self._process.stdin is not None
        await self._process.stdin.send(msgspec.json.encode(self._spec) + b"\n")
        return self

    async def __aexit__(self, *_: object) -> None:
        assert self._process is not None
        with anyio.CancelScope(shield=True):
            await stop(self._process)
            await self._process.aclose()
            self._errors.close()

    async def go(self) -> None:
        """Begin with the load."""
        assert self._process is not None and self._process.stdin is not None
        await self._process.stdin.send(b"go\n")

    async def news(self) -> AsyncIterator[News]:
        """What it says until it is done. Raises `CommandFailed` with its reason when it fails."""
        assert self._process is not None and self._process.stdout is not None
        rest = b""
        async for data in self._process.stdout:
            *lines, rest = (rest + data).split(b"\n")
            for line in lines:
                news = msgspec.json.decode(line, type=News)
                if news.event == "failed":
                    raise CommandFailed(Exit.REJECTED, news.error, news.message)
                yield news
                if news.event == "done":
                    return
        self._errors.seek(0)
        words = self._errors.read().decode(errors="replace").strip()
        raise CommandFailed(Exit.REJECTED, "generator", f"the load generator ended: {words[-2000:]}")


async def wait_for(stream: AsyncIterator[News], event: str) -> News:
    """The next news of this kind."""
    async for news in stream:
        if news.event == event:
            return news
    raise CommandFailed(Exit.REJECTED, "generator", f"the load generator ended before it was {event}")


def shares(spec: Spec, settings: Settings) -> list[Spec]:
    """What each generator does: its part of the clients. None but `prepare` knows the issuer's key."""
    count = settings.processes
    clients = [settings.clients // count + (number < settings.clients % count) for number in range(count)]
    return [
        msgspec.structs.replace(
            spec,
            job=Job.MEASURE,
            issuer_key=b"",
            worker=number,
            workers=count,
            first_client=sum(clients[:number]),
            clients=clients[number],
        )
        for number in range(count)
    ]
