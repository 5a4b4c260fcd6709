"""Each invariant fires: what a run must never show is told to the observer by hand, next to what it may show."""

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import msgspec
import pytest

from chain.link import Link, Outcome
from chain.request import cancellation
from chain.rows import Applied
from chain.store import commit, create_or_check
from hopchain.wire import NotFound, NotStarted, Refused, ReplyBody, Stale, Unknown
from netsim.names import ISSUER
from netsim.violation import Violation
from node.core import Gauges
from node.messages import Accept, Accepted, Decided, DecidedHash, Links, Moved, Promise, SlotAnswer, SlotName
from node.paxos import Ballot
from routing.view import encode_view
from tests.netsim.bench import FUNDS, Bench

IDLE = Gauges(3, 0, 0, 0, 0, 0, 0)


@contextmanager
def broken(rule: str, text: str) -> Iterator[None]:
    with pytest.raises(Violation, match=text) as caught:
        yield
    assert caught.value.rule == rule


@pytest.fixture
def bench() -> Bench:
    return Bench()


def taking_up(bench: Bench, *amounts: int) -> Link:
    """Link 1 of a: takes up its funds and pays b."""
    entries = [bench.entry(bench.transfer("a", "b", amount)) for amount in amounts]
    return bench.link("a", entries, [bench.posting(bench.funding)])


# --- I1 ---


def test_i1_two_values_at_one_ballot(bench: Bench) -> None:
    bench.vote(0, taking_up(bench, 1))
    with broken("I1", "two values at ballot"):
        bench.vote(1, taking_up(bench, 2))


def test_i1_two_values_chosen_though_nobody_learned(bench: Bench) -> None:
    first, second = taking_up(bench, 1), taking_up(bench, 2)
    bench.vote(0, first)
    bench.vote(1, first)
    bench.vote(2, second, round_=1, by=2)  # one vote for another value is no second choice
    with broken("I1", "two values chosen"):
        bench.vote(1, second, round_=1, by=2)


def test_i1_two_successors_on_disks(bench: Bench) -> None:
    first, second = taking_up(bench, 1), taking_up(bench, 2)
    bench.choose(first)
    with broken("I1", "two successors"):
        bench.apply(2, second)


def test_i1_a_vote_in_another_slot(bench: Bench) -> None:
    link = taking_up(bench, 1)
    row = msgspec.structs.replace(bench.row(0, link), slot=bytes(32))
    with broken("I1", "in another slot"):
        bench.watch.committed(0, (row,), 1.0)


# --- I2, I4, I5: the observer's own ledger ---


def test_i2_money_from_nowhere(bench: Bench) -> None:
    with broken("I2", r"0 \+ 100 - 1 is not 100"):
        bench.choose(
            bench.link("a", [bench.entry(bench.transfer("a", "b", 1))], [bench.posting(bench.funding)], wrong_by=1)
        )


def test_i2_below_zero(bench: Bench) -> None:
    with broken("I2", "a is at -1"):
        bench.choose(taking_up(bench, FUNDS + 1))


def test_i2_nobody_is_paid(bench: Bench) -> None:
    with broken("I2", "pays nobody, which does not exist"):
        bench.choose(bench.pay(ISSUER, "nobody", 1))


def test_i2_the_income_of_another(bench: Bench) -> None:
    with broken("I2", "takes a posting to a"):
        bench.choose(bench.link("b", [], [bench.posting(bench.funding)]))


def test_i2_a_chain_with_a_gap_or_backwards_in_time(bench: Bench) -> None:
    link = taking_up(bench, 1)
    assert bench.watch.ledger.add(link) == []
    again = bench.link("a", [], after=bench.watch.ledger.chains["a"][0])
    assert "does not follow" in bench.watch.ledger.add(again)[0]


def test_i2_a_rest_of_money(bench: Bench) -> None:
    assert bench.watch.ledger.total() == 0
    bench.watch.ledger.incoming["b"][bytes(32)] = bench.watch.ledger.credits[bench.posting(bench.funding)]
    with broken("I2", "adds up to 100"):
        bench.choose(taking_up(bench, 1))


def test_i4_confirmed_twice(bench: Bench) -> None:
    bench.choose(taking_up(bench, 1))
    with broken("I4", "of 100 to a is confirmed twice"):
        bench.choose(taking_up(bench, 1))


def test_i5_executed_twice(bench: Bench) -> None:
    entry = bench.entry(bench.transfer("a", "b", 1))
    bench.choose(bench.link("a", [entry], [bench.posting(bench.funding)]))
    with broken("I5", "is COMPLETED and COMPLETED"):
        bench.choose(bench.link("a", [entry]))


def test_i5_executed_after_its_cancel(bench: Bench) -> None:
    entry = bench.entry(bench.transfer("a", "b", 1))
    cancel = bench.entry(cancellation(bench.network, "a", entry.request_id, bench.nonce()))
    bench.choose(bench.link("a", [cancel], [bench.posting(bench.funding)]))
    with broken("I5", "is CANCELLED and COMPLETED"):
        bench.choose(bench.link("a", [entry]))


# --- I3 ---


def test_i3_answered_and_on_one_disk(bench: Bench) -> None:
    link, other = taking_up(bench, 1), taking_up(bench, 2)
    call = bench.submit(link.entries[0].signed)
    bench.vote(0, link)
    bench.vote(1, link)
    bench.vote(1, other, round_=1, by=1)  # it gave up a vote that made the link chosen
    with broken("I3", "on 1 disks only"):
        bench.answer(call, bench.recorded(link, link.entries[0]))


def test_i3_answered_and_on_a_majority(bench: Bench) -> None:
    link = taking_up(bench, 1)
    call = bench.submit(link.entries[0].signed)
    bench.vote(0, link)
    bench.vote(1, link)
    bench.answer(call, bench.recorded(link, link.entries[0]))


def test_i3_a_node_comes_back_without_a_link(bench: Bench) -> None:
    with opened(bench) as conn, broken("I3", "came back without 3 links"):
        bench.watch.started(0, conn, 3.0)


# --- I6 ---


def test_i6_executed_before_it_was_asked_for(bench: Bench) -> None:
    link = bench.choose(taking_up(bench, 1))
    after = bench.choose(bench.link("a", [bench.entry(bench.transfer("a", "b", 2))]))
    bench.answer(bench.submit(after.entries[0].signed), bench.recorded(after, after.entries[0]))
    late = bench.submit(link.entries[0].signed)  # never asked for before, and in link 1
    with broken("I6", "link 1 holds a request made after link 2"):
        bench.answer(late, bench.recorded(link, link.entries[0]))


# --- I7, I13 ---


@contextmanager
def opened(bench: Bench, node: int = 0) -> Iterator[sqlite3.Connection]:
    """A database of a node with nothing but the genesis file."""
    conn = sqlite3.connect(":memory:", isolation_level=None)
    create_or_check(conn, bench.genesis, bench.ids[node], (bench.view.hash, encode_view(bench.view)))
    try:
        yield conn
    finally:
        conn.close()


def links_of(bench: Bench) -> list[Link]:
    return [
        link
        for account in ("a", "b", ISSUER)
        for link in bench.watch.ledger.chains[account]
        if link.account != ISSUER or link.height
    ]


def test_i7_a_replica_that_lacks_a_link(bench: Bench) -> None:
    with opened(bench) as conn:
        commit(conn, [Applied(link) for link in links_of(bench)[:-1]])
        with broken("I7", f"node 0 differs from what was chosen for {ISSUER}"):
            bench.watch.at_rest(0, conn, IDLE)
        commit(conn, [Applied(links_of(bench)[-1])])
        bench.watch.at_rest(0, conn, IDLE)


def test_i7_a_link_that_was_chosen_and_nobody_learned(bench: Bench) -> None:
    with opened(bench) as conn:
        commit(conn, [Applied(link) for link in links_of(bench)])
        link = taking_up(bench, 1)
        bench.vote(0, link)
        bench.vote(1, link)
        with broken("I7", "differs from what was chosen for a"):
            bench.watch.at_rest(0, conn, IDLE)


@pytest.mark.parametrize(
    "gauge", ["undecided_votes", "waiting_links", "queued_requests", "client_requests", "inquiries"]
)
def test_i13_something_is_left(bench: Bench, gauge: str) -> None:
    with opened(bench) as conn:
        commit(conn, [Applied(link) for link in links_of(bench)])
        with broken("I13", "still holds"):
            bench.watch.at_rest(0, conn, msgspec.structs.replace(IDLE, **{gauge: 1}))


def test_i13_a_call_without_an_answer(bench: Bench) -> None:
    call = bench.submit(taking_up(bench, 1).entries[0].signed)
    with broken("I13", "got no answer"):
        bench.watch.all_ended(9.0)
    bench.watch.crashed(0, 9.0)  # its connection broke: the client knows
    bench.watch.all_ended(9.0)
    assert bench.watch.calls[call].answered_at is None


# --- I8 ---


def test_i8_a_lower_promise_or_vote_on_disk(bench: Bench) -> None:
    link = taking_up(bench, 1)
    bench.vote(0, link, round_=2)
    with broken("I8", "goes back"):
        bench.vote(0, link, round_=1)


def test_i8_a_vote_that_is_forgotten_on_disk(bench: Bench) -> None:
    link = taking_up(bench, 1)
    bench.vote(0, link)
    with broken("I8", "goes back"):
        bench.watch.committed(0, (bench.promise(0, link, 3),), 1.0)


def ballot(bench: Bench, round_: int) -> Ballot:
    return Ballot(1, round_, bench.ids[0])


def test_i8_a_promise_that_hides_a_vote(bench: Bench) -> None:
    link = taking_up(bench, 1)
    bench.vote(0, link)
    bench.watch.sent(0, bench.ids[1], Accepted(link.prev_hash, ballot(bench, 0)), 1.0)
    with broken("I8", "as if it had not"):
        bench.watch.sent(0, bench.ids[1], Promise(link.prev_hash, ballot(bench, 1), None, None), 1.0)


def test_i8_a_promise_below_a_promise(bench: Bench) -> None:
    link = taking_up(bench, 1)
    bench.watch.committed(0, (bench.promise(0, link, 2),), 1.0)
    bench.watch.sent(0, bench.ids[1], Promise(link.prev_hash, ballot(bench, 2), None, None), 1.0)
    with broken("I8", "after a higher one"):
        bench.watch.sent(0, bench.ids[1], Promise(link.prev_hash, ballot(bench, 1), None, None), 1.0)
    with broken("I8", "below its promise"):
        bench.watch.sent(0, bench.ids[1], Accepted(link.prev_hash, ballot(bench, 1)), 1.0)


def test_i8_said_before_it_is_durable(bench: Bench) -> None:
    link = taking_up(bench, 1)
    at = SlotName(link.prev_hash, link.account, link.height)
    for message in (
        Promise(link.prev_hash, ballot(bench, 1), None, None),
        Accepted(link.prev_hash, ballot(bench, 1)),
        Accept(at, ballot(bench, 0), link.raw),
    ):
        with broken("I8", "before it is durable"):
            bench.watch.sent(0, bench.ids[1], message, 1.0)
    bench.watch.committed(0, (bench.promise(0, link, 1),), 1.0)
    with broken("I8", "on its disk is promise"):
        bench.watch.sent(0, bench.ids[1], Accepted(link.prev_hash, ballot(bench, 1)), 1.0)


def test_i8_a_node_comes_back_without_its_vote(bench: Bench) -> None:
    with opened(bench) as conn:
        commit(conn, [Applied(link) for link in links_of(bench)])
        link = taking_up(bench, 1)
        bench.vote(0, link)
        with broken("I8", "came back without its vote"):
            bench.watch.started(0, conn, 2.0)
        commit(conn, [bench.row(0, link)])
        bench.watch.started(0, conn, 2.0)


def test_a_vote_that_only_the_disk_knows_counts(bench: Bench) -> None:
    """A commit that a crash cut may be there: its vote makes a link chosen though nobody was told."""
    link = taking_up(bench, 1)
    bench.vote(1, link)
    with opened(bench) as conn:
        commit(conn, [*(Applied(link) for link in links_of(bench)), bench.row(0, link)])
        bench.watch.started(0, conn, 2.0)
    assert bench.watch.chosen[link.prev_hash] == link.hash


# --- I9 ---


def test_i9_an_undecided_link_is_served(bench: Bench) -> None:
    link = taking_up(bench, 1)
    bench.vote(0, link)
    for message in (
        Decided(link.raw, bench.ids[0], 0),
        Links((link.raw,)),
        Moved("a", 1, (link.raw,)),
        SlotAnswer(1, False, (link.raw,), 1),
    ):
        with broken("I9", "serves link 1 of a, which is not chosen"):
            bench.watch.sent(0, bench.ids[1], message, 1.0)
        bench.watch.sent(0, bench.ids[1], Decided(bench.funding.raw, bench.ids[0], 0), 1.0)


def test_i9_an_undecided_link_is_told_to_be_decided(bench: Bench) -> None:
    link = taking_up(bench, 1)
    bench.vote(0, link)
    for at, hash_ in (
        (SlotName(link.prev_hash, link.account, link.height), link.hash),
        (SlotName(bench.funding.prev_hash, bench.funding.account, bench.funding.height), link.hash),
    ):
        with broken("I9", "is chosen, and it is not"):
            bench.watch.sent(0, bench.ids[1], DecidedHash(at, hash_), 1.0)


def test_i9_an_undecided_link_is_applied(bench: Bench) -> None:
    link = taking_up(bench, 1)
    bench.vote(0, link)
    with broken("I9", "applies link 1 of a, which is not chosen"):
        bench.apply(0, link)


# --- I10 ---


def test_i10_an_outcome_that_is_not_chosen(bench: Bench) -> None:
    link = taking_up(bench, 1)
    with broken("I10", "is told an outcome of a that is not chosen"):
        bench.answer(bench.submit(link.entries[0].signed), bench.recorded(link, link.entries[0]))


@pytest.mark.parametrize("wrong", ["outcome", "height", "balance"])
def test_i10_another_outcome_than_the_chosen_one(bench: Bench, wrong: str) -> None:
    link = bench.choose(taking_up(bench, 1))
    call = bench.submit(link.entries[0].signed)
    with broken("I10", "chosen is COMPLETED"):
        bench.answer(call, bench.recorded(link, link.entries[0], **{wrong: 7}))


def test_i10_answered_twice(bench: Bench) -> None:
    call = bench.submit(taking_up(bench, 1).entries[0].signed)
    bench.answer(call, Unknown(b"", "late"))
    with broken("I10", "answered twice"):
        bench.answer(call, Unknown(b"", "late"))


def test_i10_stale(bench: Bench) -> None:
    tip = bench.watch.ledger.tips["a"].hash
    free, pinned = bench.transfer("a", "b", 1), bench.transfer("a", "b", 1, tip=tip)
    with broken("I10", "pinned no tip"):
        bench.answer(bench.submit(bench.entry(free).signed), Stale(b"", tip, 1))
    with broken("I10", "has no successor"):
        bench.answer(bench.submit(bench.entry(pinned).signed), Stale(b"", tip, 1))
    link = bench.choose(bench.link("a", [bench.entry(pinned)], [bench.posting(bench.funding)]))
    with broken("I10", "has an outcome"):
        bench.answer(bench.submit(link.entries[0].signed), Stale(b"", tip, 1))
    other = bench.entry(bench.transfer("a", "b", 2, tip=tip))
    bench.answer(bench.submit(other.signed), Stale(b"", link.hash, 1))


def test_i10_not_started_though_it_is_recorded(bench: Bench) -> None:
    link = bench.choose(taking_up(bench, 1))
    with broken("I10", "told not_started, but its outcome is chosen"):
        bench.answer(bench.submit(link.entries[0].signed), NotStarted(b"", "busy", ""))
    bench.answer(bench.submit(link.entries[0].signed), NotStarted(b"", "busy", ""))  # said of one of two copies


def test_i10_refused(bench: Bench) -> None:
    opened_now = bench.watch.ledger.chains["a"][0].entries[0].signed
    with broken("I10", "said to be taken, and is not"):
        bench.answer(bench.submit(bench.open("c").entries[0].signed), Refused("name_taken", ""))
    with broken("I10", "said to be taken, and is not"):
        bench.answer(bench.submit(opened_now), Refused("name_taken", ""))
    bench.answer(bench.submit(bench.open("b").entries[0].signed), Refused("name_taken", ""))
    late = bench.choose(bench.open("c"))
    bench.answer(bench.submit(late.entries[0].signed), bench.recorded(late, late.entries[0]))
    payment = bench.entry(bench.transfer("c", "b", 1))
    with broken("I10", "said not to exist after its opening was answered"):
        bench.answer(bench.submit(payment.signed), Refused("unknown_sender", ""))


def test_i10_a_tip_that_was_answered_is_no_link(bench: Bench) -> None:
    link = bench.choose(taking_up(bench, 1))
    pinned = bench.entry(bench.transfer("a", "b", 1, tip=link.hash))
    bench.answer(bench.submit(pinned.signed), Refused("unknown_tip", ""))  # nobody was told of it yet
    bench.answer(bench.submit(link.entries[0].signed), bench.recorded(link, link.entries[0]))
    with broken("I10", "link 1 of a is said to be no link"):
        bench.answer(bench.submit(pinned.signed), Refused("unknown_tip", ""))


def test_i10_another_answer_than_a_submit_can_have(bench: Bench) -> None:
    with broken("I10", "is answered with"):
        bench.answer(bench.submit(taking_up(bench, 1).entries[0].signed), msgspec.msgpack.decode(b"\xc0"))


def forged(bench: Bench) -> Link:
    return bench.link("a", [bench.entry(bench.transfer("a", "b", 1), key="a thief")], [bench.posting(bench.funding)])


def off_tip(bench: Bench) -> Link:
    return bench.link(
        "a", [bench.entry(bench.transfer("a", "b", 1, tip=bytes([7] * 32)))], [bench.posting(bench.funding)]
    )


def expired_early(bench: Bench) -> Link:
    return bench.link("a", [bench.entry(bench.transfer("a", "b", 1), Outcome.EXPIRED)])


def expired_late(bench: Bench) -> Link:
    request = msgspec.structs.replace(bench.transfer("a", "b", 1), valid_until_height=0)
    return bench.link("a", [bench.entry(request)], [bench.posting(bench.funding)])


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (forged, "is not signed by its owner"),
        (off_tip, "expected another tip"),
        (expired_early, "is EXPIRED, and valid until"),
        (expired_late, "is COMPLETED, and valid until height 0"),
    ],
)
def test_i10_an_outcome_that_cannot_be(bench: Bench, make: Callable[[Bench], Link], text: str) -> None:
    with broken("I10", text):
        bench.choose(make(bench))


def test_i10_insufficient_funds_in_spite_of_what_a_client_saw(bench: Bench) -> None:
    bench.answer(bench.submit(bench.funding.entries[0].signed), bench.recorded(bench.funding, bench.funding.entries[0]))
    entry = bench.entry(bench.transfer("a", "b", FUNDS), Outcome.INSUFFICIENT_FUNDS)
    bench.submit(entry.signed)
    with broken("I10", "insufficient_funds for 100 of a in link 1, which had 0 and 100"):
        bench.choose(bench.link("a", [entry]))


def test_insufficient_funds_of_what_nobody_was_told(bench: Bench) -> None:
    entry = bench.entry(bench.transfer("a", "b", FUNDS), Outcome.INSUFFICIENT_FUNDS)
    bench.submit(entry.signed)
    bench.choose(bench.link("a", [entry]))


def test_i10_unknown_recipient_whose_opening_was_answered(bench: Bench) -> None:
    late = bench.choose(bench.open("c"))
    bench.answer(bench.submit(late.entries[0].signed), bench.recorded(late, late.entries[0]))
    entry = bench.entry(bench.transfer("a", "c", 1), Outcome.UNKNOWN_RECIPIENT)
    bench.submit(entry.signed)
    with broken("I10", "unknown_recipient c"):
        bench.choose(bench.link("a", [entry]))


def test_i10_a_balance_that_never_was(bench: Bench) -> None:
    call = bench.ask("a")
    with broken("I10", "balance 5 of a at link 0 is not chosen"):
        bench.answer(call, bench.balance("a", height=0, settled=5))


# --- what the observer itself got wrong once: seeds of early versions of `draw_plan` ---


def test_a_cancel_may_come_before_its_target_is_first_sent(bench: Bench) -> None:
    """Seed 3: the client of the target could reach no node at first; the cancel did."""
    target = bench.entry(bench.transfer("a", "b", 1))
    cancel = bench.entry(cancellation(bench.network, "a", target.request_id, bench.nonce()))
    link = bench.choose(bench.link("a", [cancel], [bench.posting(bench.funding)]))
    after = bench.choose(bench.link("a", [bench.entry(bench.transfer("a", "b", 2))]))
    told(bench, after)
    late = bench.submit(target.signed)
    bench.answer(late, bench.recorded(link, target, outcome=int(Outcome.CANCELLED)))


def test_a_name_is_taken_although_the_losers_request_was_cancelled(bench: Bench) -> None:
    """Seed 32: who won the name cancelled the loser's request; a node that lagged told the loser name_taken."""
    loser = bench.open("c").entries[0]
    bench.choose(bench.open("c"))
    cancel = bench.entry(cancellation(bench.network, "c", loser.request_id, bench.nonce()))
    bench.choose(bench.link("c", [cancel]))
    bench.answer(bench.submit(loser.signed), Refused("name_taken", ""))


def test_the_only_vote_of_a_link_may_be_in_a_commit_that_was_cut() -> None:
    """Seed 354: k = 1, and the commit whose fsync failed was durable after all."""
    bench = Bench(nodes=1)
    link = taking_up(bench, 1)
    with opened(bench) as conn:
        commit(conn, [*(Applied(link) for link in links_of(bench)), bench.row(0, link), Applied(link)])
        bench.watch.started(0, conn, 2.0)
    assert bench.watch.chosen[link.prev_hash] == link.hash


def test_the_promise_before_the_only_vote_of_a_link_is_gone_with_it() -> None:
    """Seed 954197: k = 1 in a later epoch; the promise was durable, the vote and the link came in the commit that was
    cut."""
    bench = Bench(nodes=1)
    link = taking_up(bench, 1)
    bench.watch.committed(0, (msgspec.structs.replace(bench.row(0, link), accepted=None, link=None),), 1.0)
    with opened(bench) as conn:
        commit(conn, [*(Applied(link) for link in links_of(bench)), Applied(link)])
        bench.watch.started(0, conn, 2.0)
    assert bench.watch.chosen[link.prev_hash] == link.hash


# --- I11 ---


def told(bench: Bench, link: Link) -> None:
    bench.answer(bench.submit(link.entries[0].signed), bench.recorded(link, link.entries[0]))


def test_i11_a_linearizable_read_behind_what_was_answered(bench: Bench) -> None:
    link = bench.choose(taking_up(bench, 1))
    told(bench, link)
    call = bench.ask("a", linearizable=True)
    bench.watch.calls[call].at = 5.0
    with broken("I11", "shows link 0 and 0 incoming; answered before it were link 1"):
        bench.answer(call, bench.balance("a", height=0, settled=0))


def test_i11_a_linearizable_read_without_what_was_paid(bench: Bench) -> None:
    told(bench, bench.funding)
    with broken("I11", "shows link 0 and 0 incoming; answered before it were link -1 and 100"):
        bench.answer(bench.ask("a", linearizable=True), bench.balance("a", height=0, settled=0))
    bench.answer(bench.ask("a", linearizable=True), bench.balance("a", height=0, settled=0, incoming=FUNDS))
    bench.answer(bench.ask("a"), bench.balance("a", height=0, settled=0))  # a local read may lag


def test_i11_a_session_read_that_is_too_old(bench: Bench) -> None:
    with broken("I11", "older than link 1"):
        bench.answer(bench.ask("a", min_height=1), bench.balance("a", height=0, settled=0))


def test_i11_not_found_after_its_opening(bench: Bench) -> None:
    late = bench.choose(bench.open("c"))
    bench.answer(bench.ask("c", linearizable=True), NotFound("c"))
    told(bench, late)
    bench.answer(bench.ask("c"), NotFound("c"))  # a local read may lag (seed 9502: at a node with an emptied disk)
    with broken("I11", "c is not found after its opening was answered"):
        bench.answer(bench.ask("c", linearizable=True), NotFound("c"))


# --- I13, when there was time enough ---


@pytest.mark.parametrize("body", [Unknown(b"", "late"), NotStarted(b"", "busy", "full")])
def test_i13_no_final_answer_in_a_healed_network(bench: Bench, body: ReplyBody) -> None:
    call = bench.submit(taking_up(bench, 1).entries[0].signed)
    bench.watch.answered(call, body, 29.0)
    bench.watch.all_ended(40.0)  # the network is not healed
    bench.watch.healed(23.0)
    bench.watch.all_ended(40.0)  # too soon after healing
    bench.watch.healed(21.0)
    with broken("I13", "in a healed network"):
        bench.watch.all_ended(40.0)
