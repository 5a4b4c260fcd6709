"""Whole cores in random histories (tests.node.chaos), and the proof that the checks see what they are for.

`HOPCHAIN_SEEDS=2000 pytest tests/node/test_core_chaos.py -k swarm` runs more of them. A seed that fails is named in
the error; `Chaos(seed).run()` repeats it exactly.
"""

import os
from dataclasses import replace

import pytest

from chain.errors import Corruption
from hopchain.wire import NotStarted
from node import works
from node.effects import Effects
from tests.node.chaos import Chaos, Shape
from tests.node.mutants import Edit, apply_edit
from tests.node.watch import Broken
from tests.node.world import Doom, Faults, Node, World

SEEDS = int(os.environ.get("HOPCHAIN_SEEDS", "80"))
CHUNK = 10
MUTANT_SEEDS = 60  # in so many runs each mutant must be seen


# --- worlds

# Small and broken: the owner dies a lot, messages get lost and come twice.
BROKEN = Shape(
    nodes=3, k=3, accounts=2, faults=Faults(loss=0.15, repeat=0.2, delay_s=(0.001, 0.05)), actions=50, crashes=4, dooms=10,
    cuts=2,
)  # fmt: skip
# Larger than its groups: most nodes lag behind the voters.
LAGGING = Shape(
    nodes=5, k=3, accounts=3, faults=Faults(loss=0.2, delay_s=(0.001, 0.4)), actions=60, crashes=0, dooms=0, cuts=4
)
# Owners that seem dead because everything is late: several ballots fight for each slot.
DUELS = Shape(
    nodes=3, k=3, accounts=3, faults=Faults(loss=0.4, delay_s=(0.001, 0.8)), actions=60, crashes=0, dooms=10, cuts=0,
    fault_s=10,
)  # fmt: skip
# Gateways that cannot reach an owner which others reach.
CUT_OFF = Shape(
    nodes=7, k=7, accounts=3, faults=Faults(delay_s=(0.001, 0.05)), actions=80, crashes=0, dooms=0, cuts=12,
    prefer="_spend",
)  # fmt: skip
SPENDING = replace(LAGGING, nodes=7, prefer="_spend")
READING = replace(LAGGING, prefer="_read")
PINNED = replace(LAGGING, prefer="_pinned")
REPEATING = Shape(
    nodes=5, k=5, accounts=3, faults=Faults(loss=0.2, repeat=0.5, delay_s=(0.001, 0.1)), actions=60, crashes=2, dooms=0,
    cuts=2,
)  # fmt: skip
CALM = Shape(nodes=3, k=3, accounts=3, faults=Faults(), actions=60, crashes=0, dooms=0, cuts=0)


SHAPES: dict[str, Shape] = {
    "BROKEN": BROKEN,
    "LAGGING": LAGGING,
    "REPEATING": REPEATING,
    "CALM": CALM,
    "DUELS": DUELS,
    "CUT_OFF": CUT_OFF,
    "SPENDING": SPENDING,
    "READING": READING,
    "PINNED": PINNED,
}


@pytest.mark.slow
@pytest.mark.parametrize("first", range(0, SEEDS, CHUNK))
def test_swarm(first: int) -> None:
    for seed in range(first, min(first + CHUNK, SEEDS)):
        run_seed(seed)


def run_seed(seed: int, shape: Shape | None = None) -> None:
    chaos = Chaos(seed, shape)
    try:
        chaos.run()
    except Exception as error:
        raise AssertionError(f"seed {seed} ({chaos.shape}): {error}") from error


@pytest.mark.slow
@pytest.mark.parametrize("name", SHAPES)
def test_swarm_of_special_worlds(name: str) -> None:
    for seed in range(1000, 1000 + max(3, SEEDS // 25)):
        run_seed(seed, SHAPES[name])


@pytest.mark.parametrize(("bound", "most"), [("MAX_QUEUE", 1), ("MAX_QUEUED", 3)])
@pytest.mark.parametrize("name", ["BROKEN", "LAGGING"])
def test_small_queues(name: str, bound: str, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Owners that are always full: who is told `busy` is told the truth."""
    monkeypatch.setattr(works, bound, most)
    busy = 0
    for seed in range(5):
        chaos = Chaos(seed, SHAPES[name])
        chaos.run()
        busy += sum(isinstance(call.answer, NotStarted) for call in chaos.world.calls.values())
    assert busy > 20


def test_one_seed_is_one_history() -> None:
    def history() -> list[object]:
        chaos = Chaos(7)
        chaos.run()
        return [(call.node, call.at, call.answer) for call in chaos.world.calls.values()]

    assert history() == history()


# --- mutants --------------------------------------------------------------------------------------------------------


class Mutant:
    """A rule switched off: what is edited, the world that shows it, and what sees it."""

    def __init__(
        self,
        by: str,
        shape: Shape,
        *edits: Edit,
        world: type[World] = World,
        max_queue: int = works.MAX_QUEUE,
        first: int = 0,
    ) -> None:
        self.by = by
        self.shape = shape
        self.edits = edits
        self.world = world
        self.max_queue = max_queue
        self.first = first  # the seeds before it showed nothing when this was written


class SendsBeforeCommit(World):
    """R4: the turn's messages leave, then it is made durable, or not."""

    def finish_turn(self, node: Node, effects: Effects) -> None:
        for stage in effects.stages():
            self.emit(node, stage)
        for stage in effects.stages():
            if node.doom is Doom.BEFORE_COMMIT and stage.persist:
                self.crash(node.id)
                return
            self.persist(node, stage)


JUDGE = "chain.rules:_Judge."
FOUND = Edit("node.owner:Owner._form", "work.proposer.found is not None", "False")
VOTED_UNSEEN = Edit("node.acceptor:Acceptor.follows", "return not why", "return True")
FREE = Edit("node.paxos:Proposer.propose", "self._found is None or self._found[1] == value", "True")

MUTANTS: dict[str, Mutant] = {
    # Paxos in a node
    "vote not persisted": Mutant("R4", BROKEN, Edit("node.acceptor:Acceptor._keep", "turn.persist.append(", "(lambda row: None)(")),
    "sends before the commit": Mutant("R4", BROKEN, world=SendsBeforeCommit),
    "votes forgotten by a restart": Mutant(
        "I4|I8", BROKEN, Edit("node.acceptor:Acceptor.restore", "in rows", "in rows[:0]")
    ),
    "fast path after a restart": Mutant(
        "I4|queued_requests=[1-9]|undecided_votes=[1-9]",
        BROKEN,
        Edit("node.proposing:Proposing.begin", "vote is None and work.lowest_round == 1 and is_fast", "is_fast"),
    ),
    "fast path of a standby": Mutant("I1|I4", BROKEN, Edit("node.slots:is_fast", "group[0] == node", "node in group"), first=10),
    "decided without a majority": Mutant(
        "I9", BROKEN, Edit("node.paxos:Proposer.decided", "majority(len(self.group))", "majority(len(self.group)) - 1")
    ),
    "a vote counted twice": Mutant(
        "I9",
        REPEATING,
        Edit("node.paxos:Proposer.on_accepted", "self._voted.add(node)", "self._voted.add((node, len(self._voted)))"),
    ),
    "found value ignored": Mutant("I1|links are chosen", BROKEN, FOUND, FREE),
    "accept below the promise": Mutant(
        "I8|never goes back", BROKEN, Edit("node.paxos:accept", "vote is not None and ballot < vote.promised", "False")
    ),
    "promise below a promise": Mutant("I8|never goes back", BROKEN, Edit("node.paxos:prepare", "ballot < vote.promised", "False"), first=10),
    "promise hides the vote": Mutant(
        "I8|R4|never goes back", BROKEN, Edit("node.paxos:prepare", "Vote(ballot, vote.accepted, vote.value)", "Vote(ballot)")
    ),
    "undecided link replicated": Mutant(
        "I9",
        CALM,
        Edit(
            "node.proposing:Proposing.propose",
            "proposer.propose(link)",
            "proposer.propose(link); self._replica._pass_on(turn, link, self._self.id, depth=0)",
        ),
    ),
    # money
    "confirmation counted twice": Mutant(
        "I3",
        CALM,
        Edit(
            "chain.forming:read_forming",
            "conn, _INCOMING,",
            "conn, _INCOMING.replace('incoming AS i', '(SELECT r.id AS recipient, s.id AS sender, t.id AS posting, t.amount AS amount '"
            " 'FROM transfers AS t JOIN accounts AS r ON r.name = t.recipient JOIN accounts AS s ON s.name = t.sender) AS i'),",
        ),
        Edit("chain.rules:check_second_thread", "forming.incoming", "()"),
        VOTED_UNSEEN,
    ),
    "income counted twice": Mutant(
        "I3",
        CALM,
        Edit("chain.rules:take_up", "funds += incoming.posting.amount", "funds += 2 * incoming.posting.amount"),
        VOTED_UNSEEN,
    ),
    "idempotency unchecked": Mutant(
        "I5",
        LAGGING,
        Edit(JUDGE + "hear", "item.request_id in self._recorded", "False"),
        Edit("node.owner:Owner._drop_settled", "in turn.loaded.outcomes", "in ()"),
        VOTED_UNSEEN,
        first=4,
    ),
    "stale unchecked": Mutant(
        "R13|AuditReport", PINNED, Edit(JUDGE + "hear", "request.expect_tip not in (ANY_TIP, self._head.tip)", "False")
    ),
    "expiry unchecked": Mutant("R13|AuditReport", CALM, Edit(JUDGE + "_outcome", "self._head.height + 1 > request.valid", "0 > request.valid")),
    "cancel occupies nothing": Mutant(
        "I5", CALM, Edit(JUDGE + "_outcome", "request.target in self._recorded", "False"), VOTED_UNSEEN
    ),
    "unknown_recipient without asking": Mutant(
        "I6", LAGGING, Edit(JUDGE + "_outcome", "unknown.difference(self._absent)", "set()")
    ),
    "insufficient_funds without asking": Mutant("I6", SPENDING, Edit(JUDGE + "_outcome", "if self._income_complete", "if True")),
    "income asked of too few": Mutant(
        "I6|I10", SPENDING, Edit("node.income_inquiry:IncomeInquiries._settle", "majority(group) + 1", "majority(group)"), first=42
    ),
    "income without undecided votes": Mutant(
        "I6|I10", SPENDING, Edit("node.income_inquiry:IncomeInquiries.on_ask", "self._acceptor.paying(message.account)", "{}"), first=4
    ),
    "slot asked of too few": Mutant(
        "I6|I10", PINNED, Edit("node.slot_inquiry:SlotInquiries._settle", "majority(len(inquiry.group))", "1")
    ),
    "slot asked without votes": Mutant(
        "I6|I10",
        PINNED,
        Edit("node.slot_inquiry:SlotInquiries.on_ask", "self._acceptor.is_voted(Slot(at.slot))", "False"),
    ),
    # answers
    "wrong signature admitted": Mutant("I10", CALM, Edit("node.admission:Admission._refuse", "not self._is_signed(decoded, key)", "False")),
    "stale said without asking": Mutant(
        "I10", PINNED, Edit("node.admission:Admission._submit_pinned", "turn.loaded.accounts_of.get(LinkHash(decoded.request.expect_tip)) == head.name", "True")
    ),
    "not_started said of what was handed over": Mutant(
        "I10", LAGGING, Edit("node.gateway:Gateway._time_is_up", "if job.tries or request_id in self._jobs.doubtful", "if False")
    ),
    "busy said by one of two holders": Mutant(
        "I10", CUT_OFF, Edit("node.forwarding:_copies", "msgspec.structs.replace(item, gateway=NO_GATEWAY, number=0)", "item"), max_queue=1, first=4
    ),
    "linearizable read answered here": Mutant(
        "I10", READING, Edit("node.reading:Reading.on_balance", "elif ask.linearizable", "elif False")
    ),
    "linearizable read without income": Mutant(
        "I10",
        READING,
        Edit(
            "node.reading:Reading._ask_tip",
            "self._inquiries.ask_income(turn, account, on_income, Purpose.READ, until=until)",
            "on_income(turn, True)",
        ),
    ),
    "session read not waiting": Mutant(
        "I10", READING, Edit("node.reading:Reading.on_balance", "height_of(head) < ask.min_height", "False")
    ),
    # liveness
    "a stuck vote is nobody's": Mutant("undecided_votes=[1-9]", BROKEN, Edit("node.acceptor:Acceptor.tick", "self.finish(turn, held.at)", "pass")),
    "no pull": Mutant("links are chosen", LAGGING, Edit("node.pulling:Pulling.tick", "if wanted:", "if False:"), first=4),
}  # fmt: skip


@pytest.mark.parametrize("name", MUTANTS)
def test_a_rule_switched_off_is_seen(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    mutant = MUTANTS[name]
    for edit in mutant.edits:
        apply_edit(monkeypatch, edit)
    monkeypatch.setattr(Chaos, "world_type", mutant.world)
    monkeypatch.setattr(works, "MAX_QUEUE", mutant.max_queue)
    with pytest.raises((Broken, AssertionError, Corruption), match=mutant.by):
        run_seeds(mutant.shape, mutant.first)


def run_seeds(shape: Shape, first: int) -> None:
    for seed in range(first, first + MUTANT_SEEDS):
        Chaos(seed, shape).run()
