"""Whole nodes in one process: they keep every rule through cuts, kills and moves, and one plan has one trace."""

import itertools
import os
import random
import secrets
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

import pytest
import trio

from chain.link import opening_slot
from chain.request import Posting, opening, sign, transfer
from hopchain.wire import AskBalance, Recorded, Submit
from netsim.names import ISSUER, key_of, public_key
from netsim.plan import ClockJump, Clog, Cut, DiskError, Kill, Load, Pause, Plan, SlowDisk, Weather, WeatherChange
from netsim.whole import run_whole
from netsim.whole_network import SESSIONS, WholeNetwork
from node.core import Core
from node.doubles import REPLACED_S
from node.events import ClientBalance, ClientSubmit

CONNECTED_S = 0.6  # from the start: all connections stand
DOWN_S = 0.2
AWAIT_STRIDE = min(3, int(os.environ.get("HOPCHAIN_CUT_STRIDE", "16")))


def _cut_and_kill(seed: int, nodes: int) -> Plan:
    everybody = tuple(range(nodes))
    minority = everybody[: nodes // 2]
    return Plan(
        seed,
        nodes=nodes,
        k=5,
        weather=Weather(loss=0.02, delay_mean_s=0.005),
        load=Load(accounts=3, requests=25),
        faults=(
            Cut(0.5, minority, everybody[len(minority) :], 3.0),
            Kill(1.0, nodes - 1, 2.0, "after_commit"),
            Kill(3.5, 0, 4.0),
        ),
        fault_s=5.0,
        core_s=2.0,
        heal_s=REPLACED_S + 3.0,  # a connection may be replaced before its end is seen
    )


@pytest.mark.parametrize(("seed", "nodes"), [(1, 3), (2, 3), (3, 5), (4, 5), (5, 7)])
def test_a_cut_and_kills_break_no_rule_and_all_nodes_agree_in_the_end(seed, nodes):
    result = run_whole(_cut_and_kill(seed, nodes))
    assert result.ok, (result.rule, result.problem)
    assert result.lives == nodes + 2
    assert result.completed >= 5


@pytest.mark.slow
def test_eighteen_nodes_of_which_five_decide():
    """So many that none pings all others in each round."""
    result = run_whole(_cut_and_kill(6, 18))
    assert result.ok, (result.rule, result.problem)
    assert result.lives == 20


def test_every_other_fault_breaks_no_rule_either():
    plan = Plan(
        11,
        nodes=5,
        k=3,
        load=Load(requests=25),
        faults=(
            Clog(0.2, 1, 2, 2.0),
            Cut(0.3, (0,), (1, 2), 2.5, one_way=True),
            ClockJump(0.5, 3, -86_400_000),
            Kill(0.6, 4, 1.5, "in_commit"),
            SlowDisk(0.7, 2, 0.2, 2.0),
            DiskError(1.0, 1, "fsync", 2.0),
            DiskError(1.0, 2, "full", 2.0),
            Kill(1.2, 3, 2.2, "sending"),
            WeatherChange(2.0, Weather(loss=0.2, repeat=0.2, delay_mean_s=0.05), 4.0),
            Kill(3.0, 0, 4.0, "before_commit"),
        ),
        fault_s=5.0,
        core_s=2.0,
        heal_s=12.0,
        files=True,
    )
    result = run_whole(plan)
    assert result.ok, (result.rule, result.problem)
    assert result.lives >= 5 + 4, "the kills and the failing disk ended processes"


@pytest.mark.parametrize(("until", "lives"), [(3.0, 4), (1.001, 3)])
def test_a_disk_stays_full_until_a_commit_fails_or_there_is_room(until: float, lives: int):
    full = DiskError(1.0, 1, "full", until)
    result = run_whole(Plan(1, nodes=3, k=3, load=Load(requests=25), faults=(full,), fault_s=4.0, heal_s=8.0))
    assert (result.rule, result.problem, result.lives) == ("", "", lives)


def test_a_process_that_was_to_die_while_sending_lives_on_when_it_is_healed_before():
    """Found by the plan of seed 153: such a node stayed mute for ever."""

    async def play(network: WholeNetwork) -> None:
        await trio.sleep(CONNECTED_S)
        network.nodes[0].frames_left = 2
        network.heal(range(3))
        for request in _core_requests(network):
            assert isinstance(await network.ask(0, request), Recorded)
        await trio.sleep(2.0)
        network.at_rest()

    result = run_whole(Plan(1, nodes=3, k=3), play)
    assert (result.rule, result.problem, result.lives) == ("", "", 3)


def test_a_fault_that_whole_nodes_do_not_have_is_refused():
    result = run_whole(Plan(1, nodes=1, load=Load(accounts=2, requests=0), faults=(Pause(0.1, 0, 0.2),)))
    assert (result.rule, "Pause" in result.problem) == ("LocalMisuse", True)


_ROOT = Path(__file__).parents[2]
_TRACE = """
from tests.netsim.test_whole import _cut_and_kill
from netsim.whole import run_whole
print(run_whole(_cut_and_kill(3, 5)).trace)
"""


def test_one_plan_has_one_trace_whatever_the_order_of_hashes():
    traces = {
        subprocess.run(
            [sys.executable, "-c", _TRACE],
            env={"PYTHONHASHSEED": seed},
            cwd=_ROOT,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert traces == {run_whole(_cut_and_kill(3, 5)).trace + "\n"}
    assert traces != {run_whole(_cut_and_kill(4, 5)).trace + "\n"}


def test_no_real_clock_chance_or_network_is_used(monkeypatch):
    expected = run_whole(_cut_and_kill(1, 3))

    def forbidden(*args: object, **options: object) -> None:
        raise AssertionError("the simulated code reached outside")

    with monkeypatch.context() as patch:
        for name in ("time", "time_ns", "monotonic_ns", "sleep"):
            patch.setattr(time, name, forbidden)
        backwards = itertools.count(0, -1000)  # the kademlia library reads it into a table that is then replaced
        patch.setattr(time, "monotonic", lambda: next(backwards))
        for name in ("random", "randint", "randrange", "choice", "shuffle", "uniform", "sample", "randbytes"):
            patch.setattr(random, name, forbidden)
        for name in ("token_bytes", "token_hex", "randbits", "choice"):
            patch.setattr(secrets, name, forbidden)
        patch.setattr(os, "urandom", forbidden)
        for name in ("bind", "connect", "sendto"):
            patch.setattr(socket.socket, name, forbidden)
        patch.setattr(socket, "getaddrinfo", forbidden)
        patch.setattr(threading.Thread, "start", forbidden)
        assert run_whole(_cut_and_kill(1, 3)) == expected


# --- a crash at every await ---


def _core_requests(network: WholeNetwork) -> list[Submit]:
    """An account is opened and paid: both kinds of slot are decided once."""
    network_id, name = network.network_id, "acct-0"
    opened = sign(opening(network_id, name, "CZK", public_key(name), bytes(32)), key_of(name))
    paid = sign(transfer(network_id, ISSUER, [Posting(name, 100)], bytes(32)), key_of(ISSUER))
    return [Submit(signed.raw, signed.signature, 2000) for signed in (opened, paid)]


class _Crash:
    """Plays the core scenario; `victim` dies at its step number `step` after the beginning (None: nobody does)."""

    GATEWAY = 1

    def __init__(self, victim: int = -1, step: int | None = None) -> None:
        self.victim = victim
        self.step = step
        self.steps: dict[int, int] = {}

    async def __call__(self, network: WholeNetwork) -> None:
        await trio.sleep(CONNECTED_S)
        before = network.steps.copy()

        def after_step(node: int, number: int) -> None:
            if node == self.victim and number - before[node] == self.step:
                network.kill(network.nodes[node], network.now + DOWN_S)

        network.after_step = after_step
        requests = _core_requests(network)
        with trio.move_on_after(DOWN_S):  # a gateway that dies gives no answer
            for request in requests:
                await network.ask(self.GATEWAY, request)
        await trio.sleep(0.05)
        self.steps = {node: number - before[node] for node, number in network.steps.items()}
        await trio.sleep(2 * DOWN_S)
        for request in requests:
            answer = await network.ask(0, request)
            assert isinstance(answer, Recorded)
            assert answer.outcome == 0
        await trio.sleep(2.0)
        network.at_rest()


def _play(crash: _Crash):
    return run_whole(Plan(5, nodes=3, k=3), crash)


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1, 2])
def test_a_crash_at_any_await_loses_nothing(victim, capsys):
    """`make test` takes every AWAIT_STRIDE-th await, of each node others; `make crashes` all."""
    calm = _Crash()
    assert _play(calm).ok
    count = calm.steps[victim]
    assert 40 < count < 400, "the scenario is the size this test is made for"
    steps = range(1 + victim % AWAIT_STRIDE, count + 1, AWAIT_STRIDE)
    for step in steps:
        result = _play(_Crash(victim, step))
        assert (result.rule, result.problem, result.lives) == ("", "", 4), f"node {victim} died at its step {step}"
    with capsys.disabled():
        sys.stdout.write(f"\n  node {victim} was killed at {len(steps)} of {count} awaits" + "\n")


def test_a_process_that_dies_while_clients_connect_leaves_no_dead_connection_to_the_next():
    """At each step of its start. Whoever calls while it is down is refused, and the next process answers on all
    connections."""

    async def play(network: WholeNetwork) -> None:
        node, ask = network.nodes[0], AskBalance(ISSUER)
        steps = Counter[int]()  # of each life, up to its last connection; every other life dies on its way
        down = 0

        def call_while_it_is_down() -> None:
            nonlocal down
            down += node.core is None
            network.read(0, ask)

        def after_step(index: int, number: int) -> None:
            steps[node.life] += len(node.clients) < SESSIONS
            if node.core is not None and node.life % 2 == 0 and steps[node.life] >= node.life // 2:
                network.kill(node, network.now + DOWN_S)
                network.at(network.now + DOWN_S / 2, call_while_it_is_down)

        network.after_step = after_step
        await trio.sleep(CONNECTED_S)
        rounds = steps[1]
        assert 40 < rounds < 400, "a start is the size this test is made for"
        for life in range(1, rounds + 1):
            network.kill(node, network.now + DOWN_S)
            await trio.sleep(2 * DOWN_S + CONNECTED_S)
            assert (node.life, len(node.clients)) == (2 * life + 1, SESSIONS)
            for _ in range(4 * SESSIONS):
                network.read(0, ask)
            await trio.sleep(0.1)
            network.watch.all_ended(network.now)
        assert down == rounds

    result = run_whole(Plan(1, nodes=1, k=1), play)
    assert (result.rule, result.problem) == ("", "")


# --- addresses ---


def _connected(network: WholeNetwork, node: int) -> set[int]:
    running = network.nodes[node].running
    assert running is not None
    there = running.mesh.connected()
    return {other.index for other in network.nodes if other.id in there}


def test_members_who_know_one_address_find_all_others():
    async def play(network: WholeNetwork) -> None:
        for node in network.nodes:
            node.peers = (0,)
        await trio.sleep(5.0)
        for node in network.nodes:
            assert _connected(network, node.index) == set(range(7)) - {node.index}

    assert run_whole(Plan(1, nodes=7), play).ok


def _name_whose_opening_is_decided_by(network: WholeNetwork, node: int) -> str:
    names = (f"acct-{i}" for i in range(1000))
    return next(n for n in names if network.watch.group_of(opening_slot(network.network_id, n))[0] == node)


def test_a_payment_looks_up_a_member_that_has_moved_without_a_word():
    async def play(network: WholeNetwork) -> None:
        by_id = sorted(network.nodes, key=lambda node: node.id)
        gateway, moved, friend = by_id[0].index, by_id[-1].index, by_id[2].index
        await trio.sleep(CONNECTED_S)
        apart = Cut(0, (gateway,), (moved,), 0)
        network.cut(apart)
        network.nodes[moved].peers = (friend,)
        network.move(network.nodes[moved], "10.9.9.9")
        await trio.sleep(5.0)
        network.network.heal(apart)
        await trio.sleep(5.0)
        assert moved in _connected(network, friend)
        assert moved not in _connected(network, gateway), "nobody has told it"
        assert network.count("lookups") == 0

        name = _name_whose_opening_is_decided_by(network, moved)
        opened = sign(opening(network.network_id, name, "CZK", public_key(name), bytes(32)), key_of(name))
        answer = await network.ask(gateway, Submit(opened.raw, opened.signature, 5000))
        assert isinstance(answer, Recorded)
        assert answer.decided_by != network.nodes[moved].id, "the payment does not wait for the lookup"
        await trio.sleep(3.0)
        assert network.count("lookups") > 0
        assert moved in _connected(network, gateway)

    result = run_whole(Plan(2, nodes=5), play)
    assert result.ok, (result.rule, result.problem)


# --- the observer, and what a process that dies may still do ---


def test_a_node_that_sends_before_it_has_written_is_caught(monkeypatch):
    monkeypatch.setattr("node.driver.commit", lambda conn, writes: None)
    result = run_whole(_cut_and_kill(1, 3))
    assert (result.rule, "before it is durable" in result.problem) == ("I8", True)


def test_a_network_that_does_not_agree_is_caught(monkeypatch):
    """Nodes that never tell and never ask what was decided while they were away. Later payments mostly bring it."""
    monkeypatch.setattr("node.pulling.Pulling.on_offer", lambda self, turn, peer, message: None)
    monkeypatch.setattr("node.pulling.Pulling.needs_offer", lambda self, message, needs: None)
    assert any(run_whole(_cut_and_kill(seed, 3)).rule in ("I7", "I13") for seed in range(35, 80))


def test_calls_of_several_clients_meet_in_the_turns_of_a_node(monkeypatch):
    sessions: list[set[int]] = []  # of the calls of one turn
    needs = Core.needs

    def noted(core, events, now):
        sessions.append({event.caller.session for event in events if isinstance(event, ClientSubmit | ClientBalance)})
        return needs(core, events, now)

    monkeypatch.setattr(Core, "needs", noted)
    assert run_whole(Plan(8, nodes=3, k=3, load=Load(accounts=3, requests=100), fault_s=2.0)).ok
    assert max(map(len, sessions)) > 1
