"""bench/library.py: as many tasks as it says pay through one client, each of the accounts is opened once, and replicas
that differ end it."""

import random
from argparse import Namespace
from typing import Any, Self, cast

import anyio
import library
import pytest
import takeover
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from cli.home import Network
from hopchain import NotStarted, Outcome, Posting, Recorded

NETWORK = cast(Network, None)
KEYS = {f"account-{number}": Ed25519PrivateKey.generate() for number in range(70)}


class Client:
    """Answers after the others had their turn; every second is not started."""

    def __init__(self) -> None:
        self.opened: list[str] = []
        self.paid: list[tuple[str, int]] = []
        self.in_flight = self.most_in_flight = 0

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    async def open_account(self, name: str, *_: object) -> None:
        await anyio.lowlevel.checkpoint()
        self.opened.append(name)

    async def transfer(self, payer: str, _: object, postings: list[Posting]) -> Recorded | NotStarted:
        self.in_flight += 1
        self.most_in_flight = max(self.most_in_flight, self.in_flight)
        await anyio.lowlevel.checkpoint()
        self.in_flight -= 1
        self.paid.append((payer, len(postings)))
        if len(self.paid) % 2 == 0:
            return NotStarted(b"", "busy", "too many")
        return Recorded(b"", payer, Outcome.COMPLETED, b"", 1, 1, 1, b"", 0, False)


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> Client:
    client = Client()

    async def up(*_: object) -> None:
        pass

    monkeypatch.setattr(library, "connect", lambda _: client)
    monkeypatch.setattr(library, "until_up", up)
    monkeypatch.setattr(library, "WARM_UP_S", 0.05)
    return client


def test_every_account_is_opened_once_and_funded(client: Client) -> None:
    anyio.run(library.prepare, NETWORK, next(iter(KEYS.values())), KEYS)
    assert client.opened == sorted(client.opened, key=list(KEYS).index) and set(client.opened) == {*KEYS}
    assert client.paid == [(library.ISSUER, len(KEYS))]


@pytest.mark.parametrize("loop", library.LOOPS)
def test_so_many_tasks_pay_at_once_and_only_what_completed_counts(loop: str, client: Client) -> None:
    row: dict[str, Any] = anyio.run(library.measure, NETWORK, KEYS, 7, 0.2, backend=loop)
    assert client.most_in_flight == 7 and row["tasks"] == 7
    assert 0 < row["not_completed"] < len(client.paid) // 2, "those of the warm-up are not in it"
    assert row["completed_per_s"] > 0 and row["cpu_us_per_transfer"] > 0
    assert set(row) == {"tasks", *library.SHOWN, "cpu_us_per_transfer"}
    assert {payer for payer, _ in client.paid} <= {*KEYS}


def test_what_is_under_way_at_the_end_counts(client: Client, monkeypatch: pytest.MonkeyPatch) -> None:
    """All five have begun when the first is answered, at the end."""
    monkeypatch.setattr(takeover, "time", Namespace(monotonic=lambda: 2.0 if client.paid else 0.0))
    found: dict[str, Any] = anyio.run(takeover.measure, client, KEYS, 1.0, random.Random(1), 5)
    assert len(client.paid) == client.most_in_flight == 5
    assert (found["completed_per_s"], found["not_completed"]) == (1.5, 2), "in the 2 s that it took"


@pytest.mark.parametrize("wrong", ["equal", "money_kept"])
def test_replicas_that_differ_end_it(wrong: str, monkeypatch: pytest.MonkeyPatch) -> None:
    found = {"equal": True, "money_kept": True}

    async def compared(*_: object) -> Namespace:
        return Namespace(**found)

    monkeypatch.setattr(library, "compare", compared)
    anyio.run(library.check, NETWORK)
    found[wrong] = False
    with pytest.raises(SystemExit, match=f"replicas differ, or money was made or lost: .*{wrong}=False"):
        anyio.run(library.check, NETWORK)
