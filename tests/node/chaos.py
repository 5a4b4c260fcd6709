"""Random histories in a faulty world, and what must hold after each (one seed, one run).

First the world breaks, under load: messages are lost, repeated, late, cut off one way or both; nodes die, also inside
a turn, and come back; clients send the same request to several nodes, spend what they were just paid, pay strangers,
open one name twice, pin old tips, cancel, forge. `Watch` looks on all the time.

Then everything is healed, and must end: what a client sends again is recorded, all replicas are equal, nothing is
left in any queue, and the audit agrees.
"""

import random
from collections.abc import Callable
from dataclasses import dataclass, field

from chain.audit import audit
from chain.link import Outcome
from chain.request import Kind, Posting, SignedRequest, decode_request_untrusted, transfer
from hopchain.wire import AT_ONCE, NotStarted, Recorded, Refused, Stale
from node.core import Gauges
from routing.keyspace import NodeId
from tests.node.watch import Broken, Call
from tests.node.world import Doom, Faults, World

START = 1_000  # what each account gets before the faults begin
HEAL_S = 12.0  # for everything that is under way: a deadline, a suspicion, some pulls
AGAIN_S = 25.0  # for what is sent again in the healed world


@dataclass(frozen=True)
class Shape:
    """How big, how broken, how busy."""

    nodes: int
    k: int
    accounts: int
    faults: Faults
    actions: int
    crashes: int
    dooms: int
    cuts: int
    fault_s: float = 6.0
    prefer: str = ""  # half of what clients do is this


def random_shape(rng: random.Random) -> Shape:
    """Any of the kinds of world that there are; a quarter of them without faults."""
    faulty = rng.random() < 0.75
    faults = Faults()
    if faulty:
        faults = Faults(
            loss=rng.choice([0.0, 0.05, 0.3]),
            repeat=rng.choice([0.0, 0.1]),
            delay_s=rng.choice([(0.0005, 0.002), (0.001, 0.05), (0.001, 0.4)]),
            skew_ms=rng.choice([0, 5_000]),
        )
    return Shape(
        nodes=rng.choice([1, 2, 3, 3, 4, 5, 5, 7]),
        k=rng.choice([1, 2, 3, 3, 4, 5, 5]),
        accounts=rng.choice([2, 3, 6]),
        faults=faults,
        actions=rng.choice([10, 30, 60]),
        crashes=rng.choice([0, 0, 2, 5]) if faulty else 0,
        dooms=rng.choice([0, 2, 6]) if faulty else 0,
        cuts=rng.choice([0, 0, 2, 5]) if faulty else 0,
    )


@dataclass
class Asked:
    """One sound request and all calls for it."""

    signed: SignedRequest
    calls: list[Call] = field(default_factory=list)


class Chaos:
    """One run. The seed says everything; a `shape` may be given instead of drawn."""

    world_type = World

    def __init__(self, seed: int, shape: Shape | None = None) -> None:
        self.rng = random.Random(seed)
        self.shape = shape or random_shape(self.rng)
        self.world = self.world_type(self.shape.nodes, self.shape.k, seed, Faults(skew_ms=self.shape.faults.skew_ms))
        self.world.on_death = lambda node: self.world.later(self.rng.uniform(0.01, 3.0), lambda: self._restart(node))
        self.world.answered.append(self._answered)
        self.names = [f"acct-{i}" for i in range(self.shape.accounts)]
        self.strangers = [f"new-{i}" for i in range(3)]  # accounts that somebody may open
        self.asked: dict[bytes, Asked] = {}
        self.faulty = True

    def run(self) -> None:
        """Prepare, break, heal, check. Raises `Broken`, or what a node raises."""
        for name in self.names:
            self.world.settle(self._any_node(), self.world.open_request(name))
            self.world.settle(self._any_node(), self.world.pay_request("mint", name, START))
        self.world.faults = self.shape.faults
        for _ in range(self.shape.actions):
            self._sometime(self._act)
        for _ in range(self.shape.crashes):
            self._sometime(self._crash)
        for _ in range(self.shape.dooms):
            self._sometime(self._doom)
        for _ in range(self.shape.cuts):
            self._sometime(self._cut)
        self.world.run(self.shape.fault_s)
        self._heal()
        self.world.run(HEAL_S)
        self._check_answers()
        self._check_empty()
        self._ask_again()
        self._check_empty()
        self._check_replicas()

    def _sometime(self, act: Callable[[], None]) -> None:
        self.world.later(self.rng.uniform(0, self.shape.fault_s), act)

    def _any_node(self) -> NodeId:
        return self.rng.choice(self.world.alive)

    # --- clients ---

    def _act(self) -> None:
        if self.shape.prefer and self.world.alive and self.rng.random() < 0.5:
            getattr(self, self.shape.prefer)()
        elif self.world.alive:
            acts = (
                [self._pay] * 8
                + [self._again] * 4
                + [self._spend] * 2
                + [self._pay_many, self._pay_stranger, self._open, self._pinned]
            )
            self.rng.choice([*acts, self._cancel, self._forged, self._read, self._expiring])()

    def _ask(self, signed: SignedRequest, node: NodeId | None = None) -> None:
        asked = self.asked.setdefault(signed.request_id, Asked(signed))
        timeout_s = self.rng.choice([0.3, 3.0, 8.0])
        asked.calls.append(self.world.submit(node or self._any_node(), signed, timeout_s))
        if self.rng.random() < 0.15:  # the same request through two nodes at once
            asked.calls.append(self.world.submit(self._any_node(), signed, timeout_s))

    def _pair(self) -> tuple[str, str]:
        sender, recipient = self.rng.sample(self.names, 2)
        return (self.names[0], self.names[1]) if self.rng.random() < 0.4 else (sender, recipient)  # one busy sender

    def _pay(self) -> None:
        self._ask(self.world.pay_request(*self._pair(), self.rng.choice([1, 50, 400, 900, 5_000])))

    def _pay_many(self) -> None:
        sender, _ = self._pair()
        others = [n for n in self.names if n != sender]
        postings = [Posting(self.rng.choice(others), self.rng.choice([1, 100])) for _ in range(self.rng.randint(2, 5))]
        self._ask(self.world.pay_many_request(sender, postings))

    def _spend(self) -> None:
        """All that an account was paid so far, wherever that is known."""
        sender, recipient = self._pair()
        amount = self.world.watch.spendable(sender)
        self._ask(self.world.pay_request(sender, recipient, max(1, amount)))

    def _pay_stranger(self) -> None:
        self._ask(self.world.pay_request(self._pair()[0], self.rng.choice([*self.strangers, "nobody"]), 10))

    def _open(self) -> None:
        """Two people want one name at once, through two nodes."""
        name = self.rng.choice([*self.strangers, *self.names[:1]])
        for _ in range(self.rng.randint(1, 2)):
            self._ask(self.world.open_request(name, nonce=self.rng.randbytes(32)))

    def _pinned(self) -> None:
        sender, recipient = self._pair()
        chain = self.world.watch.accounts[sender].links
        tip = self.rng.choice([chain[-1].hash, chain[-1].hash, self.rng.choice(chain).hash, self.rng.randbytes(32)])
        self._ask(self.world.pay_request(sender, recipient, 1, tip))

    def _expiring(self) -> None:
        sender, recipient = self._pair()
        height = len(self.world.watch.accounts[sender].links) + self.rng.randint(-1, 2)
        request = transfer(
            self.world.network, sender, [Posting(recipient, 1)], self.rng.randbytes(32), valid_until_height=height
        )
        self._ask(self.world.signed(request))

    def _again(self) -> None:
        if self.asked:
            self._ask(self.rng.choice(list(self.asked.values())).signed)

    def _cancel(self) -> None:
        if not self.asked:
            return
        target = self.rng.choice(list(self.asked.values())).signed
        sender = decode_request_untrusted(target.raw).sender
        if sender in self.names:
            self._ask(self.world.cancel_request(target, self.rng.choice([sender, sender, self.names[0]])))

    def _forged(self) -> None:
        signed = self.world.pay_request(*self._pair(), 1)
        self.world.submit(self._any_node(), self.world.forge(signed), forged=True)

    def _read(self) -> None:
        name = self.rng.choice(self.names)
        height = self.rng.choice([AT_ONCE, len(self.world.watch.accounts[name].links) - 1])
        self.world.read(self._any_node(), name, linearizable=self.rng.random() < 0.7, min_height=height)

    def _answered(self, call: Call) -> None:
        """Who was told that they were paid spends all of it at once, through another node."""
        answer, request = call.answer, call.request
        if not isinstance(answer, Recorded) or answer.outcome != Outcome.COMPLETED or not self.faulty:
            return
        assert request is not None
        if request.kind is not Kind.TRANSFER or self.rng.random() < 0.7 or not self.world.alive:
            return
        recipient = request.postings[-1].recipient
        amount = self.world.watch.spendable(recipient)
        if recipient in self.names and amount > 0:
            others = [n for n in self.world.alive if n != call.node]
            node = self.rng.choice(others or self.world.alive)
            self._ask(self.world.pay_request(recipient, request.sender, amount), node)

    # --- faults ---

    def _crash(self) -> None:
        if self.world.alive:
            self.world.crash(self._any_node())

    def _doom(self) -> None:
        if self.world.alive:
            self.world.doom(self._any_node(), self.rng.choice(list(Doom)))

    def _restart(self, victim: NodeId) -> None:
        if self.world.nodes[victim].core is None:
            self.world.start(victim)

    def _cut(self) -> None:
        ids = self.world.ids
        side = set(self.rng.sample(ids, self.rng.randint(0, len(ids))))
        one_way = self.rng.random() < 0.3
        pairs = {(a, b) for a in ids for b in ids if a in side and b not in side}
        if not one_way:
            pairs |= {(b, a) for a, b in pairs}
        self.world.cut |= pairs
        self.world.later(self.rng.uniform(0.1, 4.0), lambda: self.world.cut.difference_update(pairs))

    def _heal(self) -> None:
        self.faulty = False
        self.world.faults = Faults()
        self.world.cut.clear()
        for node_id in self.world.ids:
            self.world.nodes[node_id].doom = None
            self._restart(node_id)

    # --- the end ---

    def _check_answers(self) -> None:
        """Every call has ended; what was only ever told `not_started` did not execute (counterexample 12)."""
        for asked in self.asked.values():
            assert all(c.answer is not None or c.gone for c in asked.calls), "a call without an answer"
            key = (decode_request_untrusted(asked.signed.raw).sender, asked.signed.request_id)
            recorded = self.world.watch.outcomes.get(key)
            if self.shape.faults.repeat or recorded is None or recorded[0] is Outcome.CANCELLED:
                continue  # a connection delivers once: with two copies of a message nobody knows that there is a second
            codes = {c.answer.code for c in asked.calls if isinstance(c.answer, NotStarted)}
            if codes and all(isinstance(c.answer, NotStarted) for c in asked.calls):
                raise Broken(f"I10: told {codes}, and then {recorded[0].name}")

    def _ask_again(self) -> None:
        """Liveness: in a healed world every request ends, at whatever node it is asked for."""
        calls = [(asked, self.world.submit(self._any_node(), asked.signed, AGAIN_S)) for asked in self.asked.values()]
        self.world.run_until_answered([call for _, call in calls], AGAIN_S)
        for asked, call in calls:
            if isinstance(call.answer, NotStarted) and call.answer.code == "busy":  # then alone
                call = self.world.submit(self._any_node(), asked.signed, AGAIN_S)
                self.world.run_until_answered([call], AGAIN_S)
            self._check_ended(asked, call)
        self.world.run(HEAL_S)

    def _check_ended(self, asked: Asked, call: Call) -> None:
        answer = call.answer
        if isinstance(answer, Refused):
            assert answer.code in ("name_taken", "unknown_sender", "unknown_tip"), answer
        else:
            assert isinstance(answer, Recorded | Stale), f"not ended in a healed world: {answer}"
            for earlier in asked.calls:
                done = isinstance(earlier.answer, Recorded) and earlier.answer.outcome != Outcome.CANCELLED
                assert not done or isinstance(answer, Recorded), f"{earlier} is {answer}"

    def _check_empty(self) -> None:
        """Nothing is left in a queue, also of what nobody asks for any more."""
        for node_id in self.world.ids:
            core = self.world.core(node_id)
            gauges = core.gauges()
            expected = Gauges(gauges.undecided, 0, 0, 0, 0, 0, len(self.world.watch.chosen))
            assert gauges == expected, f"{gauges}, {len(self.world.watch.chosen)} links are chosen"
            faults = {name: n for name, n in core.counters.items() if name.startswith("peer_fault")}
            assert not faults, faults

    def _check_replicas(self) -> None:
        self.world.assert_equal_replicas()
        for node_id in self.world.ids:
            assert self.world.money(node_id) == 0
        report = audit(self.world.nodes[self.rng.choice(self.world.ids)].conn, genesis=self.world.genesis)
        assert report.ok, report
