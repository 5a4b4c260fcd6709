"""An invitation is for one machine: whoever uses it a second time ends, and the node that came first goes on."""

import random
from contextlib import closing
from pathlib import Path

import pytest

from chain.disk import open_database
from cli.output import Exit
from cli.supervisor import LOG_NAME
from hopchain import Client, Outcome, Recorded
from node.invite import load_invite
from tests.cluster.cluster import QUARANTINE_S, SETTLE_S, START_S, until
from tests.cluster.commands import Command, joined_node, operating
from tests.cluster.grow import Growing
from tests.cluster.test_faults import Load

VOTES_S = 10.0  # the first was suspended while another process of it was seen, and is vouched for anew
SECOND_S = 20.0  # it must connect, and the first must come back to be heard beside it; a larger id waits three seconds for that

pytestmark = pytest.mark.cluster


async def votes_are_seen(cluster: Growing, of: bytes) -> tuple[bool, object]:
    """The other members have on disk that this one has voted: no empty disk is its own any more (design R12)."""
    found = []
    for number in range(len(cluster.nodes)):
        with closing(open_database(cluster.database(number), writer=False)) as conn:
            found.append(conn.execute("SELECT votes FROM seen WHERE node = ? AND votes > 0", (of,)).fetchone())
    return None not in found, found


async def is_heard(joining: Command, data: Path) -> tuple[bool, object]:
    """The node that a join has started has come so far that others could hear of it, or has ended since."""
    log = data / LOG_NAME
    text = log.read_text() if log.exists() else ""
    return "serves clients" in text or not joining.runs, text


async def test_the_second_use_of_an_invitation_ends_and_the_first_goes_on_paying(tmp_path: Path) -> None:
    cluster = Growing(tmp_path / "net", 2)
    async with cluster.growing():
        names = await cluster.accounts("once", 6)
        load = Load(cluster, names, random.Random(17))
        with operating(cluster.network.directory, tmp_path) as operator:
            invite = await operator.invite()
            async with load.running(clients=3):
                first = operator.join(invite, tmp_path / "first")
                await first.wait_told("active")
                node = joined_node(invite, tmp_path / "first")
                await until(
                    "members have seen its votes", lambda: votes_are_seen(cluster, node.place.node_id), SETTLE_S
                )
                second = operator.join(invite, tmp_path / "second")
                await until("it can be heard of", lambda: is_heard(second, tmp_path / "second"), START_S)
                code = await second.ended(QUARANTINE_S)
                words = (tmp_path / "second" / LOG_NAME).read_text()
                assert first.runs, (tmp_path / "first" / LOG_NAME).read_text()
                await load.more(20)
            async with Client([node.client_address], cluster.network.genesis.ca, cluster.id) as client:
                paid = await client.submit(cluster.pay_request(*names[:2], 1))
                assert isinstance(paid, Recorded) and paid.outcome == Outcome.COMPLETED, paid
            await cluster.settle()  # a node that lags answers rightly, but not `repeated`
            await load.finish()
            assert first.runs
            await first.stop()
    told = second.told()[-1]
    assert (code, told["error"]) == (Exit.OUT_FOR_GOOD, "node_ended"), told
    assert f"the node ended with exit code {Exit.OUT_FOR_GOOD:d}" in str(told["message"]), told
    assert "join the network anew under a new id" in words or "runs twice at once" in words, words


def invite_with_id(cluster: Growing, *, last: bool) -> Path:
    """An invitation whose node has the largest id of all, so that members wait to be dialed by it, or the smallest."""
    ids = [node.place.node_id for node in cluster.nodes]
    while True:
        invite = cluster.invite()
        if sorted([*ids, load_invite(invite).key.id])[-1 if last else 0] not in ids:
            return invite


@pytest.mark.parametrize("last", [False, True], ids=["dials", "is dialed"])
@pytest.mark.parametrize("members", [1, 3])
async def test_who_used_an_invitation_first_stays_also_when_nothing_was_ever_voted(
    tmp_path: Path, members: int, last: bool
) -> None:
    """Without a vote the first one has promised that it is in the view that it has installed."""
    cluster = Growing(tmp_path / "net", members)
    async with cluster.growing():
        with operating(cluster.network.directory, tmp_path) as operator:
            invite = invite_with_id(cluster, last=last)
            first = operator.join(invite, tmp_path / "first")
            await first.wait_told("active")
            node = joined_node(invite, tmp_path / "first")
            second = operator.join(invite, tmp_path / "second")
            await until("it can be heard of", lambda: is_heard(second, tmp_path / "second"), START_S)
            code = await second.ended(SECOND_S)
            words = (tmp_path / "second" / LOG_NAME).read_text()
            assert first.runs, (tmp_path / "first" / LOG_NAME).read_text()
            names = await cluster.accounts("idle", 2)
            async with Client([node.client_address], cluster.network.genesis.ca, cluster.id) as client:

                async def look() -> tuple[bool, object]:
                    paid = await client.submit(cluster.pay_request(*names, 1))
                    assert isinstance(paid, Recorded) and paid.outcome == Outcome.COMPLETED, paid
                    return await votes_are_seen(cluster, node.place.node_id)

                await until("it votes again", look, VOTES_S)
            assert first.runs
            await first.stop()
    told = second.told()[-1]
    assert (code, told["error"]) == (Exit.OUT_FOR_GOOD, "node_ended"), told
    # by the view that the first one has installed, or because that one is heard first
    assert "an invitation that was used before" in words, words
