"""Mutants of what is made of decisions: replicas, disks, answers, money, reads, and that everything ends (design R11 to
R15).

How they are switched off and what catches them: `netsim.mutants`.
"""

from typing import Final

from netsim.mutant import Mutant, mutant

_ACCEPTOR: Final = "node.acceptor:Acceptor."
_OWNER: Final = "node.owner:Owner."
_PROPOSING: Final = "node.proposing:Proposing."
_FORWARDING: Final = "node.forwarding:Forwarding."
_ADMISSION: Final = "node.admission:Admission."
_GATEWAY: Final = "node.gateway:Gateway."
_SLOTS: Final = "node.slot_inquiry:SlotInquiries."
_INCOME: Final = "node.income_inquiry:IncomeInquiries."
_READING: Final = "node.reading:Reading."
_REPLICA: Final = "node.replica:Replica."
_VOTED_UNSEEN: Final = ("node.acceptor:Acceptor.follows", "return not why", "return True")  # so that it is decided
_PULLING: Final = "node.pulling:Pulling."
_JUDGE: Final = "chain.rules:_Judge."
_SYNCING: Final = "node.syncing:Syncing."
_CHANGING: Final = "node.changing:Changing."
_ANSWER_EARLY = (
    "proposer.propose(link)\n    turn.loaded.outcomes.update(((link.account, i), __import__('chain.rows', fromlist=['OutcomeRow']).OutcomeRow(i, link.account, o, link.hash, "
    "link.height, link.balance, link.time_ms)) for i, o in link.outcomes())\n    next(h for h in self._replica.hooks "
    "if h.__qualname__ == 'Gateway.on_applied')(turn, link, self._self.id)"
)

ANSWERING: Final[tuple[Mutant, ...]] = (
    # --- R11: decided only ---
    mutant(
        "undecided link replicated",
        "R11",
        "The owner tells everybody of its link when it proposes it.",
        (
            _PROPOSING + "propose",
            "proposer.propose(link)",
            "proposer.propose(link); self._replica._pass_on(turn, link, self._self.id, depth=0)",
        ),
    ),
    mutant(
        "any vote is the decided one",
        "R10",
        "Who hears that a link is decided in a slot applies what it voted for there.",
        (_ACCEPTOR + "needs_decided_hash", "vote.value.hash == message.link", "True"),
        (_ACCEPTOR + "on_decided_hash", "vote.value.hash == message.link", "True"),
    ),
    mutant(
        "a vote is decided when a log is told",
        "R11",
        "A node that hears what a peer's log holds applies every link that it voted for, not those in the log only.",
        (_PULLING + "needs_offer", "if link.hash in offered:", "if offered:"),
        (
            _PULLING + "on_offer",
            "[link for h in message.hashes if (link := self._offered.get(LinkHash(h))) is not None]",
            "list(self._offered.values())",
        ),
    ),
    mutant(
        "a voted link in a log counts as read",
        "R8",
        "A link that a peer's log holds and this node voted for is neither applied nor asked for, and the cursor moves on.",
        (_PULLING + "on_offer", "self._replica.learn(turn, link, peer, NOBODY)", "pass"),
    ),
    mutant(
        "undecided link served",
        "R11",
        "Who is asked about a slot answers with the link it voted for.",
        (
            _SLOTS + "on_ask",
            "turn.send(peer, SlotAnswer(message.number, voted, (),",
            "turn.send(peer, SlotAnswer(message.number, False, "
            "tuple(v.value.raw for v in [self._acceptor.vote(Slot(at.slot))] if v and v.value),",
        ),
    ),
    mutant(
        "answered when proposed",
        "R11",
        "A gateway that proposes a link tells its clients that it is done.",
        (_PROPOSING + "propose", "proposer.propose(link)", _ANSWER_EARLY),
    ),
    mutant(
        "an old disk may vote",
        "R12",
        "A node that is told of more votes than it has goes on.",
        ("node.identity:Identity.on_pong", "if seen > self.votes:", "if False:"),
    ),
    mutant(
        "nobody is told of votes",
        "R12",
        "A node does not tell its peers how often it has seen them vote.",
        ("node.peers:Peers.on_ping", "self._identity.seen(peer)", "0"),
        ("node.peers:Peers.on_boot_answer", "self._identity.seen(node)", "0"),
        scenario="counterexample-11",
    ),
    mutant(
        "a source that may have lost votes",
        "R12",
        "A node answers a sync before others have vouched for its disk.",
        (_SYNCING + "on_ask_sync", "if not self._identity.verified:", "if False:"),
        changing=True,
        scenario="old-disk-source",
    ),
    mutant(
        "ids come back",
        "R12",
        "A node that was removed may be added again.",
        (_CHANGING + "_look_at", "wanted and self._membership.removed_epoch(change.node_id)", "False"),
        (
            _CHANGING + "_begin_next",
            "change.action is ChangeAction.ADD and self._membership.removed_epoch(change.node_id)",
            "False",
        ),
        changing=True,
    ),
    mutant(
        "applied without its income",
        "R11",
        "A decided link is applied although a posting that it confirms is not here yet.",
        (_REPLICA + "_missing", "if loaded.posting(h) is None", "if False"),
        (
            _REPLICA + "_apply",
            "[loaded.postings[h] for h in link.confirmed]",
            "[loaded.postings[h] for h in link.confirmed if h in loaded.postings]",
        ),
    ),
    # --- R15: purity ---
    mutant(
        "replica judges by its own clock",
        "R15",
        "A replica drops decided links that come from its future.",
        (
            _REPLICA + "_apply",
            "loaded = turn.loaded\n",
            "loaded = turn.loaded\n    if link.time_ms > turn.now.unix_ms + 60000:\n        return\n",
        ),
    ),
    mutant(
        "link time from the own clock alone",
        "R15",
        "A link carries the owner's clock even when that is behind the link before.",
        ("chain.rules:form_link", "max(head.time_ms + 1, now_ms)", "now_ms"),
    ),
    mutant(
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
    mutant(
        "idempotency unchecked",
        "R13",
        "A request that is recorded already is put into a link again.",
        (_JUDGE + "hear", "item.request_id in self._recorded", "False"),
        (_OWNER + "_drop_settled", "if (work.account, i) in turn.loaded.outcomes", "if False"),
        (_FORWARDING + "_chase", "or (account, queued.decoded.request_id) in turn.loaded.outcomes", ""),
        _VOTED_UNSEEN,
    ),
    mutant(
        "cancel forgets its target at once",
        "R13",
        "A request that stands in the queue behind its cancel is executed in the same link.",
        (_JUDGE + "_enter", "self._recorded.add(item.request.target)", "pass"),
        _VOTED_UNSEEN,
    ),
    mutant(
        "cancel occupies nothing",
        "R13",
        "A cancel is recorded, its target is not.",
        ("chain.link:_settled", "entry.outcome is Outcome.COMPLETED", "False"),
    ),
    mutant(
        "cancel of what is done",
        "R13",
        "A cancel says that it worked although its target has an outcome.",
        (_JUDGE + "_outcome", "request.target in self._recorded", "False"),
        _VOTED_UNSEEN,
    ),
    mutant(
        "stale unchecked",
        "R13",
        "A request that expects another tip is executed.",
        (_JUDGE + "hear", "request.expect_tip not in (ANY_TIP, self._head.tip)", "False"),
    ),
    mutant(
        "stale said without asking",
        "R13",
        "A gateway says stale although the expected tip is unknown to it, perhaps newer than its own.",
        (
            _ADMISSION + "_submit_pinned",
            "turn.loaded.accounts_of.get(LinkHash(decoded.request.expect_tip)) == head.name",
            "True",
        ),
    ),
    mutant(
        "expiry unchecked",
        "R13",
        "A request is executed above its last height.",
        (_JUDGE + "_outcome", "self._head.height + 1 > request.valid_until_height", "False"),
    ),
    mutant(
        "expired one link early",
        "R13",
        "A request expires at its last height instead of above it.",
        (_JUDGE + "_outcome", "self._head.height + 1 > request", "self._head.height + 2 > request"),
    ),
    mutant(
        "not_started although handed over",
        "R13",
        "A gateway says not_started of a request that an owner may have.",
        (_GATEWAY + "_time_is_up", "if job.tries or request_id in self._jobs.doubtful", "if False"),
    ),
    mutant(
        "an own vote handed on as a request",
        "R13",
        "An owner hands on what is in its own vote as if nobody had it yet.",
        (_OWNER + "as_voted", "item.copy() if item.decoded.request_id in voted else item", "item"),
    ),
    mutant(
        "wrong signature admitted",
        "R13",
        "Admission does not look at signatures.",
        (_ADMISSION + "_refuse", "not self._is_signed(decoded, key)", "False"),
    ),
    mutant(
        "unknown_sender without asking",
        "R13",
        "A gateway says that an account does not exist because it has not heard of it.",
        (
            _ADMISSION + "_ask_then_submit",
            "self._inquiries.ask_slot(turn, at, birth_epoch(head), done, Purpose.ADMISSION)",
            "done(turn, SlotState.FREE)",
        ),
    ),
    # --- money ---
    mutant(
        "overdraft",
        "money",
        "A payment is completed without funds.",
        (_JUDGE + "_outcome", "if self._funds - request.total >= floor", "if True"),
        _VOTED_UNSEEN,
    ),
    mutant(
        "income counted twice",
        "money",
        "Each posting adds twice its amount.",
        ("chain.rules:take_up", "funds += incoming.posting.amount", "funds += 2 * incoming.posting.amount"),
        _VOTED_UNSEEN,
    ),
    mutant(
        "confirmation counted twice",
        "money",
        "Postings that were confirmed are taken up again, and nobody looks at their second thread.",
        (
            "chain.forming:read_forming",
            "conn, _INCOMING,",
            "conn, _INCOMING.replace('incoming AS i', '(SELECT r.id AS recipient, s.id AS sender, t.id AS posting, t.amount AS amount '"
            " 'FROM transfers AS t JOIN accounts AS r ON r.name = t.recipient JOIN accounts AS s ON s.name = t.sender) AS i'),",
        ),
        ("chain.rules:check_second_thread", "forming.incoming", "()"),
        _VOTED_UNSEEN,
    ),
    mutant(
        "a posting lost on taking up",
        "money",
        "The newest posting is counted in the balance and not listed in the link.",
        (
            "chain.rules:form_link",
            "            entries,\n            taken,",
            "            entries,\n            taken[:-1],",
        ),
        _VOTED_UNSEEN,
    ),
    mutant(
        "consolidation loses",
        "money",
        "A consolidating link takes up postings and leaves out what they are worth.",
        (
            "chain.rules:form_link",
            "        entries, left, unjudged = []",
            "        funds = head.balance\n        entries, left, unjudged = []",
        ),
        _VOTED_UNSEEN,
    ),
    mutant(
        "no consolidation",
        "money",
        "When one link cannot take up all that came in, the rest is taken for not there.",
        (_JUDGE + "_outcome", "if not self._all_taken", "if False"),
        (_JUDGE + "_outcome", "if self._income_complete", "if True"),
    ),
    mutant(
        "unknown_recipient without asking",
        "money",
        "An owner says that a recipient does not exist because it has not heard of it.",
        (_JUDGE + "_outcome", "unknown.difference(self._absent)", "set()"),
    ),
    mutant(
        "insufficient_funds without asking",
        "money",
        "An owner says that there is no money because none has reached it.",
        (_JUDGE + "_outcome", "if self._income_complete", "if True"),
    ),
    mutant(
        "income asked of one too few",
        "money",
        "Before insufficient_funds one node less is asked than meets every decided link.",
        (_INCOME + "_settle", "majority(group) + 1", "majority(group)"),
    ),
    mutant(
        "income without undecided votes",
        "money",
        "Who is asked for income leaves out the links that it voted for and does not know to be decided.",
        (_INCOME + "on_ask", "self._acceptor.paying(message.account)", "{}"),
        scenario="voted-income",
    ),
    mutant(
        "name asked of too few",
        "money",
        "Before unknown_recipient one node is asked instead of a majority.",
        (_SLOTS + "_settle", "majority(len(inquiry.group))", "1"),
    ),
    mutant(
        "name asked without votes",
        "money",
        "Who is asked about a slot says that nothing is there although it voted for something.",
        (_SLOTS + "on_ask", "self._acceptor.is_voted(Slot(at.slot))", "False"),
        scenario="voted-opening",
    ),
    # --- reads ---
    mutant(
        "linearizable read without asking",
        "reads",
        "A linearizable read is answered from this replica.",
        (_READING + "on_balance", "elif ask.linearizable", "elif False"),
    ),
    mutant(
        "linearizable read without income",
        "reads",
        "A linearizable read asks for the tip, not for incoming money.",
        (
            _READING + "_ask_tip",
            "self._inquiries.ask_income(turn, account, on_income, Purpose.READ, until=until)",
            "on_income(turn, True)",
        ),
    ),
    mutant(
        "session read without waiting",
        "reads",
        "A read that must be at least at some height is answered at once.",
        (_READING + "on_balance", "height_of(head) < ask.min_height", "False"),
    ),
    mutant(
        "stale balance not marked",
        "reads",
        "A node that was removed says nothing about it.",
        ("node.core:Core.is_current", "return not self.membership.removed_in and ", "return True or "),
        changing=True,
    ),
    mutant(
        "certain balance not marked",
        "reads",
        "A node that was removed says nothing about it where it asked a majority.",
        ("node.balance_answer:balance_answer", " or core.membership.removed_in > 0", ""),
        changing=True,
    ),
    mutant(
        "answers of two epochs",
        "reads",
        "A majority read counts answers of nodes that have another view installed.",
        (_SLOTS + "on_ask", "message.epoch == self._self.view.epoch and ", ""),
        (_SLOTS + "on_answer", "message.epoch == self._self.view.epoch", "True"),
        (_INCOME + "on_ask", "message.epoch != self._self.view.epoch or ", ""),
        (_INCOME + "on_answer", " and message.epoch == self._self.view.epoch", ""),
        changing=True,
        scenario="two-epochs",
    ),
    mutant(
        "who is not ACTIVE knows of no votes",
        "reads",
        "Who has not synced says that there is nothing in a slot, and which income there is.",
        (_SLOTS + "_speaks_of", " and self._self.is_active(route_key(at.slot))", ""),
        (_INCOME + "_speaks", " and self._self.fully_active", ""),
        changing=True,
        scenario="unsynced-read",
    ),
    # --- that everything ends ---
    mutant(
        "stuck vote is nobody's",
        "progress",
        "Nobody finishes a vote whose proposer is gone.",
        (_ACCEPTOR + "tick", "self.finish(turn, held.at)", "pass"),
    ),
    mutant(
        "no pull",
        "progress",
        "A node that missed a link does not ask for it.",
        (_PULLING + "tick", "if wanted:", "if False:"),
    ),
    mutant(
        "gateway tries once",
        "progress",
        "A request is handed over once and never again.",
        (_GATEWAY + "tick", "due.add(job.decoded.request.sender)", "job.next_try = now + 1"),
    ),
)
