"""What must hold after a benchmark: nothing that was answered is lost, and exactly what was answered as paid has left.

Read from each node's database where it is on this machine (its node may run), otherwise asked of each node.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Final

from chain.disk import open_database
from chain.reads import read_outcome_row, sum_paid
from chain.request import HASH_BYTES, RequestId
from cli.bench_load import OUTCOME_BYTES
from cli.home import KnownNode, Network
from hopchain import Client, Recorded
from hopchain.workers import work_on_each
from node.layout import DATABASE

MAX_ASKED: Final = 20_000  # of the answers, the last so many are looked for where the databases are elsewhere
ASKED_AT_ONCE: Final = 64

Answered = tuple[bytes, bytes, int]  # request id, link hash, outcome


def read_answers(place: Path) -> list[Answered]:
    """Every final answer that the generators got."""
    found: list[Answered] = []
    for path in sorted(place.glob("outcomes-*")):
        raw = path.read_bytes()
        assert len(raw) % OUTCOME_BYTES == 0, (path, len(raw))
        for at in range(0, len(raw), OUTCOME_BYTES):
            link = at + HASH_BYTES
            found.append((raw[at:link], raw[link : link + HASH_BYTES], raw[link + HASH_BYTES]))
    return found


def databases(network: Network) -> list[Path]:
    """The databases of all nodes when they are all on this machine, otherwise none."""
    paths = [network.directory / node.name / DATABASE for node in network.nodes]
    return paths if all(path.exists() for path in paths) else []


def paid_out(paths: Sequence[Path], prefix: str) -> list[int]:
    """What the accounts whose names begin with `prefix` have paid so far, minor units, in each database."""
    found = []
    for path in paths:
        conn = open_database(path, writer=False)
        try:
            found.append(sum_paid(conn, prefix))
        finally:
            conn.close()
    return found


def count_lost(paths: Sequence[Path], answers: Sequence[Answered]) -> int:
    """How many answers some database does not hold just as they were given."""
    lost: set[bytes] = set()
    for path in paths:
        conn = open_database(path, writer=False)
        try:
            for request_id, link_hash, outcome in answers:
                row = read_outcome_row(conn, RequestId(request_id))
                if row is None or row[1:] != (link_hash, outcome):
                    lost.add(request_id)
        finally:
            conn.close()
    return len(lost)


async def ask_lost(client: Client, network: Network, answers: Sequence[Answered]) -> tuple[int, int]:
    """The same by asking every node for the last MAX_ASKED: how many were looked for, and how many are lost."""
    lost: set[bytes] = set()

    async def ask(question: tuple[KnownNode, Answered]) -> None:
        node, (request_id, link_hash, outcome) = question
        found = await client.outcome(request_id, at=node.address)
        if not isinstance(found, Recorded) or (found.link_hash, found.outcome) != (link_hash, outcome):
            lost.add(request_id)

    asked = answers[-MAX_ASKED:]
    await work_on_each([(node, answer) for node in network.nodes for answer in asked], ask, at_once=ASKED_AT_ONCE)
    return len(asked), len(lost)
