"""Pools of source accounts: which account pays, what is counted, and that outflow is what was answered."""

import hashlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from functools import partial

import anyio
import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

import hopchain.submitting
from chain.errors import LocalMisuse
from chain.link import Outcome
from chain.request import MAX_POSTINGS, Posting, SignedRequest, request_id, transfer
from hopchain import (
    Answer,
    Balance,
    Choice,
    Client,
    ClientError,
    Ended,
    NotSent,
    NotStarted,
    Outflow,
    PooledSender,
    Recorded,
    Refused,
    SourcePool,
    TooManyFailures,
    Unknown,
    Unreachable,
    raw_public_key,
    sign_request,
    wire,
)
from tests.hopchain.clock import run_leaping
from tests.hopchain.fake_node import Fault, Hang, key_number
from tests.hopchain.test_client import BACKENDS, BOUND_S, World, running

ACCOUNTS = ["payer-1", "payer-2", "payer-3", "payer-4"]
FUNDS = 1000
RNG = random.Random(1)


def make_pool(choice: Choice = Choice.LEAST_ACTIVE, max_failures: int | None = None) -> SourcePool:
    return SourcePool(ACCOUNTS, choice, random.Random(5), max_failures=max_failures)


def having(left: int, height: int = 1) -> dict[str, Balance]:
    """The balances of the pool's accounts when so much has left the first one; a part of it is not settled."""
    amounts = dict.fromkeys(ACCOUNTS, FUNDS) | {ACCOUNTS[0]: FUNDS - left}
    tip = bytes(32)
    return {
        name: Balance(name, "CZK", 2, False, amount - 10, 10, 1, tip, height, 1, 1, 1, 1, True)
        for name, amount in amounts.items()
    }


# --- choosing ------------------------------------------------------------------------------------------------------


def test_dedicated_gives_worker_i_account_i_mod_n() -> None:
    pool = make_pool(Choice.DEDICATED)
    assert [pool.take(worker) for worker in (0, 1, 3, 4, 9, 1)] == [ACCOUNTS[i] for i in (0, 1, 3, 0, 1, 1)]


def test_round_robin_takes_each_in_turn_whatever_is_in_flight() -> None:
    pool = make_pool(Choice.ROUND_ROBIN)
    assert [pool.take() for _ in range(9)] == [*ACCOUNTS, *ACCOUNTS, ACCOUNTS[0]]


def test_least_active_takes_the_first_with_the_fewest_in_flight() -> None:
    pool = make_pool()
    rng = random.Random(1)
    flying: Counter[str] = Counter()
    for _ in range(500):
        if flying.total() and rng.random() < 0.45:
            account = rng.choice(sorted(a for a, n in flying.items() if n))
            pool.ended(account, 1, Ended.COMPLETED)
            flying[account] -= 1
        else:
            expected = min(ACCOUNTS, key=lambda a: flying[a])
            assert pool.take() == expected
            flying[expected] += 1
        assert dict(pool.in_flight) == {a: flying[a] for a in ACCOUNTS}


def test_two_choices_is_the_less_active_of_two_different_accounts() -> None:
    pool = make_pool(Choice.TWO_CHOICES)
    for account in [ACCOUNTS[2]] * 200 + [ACCOUNTS[0]] * 100:
        pool.begin(account)
    drawn = Counter(pool.choose() for _ in range(600))
    assert drawn[ACCOUNTS[2]] == 0, "whoever was drawn beside it has fewer in flight"
    assert drawn[ACCOUNTS[0]] in range(50, 151), "taken only when drawn beside the busiest: one pair of six"


def test_two_choices_keeps_the_accounts_nearly_even() -> None:
    pool = make_pool(Choice.TWO_CHOICES)
    for _ in range(300):
        pool.take()
    assert max(pool.in_flight.values()) - min(pool.in_flight.values()) < 15, pool.in_flight


@pytest.mark.parametrize("count", [1, 2])
def test_two_choices_of_one_or_two_accounts_looks_at_all_of_them(count: int) -> None:
    pool = SourcePool(ACCOUNTS[:count], Choice.TWO_CHOICES, random.Random(5))
    for number in range(0, 40, count):
        assert {pool.take() for _ in range(count)} == set(ACCOUNTS[:count]), number


@pytest.mark.parametrize("choice", list(Choice))
def test_a_nonce_names_its_account_under_every_choice(choice: Choice) -> None:
    pool = make_pool(choice)
    nonces = [bytes([n]) * 32 for n in range(40)]
    first = [pool.take(worker=n, nonce=nonce) for n, nonce in enumerate(nonces)]
    for _ in range(7):
        pool.take()
    again = [pool.take(worker=7, nonce=nonce) for nonce in nonces]
    assert first == again
    places = [int.from_bytes(hashlib.sha256(nonce).digest()[:8], "big") % 4 for nonce in nonces]
    assert first == [ACCOUNTS[place] for place in places]


# --- counting ------------------------------------------------------------------------------------------------------


def test_counts_and_outflow_of_payments_that_ended_in_each_way() -> None:
    pool = make_pool(Choice.ROUND_ROBIN)
    pool.open_books(having(0))
    for amount, how in ((5, Ended.COMPLETED), (7, Ended.FAILED), (11, Ended.UNKNOWN), (13, Ended.COMPLETED)):
        pool.ended(pool.take(), amount, how)
    assert (pool.completed, pool.failed, pool.unknown) == (2, 1, 1)
    assert dict(pool.paid) == {ACCOUNTS[0]: 5, ACCOUNTS[3]: 13}
    assert sum(pool.in_flight.values()) == 0
    for left, ok in ((17, False), (18, True), (29, True), (30, False)):
        assert pool.check_outflow(having(left)) == Outflow(paid=18, left=left, unknown=1, unknown_amount=11)
        assert pool.check_outflow(having(left)).ok is ok
    pool.settled(ACCOUNTS[2], 11, Ended.COMPLETED)
    assert (pool.completed, pool.failed, pool.unknown) == (3, 1, 0)
    assert pool.check_outflow(having(29)) == Outflow(29, 29, 0, 0)
    assert not pool.check_outflow(having(28)).ok


def test_what_an_earlier_run_paid_is_in_neither_sum() -> None:
    pool = make_pool(Choice.ROUND_ROBIN)
    pool.open_books(having(100, height=7))
    for height in (6, 7, 8, 9):
        pool.ended(pool.take(), 5, Ended.COMPLETED, height)
    assert [pool.is_new(ACCOUNTS[0], height) for height in (6, 7, 8)] == [False, False, True]
    assert (pool.completed, dict(pool.paid)) == (4, {ACCOUNTS[2]: 5, ACCOUNTS[3]: 5})
    assert pool.check_outflow(having(110)) == Outflow(10, 10, 0, 0)
    for height, paid in ((7, 10), (8, 15)):
        account = pool.take()
        pool.ended(account, 5, Ended.UNKNOWN)
        pool.settled(account, 5, Ended.COMPLETED, height)
        assert pool.check_outflow(having(100 + paid)) == Outflow(paid, paid, 0, 0)


def test_outflow_is_not_compared_while_a_payment_is_in_flight() -> None:
    pool = make_pool()
    pool.open_books(having(0))
    pool.take()
    with pytest.raises(LocalMisuse, match="1 payments are in flight"):
        pool.check_outflow(having(0))


def test_the_books_are_opened_before_the_first_payment_and_with_all_accounts() -> None:
    pool = make_pool()
    with pytest.raises(LocalMisuse, match="the books of this pool were not opened"):
        pool.check_outflow(having(0))
    some = {name: balance for name, balance in having(0).items() if name != "payer-2"}
    with pytest.raises(LocalMisuse, match="1 accounts of the pool have no balance here, the first is payer-2"):
        pool.open_books(some)
    pool.open_books(having(0))
    with pytest.raises(LocalMisuse, match="1 accounts of the pool have no balance here, the first is payer-2"):
        pool.check_outflow(some)
    pool.ended(pool.take(), 5, Ended.COMPLETED)
    with pytest.raises(LocalMisuse, match="begun already: open its books before the first one"):
        pool.open_books(having(0))
    assert pool.check_outflow(having(5)).ok, "those that were open stay"


@pytest.mark.parametrize("how", [Ended.FAILED, Ended.UNKNOWN])
def test_the_pool_closes_after_more_failures_than_allowed(how: Ended) -> None:
    pool = make_pool(max_failures=2)
    for _ in range(3):
        pool.ended(pool.take(), 1, how)
    with pytest.raises(TooManyFailures, match="3 payments failed"):
        pool.take()
    assert sum(pool.in_flight.values()) == 0


def test_a_pool_without_a_maximum_never_closes() -> None:
    pool = make_pool()
    for _ in range(100):
        pool.ended(pool.take(), 1, Ended.FAILED)
    assert pool.take() == ACCOUNTS[0]


def test_a_choice_counts_nothing_until_it_is_begun() -> None:
    pool = make_pool()
    assert [pool.choose(), pool.choose()] == [ACCOUNTS[0]] * 2 and sum(pool.in_flight.values()) == 0
    pool.begin(ACCOUNTS[0])
    assert pool.choose() == ACCOUNTS[1]
    nonce = b"n" * 32
    assert pool.choose(nonce=nonce) == pool.take(nonce=nonce)


def test_the_most_in_flight_at_once_is_kept() -> None:
    pool = make_pool(Choice.DEDICATED)
    for _ in range(3):
        pool.take(1)
    for _ in range(3):
        pool.ended(ACCOUNTS[1], 1, Ended.COMPLETED)
    pool.take(1)
    assert dict(pool.most_in_flight) == {ACCOUNTS[0]: 0, ACCOUNTS[1]: 3, ACCOUNTS[2]: 0, ACCOUNTS[3]: 0}


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: SourcePool([], Choice.DEDICATED, RNG), "at least one account and each once; these are 0"),
        (lambda: SourcePool(["a", "a"], Choice.DEDICATED, RNG), "each once; these are 2, 1 different"),
        (lambda: SourcePool("abc", Choice.DEDICATED, RNG), "'abc', which is one text: give a list of names"),
        (lambda: SourcePool(["a", 7], Choice.DEDICATED, RNG), "7 is no name of an account: it is int"),  # type: ignore[list-item]
        (lambda: SourcePool(["a"], "bogus", RNG), "choice='bogus': give one of Choice.DEDICATED, Choice.LEAST_ACTIVE,"),  # type: ignore[arg-type]
        (lambda: make_pool(max_failures=-1), "max_failures=-1: give how many may fail .*, 0 or more, or None"),
        (lambda: make_pool(max_failures=0.5), "max_failures=0.5: "),  # type: ignore[arg-type]
        (lambda: make_pool(Choice.DEDICATED).choose(-1), "worker=-1: give the worker's number, 0 or more"),
        (lambda: make_pool(Choice.DEDICATED).take("1"), "worker='1': "),  # type: ignore[arg-type]
        (lambda: make_pool().begin("zz"), "'zz' is none of the 4 accounts of this pool"),
        (lambda: make_pool().ended("zz", 1, Ended.FAILED), "'zz' is none of the 4 accounts of this pool"),
        (lambda: make_pool().settled("zz", 1, Ended.FAILED), "'zz' is none of the 4 accounts of this pool"),
        (lambda: make_pool().ended("payer-1", 1, Ended.COMPLETED), "payer-1 has no payment in flight"),
        (lambda: make_pool().settled("payer-1", 1, Ended.COMPLETED), "0 payments are unknown"),
    ],
)
def test_misuse_is_told(make: Callable[[], object], text: str) -> None:
    with pytest.raises(LocalMisuse, match=text):
        make()


# --- paying --------------------------------------------------------------------------------------------------------


@pytest.fixture(params=BACKENDS)
def backend(request: pytest.FixtureRequest) -> str:
    return str(request.param)


def run(test: Callable[[World, Client], Awaitable[None]], backend: str) -> None:
    """Run with one fake node, on which the pool's accounts and bob exist."""

    async def main() -> None:
        with anyio.fail_after(BOUND_S):
            async with running(World(1)) as world, world.client() as client:
                for number, name in enumerate([*ACCOUNTS, "bob"]):
                    world.ledger.open(name, "CZK", raw_public_key(key_number(number + 1)))
                    world.ledger.accounts[name].settled = FUNDS
                await test(world, client)

    run_leaping(main, backend)


def keys() -> dict[str, Ed25519PrivateKey]:
    return {name: key_number(number + 1) for number, name in enumerate(ACCOUNTS)}


def sender_of(client: Client, pool: SourcePool, timeout_s: float = 5.0) -> PooledSender:
    return PooledSender(client, pool, keys(), timeout_s=timeout_s)


def test_many_tasks_pay_from_all_accounts_and_the_outflow_is_what_was_paid(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool()
        sender = sender_of(client, pool)
        pool.open_books(await sender.balances())
        async with anyio.create_task_group() as tasks:
            for _ in range(20):
                tasks.start_soon(sender.pay, [Posting("bob", 3), Posting("bob", 4)])
        outflow = pool.check_outflow(await sender.balances())
        assert outflow == Outflow(paid=140, left=140, unknown=0, unknown_amount=0)
        assert (pool.completed, dict(pool.paid)) == (20, dict.fromkeys(ACCOUNTS, 35))

    run(test, backend)


def test_the_same_nonce_pays_once(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool(Choice.ROUND_ROBIN)
        sender = sender_of(client, pool)
        pool.open_books(await sender.balances())
        answers = [await sender.pay([Posting("bob", 9)], nonce=b"n" * 32) for _ in range(3)]
        assert [a.repeated for a in answers if isinstance(a, Recorded)] == [False, True, True]
        assert sum(world.ledger.accounts[name].settled for name in ACCOUNTS) == 4 * FUNDS - 9
        assert (pool.completed, pool.failed, pool.unknown) == (1, 0, 0), "it is one payment"
        assert pool.check_outflow(await sender.balances()) == Outflow(9, 9, 0, 0)

    run(test, backend)


def test_an_account_that_was_chosen_before_pays_whatever_the_nonce_or_the_load_say(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool()
        sender = sender_of(client, pool)
        nonce = b"n" * 32
        account = next(name for name in ACCOUNTS[1:] if name != pool.choose(nonce=nonce))
        for repeated in (False, True):
            answer = await sender.pay([Posting("bob", 9)], nonce=nonce, account=account)
            assert isinstance(answer, Recorded) and (answer.account, answer.repeated) == (account, repeated)
        answer = await sender.pay([Posting("bob", 9)], account=account)
        assert isinstance(answer, Recorded) and (answer.account, answer.repeated) == (account, False)
        assert pool.most_in_flight == {name: int(name == account) for name in ACCOUNTS}
        with pytest.raises(LocalMisuse, match="'mint' is none of the 4 accounts of this pool"):
            await sender.pay([Posting("bob", 9)], nonce=nonce, account="mint")
        assert (pool.completed, pool.failed, world.ledger.submits) == (2, 0, 3), "one was repeated"

    run(test, backend)


def test_a_choice_is_paid_from_and_the_next_one_knows_of_it(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool()
        sender = sender_of(client, pool)
        chosen: list[str] = []

        async def pay(number: int) -> None:
            account = pool.choose(number)
            chosen.append(account)
            await sender.pay([Posting("bob", 1)], nonce=bytes([number]) * 32, account=account)

        world.nodes[0].hold_until = 8
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(pay, number)
        assert Counter(chosen) == dict.fromkeys(ACCOUNTS, 2), "the least active each time"

    run(test, backend)


def test_a_rejection_is_a_failure_and_too_many_stop_the_pool(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool(max_failures=1)
        sender = sender_of(client, pool)
        for _ in range(2):
            answer = await sender.pay([Posting("bob", FUNDS + 1)])
            assert isinstance(answer, Recorded) and answer.outcome == Outcome.INSUFFICIENT_FUNDS
        with pytest.raises(TooManyFailures):
            await sender.pay([Posting("bob", 1)])
        assert (pool.completed, pool.failed, world.ledger.submits) == (0, 2, 2)

    run(test, backend)


def test_an_unknown_payment_is_settled_by_sending_the_same_request(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        node = world.nodes[0]
        pool = make_pool()
        sender = sender_of(client, pool, timeout_s=0.5)
        pool.open_books(await sender.balances())

        def unknown(call: wire.CallBody) -> wire.ReplyBody | None:
            if not isinstance(call, wire.Submit):
                return None
            answer = world.ledger.submit(call, node.id)  # executed, but not told in time
            assert isinstance(answer, wire.Recorded)
            return wire.Unknown(answer.request_id, "no outcome in time")

        node.fault = unknown
        assert isinstance(await sender.pay([Posting("bob", 8)]), Unknown)
        assert (pool.completed, pool.unknown, sum(pool.in_flight.values())) == (0, 1, 0)
        assert await sender.settle() == 1, "still unknown"
        assert pool.check_outflow(await sender.balances()) == Outflow(0, 8, 1, 8)
        refused = wire.Refused("busy", "the queue is full")
        node.fault = lambda call: refused if isinstance(call, wire.Submit) else None
        assert await sender.settle() == 1, (
            "that it did not happen is not concluded from a refusal of the same request later"
        )
        node.fault = lambda call: None
        assert await sender.settle() == 0
        assert await sender.settle() == 0, "nothing is left to settle"
        assert (pool.completed, pool.unknown, world.ledger.executed) == (1, 0, 1)
        assert pool.check_outflow(await sender.balances()) == Outflow(8, 8, 0, 0)

    run(test, backend)


def test_what_did_not_start_or_was_refused_is_a_failure_and_nothing_left(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hopchain.submitting, "FIRST_PAUSE_S", 60.0)  # no question is on its way when the time is up

    async def test(world: World, client: Client) -> None:
        node = world.nodes[0]
        pool = make_pool()
        sender = sender_of(client, pool, timeout_s=0.5)
        node.fault = lambda call: wire.Refused("no", "not now") if isinstance(call, wire.Submit) else None
        assert isinstance(await sender.pay([Posting("bob", 1)]), Refused)

        def not_started(call: wire.CallBody) -> wire.ReplyBody | None:
            if not isinstance(call, wire.Submit):
                return None
            return wire.NotStarted(request_id(call.raw), "busy", "later")

        node.fault = not_started
        assert isinstance(await sender.pay([Posting("bob", 1)]), NotStarted)
        assert (pool.failed, pool.unknown, sum(pool.in_flight.values())) == (2, 0, 0)
        assert await sender.settle() == 0

    run(test, backend)


def test_an_unreachable_network_is_a_failure_and_raises(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        world.nodes[0].stop()
        pool = make_pool()
        with pytest.raises(Unreachable):
            await sender_of(client, pool).pay([Posting("bob", 1)])
        assert (pool.failed, pool.unknown, sum(pool.in_flight.values())) == (1, 0, 0)

    run(test, backend)


def test_a_cancelled_payment_is_unknown_and_can_be_settled(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool()
        sender = sender_of(client, pool)
        await client.status()
        world.nodes[0].hold_until = 2
        with anyio.move_on_after(0.05):
            await sender.pay([Posting("bob", 6)])
        assert (pool.unknown, sum(pool.in_flight.values())) == (1, 0)
        world.nodes[0].hold_until = 0
        assert await sender.settle() == 0
        assert (pool.completed, world.ledger.executed, pool.paid[ACCOUNTS[0]]) == (1, 1, 6)

    run(test, backend)


# --- paid again ----------------------------------------------------------------------------------------------------


class Again:
    """One payment of 8 whose nonce is the caller's own, and which an earlier process may have made."""

    NONCE = b"a" * 32
    ACCOUNT = "payer-1"

    def __init__(self, world: World, client: Client) -> None:
        self._world = world
        self.pool = make_pool()
        self.sender = sender_of(client, self.pool, timeout_s=0.5)
        made = transfer(client.network, self.ACCOUNT, [Posting("bob", 8)], self.NONCE)
        self.signed = sign_request(made, keys()[self.ACCOUNT])

    async def open_books(self) -> None:
        self.pool.open_books(await self.sender.balances())

    def arrives(self) -> None:
        """The request of the earlier process is executed."""
        self._world.ledger.submit(wire.Submit(self.signed.raw, self.signed.signature, 1000), b"")

    async def pay(self, answer: Fault = None) -> Answer:
        """Pay it in this run; the node gives this answer, if any, instead of its own."""
        with faulty(self._world, answer):
            return await self.sender.pay([Posting("bob", 8)], nonce=self.NONCE, account=self.ACCOUNT)

    def unknown(self, reason: str = "no outcome in time") -> Unknown:
        return Unknown(self.signed.request_id, reason)

    def not_started(self) -> NotStarted:
        return NotStarted(self.signed.request_id, "busy", "later")

    async def outflow(self) -> Outflow:
        return self.pool.check_outflow(await self.sender.balances())

    @property
    def counted(self) -> tuple[int, int, int]:
        return self.pool.completed, self.pool.failed, self.pool.unknown


@contextmanager
def faulty(world: World, answer: Fault) -> Iterator[None]:
    for node in world.nodes:
        node.fault = lambda call: answer if isinstance(call, wire.Submit) else None
    yield
    for node in world.nodes:
        node.fault = lambda call: None


REFUSED = Refused("busy", "the queue is full")


@pytest.fixture
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who gets no outcome does not ask again: no question is on its way when the time is up."""
    monkeypatch.setattr(hopchain.submitting, "FIRST_PAUSE_S", 60.0)


@pytest.mark.parametrize("executed", ["before", "after", "never"])
@pytest.mark.parametrize("told", ["not started", "refused", "unreachable", "closed"])
def test_what_an_earlier_process_may_have_sent_is_not_known_to_have_failed(
    backend: str, one_round: None, monkeypatch: pytest.MonkeyPatch, told: str, executed: str
) -> None:
    async def test(world: World, client: Client) -> None:
        again = Again(world, client)
        if executed == "before":
            again.arrives()
        await again.open_books()
        if told in ("unreachable", "closed"):
            error = Unreachable([("node", "no room")]) if told == "unreachable" else LocalMisuse("not open")

            async def fails(signed: SignedRequest, *, timeout_s: float) -> Answer:
                raise error

            with monkeypatch.context() as patched:
                patched.setattr(client, "submit", fails)
                with pytest.raises(type(error)):
                    await again.pay()
        else:
            answer = await again.pay(again.not_started() if told == "not started" else REFUSED)
            assert isinstance(answer, NotStarted | Refused)
        assert again.counted == (0, 0, 1)
        if executed == "after":
            again.arrives()
        left = 8 if executed == "after" else 0
        outflow = await again.outflow()
        assert outflow == Outflow(0, left, 1, 8) and outflow.ok
        submits = world.ledger.submits
        assert await again.sender.settle() == 0, "it ends also when nobody ever executes it"
        assert world.ledger.submits == submits and world.ledger.executed == (executed != "never")
        if executed == "never":
            assert again.counted == (0, 0, 1) and await again.outflow() == Outflow(0, 0, 1, 8)
            again.arrives()
            assert await again.sender.settle() == 0
            left = 8
        assert again.counted == (1, 0, 0) and await again.outflow() == Outflow(left, left, 0, 0)

    run(test, backend)


def test_what_an_earlier_process_may_have_sent_is_settled_also_as_a_rejection(backend: str, one_round: None) -> None:
    async def test(world: World, client: Client) -> None:
        again = Again(world, client)
        world.ledger.accounts[again.ACCOUNT].settled = 7
        await again.open_books()
        await again.pay(REFUSED)
        again.arrives()
        assert await again.sender.settle() == 0
        assert again.counted == (0, 1, 0) and await again.outflow() == Outflow(0, 0, 0, 0)

    run(test, backend)


@pytest.mark.parametrize("told", ["insufficient funds", "stale"])
def test_an_answer_that_is_final_is_known_also_when_an_earlier_process_sent_it(backend: str, told: str) -> None:
    async def test(world: World, client: Client) -> None:
        again = Again(world, client)
        world.ledger.accounts[again.ACCOUNT].settled = 7
        await again.open_books()
        stale = wire.Stale(again.signed.request_id, bytes(32), 1)
        await again.pay(stale if told == "stale" else None)
        assert again.counted == (0, 1, 0) and await again.outflow() == Outflow(0, 0, 0, 0)

    run(test, backend)


def test_an_outcome_that_a_node_refuses_to_tell_stays_unknown(backend: str, one_round: None) -> None:
    async def test(world: World, client: Client) -> None:
        again = Again(world, client)
        await again.open_books()
        await again.pay(REFUSED)
        again.arrives()
        (node,) = world.nodes
        node.fault = lambda call: wire.Refused("busy", "later") if isinstance(call, wire.AskOutcome) else None
        assert await again.sender.settle() == 0 and again.counted == (0, 0, 1)
        node.fault = lambda call: Hang() if isinstance(call, wire.AskOutcome) else None
        with pytest.raises(Unreachable, match=r"no answer within 0\.5 s"):
            await again.sender.settle()
        assert again.counted == (0, 0, 1)
        node.fault = lambda call: None
        assert await again.sender.settle() == 0 and again.counted == (1, 0, 0)

    run(test, backend)


def test_what_was_handed_over_in_this_run_is_sent_again_whatever_a_later_call_was_told(
    backend: str, one_round: None
) -> None:
    async def test(world: World, client: Client) -> None:
        again = Again(world, client)
        await again.open_books()
        assert isinstance(await again.pay(again.unknown()), Unknown)
        assert isinstance(await again.pay(again.not_started()), NotStarted)
        assert again.counted == (0, 1, 1), "the first call is none any more that may have moved money"
        assert await again.outflow() == Outflow(0, 0, 1, 8), "one request, in doubt once"
        assert await again.sender.settle() == 0
        assert again.counted == (1, 1, 0) and world.ledger.executed == 1
        assert await again.outflow() == Outflow(8, 8, 0, 0)

    run(test, backend)


def test_a_payment_that_is_sent_after_it_could_not_be_is_sent_again_to_settle_it(backend: str, one_round: None) -> None:
    async def test(world: World, client: Client) -> None:
        again = Again(world, client)
        await again.open_books()
        await again.pay(REFUSED)
        await again.pay(again.unknown())
        assert again.counted == (0, 1, 1)
        with faulty(world, again.unknown()):
            assert await again.sender.settle() == 1
        assert await again.sender.settle() == 0 and again.counted == (1, 1, 0)

    run(test, backend)


def test_a_payment_that_is_completed_the_second_time_is_in_no_doubt(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        again = Again(world, client)
        await again.open_books()
        submit = client.submit

        async def unreachable(signed: SignedRequest, *, timeout_s: float) -> Answer:
            client.submit = submit  # type: ignore[method-assign]
            raise Unreachable([("node", "no room")])

        client.submit = unreachable  # type: ignore[assignment, method-assign]
        with pytest.raises(Unreachable):
            await again.pay()
        assert again.counted == (0, 0, 1)
        answer = await again.pay()
        assert isinstance(answer, Recorded) and answer.completed
        assert again.counted == (1, 1, 0) and await again.outflow() == Outflow(8, 8, 0, 0)
        assert await again.sender.settle() == 0 and again.counted == (1, 1, 0)

    run(test, backend)


@pytest.mark.parametrize("last", ["completed", "unknown", "refused"])
def test_a_payment_that_is_completed_is_counted_once_however_the_next_call_ends(
    backend: str, one_round: None, last: str
) -> None:
    async def test(world: World, client: Client) -> None:
        again = Again(world, client)
        await again.open_books()
        await again.pay()
        await again.pay({"completed": None, "unknown": again.unknown(), "refused": REFUSED}[last])
        assert again.counted == (1, 0, 0) and await again.outflow() == Outflow(8, 8, 0, 0)
        assert await again.sender.settle() == 0 and again.counted == (1, 0, 0)

    run(test, backend)


@pytest.mark.parametrize("last", ["completed", "cancelled"])
def test_two_calls_at_once_of_one_payment_complete_it_once(backend: str, last: str) -> None:
    async def test(world: World, client: Client) -> None:
        again = Again(world, client)
        await again.open_books()
        submit, second, go_on = client.submit, anyio.CancelScope(), anyio.Event()

        async def late(signed: SignedRequest, *, timeout_s: float) -> Answer:
            client.submit = submit  # type: ignore[method-assign]
            answer = await submit(signed, timeout_s=timeout_s)
            await go_on.wait()
            return answer

        async def pay_late() -> None:
            with second:
                await again.pay()

        client.submit = late  # type: ignore[assignment, method-assign]
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(pay_late)
            await anyio.wait_all_tasks_blocked()
            await again.pay()
            assert again.counted == (1, 0, 0)
            if last == "cancelled":
                second.cancel()
            go_on.set()
        assert again.counted == (1, 0, 0) and await again.outflow() == Outflow(8, 8, 0, 0)
        assert await again.sender.settle() == 0 and again.counted == (1, 0, 0)

    run(test, backend)


@pytest.mark.parametrize("last", ["cancelled", "refused"])
def test_two_calls_at_once_of_one_payment_are_in_doubt_once(backend: str, last: str) -> None:
    async def test(world: World, client: Client) -> None:
        again = Again(world, client)
        await again.open_books()
        submit, scopes = client.submit, [anyio.CancelScope(), anyio.CancelScope()]
        refused = anyio.Event()

        async def waits(signed: SignedRequest, *, timeout_s: float) -> Answer:
            await refused.wait()
            return REFUSED

        async def pay(scope: anyio.CancelScope) -> None:
            with scope:
                await again.pay()

        client.submit = waits  # type: ignore[assignment, method-assign]
        async with anyio.create_task_group() as tasks:
            for scope in scopes:
                tasks.start_soon(pay, scope)
            await anyio.wait_all_tasks_blocked()
            assert again.pool.in_flight[again.ACCOUNT] == 2
            scopes[0].cancel()
            await anyio.wait_all_tasks_blocked()
            assert again.counted == (0, 0, 1)
            if last == "cancelled":
                scopes[1].cancel()
            refused.set()
        client.submit = submit  # type: ignore[method-assign]
        assert again.counted == (0, 1, 1) and await again.outflow() == Outflow(0, 0, 1, 8)
        assert await again.sender.settle() == 0 and world.ledger.executed == 1
        assert again.counted == (1, 1, 0) and await again.outflow() == Outflow(8, 8, 0, 0)

    run(test, backend)


@pytest.mark.parametrize("ends", ["completed", "unknown"])
@pytest.mark.parametrize("sent", [True, False], ids=["sent", "not sent"])
def test_what_is_paid_again_while_it_is_settled_counts_once(
    backend: str, one_round: None, sent: bool, ends: str
) -> None:
    async def test(world: World, client: Client) -> None:
        again = Again(world, client)
        await again.open_books()
        await again.pay(again.unknown() if sent else REFUSED)
        asking, paid = anyio.Event(), anyio.Event()
        name = "submit" if sent else "outcome"
        call = getattr(client, name)

        async def late(*words: object, timeout_s: float) -> Answer:
            setattr(client, name, call)
            answer: Answer = await call(*words, timeout_s=timeout_s)
            asking.set()
            await paid.wait()
            return answer

        again.arrives()
        setattr(client, name, late)
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(again.sender.settle)
            await asking.wait()
            await again.pay(again.unknown() if ends == "unknown" else None)
            expected = (0, 1, 1) if ends == "unknown" else (1, 1, 0)
            assert again.counted == expected
            paid.set()
        assert again.counted == expected, "the answer to an earlier call says nothing of this one"
        assert await again.sender.settle() == 0
        assert again.counted == (1, 1, 0) and await again.outflow() == Outflow(8, 8, 0, 0)

    run(test, backend)


@pytest.mark.parametrize("nonce", [None, b"n" * 32], ids=["random", "own"])
def test_bulk_that_an_earlier_process_may_have_sent_is_not_known_to_have_failed(
    backend: str, one_round: None, nonce: bytes | None
) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool(Choice.ROUND_ROBIN)
        sender = sender_of(client, pool, timeout_s=0.5)
        bulk = partial(sender.pay_bulk, [Posting("bob", 3)] * 4, size=2, nonce=nonce)
        pool.open_books(await sender.balances())
        with faulty(world, REFUSED):
            assert await bulk() == [REFUSED] * 2
        assert (pool.failed, pool.unknown) == ((2, 0) if nonce is None else (0, 2))
        assert await sender.settle() == 0
        await bulk()
        assert (pool.completed, pool.failed, pool.unknown) == (2, 2, 0)
        assert pool.check_outflow(await sender.balances()) == Outflow(12, 12, 0, 0)

    run(test, backend)


# --- bulk ----------------------------------------------------------------------------------------------------------


def test_bulk_is_cut_into_requests_of_at_most_the_size_and_one_failure_stops_no_other(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool(Choice.ROUND_ROBIN)
        sender = sender_of(client, pool)
        pool.open_books(await sender.balances())
        postings = [Posting("bob", 1)] * 10 + [Posting("nobody", 1)] * 4 + [Posting("bob", 2)] * 5
        answers = await sender.pay_bulk(postings, size=7)
        assert [a.outcome for a in answers if isinstance(a, Recorded)] == [
            Outcome.COMPLETED,
            Outcome.UNKNOWN_RECIPIENT,
            Outcome.COMPLETED,
        ]
        assert pool.check_outflow(await sender.balances()) == Outflow(17, 17, 0, 0)
        requests = [c for c in world.nodes[0].calls if isinstance(c, wire.Submit)]
        assert len(requests) == 3
        assert await sender.pay_bulk([]) == []
        for size in (0, MAX_POSTINGS + 1):
            with pytest.raises(LocalMisuse, match="it holds 1 to 8190"):
                await sender.pay_bulk(postings, size=size)

    run(test, backend)


def test_a_bulk_run_with_a_nonce_made_again_pays_once(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        postings = [Posting("bob", 1)] * 20
        pay = partial(sender_of(client, make_pool(Choice.TWO_CHOICES)).pay_bulk, postings, size=4)
        first = await pay(nonce=b"n" * 32)
        executed = world.ledger.executed
        again = await partial(sender_of(client, make_pool(Choice.ROUND_ROBIN)).pay_bulk, postings, size=4)(
            nonce=b"n" * 32
        )
        assert [a.repeated for a in again if isinstance(a, Recorded)] == [True] * 5
        assert [a.request_id for a in again if isinstance(a, Recorded)] == [
            a.request_id for a in first if isinstance(a, Recorded)
        ]
        assert world.ledger.executed == executed and world.ledger.accounts["bob"].incoming == 20
        await pay(nonce=b"o" * 32)
        await pay()
        await pay()
        assert world.ledger.accounts["bob"].incoming == 80, "other nonces are other payments"
        with pytest.raises(LocalMisuse, match="a nonce of 3 bytes"):
            await pay(nonce=b"may")

    run(test, backend)


def test_a_bulk_run_with_a_nonce_pays_as_much_from_each_account(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool()
        await sender_of(client, pool).pay_bulk([Posting("bob", 1)] * 16, size=1, nonce=b"n" * 32)
        assert dict(pool.paid) == dict.fromkeys(ACCOUNTS, 4)

    run(test, backend)


def test_a_bulk_run_ends_with_the_pool_and_says_so_for_each_request(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool(Choice.ROUND_ROBIN, max_failures=0)
        sender = sender_of(client, pool)
        answers = await sender.pay_bulk([Posting("nobody", 1)] * 40, size=1)
        told = Counter(type(answer).__name__ for answer in answers)
        assert set(told) == {"Recorded", "TooManyFailures"} and told.total() == 40
        assert told["Recorded"] == pool.failed == world.ledger.submits <= len(ACCOUNTS)
        assert all(isinstance(a, Recorded | NotSent) for a in answers)

    run(test, backend)


def test_a_bulk_run_that_is_cancelled_has_told_what_was_paid(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool()
        told: list[int] = []

        def keep(number: int, answer: object) -> None:
            assert isinstance(answer, Recorded) and answer.completed
            told.append(number)
            if len(told) == 6:
                call.cancel()

        with anyio.CancelScope() as call:
            await sender_of(client, pool).pay_bulk([Posting("bob", 1)] * 20, size=1, on_answer=keep)
        assert call.cancelled_caught and 6 <= len(set(told)) == pool.completed < 20
        assert sum(pool.in_flight.values()) == 0

    run(test, backend)


def test_a_bulk_run_of_which_a_part_cannot_be_made_pays_nothing(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool()
        sender = sender_of(client, pool)
        postings = [*[Posting("bob", 1)] * 4, Posting("bob", 1, "x" * 57), *[Posting("bob", 1)] * 5]
        with pytest.raises(LocalMisuse, match=r"memo of posting 0 is 'x+' .*at most 56 bytes"):
            await sender.pay_bulk(postings, size=2)
        with pytest.raises(LocalMisuse, match="at most 56 bytes"):
            await sender.pay(postings[4:5])
        assert (pool.completed, pool.failed, pool.unknown, sum(pool.in_flight.values())) == (0, 0, 0, 0)
        assert world.ledger.submits == 0

    run(test, backend)


def test_a_payment_to_an_account_of_the_pool_is_refused(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool()
        sender = sender_of(client, pool)
        pool.open_books(await sender.balances())
        postings = [Posting("bob", 1), Posting("bob", 2), Posting("payer-2", 3)]
        for pay in (partial(sender.pay, account="payer-1"), partial(sender.pay_bulk, size=2)):
            with pytest.raises(LocalMisuse, match="payer-2 is in the pool, which cannot pay it"):
                await pay(postings)
        assert (pool.completed, pool.failed, pool.unknown, world.ledger.submits) == (0, 0, 0, 0)

    run(test, backend)


def test_a_bulk_run_tells_what_was_paid_when_the_client_is_closed_meanwhile(backend: str) -> None:
    async def test(world: World, _: Client) -> None:
        pool = make_pool()
        node = world.nodes[0]
        answers: list[object] = []
        closing = world.client()
        sender = sender_of(closing, pool, timeout_s=0.5)

        async def send() -> None:
            answers.extend(await sender.pay_bulk([Posting("bob", 1)] * 12, size=1))

        async with anyio.create_task_group() as tasks, closing:
            await closing.status()
            node.hold_until = 6  # the first four wait for it
            tasks.start_soon(send)
            await anyio.wait_all_tasks_blocked()
        assert len(answers) == 12 and [type(a) for a in answers[4:]] == [NotSent] * 8
        assert NotSent not in [type(a) for a in answers[:4]]
        assert pool.unknown + pool.failed == 12 and sum(pool.in_flight.values()) == 0

    run(test, backend)


@pytest.mark.parametrize("choice", list(Choice))
def test_a_bulk_run_is_spread_over_the_accounts(choice: Choice) -> None:
    pool = make_pool(choice)
    chosen = pool.choose_each(40)
    assert sum(pool.in_flight.values()) == 0, "nothing is in flight yet"
    most = max(Counter(chosen).values())
    assert most <= 13 if choice is Choice.TWO_CHOICES else most == 10
    if choice is Choice.LEAST_ACTIVE:
        pool.begin(ACCOUNTS[0])
        assert pool.choose_each(4) == [*ACCOUNTS[1:], ACCOUNTS[0]]


@pytest.mark.parametrize("choice", list(Choice))
def test_a_bulk_run_with_a_nonce_goes_to_each_account_in_turn(choice: Choice) -> None:
    pool = make_pool(choice)
    pool.begin(ACCOUNTS[0])
    firsts = set()
    for nonce in (bytes([n]) * 32 for n in range(40)):
        first = ACCOUNTS.index(pool.choose(nonce=nonce))
        firsts.add(first)
        assert pool.choose_each(10, nonce) == [ACCOUNTS[(first + i) % 4] for i in range(10)]
    assert firsts == {0, 1, 2, 3}, "short runs do not all begin with the same account"
    for bad in ("order 1", b"order 1"):
        for choose in (pool.choose, partial(pool.choose_each, 1)):
            with pytest.raises(LocalMisuse, match=r"a nonce (of 7 bytes|that is str): it has 32 bytes"):
                choose(nonce=bad)  # type: ignore[operator]


def test_balances_are_asked_for_at_once(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        world.nodes[0].hold_until = len(ACCOUNTS)  # no answer before all are asked
        balances = await sender_of(client, make_pool()).balances()
        assert list(balances) == ACCOUNTS
        assert [(b.account, b.settled) for b in balances.values()] == [(name, FUNDS) for name in ACCOUNTS]

    run(test, backend)


def test_balances_of_a_stuck_node_take_the_time_of_one(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hopchain.pooled.BALANCES_AT_ONCE", 2)

    async def test(world: World, client: Client) -> None:
        (node,) = world.nodes
        await client.status()
        node.fault = lambda call: Hang() if isinstance(call, wire.AskBalance) else None
        with pytest.raises(Unreachable, match=r"no answer within 1 s"):
            await sender_of(client, make_pool(), timeout_s=1.0).balances()
        asked = [call.account for call in node.calls if isinstance(call, wire.AskBalance)]
        assert asked == ACCOUNTS[:2], "the pool's time is theirs, and no other is asked for after them"

    run(test, backend)


async def doubt(sender: PooledSender, world: World, number: int) -> None:
    """So many payments without an outcome: they are cancelled when the node has them all, and it answers none."""
    (node,) = world.nodes
    node.calls.clear()

    def never(call: wire.CallBody) -> Hang | None:
        if not isinstance(call, wire.Submit):
            return None
        if len(node.calls) == number:
            tasks.cancel_scope.cancel()
        return Hang()

    node.fault = never
    async with anyio.create_task_group() as tasks:
        for _ in range(number):
            tasks.start_soon(sender.pay, [Posting("bob", 1)])
    node.fault = lambda call: None


@pytest.mark.parametrize("stuck", [False, True])
def test_payments_without_an_outcome_are_settled_many_at_once(
    backend: str, monkeypatch: pytest.MonkeyPatch, stuck: bool
) -> None:
    monkeypatch.setattr("hopchain.pooled.SETTLED_AT_ONCE", 4)

    async def test(world: World, client: Client) -> None:
        (node,), submit = world.nodes, client.submit
        pool = make_pool()
        sender = sender_of(client, pool, timeout_s=1.0 if stuck else 5.0)
        under_way = most = 0

        async def counted(signed: SignedRequest, *, timeout_s: float) -> Answer:
            nonlocal under_way, most
            under_way += 1
            most = max(most, under_way)
            try:
                return await submit(signed, timeout_s=timeout_s)
            finally:
                under_way -= 1

        await doubt(sender, world, 8)
        assert pool.unknown == 8
        monkeypatch.setattr(client, "submit", counted)
        node.calls.clear()
        if stuck:
            node.fault = lambda call: Hang() if isinstance(call, wire.Submit) else None
            assert await sender.settle() == 8, "all are kept"
        else:
            node.hold_until = 4  # no answer before four are sent
            assert await sender.settle() == 0
            assert (pool.completed, pool.unknown, world.ledger.executed) == (8, 0, 8)
        assert len({call.raw for call in node.calls if isinstance(call, wire.Submit)}) == 8 and most == 4

    run(test, backend)


def test_two_tasks_that_settle_at_once_settle_each_payment_once(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool()
        sender = sender_of(client, pool)
        await doubt(sender, world, 3)
        world.nodes[0].hold_until = 6  # both have sent all before any answer comes
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(sender.settle)
        assert (pool.completed, pool.unknown, sum(pool.paid.values())) == (3, 0, 3)

    run(test, backend)


def test_what_can_be_settled_is_when_another_payment_cannot_be_sent(
    backend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def test(world: World, client: Client) -> None:
        pool = make_pool()
        sender = sender_of(client, pool)
        await doubt(sender, world, 3)
        submit, sent = client.submit, 0

        async def second_not(signed: SignedRequest, *, timeout_s: float) -> Answer:
            nonlocal sent
            sent += 1
            if sent == 2:
                raise Unreachable([("node", "no room")])
            return await submit(signed, timeout_s=timeout_s)

        monkeypatch.setattr(client, "submit", second_not)
        with pytest.raises(Unreachable, match="no room"):
            await sender.settle()
        assert (pool.completed, pool.unknown) == (2, 1)
        assert await sender.settle() == 0

    run(test, backend)


def test_a_balance_that_nobody_tells_in_time_is_no_misuse(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        world.nodes[0].fault = lambda call: (
            wire.Unknown(b"", "no majority") if isinstance(call, wire.AskBalance) else None
        )
        with pytest.raises(ClientError, match="the balance of payer-1 is not known: no majority"):
            await sender_of(client, make_pool(), timeout_s=0.5).balances()

    run(test, backend)


def test_an_account_without_a_key_is_told_at_once(backend: str) -> None:
    async def test(world: World, client: Client) -> None:
        with pytest.raises(LocalMisuse, match=r"3 accounts of the pool have no key, the first is payer-2"):
            PooledSender(client, make_pool(), {"payer-1": key_number(1)})
        with pytest.raises(LocalMisuse, match="timeout_s=-1: give seconds"):
            sender_of(client, make_pool(), timeout_s=-1)
        missing = SourcePool(["payer-1", "ghost"], Choice.DEDICATED, random.Random(1))
        ghost = PooledSender(client, missing, {"payer-1": key_number(1), "ghost": key_number(2)})
        with pytest.raises(LocalMisuse, match="the balance of ghost is not known: there is no such account"):
            await ghost.balances()
        world.nodes[0].stale = True
        with pytest.raises(ClientError, match="the balance of ghost is not known: who answered may be behind"):
            await ghost.balances()

    run(test, backend)
