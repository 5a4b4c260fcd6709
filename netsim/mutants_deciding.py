"""Mutants of what decides: views, ballots, memory, syncing, counting (design R1 to R10).

How they are switched off and what catches them: `netsim.mutants`.
"""

from typing import Final

from netsim.mutant import Mutant, mutant

_PAXOS: Final = "node.paxos:"
_ACCEPTOR: Final = "node.acceptor:Acceptor."
_OWNER: Final = "node.owner:Owner."
_PROPOSING: Final = "node.proposing:Proposing."
_WORLD: Final = "netsim.world:World."
_EPOCHS: Final = "node.epochs:"
_SYNCING: Final = "node.syncing:Syncing."
_MEMBERS: Final = "node.membership:Membership."
_VIEWS: Final = "node.view_ballots:ViewBallots."
_CHANGING: Final = "node.changing:Changing."
_FREE = (_PAXOS + "Proposer.propose", "self._found is None or self._found[1] == value", "True")

DECIDING: Final[tuple[Mutant, ...]] = (
    # --- R1: views ---
    mutant(
        "a view decided by one vote",
        "R1",
        "A node installs the view that it proposes without waiting for the votes of others.",
        (_VIEWS + "_phase_2", "if proposer.on_accepted(self._self.id, proposer.ballot):", "if True:"),
    ),
    mutant(
        "two views of one epoch",
        "R1",
        "Who proposes a view ignores the votes for another one that its phase 1 finds.",
        (_VIEWS + "_phase_2", "value = proposer.found", "value = None if self._own is not None else proposer.found"),
        _FREE,
    ),
    mutant(
        "a view from any number of members",
        "R1",
        "A view is decided by the votes of one member less than a majority.",
        (
            _VIEWS + "on_accepted",
            "proposer.on_accepted(peer, message.ballot)",
            "(proposer.on_accepted(peer, message.ballot) or len(proposer._voted) + 1 >= max(2, (len(proposer.group) + 1) // 2))",
        ),
    ),
    mutant(
        "two members in one step",
        "R1",
        "A removal takes a second member along.",
        (
            "node.changes:view_after",
            "return without_member(view, change.node_id, now_ms, me)",
            "view = without_member(view, change.node_id, now_ms, me)\n"
            "    replace = __import__('msgspec').structs.replace\n"
            "    return replace(view, members=view.members[:-1]) if len(view.members) > 1 else view",
        ),
        ("routing.view:check_next", "len(changed) != 1", "False"),
    ),
    # --- R2, R3: ballots and who may skip phase 1 ---
    mutant(
        "epoch unchecked",
        "R2",
        "An acceptor takes part in ballots of epochs before its own.",
        (_EPOCHS + "admit", "ballot.epoch < epoch or ", ""),
        changing=True,
        scenario="counterexample-05",
    ),
    mutant(
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
    mutant(
        "birth epoch ignored",
        "R3",
        "The owner skips phase 1 also in a slot that was born in an earlier epoch.",
        ("node.slots:is_fast", "head.epoch == epoch and ", ""),
        changing=True,
        scenario="counterexample-01",
    ),
    mutant(
        "vote below the birth epoch",
        "R3",
        "Who has not installed the epoch in which a slot was born takes part in its older epoch.",
        (_EPOCHS + "admit", "max(ballot.epoch, birth) > epoch", "ballot.epoch > epoch"),
        (_OWNER + "_may_work_on", "max(born, vote.promised.epoch if vote is not None else born)", "0"),
        changing=True,
        scenario="born-later",
    ),
    mutant(
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
    mutant(
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
    mutant(
        "promise below a promise",
        "R2",
        "An acceptor promises a ballot that is lower than one it promised before.",
        (_PAXOS + "prepare", "ballot < vote.promised", "False"),
    ),
    mutant(
        "vote below a promise",
        "R2",
        "An acceptor votes at a ballot that is lower than its promise.",
        (_PAXOS + "accept", "vote is not None and ballot < vote.promised", "False"),
    ),
    mutant(
        "fast path of a standby",
        "R3",
        "Any member of the group may propose at round 0.",
        ("node.slots:is_fast", "group[0] == node", "node in group"),
    ),
    mutant(
        "fast path despite a promise",
        "R3",
        "The owner proposes at round 0 although it promised or voted in the slot before.",
        (_PROPOSING + "begin", "vote is None and work.lowest_round == 1 and is_fast", "is_fast"),
    ),
    mutant(
        "phase 2 after one promise",
        "R3",
        "Phase 2 begins after one promise instead of a majority.",
        (_PAXOS + "Proposer.prepared", "majority(len(self.group))", "1"),
    ),
    # --- R4: memory ---
    mutant(
        "vote not persisted",
        "R4",
        "Votes and promises stay in memory.",
        (_ACCEPTOR + "_keep", "turn.persist.append(", "id("),
    ),
    mutant(
        "promise not persisted",
        "R4",
        "Promises stay in memory; votes are written.",
        (_ACCEPTOR + "_keep", "turn.persist.append(", "(turn.persist.append if result.accepted else id)("),
    ),
    mutant(
        "votes forgotten by a restart",
        "R4",
        "A node that starts does not read its votes.",
        (_ACCEPTOR + "restore", "in rows", "in rows[:0]"),
    ),
    mutant(
        "sent before the commit",
        "R4",
        "Messages leave when the turn ends, before what they promise is durable.",
        (
            _WORLD + "_turn",
            "deque(effects.stages())",
            "deque([*(msgspec.structs.replace(stage, persist=()) for stage in effects.stages()), Stage(effects.writes)])",
        ),
    ),
    mutant(
        "answered before the commit",
        "R4",
        "Clients are answered when the turn ends, before it is durable.",
        (
            _WORLD + "_turn",
            "deque(effects.stages())",
            "deque([Stage(answers=effects.answers), *msgspec.structs.replace(effects, answers=()).stages()])",
        ),
    ),
    mutant(
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
    mutant(
        "promise hides the vote",
        "R4",
        "A promise forgets the vote that was there.",
        (_PAXOS + "prepare", "Vote(ballot, vote.accepted, vote.value)", "Vote(ballot)"),
    ),
    mutant(
        "two values for one ballot",
        "R4",
        "An acceptor takes a second value at a ballot at which it voted, and the owner begins at round 0 again.",
        (_PAXOS + "accept", "vote is not None and vote.accepted == ballot", "False"),
        (_PROPOSING + "begin", "vote is None and work.lowest_round == 1 and is_fast", "is_fast"),
    ),
    # --- R5, R6: views are durable, and installed one by one ---
    mutant(
        "view not persisted",
        "R5",
        "An installed view stays in memory.",
        (_MEMBERS + "install", "turn.persist.append(", "id("),
    ),
    mutant(
        "views forgotten by a restart",
        "R5",
        "A node that starts is in the first epoch again.",
        ("node.membership:restore_views", "for raw in raws", "for raw in raws[:0]"),
    ),
    mutant(
        "no fence",
        "R5",
        "A node answers a sync before it has installed the new epoch, and votes in the old one on.",
        (_SYNCING + "on_ask_sync", "self._self.view.epoch < message.epoch", "False"),
    ),
    mutant(
        "views left out",
        "R6",
        "A node that lags installs the newest view that it is sent.",
        (
            _MEMBERS + "on_views",
            "decode_view(raw).epoch == self._self.view.epoch + 1",
            "decode_view(raw).epoch > self._self.view.epoch",
        ),
        ("routing.view:check_next", "after.epoch != before.epoch + 1", "False"),
        ("routing.view:check_next", "after.prev_hash != before.hash", "False"),
        ("routing.view:check_next", "len(changed) != 1", "False"),
        scenario="views-in-order",
    ),
    mutant(
        "a view skipped",
        "R6",
        "What is ACTIVE follows from the view before the last one: who left and came back believes that it never left.",
        (
            _SYNCING + "install",
            "carried_over(regions(before, after), self._self.id, self.active_in(before.epoch))",
            "carried_over(regions(*self._views[-3::2][:2]), self._self.id, self.active_in(self._views[-3].epoch)) "
            "if len(self._views) > 2 else carried_over(regions(before, after), self._self.id, self.active_in(before.epoch))",
        ),
        scenario="counterexample-03",
    ),
    # --- R7, R8, R9: who may vote after a change ---
    mutant(
        "everybody ACTIVE at once",
        "R7",
        "Members of a changed group vote before they have synced.",
        ("node.turn:Self.is_active", "holds(self.active, key) and ", ""),
        scenario="sync-majority",
    ),
    mutant(
        "a group that only shrinks is not synced",
        "R7",
        "Where nobody enters a group its members stay ACTIVE.",
        (_EPOCHS + "carried_over", "r.before == r.after", "r.after <= r.before"),
        scenario="counterexample-10",
    ),
    mutant(
        "old members do not sync",
        "R7",
        "Only who enters a group syncs.",
        (_EPOCHS + "carried_over", "r.before == r.after", "me in r.before"),
        scenario="counterexample-10",
    ),
    mutant(
        "a source that has not synced",
        "R7",
        "The answer of a member counts although it was not ACTIVE itself. (The barrier R9 is off too: it would see to an ACTIVE majority first.)",
        (_EPOCHS + "sources_of", " and includes(sources[n].before, region)", ""),
        (
            _CHANGING + "_begin_next",
            "if self._membership.settled or is_undo(self._membership.views, after):",
            "if True:",
        ),
        scenario="counterexample-02",
    ),
    mutant(
        "one source is enough",
        "R8",
        "A sync ends with the first answer.",
        (_EPOCHS + "sources_of", "majority(len(region.before))", "1"),
        scenario="sync-majority",
    ),
    mutant(
        "one of the new group is enough, ACTIVE or not",
        "R8",
        "A sync ends with the answer of any node of the group as it is now, the asking node itself included.",
        (_EPOCHS + "sources_of", " and includes(sources[n].after, region)", ""),
        scenario="sync-majority",
    ),
    mutant(
        "votes not merged",
        "R8",
        "A sync ends without taking up the votes of its sources.",
        (_SYNCING + "_merge", "for vote in votes:", "for vote in votes[:0]:"),
        scenario="sync-majority",
    ),
    mutant(
        "the log of a source not waited for",
        "R8",
        "A sync ends although what its sources had decided is not here.",
        (_SYNCING + "_counted", "if self._pulling.has_log(node, source.log_id, source.log)", ""),
    ),
    mutant(
        "a log told before it is durable",
        "R8",
        "A source counts links in its log that a crash can take back, and tells their votes no more.",
        (_SYNCING + "on_ask_sync", "turn.hold_together()", "pass"),
        scenario="join-under-load",
    ),
    mutant(
        "lower vote merged",
        "R8",
        "Of two votes in a slot a sync keeps the one with the lower ballot.",
        (_PAXOS + "merge", "vote.accepted < ballot", "vote.accepted > ballot"),
    ),
    mutant(
        "no barrier",
        "R9",
        "The next view is proposed although the last one is not ACTIVE yet.",
        (
            _CHANGING + "_begin_next",
            "if self._membership.settled or is_undo(self._membership.views, after):",
            "if True:",
        ),
    ),
    mutant(
        "changed before it is ACTIVE",
        "R13",
        "A change is answered when its view is installed, though a group has no ACTIVE majority.",
        (_CHANGING + "_look_at", "if self._membership.settled and ", "if "),
        changing=True,
    ),
    mutant(
        "changed by what a lagging node knows",
        "R13",
        "A change is answered from the newest view of one node.",
        (_CHANGING + "_is_certain", "return waiting.confirmed or final", "return True"),
        changing=True,
    ),
    # --- Paxos itself ---
    mutant(
        "found value ignored",
        "Paxos",
        "After phase 1 the proposer proposes its own value, whatever it was told.",
        (_OWNER + "_form", "work.proposer.found is not None", "False"),
        _FREE,
    ),
    mutant(
        "lowest found instead of highest",
        "Paxos",
        "Of the votes that phase 1 finds, the one with the lowest ballot is proposed.",
        (_PAXOS + "Proposer.on_promise", "accepted > self._found[0]", "accepted < self._found[0]"),
    ),
    # --- R10: counting ---
    mutant(
        "majority off by one",
        "R10",
        "A value is decided with one vote less than a majority.",
        (_PAXOS + "Proposer.decided", "majority(len(self.group))", "max(1, majority(len(self.group)) - 1)"),
    ),
    mutant(
        "majority of the living",
        "R10",
        "One vote besides the proposer's own is enough, however large the group.",
        (_PAXOS + "Proposer.decided", "majority(len(self.group))", "min(2, len(self.group))"),
    ),
    mutant(
        "a majority is everybody",
        "R10",
        "A value is decided when the whole group has voted for it, and phase 2 begins when all have promised.",
        (_PAXOS + "Proposer.decided", "majority(len(self.group))", "len(self.group)"),
        (_PAXOS + "Proposer.prepared", "majority(len(self.group))", "len(self.group)"),
    ),
    mutant(
        "vote counted twice",
        "R10",
        "A vote that arrives twice counts twice.",
        (_PAXOS + "Proposer.on_accepted", "or node in self._voted ", ""),
        (_PAXOS + "Proposer.on_accepted", "self._voted.add(node)", "self._voted.add((node, len(self._voted)))"),
    ),
    mutant(
        "promise counted twice",
        "R10",
        "A promise that arrives twice counts twice.",
        (_PAXOS + "Proposer.on_promise", "or node in self._promised ", ""),
        (_PAXOS + "Proposer.on_promise", "self._promised.add(node)", "self._promised.add((node, len(self._promised)))"),
        scenario="promise-twice",
    ),
    mutant(
        "counted with the present group",
        "R10",
        "A ballot goes on after a change of the view and is counted with the new group.",
        (
            _OWNER + "on_view",
            "self._works.end_ballot(work)",
            "work.proposer and setattr(work.proposer, 'group', self._self.view.group(route_key(work.at.slot)))",
        ),
        changing=True,
        scenario="pinned-group",
    ),
)
