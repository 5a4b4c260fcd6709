"""Mutants: rules of the nodes switched off one by one, to show that the swarm sees it (docs/simulator-mutants.md).

An `Edit` replaces text of one function of the real code, for as long as `switched_off` lasts. The text must be there
exactly once: a mutant that no longer fits the code fails its test and is brought up to date, it does not pass in
silence. Which seed catches each mutant, and by which rule, is kept in `mutants.json`. `make mutants` tries those seeds
first and searches anew, from seed 0, where one no longer does.
"""

import importlib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import msgspec

from netsim.draw import draw_plan
from netsim.fleet import open_fleet
from netsim.run import Result, run_plan

MAX_SEEDS: Final = 2000  # each mutant is caught within so many
_PACKAGES: Final = ("chain", "routing", "hopchain", "node", "netsim")
_FILE: Final = Path(__file__).with_name("mutants.json")
_PAGE_FILE: Final = Path(__file__).parent.parent / "docs" / "simulator-mutants.md"
PROBLEM_CHARS: Final = 110  # of what a run says, in the table


class Edit(msgspec.Struct, frozen=True):
    """In `target` ("module:function" or "module:Class.method"), `old` becomes `new`."""

    target: str
    old: str
    new: str


class Mutant(msgspec.Struct, frozen=True):
    """A rule switched off. `rule`: its number in the design, or what kind of plain fault it is."""

    name: str
    rule: str
    what: str
    edits: tuple[Edit, ...]
    changing: bool = False  # it can only be seen where the members change


class Caught(msgspec.Struct, frozen=True):
    """A seed whose run shows that a rule is off, and what saw it."""

    seed: int
    rule: str
    problem: str


def _mutant(name: str, rule: str, what: str, *edits: tuple[str, str, str], changing: bool = False) -> Mutant:
    changing = changing or rule in ("R1", "R5", "R6", "R7", "R8", "R9")
    return Mutant(name, rule, what, tuple(Edit(*edit) for edit in edits), changing)


_PAXOS, _ACCEPTOR, _OWNER = "node.paxos:", "node.acceptor:Acceptor.", "node.owner:Owner."
_GATEWAY, _INQUIRY, _READING = "node.gateway:Gateway.", "node.inquiry:Inquiries.", "node.reading:Reading."
_REPLICA, _JUDGE, _WORLD = "node.replica:Replica.", "chain.rules:_Judge.", "netsim.world:World."
_EPOCHS, _SYNCING, _MEMBERS = "node.epochs:", "node.syncing:Syncing.", "node.membership:Membership."
_FREE = (_PAXOS + "Proposer.propose", "self._found is None or self._found[1] == value", "True")
_ANSWER_EARLY = (
    "proposer.propose(link)\n    turn.loaded.outcomes.update(((link.account, i), __import__('chain.rows', fromlist=['OutcomeRow']).OutcomeRow(i, link.account, o, link.hash, "
    "link.height, link.balance, link.time_ms)) for i, o in link.outcomes())\n    next(h for h in self._replica.hooks "
    "if h.__qualname__ == 'Gateway._on_applied')(turn, link, self._self.id)"
)

_ALL: Final[tuple[Mutant, ...]] = (
    # --- R1: views ---
    _mutant(
        "a view decided by one vote",
        "R1",
        "A node installs the view that it proposes without waiting for the votes of others.",
        (_MEMBERS + "_phase_2", "if proposer.on_accepted(self._self.id, proposer.ballot):", "if True:"),
    ),
    _mutant(
        "two views of one epoch",
        "R1",
        "Who proposes a view ignores the votes for another one that its phase 1 finds.",
        (_MEMBERS + "_phase_2", "value = proposer.found", "value = None if self._own is not None else proposer.found"),
        _FREE,
    ),
    _mutant(
        "a view from any number of members",
        "R1",
        "A view is decided by the votes of one member less than a majority.",
        (
            _MEMBERS + "on_accepted",
            "proposer.on_accepted(peer, message.ballot)",
            "(proposer.on_accepted(peer, message.ballot) or len(proposer._voted) + 1 >= max(2, (len(proposer.group) + 1) // 2))",
        ),
    ),
    _mutant(
        "two members in one step",
        "R1",
        "A removal takes a second member along.",
        (
            _MEMBERS + "_after",
            "return without_member(view, change.node_id, now.unix_ms, me)",
            "view = without_member(view, change.node_id, now.unix_ms, me)\n"
            "    return msgspec.structs.replace(view, members=view.members[:-1]) if len(view.members) > 1 else view",
        ),
        ("routing.view:check_next", "len(changed) != 1", "False"),
    ),
    # --- R2, R3: ballots and who may skip phase 1 ---
    _mutant(
        "epoch unchecked",
        "R2",
        "An acceptor takes part in ballots of epochs before its own.",
        (_EPOCHS + "admit", "ballot.epoch < epoch or ", ""),
        changing=True,
    ),
    _mutant(
        "the epoch does not come first in a ballot",
        "R2",
        "Ballots are ordered by round, whatever their epochs are.",
        *(
            (
                _PAXOS + f,
                "ballot < vote.promised",
                "(ballot.round, ballot.node) < (vote.promised.round, vote.promised.node)",
            )
            for f in ("prepare", "accept")
        ),
        (
            _PAXOS + "Proposer.on_promise",
            "accepted > self._found[0]",
            "(accepted.round, accepted.node) > (self._found[0].round, self._found[0].node)",
        ),
        changing=True,
    ),
    _mutant(
        "birth epoch ignored",
        "R3",
        "The owner skips phase 1 also in a slot that was born in an earlier epoch.",
        ("node.acceptor:is_fast", "head.epoch == epoch and ", ""),
        changing=True,
    ),
    _mutant(
        "vote below the birth epoch",
        "R3",
        "Who has not installed the epoch in which a slot was born takes part in its older epoch.",
        (_EPOCHS + "admit", "max(ballot.epoch, birth) > epoch", "ballot.epoch > epoch"),
        (_OWNER + "_may_work_on", "max(born, vote.promised.epoch if vote is not None else born)", "0"),
        changing=True,
    ),
    _mutant(
        "ballots without the node",
        "R2",
        "Two ballots of one round count as the same one.",
        *(
            (
                _PAXOS + f,
                "ballot < vote.promised",
                "(ballot.epoch, ballot.round) < (vote.promised.epoch, vote.promised.round)",
            )
            for f in ("prepare", "accept")
        ),
    ),
    _mutant(
        "ballots without the round",
        "R2",
        "Ballots are ordered by node only.",
        *(
            (
                _PAXOS + f,
                "ballot < vote.promised",
                "(ballot.epoch, ballot.node) < (vote.promised.epoch, vote.promised.node)",
            )
            for f in ("prepare", "accept")
        ),
    ),
    _mutant(
        "promise below a promise",
        "R2",
        "An acceptor promises a ballot that is lower than one it promised before.",
        (_PAXOS + "prepare", "ballot < vote.promised", "False"),
    ),
    _mutant(
        "vote below a promise",
        "R2",
        "An acceptor votes at a ballot that is lower than its promise.",
        (_PAXOS + "accept", "vote is not None and ballot < vote.promised", "False"),
    ),
    _mutant(
        "fast path of a standby",
        "R3",
        "Any member of the group may propose at round 0.",
        ("node.acceptor:is_fast", "group[0] == node", "node in group"),
    ),
    _mutant(
        "fast path despite a promise",
        "R3",
        "The owner proposes at round 0 although it promised or voted in the slot before.",
        (_OWNER + "_start_ballot", "vote is None and work.lowest_round == 1 and is_fast", "is_fast"),
    ),
    _mutant(
        "phase 2 after one promise",
        "R3",
        "Phase 2 begins after one promise instead of a majority.",
        (_PAXOS + "Proposer.prepared", "majority(len(self.group))", "1"),
    ),
    # --- R4: memory ---
    _mutant(
        "vote not persisted",
        "R4",
        "Votes and promises stay in memory.",
        (_ACCEPTOR + "_keep", "turn.persist.append(", "id("),
    ),
    _mutant(
        "promise not persisted",
        "R4",
        "Promises stay in memory; votes are written.",
        (_ACCEPTOR + "_keep", "turn.persist.append(", "(turn.persist.append if result.accepted else id)("),
    ),
    _mutant(
        "votes forgotten by a restart",
        "R4",
        "A node that starts does not read its votes.",
        (_ACCEPTOR + "restore", "in rows", "in rows[:0]"),
    ),
    _mutant(
        "sent before the commit",
        "R4",
        "Messages leave when the turn ends, before what they promise is durable.",
        (
            _WORLD + "_turn",
            "node.busy = bool(effects.persist)",
            "node.busy = bool(effects.persist); node.busy and self._emit(node, effects)",
        ),
        (_WORLD + "_finish", "    self._emit(node, effects)\n", ""),
    ),
    _mutant(
        "answered before the commit",
        "R4",
        "Clients are answered when the turn ends, before it is durable.",
        (
            _WORLD + "_turn",
            "node.busy = bool(effects.persist)",
            "node.busy = bool(effects.persist); node.busy and self._emit(node, msgspec.structs.replace(effects, send=()))",
        ),
        (_WORLD + "_finish", "self._emit(node, effects)", "self._emit(node, Effects(send=effects.send))"),
    ),
    _mutant(
        "fsync skipped",
        "R4",
        "The commit returns, but a crash takes back all that was written.",
        (
            "chain.store:commit",
            'conn.execute("BEGIN IMMEDIATE")',
            'conn.in_transaction or conn.execute("BEGIN IMMEDIATE")',
        ),
        ("chain.store:commit", 'conn.execute("COMMIT")', "None"),
    ),
    _mutant(
        "promise hides the vote",
        "R4",
        "A promise forgets the vote that was there.",
        (_PAXOS + "prepare", "Vote(ballot, vote.accepted, vote.value)", "Vote(ballot)"),
    ),
    _mutant(
        "two values for one ballot",
        "R4",
        "An acceptor takes a second value at a ballot at which it voted, and the owner begins at round 0 again.",
        (_PAXOS + "accept", "vote is not None and vote.accepted == ballot", "False"),
        (_OWNER + "_start_ballot", "vote is None and work.lowest_round == 1 and is_fast", "is_fast"),
    ),
    # --- R5, R6: views are durable, and installed one by one ---
    _mutant(
        "view not persisted",
        "R5",
        "An installed view stays in memory.",
        (_MEMBERS + "_install", "turn.persist.append(", "id("),
    ),
    _mutant(
        "views forgotten by a restart",
        "R5",
        "A node that starts is in the first epoch again.",
        ("node.membership:restore_views", "for raw in raws", "for raw in raws[:0]"),
    ),
    _mutant(
        "no fence",
        "R5",
        "A node answers a sync before it has installed the new epoch, and votes in the old one on.",
        (_SYNCING + "on_ask_sync", "self._self.view.epoch < message.epoch", "False"),
    ),
    _mutant(
        "views left out",
        "R6",
        "A node that lags installs the newest view that it is sent.",
        (_MEMBERS + "on_views", "view.epoch == self._self.view.epoch + 1", "view.epoch > self._self.view.epoch"),
        ("routing.view:check_next", "after.epoch != before.epoch + 1", "False"),
        ("routing.view:check_next", "after.prev_hash != before.hash", "False"),
        ("routing.view:check_next", "len(changed) != 1", "False"),
    ),
    _mutant(
        "a view skipped",
        "R6",
        "What is ACTIVE follows from the view before the last one: who left and came back believes that it never left.",
        (
            _SYNCING + "install",
            "carried_over(regions(before, after), self._self.id, self.active_in(before.epoch))",
            "carried_over(regions(*self._views[-3::2][:2]), self._self.id, self.active_in(self._views[-3].epoch)) "
            "if len(self._views) > 2 else carried_over(regions(before, after), self._self.id, self.active_in(before.epoch))",
        ),
    ),
    # --- R7, R8, R9: who may vote after a change ---
    _mutant(
        "everybody ACTIVE at once",
        "R7",
        "Members of a changed group vote before they have synced.",
        ("node.turn:Self.is_active", "holds(self.active, key) and ", ""),
    ),
    _mutant(
        "a group that only shrinks is not synced",
        "R7",
        "Where nobody enters a group its members stay ACTIVE.",
        (_EPOCHS + "carried_over", "r.before == r.after", "r.after <= r.before"),
    ),
    _mutant(
        "old members do not sync",
        "R7",
        "Only who enters a group syncs.",
        (_EPOCHS + "carried_over", "r.before == r.after", "me in r.before"),
    ),
    _mutant(
        "a source that has not synced",
        "R7",
        "The answer of a member counts although it was not ACTIVE itself.",
        (_EPOCHS + "sources_of", " and includes(sources[n].before, region)", ""),
    ),
    _mutant(
        "one source is enough",
        "R8",
        "A sync ends with the first answer.",
        (_EPOCHS + "sources_of", "majority(len(region.before))", "1"),
    ),
    _mutant(
        "votes not merged",
        "R8",
        "A sync ends without taking up the votes of its sources.",
        (_SYNCING + "_merge", "for vote in votes:", "for vote in votes[:0]:"),
    ),
    _mutant(
        "the log of a source not waited for",
        "R8",
        "A sync ends although what its sources had decided is not here.",
        (_SYNCING + "_counted", "if self._replica.has_log(node, source.log)", ""),
    ),
    _mutant(
        "lower vote merged",
        "R8",
        "Of two votes in a slot a sync keeps the one with the lower ballot.",
        (_PAXOS + "merge", "vote.accepted < ballot", "vote.accepted > ballot"),
    ),
    _mutant(
        "no barrier",
        "R9",
        "The next view is proposed although the last one is not ACTIVE yet.",
        (_MEMBERS + "_begin_next", "if self.settled or is_undo(self.views, after):", "if True:"),
    ),
    _mutant(
        "changed before it is ACTIVE",
        "R13",
        "A change is answered when its view is installed, though a group has no ACTIVE majority.",
        (_MEMBERS + "_look_at", "if self.settled and ", "if "),
        changing=True,
    ),
    _mutant(
        "changed by what a lagging node knows",
        "R13",
        "A change is answered from the newest view of one node.",
        (_MEMBERS + "_is_certain", "return waiting.confirmed or final", "return True"),
        changing=True,
    ),
    # --- Paxos itself ---
    _mutant(
        "found value ignored",
        "Paxos",
        "After phase 1 the proposer proposes its own value, whatever it was told.",
        (_OWNER + "_form", "work.proposer.found is not None", "False"),
        _FREE,
    ),
    _mutant(
        "lowest found instead of highest",
        "Paxos",
        "Of the votes that phase 1 finds, the one with the lowest ballot is proposed.",
        (_PAXOS + "Proposer.on_promise", "accepted > self._found[0]", "accepted < self._found[0]"),
    ),
    # --- R10: counting ---
    _mutant(
        "majority off by one",
        "R10",
        "A value is decided with one vote less than a majority.",
        (_PAXOS + "Proposer.decided", "majority(len(self.group))", "max(1, majority(len(self.group)) - 1)"),
    ),
    _mutant(
        "majority of the living",
        "R10",
        "One vote besides the proposer's own is enough, however large the group.",
        (_PAXOS + "Proposer.decided", "majority(len(self.group))", "min(2, len(self.group))"),
    ),
    _mutant(
        "vote counted twice",
        "R10",
        "A vote that arrives twice counts twice.",
        (_PAXOS + "Proposer.on_accepted", "or node in self._voted ", ""),
        (_PAXOS + "Proposer.on_accepted", "self._voted.add(node)", "self._voted.add((node, len(self._voted)))"),
    ),
    _mutant(
        "promise counted twice",
        "R10",
        "A promise that arrives twice counts twice.",
        (_PAXOS + "Proposer.on_promise", "or node in self._promised ", ""),
        (_PAXOS + "Proposer.on_promise", "self._promised.add(node)", "self._promised.add((node, len(self._promised)))"),
    ),
    _mutant(
        "counted with the present group",
        "R10",
        "A ballot goes on after a change of the view and is counted with the new group.",
        (
            _OWNER + "on_view",
            "self._end_ballot(work)",
            "work.proposer and setattr(work.proposer, 'group', self._self.view.group(route_key(work.at.slot)))",
        ),
        changing=True,
    ),
    # --- R11: decided only ---
    _mutant(
        "undecided link replicated",
        "R11",
        "The owner tells everybody of its link when it proposes it.",
        (
            _OWNER + "_propose",
            "proposer.propose(link)",
            "proposer.propose(link); self._replica._pass_on(turn, link, self._self.id, depth=0)",
        ),
    ),
    _mutant(
        "undecided link served",
        "R11",
        "Who is asked about a slot answers with the link it voted for.",
        (
            _INQUIRY + "on_ask_slot",
            "turn.send(peer, SlotAnswer(message.number, voted, (),",
            "turn.send(peer, SlotAnswer(message.number, False, "
            "tuple(v.value.raw for v in [self._acceptor.vote(Slot(at.slot))] if v and v.value),",
        ),
    ),
    _mutant(
        "answered when proposed",
        "R11",
        "A gateway that proposes a link tells its clients that it is done.",
        (_OWNER + "_propose", "proposer.propose(link)", _ANSWER_EARLY),
    ),
    _mutant(
        "an old disk may vote",
        "R12",
        "A node that is told of more votes than it has goes on.",
        ("node.identity:Identity.on_pong", "if seen > self.votes:", "if False:"),
    ),
    _mutant(
        "nobody is told of votes",
        "R12",
        "A node does not tell its peers how often it has seen them vote.",
        ("node.peers:Peers.on_ping", "self._identity.seen(peer)", "0"),
    ),
    _mutant(
        "a source that may have lost votes",
        "R12",
        "A node answers a sync before others have vouched for its disk.",
        (_SYNCING + "on_ask_sync", "if not self._identity.verified:", "if False:"),
        changing=True,
    ),
    _mutant(
        "ids come back",
        "R12",
        "A node that was removed may be added again.",
        (_MEMBERS + "_look_at", "wanted and self.removed_epoch(change.node_id)", "False"),
        (_MEMBERS + "_begin_next", "change.action is ChangeAction.ADD and self.removed_epoch(change.node_id)", "False"),
        changing=True,
    ),
    _mutant(
        "applied without its income",
        "R11",
        "A decided link is applied although a posting that it confirms is not here yet.",
        (_REPLICA + "_missing", "if h not in loaded.postings", "if False"),
        (
            _REPLICA + "learn",
            "[loaded.postings[h] for h in link.confirmed]",
            "[loaded.postings[h] for h in link.confirmed if h in loaded.postings]",
        ),
    ),
    # --- R15: purity ---
    _mutant(
        "replica judges by its own clock",
        "R15",
        "A replica drops decided links that come from its future.",
        (
            _REPLICA + "learn",
            "loaded = turn.loaded\n",
            "loaded = turn.loaded\n    if link.time_ms > turn.now.unix_ms + 60000:\n        return\n",
        ),
    ),
    _mutant(
        "link time from the own clock alone",
        "R15",
        "A link carries the owner's clock even when that is behind the link before.",
        ("chain.rules:form_link", "max(head.time_ms + 1, now_ms)", "now_ms"),
    ),
    _mutant(
        "voter judges by its own clock",
        "R15",
        "A standby refuses links from its future.",
        (
            _ACCEPTOR + "on_accept",
            "result = self.vote_for(",
            "if link.time_ms > turn.now.unix_ms + 60000: return\n    result = self.vote_for(",
        ),
    ),
    # --- R13: answers ---
    _mutant(
        "idempotency unchecked",
        "R13",
        "A request that is recorded already is put into a link again.",
        (_JUDGE + "hear", "item.request_id in self._recorded", "False"),
        (_OWNER + "_drop_settled", "if (work.account, i) in turn.loaded.outcomes", "if False"),
        (_OWNER + "_chase", "or (account, held.queued.request_id) in turn.loaded.outcomes", ""),
    ),
    _mutant(
        "cancel forgets its target at once",
        "R13",
        "A request that stands in the queue behind its cancel is executed in the same link.",
        (_JUDGE + "_enter", "self._recorded.add(item.request.target)", "pass"),
    ),
    _mutant(
        "cancel occupies nothing",
        "R13",
        "A cancel is recorded, its target is not.",
        ("chain.link:Link.outcomes", "entry.outcome is Outcome.COMPLETED", "False"),
    ),
    _mutant(
        "cancel of what is done",
        "R13",
        "A cancel says that it worked although its target has an outcome.",
        (_JUDGE + "_outcome", "request.target in self._recorded", "False"),
    ),
    _mutant(
        "stale unchecked",
        "R13",
        "A request that expects another tip is executed.",
        (_JUDGE + "hear", "request.expect_tip not in (ANY_TIP, self._head.tip)", "False"),
    ),
    _mutant(
        "stale said without asking",
        "R13",
        "A gateway says stale although the expected tip is unknown to it, perhaps newer than its own.",
        (_GATEWAY + "_submit_pinned", "raw is not None and", "True or"),
    ),
    _mutant(
        "expiry unchecked",
        "R13",
        "A request is executed above its last height.",
        (_JUDGE + "_outcome", "self._head.height + 1 > request.valid_until_height", "False"),
    ),
    _mutant(
        "expired one link early",
        "R13",
        "A request expires at its last height instead of above it.",
        (_JUDGE + "_outcome", "self._head.height + 1 > request", "self._head.height + 2 > request"),
    ),
    _mutant(
        "not_started although handed over",
        "R13",
        "A gateway says not_started of a request that an owner may have.",
        (_GATEWAY + "_time_is_up", "if job.tries or request_id in self._doubtful", "if False"),
    ),
    _mutant(
        "wrong signature admitted",
        "R13",
        "Admission does not look at signatures.",
        ("node.gateway:refuse", "not is_signed_by(signed, key)", "False"),
    ),
    _mutant(
        "unknown_sender without asking",
        "R13",
        "A gateway says that an account does not exist because it has not heard of it.",
        (
            _GATEWAY + "_ask_then_submit",
            "self._inquiries.ask_slot(turn, at, birth_epoch(head), done)",
            "done(turn, SlotResult(known=True, taken=False))",
        ),
    ),
    # --- money ---
    _mutant(
        "overdraft",
        "money",
        "A payment is completed without funds.",
        (_JUDGE + "_outcome", "if request.total <= self._funds", "if True"),
    ),
    _mutant(
        "income counted twice",
        "money",
        "Each posting adds twice its amount.",
        ("chain.rules:take_up", "funds += incoming.posting.amount", "funds += 2 * incoming.posting.amount"),
    ),
    _mutant(
        "confirmation counted twice",
        "money",
        "Postings that were confirmed are taken up again, and nobody looks at their second thread.",
        ("chain.needs:_forming", "_INCOMING,", "_INCOMING.replace('AND t.confirmation IS NULL', ''),"),
        ("chain.rules:check_second_thread", "forming.incoming", "()"),
    ),
    _mutant(
        "a posting lost on taking up",
        "money",
        "The newest posting is counted in the balance and not listed in the link.",
        (
            "chain.rules:form_link",
            "            entries,\n            taken,",
            "            entries,\n            taken[:-1],",
        ),
    ),
    _mutant(
        "consolidation loses",
        "money",
        "A consolidating link takes up postings and leaves out what they are worth.",
        (
            "chain.rules:form_link",
            "        entries, left, unjudged = []",
            "        funds = head.balance\n        entries, left, unjudged = []",
        ),
    ),
    _mutant(
        "no consolidation",
        "money",
        "When one link cannot take up all that came in, the rest is taken for not there.",
        (_JUDGE + "_outcome", "if not self._all_taken", "if False"),
        (_JUDGE + "_outcome", "if self._income_complete", "if True"),
    ),
    _mutant(
        "unknown_recipient without asking",
        "money",
        "An owner says that a recipient does not exist because it has not heard of it.",
        (_JUDGE + "_outcome", "unknown.difference(self._absent)", "set()"),
    ),
    _mutant(
        "insufficient_funds without asking",
        "money",
        "An owner says that there is no money because none has reached it.",
        (_JUDGE + "_outcome", "if self._income_complete", "if True"),
    ),
    _mutant(
        "income asked of one too few",
        "money",
        "Before insufficient_funds one node less is asked than meets every decided link.",
        (_INQUIRY + "_settle_income", "majority(group) + 1", "majority(group)"),
    ),
    _mutant(
        "income without undecided votes",
        "money",
        "Who is asked for income leaves out the links that it voted for and does not know to be decided.",
        (_INQUIRY + "on_ask_income", "self._acceptor.paying(message.account)", "{}"),
    ),
    _mutant(
        "name asked of too few",
        "money",
        "Before unknown_recipient one node is asked instead of a majority.",
        (_INQUIRY + "_settle_slot", "majority(len(inquiry.group))", "1"),
    ),
    _mutant(
        "name asked without votes",
        "money",
        "Who is asked about a slot says that nothing is there although it voted for something.",
        (_INQUIRY + "on_ask_slot", "self._acceptor.is_voted(Slot(at.slot))", "False"),
    ),
    # --- reads ---
    _mutant(
        "linearizable read without asking",
        "reads",
        "A linearizable read is answered from this replica.",
        (_READING + "on_balance", "elif ask.linearizable", "elif False"),
    ),
    _mutant(
        "linearizable read without income",
        "reads",
        "A linearizable read asks for the tip, not for incoming money.",
        (_READING + "_ask_tip", "self._inquiries.ask_income(turn, account, on_income)", "on_income(turn, True)"),
    ),
    _mutant(
        "session read without waiting",
        "reads",
        "A read that must be at least at some height is answered at once.",
        (_READING + "on_balance", "height_of(head) < ask.min_height", "False"),
    ),
    _mutant(
        "stale balance not marked",
        "reads",
        "A node that is no member says nothing about it.",
        ("node.peers:Peers.has_majority", "return ", "return True or "),
        changing=True,
    ),
    _mutant(
        "answers of two epochs",
        "reads",
        "A majority read counts answers of nodes that have another view installed.",
        (_INQUIRY + "on_ask_slot", "message.epoch == self._self.view.epoch and ", ""),
        (_INQUIRY + "on_slot_answer", "message.epoch == self._self.view.epoch", "True"),
        (_INQUIRY + "on_ask_income", "message.epoch != self._self.view.epoch or ", ""),
        (_INQUIRY + "on_income_answer", " and message.epoch == self._self.view.epoch", ""),
        changing=True,
    ),
    _mutant(
        "who is not ACTIVE knows of no votes",
        "reads",
        "Who has not synced says that there is nothing in a slot, and which income there is.",
        (_INQUIRY + "_speaks_of", " and self._self.is_active(route_key(at.slot))", ""),
        (_INQUIRY + "_speaks_of_income", " and self._self.fully_active", ""),
        changing=True,
    ),
    # --- that everything ends ---
    _mutant(
        "stuck vote is nobody's",
        "progress",
        "Nobody finishes a vote whose proposer is gone.",
        (_ACCEPTOR + "tick", "self._finish(turn, held.at)", "pass"),
    ),
    _mutant(
        "no pull",
        "progress",
        "A node that missed a link does not ask for it.",
        (_REPLICA + "tick", "if wanted and self._puller", "if False and self._puller"),
    ),
    _mutant(
        "gateway tries once",
        "progress",
        "A request is handed over once and never again.",
        (_GATEWAY + "tick", "due.add(job.queued.request.sender)", "job.next_try = now + 1"),
    ),
)

# Switched off as well, and not seen by any drawn seed so far: name -> what was searched, and what shows the rule instead.
UNSEEN: Final[Mapping[str, str]] = {
    "birth epoch ignored": "no seed in the time the last search had",
    "vote below the birth epoch": "no seed in 145 that change members; `docs/exhaustive-search.md` finds it",
    "a view skipped": "no seed in the time the last search had",
    "old members do not sync": "no seed in 145 that change members; `docs/exhaustive-search.md` finds it",
    "a source that has not synced": "no seed in 122 that change members: the barrier (R9) sees to an ACTIVE majority before the next view; `docs/exhaustive-search.md` finds it",
    "one source is enough": "no seed in the time the last search had",
    "votes not merged": "no seed in the time the last search had",
    "promise counted twice": "no seed in the time the last search had",
    "nobody is told of votes": "no seed in the time the last search had",
    "a source that may have lost votes": "no seed in 145 that change members: the moment between a restart and its vouching is short; `tests/node/test_syncing.py` shows it",
    "answers of two epochs": "no seed in the time the last search had",
}

MUTANTS: Final = tuple(mutant for mutant in _ALL if mutant.name not in UNSEEN)

_PAGE: Final = """# What the simulator catches

A simulator that finds nothing proves nothing, unless it finds what is wrong. So rules of the nodes are switched off one by
one, in the real code (`netsim/mutants.py`), and the swarm runs until a seed shows it. All {count} below are caught within
{max_seeds} seeds. *Seen by* is the invariant that was broken (`netsim/checks.py`), or the error with which a node stopped:
`Corruption` is the database or a replica that refuses a link, `AssertionError` a node that finds itself in the wrong.

`make test` runs the one seed of each mutant, and the same seeds with nothing switched off. `make mutants` searches anew
and writes this page.

| switched off | rule | what happens then | seed | seen by | what the run says |
|---|---|---|---|---|---|
{rows}

## Damage

Two checks do not guard against other nodes but against a disk that lies. No schedule of messages and crashes reaches them, so
`tests/netsim/test_damage.py` changes a row by hand, past the triggers, and shows that the node stops; and that with the
check switched off the same money is used twice, which the observer sees.

| switched off | damage | seen by |
|---|---|---|
| checksum of the tip's income (design section 2, step 2) | a confirmation by the tip is reset, with its thread | I4 |
| second thread (step 3) | a confirmation by an older link is reset | I4 |

## Not counted

These cannot be caught by tier 1, or were not, and are not in the table:

| rule | why |
|---|---|
| R3 for openings | an owner that opens an account at round 0 is one node with one ballot: safe as long as there is one view |
| R10, a vote or promise counts for its own ballot only | not seen in 400 seeds: a late answer to a proposer's earlier ballot must arrive \
in a later one, between its start and its majority. `tests/node/test_paxos.py` searches all schedules and shows both |
| R13, one of two holders drops a request | not seen in 400 seeds: an inquiry must fail for three seconds at one holder while the other \
has the request decided, and the gateway must not know yet. `tests/node/test_core_chaos.py` shows it in a world made for it |
{unseen}
| R12 | identity and the lock of the data directory are the process's, not the core's (`tests/node/test_lock.py`) |
"""

BY_NAME: Final[Mapping[str, Mutant]] = {mutant.name: mutant for mutant in MUTANTS}


@contextmanager
def switched_off(mutant: Mutant) -> Iterator[None]:
    """Within it this process runs the mutant. Raises `AssertionError` when an edit does not fit the code."""
    undo: list[tuple[object, str, object]] = []
    try:
        for edit in mutant.edits:
            _apply(edit, undo)
        yield
    finally:
        for owner, name, original in reversed(undo):
            setattr(owner, name, original)


def _apply(edit: Edit, undo: list[tuple[object, str, object]]) -> None:
    """Put the changed function in the place of the original, also where it was imported by name."""
    module_name, _, path = edit.target.partition(":")
    module = importlib.import_module(module_name)
    *parents, name = path.split(".")
    owner: object = module
    for parent in parents:
        owner = getattr(owner, parent)
    original = inspect.getattr_static(owner, name)
    function = original.fget if isinstance(original, property) else original
    assert inspect.isfunction(function), edit.target
    source = getattr(function, "mutated_source", None) or textwrap.dedent(inspect.getsource(function))
    assert source.count(edit.old) == 1, f"{edit.target} does not hold {edit.old!r} once: bring this mutant up to date"
    source = source.replace(edit.old, edit.new)
    made: dict[str, object] = {}
    exec(compile(source, f"<mutant of {edit.target}>", "exec"), vars(module), made)  # noqa: S102  that is its purpose
    mutated = made[name]
    if not isinstance(mutated, property):
        vars(mutated)["mutated_source"] = source  # a second edit of the same function goes on from here
    owners = [owner]
    if owner is module:
        owners += [m for n, m in list(sys.modules.items()) if n.split(".")[0] in _PACKAGES and m is not module]
    for one in owners:
        if vars(one).get(name) is original:
            undo.append((one, name, original))
            setattr(one, name, mutated)


def run_mutant(mutant: Mutant, seed: int) -> Result:
    """The run of a seed with the rule off."""
    with switched_off(mutant):
        return run_plan(draw_plan(seed))


def find(mutant: Mutant, seeds: Iterable[int] = range(MAX_SEEDS)) -> Caught | None:
    """The first of `seeds` that catches the mutant; rules about views are tried where the members change."""
    for seed in seeds:
        if mutant.changing and not draw_plan(seed).spares:
            continue
        result = run_mutant(mutant, seed)
        if not result.ok:
            return Caught(seed, result.rule, result.problem)
    return None


def load_caught() -> dict[str, Caught]:
    """What the last search found, by name of the mutant."""
    if not _FILE.exists():
        return {}
    return msgspec.json.decode(_FILE.read_bytes(), type=dict[str, Caught])


def search(jobs: int, on_found: Callable[[str, Caught | str], None]) -> dict[str, Caught]:
    """Find a seed for every mutant; `on_found` is told of each, or why there is none. On `jobs` processes."""
    found: dict[str, Caught] = {}
    with open_fleet(jobs) as fleet:
        for name, caught in fleet.map(_find_by_name, [mutant.name for mutant in MUTANTS]):
            on_found(name, caught)
            if isinstance(caught, Caught):
                found[name] = caught
    return {mutant.name: found[mutant.name] for mutant in MUTANTS if mutant.name in found}


def _find_by_name(name: str) -> tuple[str, Caught | str]:
    """The seed of the last search when it still does, else the first that does; or what is wrong with the mutant."""
    known = load_caught().get(name)
    try:
        again = find(BY_NAME[name], [known.seed]) if known is not None else None
        return name, again or find(BY_NAME[name]) or f"not caught in {MAX_SEEDS} seeds"
    except AssertionError as error:
        return name, str(error)


def render_page(caught: Mapping[str, Caught]) -> str:
    """The page of the documentation."""
    rows = [
        f"| {mutant.name} | {mutant.rule} | {mutant.what} | {caught[mutant.name].seed} | {caught[mutant.name].rule} "
        f"| {_brief(caught[mutant.name].problem)} |"
        for mutant in MUTANTS
        if mutant.name in caught
    ]
    unseen = "\n".join(f"| {m.rule}, {m.name} | {UNSEEN[m.name]} |" for m in _ALL if m.name in UNSEEN)
    return _PAGE.format(count=len(rows), rows="\n".join(rows), max_seeds=MAX_SEEDS, unseen=unseen)


def _brief(problem: str) -> str:
    text = " ".join(re.sub(r"\b[0-9a-f]{12,}\b", "..", problem).split()).replace("|", "\\|")
    return text if len(text) <= PROBLEM_CHARS else text[: PROBLEM_CHARS - 2] + ".."


def main() -> None:
    """Search anew, and write `mutants.json` and the page."""
    jobs = int(sys.argv[1]) if len(sys.argv) > 1 else 1

    def tell(name: str, caught: Caught | str) -> None:
        if isinstance(caught, Caught):
            caught = f"seed {caught.seed}: {caught.rule}: {caught.problem[:100]}"
        sys.stdout.write(f"{name:40s} {caught}\n")
        sys.stdout.flush()

    found = search(jobs, tell)
    _FILE.write_bytes(msgspec.json.format(msgspec.json.encode(found), indent=1) + b"\n")
    _PAGE_FILE.write_text(render_page(found), encoding="utf-8")
    if len(found) < len(MUTANTS):
        raise SystemExit(f"{len(MUTANTS) - len(found)} mutants were not caught: mend them or explain them in the page")


if __name__ == "__main__":
    main()
