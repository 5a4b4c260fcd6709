"""A node that was removed while it could not hear of it: until it is told it gives no client a false answer, then it
ends."""

import signal
from pathlib import Path

import pytest
import trio
import trio.testing

from chain.request import SignedRequest
from cli.members import FORCE_WORDS
from cli.output import Exit
from hopchain import Balance, Client, NotFound, NotStarted, Timing, Unknown, Unreachable
from hopchain.wire import Chain
from node.addressbook import AddressBook
from node.membership import LINGER_S
from tests.cluster.cluster import FUNDS, STOP_S, Ended, NodeProcess, rows_of, until
from tests.cluster.commands import operating
from tests.cluster.grow import Growing

pytestmark = pytest.mark.cluster

GONE, OTHERS = 2, (0, 1)
WORTH_S = 1.0  # for a payment at a node that cannot make it
PATIENT = Timing(dial_s=STOP_S, ping_after_s=STOP_S, dead_after_s=STOP_S)  # with a node that sleeps


async def remove_by_force(cluster: Growing, node: NodeProcess, home: Path) -> None:
    with operating(cluster.network.directory, home) as operator:
        words = ("member", "remove", node.place.name, "--force", FORCE_WORDS)
        done = await operator.run(*words, "--network", str(cluster.network.directory))
    assert (done["removed"], done["epoch"]) == (node.place.id, 2), done


def check_ended(ended: Ended) -> None:
    assert ended.code == Exit.OUT_FOR_GOOD, ended
    assert "was removed from the network in epoch" in ended.text, ended.text
    assert "join under a new invitation" in ended.text, ended.text


async def test_a_removed_node_that_starts_where_nobody_tells_it_answers_stale(tmp_path: Path) -> None:
    cluster = Growing(tmp_path / "net", 3)
    async with cluster.growing():
        payer, payee = await cluster.accounts("deaf", 2)
        await cluster.settle()
        gone, client = cluster.nodes[GONE], cluster.clients[GONE]
        before = await client.balance(payer)
        assert isinstance(before, Balance) and not before.stale, before
        cluster.kill(GONE)
        await remove_by_force(cluster, gone, tmp_path)
        await cluster.completed([cluster.pay_request(payer, payee, 1)])
        for number in OTHERS:
            cluster.nodes[number].signal(signal.SIGSTOP)
        gone.start()
        await cluster.wait_serves(GONE)
        read = await client.balance(payer)
        assert isinstance(read, Balance) and (read.height, read.stale) == (before.height, True), read
        chain = await client.chain(payer)
        assert isinstance(chain, Chain) and chain.stale, chain
        missing = await client.balance("nobody-1")
        assert isinstance(missing, NotFound) and missing.stale, missing
        assert (await client.digest()).stale
        payment = cluster.pay_request(payer, payee, 2)
        answer = await client.submit(payment, timeout_s=WORTH_S)
        assert isinstance(answer, NotStarted | Unknown), answer
        for number in OTHERS:
            cluster.nodes[number].signal(signal.SIGCONT)
        check_ended(await gone.ended())
        await check_paid_once(cluster, payer, payment)


async def test_a_removed_node_that_slept_through_it_answers_stale(tmp_path: Path) -> None:
    """Its memory says that it is a verified member; reads and a payment wait for it when it wakes up."""
    cluster = Growing(tmp_path / "net", 3)
    async with cluster.growing():
        payer, payee = await cluster.accounts("asleep", 2)
        await cluster.settle()
        gone = cluster.nodes[GONE]
        read: list[Balance] = []
        paid: list[object] = []
        payment = cluster.pay_request(payer, payee, 2)
        async with (
            Client([gone.client_address], cluster.network.genesis.ca, cluster.id, timing=PATIENT) as client,
            trio.open_nursery() as nursery,
        ):
            before = await client.balance(payer)
            assert isinstance(before, Balance) and not before.stale, before
            gone.signal(signal.SIGSTOP)
            await remove_by_force(cluster, gone, tmp_path)
            await cluster.completed([cluster.pay_request(payer, payee, 1)])
            nursery.start_soon(keep_reading, client, payer, read)
            nursery.start_soon(pay_once, client, payment, paid)
            await trio.testing.wait_all_tasks_blocked()
            assert not read and not paid
            gone.signal(signal.SIGCONT)
            check_ended(await gone.ended())
        assert read and all(balance.stale for balance in read), read
        assert isinstance(paid[0], NotStarted | Unknown | Unreachable), paid
        await check_paid_once(cluster, payer, payment)


async def test_a_removed_node_that_no_member_lets_in_any_more_ends(tmp_path: Path) -> None:
    """The view without it is settled, so nobody sends it: all that it hears is why it is refused."""
    cluster = Growing(tmp_path / "net", 3)
    async with cluster.growing():
        await check_ends_unknowing(cluster, GONE)


async def test_a_removed_founder_that_nobody_told_finds_somebody_who_does(tmp_path: Path) -> None:
    """It has no seeds, and members do not dial who was removed: it knows them from before."""
    cluster = Growing(tmp_path / "net", 1)
    async with cluster.growing():
        await cluster.add()
        await cluster.add()
        await until("it notes where they are", lambda: notes(cluster.nodes[0].directory, 2), STOP_S)
        await check_ends_unknowing(cluster, 0)


async def notes(directory: Path, others: int) -> tuple[bool, object]:
    known = AddressBook(directory).read()
    return len(known) == others, known


async def check_ends_unknowing(cluster: Growing, number: int) -> None:
    """A node that is removed while it is down, and starts when the others send it no views any more, ends."""
    gone = cluster.nodes[number]
    removal = await cluster.removal(number)
    epoch = (await cluster.clients[number].health()).epoch + 1
    cluster.kill(number)
    await cluster.change(removal, last=number)
    await trio.sleep(4 * LINGER_S)
    gone.start()
    ended = await gone.ended()
    check_ended(ended)
    assert f"in epoch {epoch} and nobody needs it" in ended.text, ended.text
    assert dict(rows_of(gone.directory / "node.db").counts)["views"] == epoch - 1, "it never had the view without it"


async def keep_reading(client: Client, name: str, read: list[Balance]) -> None:
    """Keep what the node says until it says nothing more."""
    while True:
        try:
            balance = await client.balance(name)
        except Unreachable:
            return
        assert isinstance(balance, Balance), balance
        read.append(balance)


async def pay_once(client: Client, payment: SignedRequest, paid: list[object]) -> None:
    try:
        paid.append(await client.submit(payment, timeout_s=WORTH_S))
    except Unreachable as error:
        paid.append(error)


async def check_paid_once(cluster: Growing, payer: str, payment: SignedRequest) -> None:
    """Whatever the removed node did with it, the payment is made once, and so is the other one."""
    await cluster.completed([payment])
    await cluster.settle()
    for number in OTHERS:
        found = await cluster.clients[number].balance(payer)
        assert isinstance(found, Balance) and found.settled + found.incoming == FUNDS - 1 - 2, found
