"""The rules of money as tables: one account, what it has, what it is asked, what the link says."""

import hashlib
import re
from collections.abc import Callable

import msgspec
import pytest

from chain.errors import Corruption
from chain.link import (
    MAX_CONFIRMED,
    MAX_ENTRIES,
    Link,
    LinkHash,
    Outcome,
    PostingHash,
    build_link,
    income_checksum,
    opening_slot,
)
from chain.names import MAX_AMOUNT
from chain.request import MAX_POSTINGS, Posting, Request, RequestId, cancellation, opening, transfer
from chain.rows import AccountHead, Credit, Forming, Incoming
from chain.rules import (
    Formed,
    check_second_thread,
    check_successor,
    check_tip_income,
    form_link,
    take_up,
)
from tests.chain.bank import NETWORK, decoded, nonce_of, public_key_of

NOW = 50_000


def head(
    name: str = "alice", *, balance: int = 100, asset: str = "CZK", issuer: bool = False, height: int = 4
) -> AccountHead:
    tip = LinkHash(hashlib.sha256(name.encode() + bytes([height])).digest())
    return AccountHead(name, asset, bytes(32), issuer, height, tip, balance, 1, 40_000)


RECIPIENTS = {"bob": "CZK", "carol": "CZK", "erik": "EUR"}
SENDERS = build_link(NETWORK, "sender", 1, opening_slot(NETWORK, "sender"), 0, 1, 9, (), ())


def postings(*amounts: int) -> tuple[Incoming, ...]:
    """A stream from one sender, oldest first, all unconfirmed."""
    rows = [
        Credit(PostingHash(nonce_of(1000 + number)), "sender", "alice", amount, 1 << 14 | number)
        for number, amount in enumerate(amounts)
    ]
    header = SENDERS.raw[: len(SENDERS.raw) - 8]
    return tuple(Incoming(row, SENDERS.hash, 1, 9, header, rows[i - 1] if i else None) for i, row in enumerate(rows))


def forming(account: AccountHead | None = None, *amounts: int, count: int | None = None) -> Forming:
    incoming = postings(*amounts)
    return Forming(account or head(), income_checksum(()), (), incoming, len(incoming) if count is None else count)


def pay(
    *wanted: tuple[str, int], nonce: int = 1, sender: str = "alice", tip: bytes = bytes(32), until: int = 99
) -> Request:
    made = [Posting(recipient, amount) for recipient, amount in wanted]
    return transfer(NETWORK, sender, made, nonce_of(nonce), expect_tip=tip, valid_until_height=until)


def form(
    state: Forming,
    *requests: Request,
    recorded: tuple[RequestId, ...] = (),
    absent: tuple[str, ...] = (),
    complete: bool = False,
    now_ms: int = NOW,
) -> Formed:
    queue = [decoded(request) for request in requests]
    return form_link(
        NETWORK, state, queue, RECIPIENTS, recorded, epoch=1, now_ms=now_ms, absent=absent, income_complete=complete
    )


def outcomes(formed: Formed) -> list[Outcome]:
    return [entry.outcome for entry in formed.link.entries] if formed.link else []


MINT = head("alice", balance=-MAX_AMOUNT + 10, issuer=True)
TARGET = RequestId(bytes([8]) * 32)
CANCEL = cancellation(NETWORK, "alice", TARGET, nonce_of(70))
FIRST = pay(("bob", 1), nonce=71)
CANCEL_FIRST = cancellation(NETWORK, "alice", decoded(FIRST).request_id, nonce_of(72))

OUTCOMES: list[tuple[str, Forming, list[Request], list[Outcome], int]] = [
    ("all it has", forming(), [pay(("bob", 100))], [Outcome.COMPLETED], 0),
    ("incoming money is spent", forming(head(), 20, 30), [pay(("bob", 150))], [Outcome.COMPLETED], 0),
    ("one too many", forming(head(), 20), [pay(("bob", 121))], [Outcome.INSUFFICIENT_FUNDS], 120),
    ("all or nothing", forming(), [pay(("bob", 60), ("carol", 41))], [Outcome.INSUFFICIENT_FUNDS], 100),
    ("two recipients", forming(), [pay(("bob", 60), ("carol", 40))], [Outcome.COMPLETED], 0),
    ("one after the other", forming(), [pay(("bob", 70), nonce=1), pay(("bob", 70), nonce=2), pay(("bob", 30), nonce=3)],
     [Outcome.COMPLETED, Outcome.INSUFFICIENT_FUNDS, Outcome.COMPLETED], 0),
    ("nobody", forming(), [pay(("nobody", 1))], [Outcome.UNKNOWN_RECIPIENT], 100),
    ("somebody and nobody", forming(), [pay(("bob", 1), ("nobody", 1))], [Outcome.UNKNOWN_RECIPIENT], 100),
    ("another asset", forming(), [pay(("erik", 1))], [Outcome.ASSET_MISMATCH], 100),
    ("nobody before another asset", forming(), [pay(("erik", 1), ("nobody", 1))], [Outcome.UNKNOWN_RECIPIENT], 100),
    ("the last height", forming(), [pay(("bob", 1), until=5)], [Outcome.COMPLETED], 99),
    ("too late", forming(), [pay(("bob", 1), until=4)], [Outcome.EXPIRED], 100),
    ("too late for nobody", forming(), [pay(("nobody", 1), until=0)], [Outcome.EXPIRED], 100),
    ("on its tip", forming(), [pay(("bob", 1), tip=head().tip)], [Outcome.COMPLETED], 99),
    ("cancel before", forming(), [CANCEL], [Outcome.COMPLETED], 100),
    ("cancel after, in the same link", forming(), [FIRST, CANCEL_FIRST], [Outcome.COMPLETED, Outcome.ALREADY_DECIDED], 99),
    ("cancel first, in the same link", forming(), [CANCEL_FIRST, FIRST], [Outcome.COMPLETED], 100),
    ("cancelled twice", forming(), [CANCEL, cancellation(NETWORK, "alice", TARGET, nonce_of(73))],
     [Outcome.COMPLETED, Outcome.ALREADY_DECIDED], 100),
    ("an issuer below zero", forming(head(issuer=True)), [pay(("bob", 500))], [Outcome.COMPLETED], -400),
    ("an issuer to its limit", forming(MINT), [pay(("bob", 10))], [Outcome.COMPLETED], -MAX_AMOUNT),
    ("an issuer past its limit", forming(MINT), [pay(("bob", 11))], [Outcome.ISSUER_LIMIT], -MAX_AMOUNT + 10),
    ("income up to 2^63-1", forming(head(balance=MAX_AMOUNT - 5), 5), [pay(("bob", MAX_AMOUNT))], [Outcome.COMPLETED], 0),
]  # fmt: skip


@pytest.mark.parametrize(
    ("state", "requests", "expected", "balance"), [pytest.param(f, r, o, b, id=name) for name, f, r, o, b in OUTCOMES]
)
def test_outcomes(state: Forming, requests: list[Request], expected: list[Outcome], balance: int) -> None:
    formed = form(state, *requests, absent=("nobody",), complete=True)
    link = formed.link
    assert link is not None
    assert outcomes(formed) == expected
    assert link.balance == balance
    assert state.head is not None
    assert (link.height, link.prev_hash, link.time_ms, link.epoch) == (5, state.head.slot, NOW, 1)
    assert link.confirmed == tuple(i.posting.hash for i in state.incoming)
    assert not (formed.left or formed.unjudged or formed.stale)
    assert len(formed.settled) == len(requests) - len(expected)


def test_every_outcome_is_in_the_table() -> None:
    seen = {outcome for _, _, _, expected, _ in OUTCOMES for outcome in expected}
    assert seen == set(Outcome) - {Outcome.CANCELLED}  # which is recorded for the target of a cancellation


def test_time_never_stands_still() -> None:
    link = form(forming(), pay(("bob", 1)), now_ms=7).link
    assert link is not None
    assert link.time_ms == head().time_ms + 1


def test_nothing_to_do_makes_no_link() -> None:
    done = pay(("bob", 1))
    stale = pay(("bob", 1), tip=bytes([1]) * 32, nonce=2)
    again = opening(NETWORK, "alice", "CZK", bytes(32), nonce_of(3))
    formed = form(forming(head(), 5), done, stale, again, recorded=(decoded(done).request_id,))
    assert formed.link is None
    assert formed.settled == (decoded(done), decoded(again))
    assert formed.stale == (decoded(stale),)
    assert form(forming()).link is None


def test_a_cancelled_target_that_is_recorded_was_decided() -> None:
    assert outcomes(form(forming(), CANCEL, recorded=(TARGET,))) == [Outcome.ALREADY_DECIDED]


def test_what_may_be_missing_here_is_asked_for_and_not_rejected() -> None:
    unknown, poor, fine = pay(("nobody", 1), nonce=1), pay(("bob", 500), nonce=2), pay(("bob", 1), nonce=3)
    formed = form(forming(), unknown, poor, fine)
    assert outcomes(formed) == [Outcome.COMPLETED]
    assert formed.unjudged == (decoded(unknown), decoded(poor))
    assert formed.ask_recipients == {"nobody"}
    assert formed.ask_income


def test_an_issuer_past_its_limit_is_rejected_only_when_its_income_was_asked_for() -> None:
    """As any other account: what was paid back to it may be decided, and not here yet."""
    past = pay(("bob", 11))
    formed = form(forming(MINT), past)
    assert formed.link is None
    assert formed.unjudged == (decoded(past),)
    assert formed.ask_income


def test_an_answer_about_one_name_says_nothing_about_another() -> None:
    formed = form(forming(), pay(("nobody", 1), ("noone", 1), nonce=1), pay(("none", 1), nonce=2), absent=("nil",))
    assert formed.link is None
    assert formed.ask_recipients == {"nobody", "noone", "none"}


def test_one_name_that_nobody_has_is_enough() -> None:
    """All of a request is paid or nothing: the others of it need not be asked for."""
    several, other = pay(("nobody", 1), ("noone", 1), nonce=1), pay(("none", 1), nonce=2)
    formed = form(forming(), several, other, absent=("nobody",))
    assert outcomes(formed) == [Outcome.UNKNOWN_RECIPIENT]
    assert formed.unjudged == (decoded(other),)
    assert formed.ask_recipients == {"none"}


# --- bounds of one link
# ---------------------------------------------------------------------------------------------------


def test_more_income_than_fits_one_link_is_consolidated_first() -> None:
    many = forming(head(balance=0), *[1] * MAX_CONFIRMED, count=MAX_CONFIRMED + 1)
    rich, cheap = pay(("bob", MAX_CONFIRMED + 1), nonce=1), pay(("bob", 1), nonce=2)
    unknown = pay(("nobody", 1), nonce=3)
    formed = form(many, cheap, rich, unknown)
    assert formed.link is not None
    assert formed.link.entries == ()
    assert formed.link.balance == len(formed.link.confirmed) == MAX_CONFIRMED
    assert {item.request_id for item in formed.left} == {decoded(r).request_id for r in (rich, cheap, unknown)}
    assert formed.unjudged == ()


def test_income_of_an_issuer_is_consolidated_before_it_is_past_its_limit() -> None:
    many = forming(MINT, *[1] * MAX_CONFIRMED, count=MAX_CONFIRMED + 1)
    formed = form(many, pay(("bob", MAX_CONFIRMED + 11)), complete=True)
    assert formed.link is not None
    assert formed.link.entries == ()
    assert len(formed.link.confirmed) == MAX_CONFIRMED
    exact = forming(MINT, *[1] * MAX_CONFIRMED)
    assert outcomes(form(exact, pay(("bob", MAX_CONFIRMED + 11)), complete=True)) == [Outcome.ISSUER_LIMIT]
    assert outcomes(form(many, pay(("bob", MAX_CONFIRMED + 10)))) == [Outcome.COMPLETED]


def test_income_that_fits_one_link_is_not_consolidated() -> None:
    exact = forming(head(balance=0), *[1] * MAX_CONFIRMED)
    formed = form(exact, pay(("bob", MAX_CONFIRMED)))
    assert outcomes(formed) == [Outcome.COMPLETED]
    formed = form(exact, pay(("bob", MAX_CONFIRMED + 1)), complete=True)
    assert outcomes(formed) == [Outcome.INSUFFICIENT_FUNDS]


def test_what_is_cheap_needs_no_consolidation() -> None:
    many = forming(head(balance=0), *[1] * MAX_CONFIRMED, count=MAX_CONFIRMED + 1)
    assert outcomes(form(many, pay(("bob", 1)))) == [Outcome.COMPLETED]


def test_income_stops_before_it_overflows() -> None:
    state = forming(head(balance=MAX_AMOUNT - 5), 5, 1)
    funds, taken = take_up(state)
    assert (funds, taken) == (MAX_AMOUNT, (state.incoming[0].posting.hash,))
    assert take_up(Forming(None, b"", (), (), 0)) == (0, ())


def _of_size(count: int, nonce: int) -> Request:
    return pay(*[("bob", 1)] * count, nonce=nonce)


def test_a_link_holds_as_many_bytes_as_the_largest_request() -> None:
    big, small = _of_size(MAX_POSTINGS, 1), cancellation(NETWORK, "alice", TARGET, nonce_of(3))
    formed = form(forming(head(balance=10**6)), big, small)
    assert outcomes(formed) == [Outcome.COMPLETED]
    assert formed.left == (decoded(small),)


def test_a_link_holds_no_more_than_its_number_of_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    assert MAX_ENTRIES == 8190
    monkeypatch.setattr("chain.rules.MAX_ENTRIES", 2)
    requests = [pay(("bob", 1), nonce=i) for i in range(3)]
    formed = form(forming(), *requests)
    assert len(outcomes(formed)) == 2
    assert formed.left == (decoded(requests[2]),)


# --- opening
# --------------------------------------------------------------------------------------------------------------


def test_the_first_opening_gets_the_name() -> None:
    first = opening(NETWORK, "zoe", "CZK", public_key_of("zoe"), nonce_of(1))
    second = opening(NETWORK, "zoe", "EUR", public_key_of("other"), nonce_of(2))
    early = pay(("bob", 1), sender="zoe")
    nothing = Forming(None, b"", (), (), 0)
    formed = form(nothing, early, first, second)
    assert formed.link is not None
    assert [e.request for e in formed.link.entries] == [first]
    assert (formed.link.height, formed.link.balance) == (0, 0)
    assert formed.link.prev_hash == opening_slot(NETWORK, "zoe")
    assert formed.settled == (decoded(second),)
    assert formed.left == (decoded(early),)
    assert form(nothing, early) == Formed(None, left=(decoded(early),))


# --- what a damaged replica must not overlook
# -----------------------------------------------------------------------------


def test_the_tips_income_must_hash_to_its_checksum() -> None:
    used = (PostingHash(bytes([1]) * 32), PostingHash(bytes([2]) * 32))
    good = msgspec.structs.replace(forming(), tip_income=used, tip_checksum=income_checksum(used))
    check_tip_income(good)
    for lost in (used[:1], used[::-1], ()):
        bad = msgspec.structs.replace(good, tip_income=lost)
        with pytest.raises(Corruption, match=f"alice, link 4: {len(lost)} postings"):
            check_tip_income(bad)
        with pytest.raises(Corruption):
            form(bad, pay(("bob", 1)))
    check_tip_income(msgspec.structs.replace(good, head=None, tip_income=()))


def _broken(state: Forming, at: int, change: Callable[[Incoming], Incoming]) -> Forming:
    incoming = list(state.incoming)
    incoming[at] = change(incoming[at])
    return msgspec.structs.replace(state, incoming=tuple(incoming))


def _posting(**fields: object) -> Callable[[Incoming], Incoming]:
    return lambda one: msgspec.structs.replace(one, posting=msgspec.structs.replace(one.posting, **fields))


def _before(**fields: object) -> Callable[[Incoming], Incoming]:
    row = msgspec.structs.replace(postings(1)[0].posting, id=1)
    return lambda one: msgspec.structs.replace(one, before=msgspec.structs.replace(one.before or row, **fields))


THREADS: list[tuple[str, int, Callable[[Incoming], Incoming], str]] = [
    (
        "a link that is not its hash",
        0,
        lambda one: msgspec.structs.replace(one, link_header=bytes(224)),
        "link's own hash",
    ),
    (
        "a link hash that is another",
        1,
        lambda one: msgspec.structs.replace(one, link_hash=LinkHash(bytes(32))),
        "link's own hash",
    ),
    ("confirmed before", 0, _posting(confirmation=LinkHash(bytes(32))), "was confirmed before and is incoming again"),
    ("a later one confirmed", 0, _before(id=1 << 20, confirmation=LinkHash(bytes(32))), "confirmation was taken back"),
    ("itself confirmed", 0, _before(id=1 << 14, confirmation=LinkHash(bytes(32))), "confirmation was taken back"),
    ("another sender's thread", 1, _before(sender="eve"), "another stream"),
    ("another recipient's thread", 1, _before(recipient="eve"), "another stream"),
    ("an earlier one unconfirmed", 0, _before(hash=PostingHash(bytes([5]) * 32)), "before it is not confirmed"),
]


@pytest.mark.parametrize(("at", "change", "text"), [pytest.param(a, c, t, id=name) for name, a, c, t in THREADS])
def test_the_second_thread_must_be_unbroken(at: int, change: Callable[[Incoming], Incoming], text: str) -> None:
    state = forming(head(), 10, 20)
    check_second_thread(state)
    broken = _broken(state, at, change)
    with pytest.raises(Corruption, match=text):
        check_second_thread(broken)
    with pytest.raises(Corruption, match=f"posting .* of {(10, 20)[at]} from sender"):
        form(broken, pay(("bob", 1)))


def test_a_thread_that_was_confirmed_before_goes_on() -> None:
    confirmed = _before(confirmation=LinkHash(bytes(32)))
    check_second_thread(_broken(forming(head(), 10), 0, confirmed))


# --- applying a decided link
# ----------------------------------------------------------------------------------------------


def _link(*amounts: int, **fields: object) -> tuple[Link, list[Credit]]:
    """A decided link of alice that pays 30, and the rows it confirms."""
    state = forming(head(), *amounts)
    link = form(state, pay(("bob", 30))).link
    assert link is not None
    values = {name: getattr(link, name) for name in ("account", "height", "prev_hash", "balance", "epoch", "time_ms")}
    values |= {"entries": link.entries, "confirmed": link.confirmed} | fields
    return build_link(NETWORK, **values), [i.posting for i in state.incoming]


def test_a_link_that_follows_is_taken() -> None:
    check_successor(*_args(*_link(10, 20)))
    check_successor(*_args(*_link()))


def _args(link: Link, rows: list[Credit]) -> tuple[Link, AccountHead, list[Credit]]:
    return link, head(), rows


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"height": 6}, "height 4"),
        ({"height": 4}, "height 4"),
        ({"prev_hash": bytes(32)}, "the tip here is"),
        ({"time_ms": 40_000}, "not after 40000"),
        ({"confirmed": ()}, "rows of confirmed postings are missing"),
        ({"balance": 101}, "100 + 30 - 30 = 100"),
    ],
)
def test_a_link_that_does_not_follow_stops_the_node(fields: dict[str, object], text: str) -> None:
    link, rows = _link(10, 20, **fields)
    with pytest.raises(Corruption, match=re.escape(text)):
        check_successor(link, head(), rows)


@pytest.mark.parametrize("change", [{"recipient": "bob"}, {"confirmation": LinkHash(bytes(32))}])
def test_a_link_confirms_only_what_is_unconfirmed_and_its_own(change: dict[str, object]) -> None:
    link, rows = _link(10, 20)
    rows[1] = msgspec.structs.replace(rows[1], **change)
    with pytest.raises(Corruption, match="confirmed already"):
        check_successor(link, head(), rows)


@pytest.mark.parametrize(
    ("order", "rows", "taken", "fits"),
    [
        ((0, 1), {1: 0}, (), True),
        ((1,), {1: 0}, (), False),
        ((1,), {1: 0}, (1 << 14,), True),
        ((0, 1), {1: None}, (), True),
        ((1, 0), {}, (), False),
        ((1, 1), {}, (), False),
        ((0,), {0: 0}, (), False),
    ],
    ids=[
        "in order",
        "the older one left out",
        "it was taken before",
        "older",
        "younger first",
        "twice",
        "its older one is itself",
    ],
)
def test_what_is_confirmed_of_a_sender_is_the_oldest_that_waits_in_order(
    order: tuple[int, ...], rows: dict[int, int | None], taken: tuple[int, ...], fits: bool
) -> None:
    """`rows`: which posting waits before this one."""
    credits = [i.posting for i in postings(10, 20)]
    for number, before in rows.items():
        place = 0 if before is None else credits[before].id
        credits[number] = msgspec.structs.replace(credits[number], before=place)
    confirmed = [credits[number] for number in order]
    income = sum(credit.amount for credit in confirmed)
    link, _ = _link(*[], confirmed=[credit.hash for credit in confirmed], balance=70 + income)
    if fits:
        check_successor(link, head(), confirmed, {}, taken)
        return
    with pytest.raises(Corruption, match=r"is not the next one of sender|confirms a posting twice"):
        check_successor(link, head(), confirmed, {}, taken)


def test_what_was_made_just_now_comes_after_all_that_has_a_place() -> None:
    first, second = (i.posting for i in postings(10, 20))
    made = msgspec.structs.replace(second, id=0, before=first.id)
    link, _ = _link(confirmed=[first.hash, made.hash], balance=100)
    check_successor(link, head(), [first, made])
    for confirmed in ([made, first], [made]):
        link, _ = _link(confirmed=[c.hash for c in confirmed], balance=70 + sum(c.amount for c in confirmed))
        with pytest.raises(Corruption, match="is not the next one of sender"):
            check_successor(link, head(), confirmed)


def test_a_link_pays_only_accounts_of_its_own_asset() -> None:
    """Of those that are known: the others are asked for before it is applied."""
    link, rows = _link(10)
    check_successor(link, head(), rows, {"bob": "CZK"})
    check_successor(link, head(), rows, {"carol": "EUR"})
    with pytest.raises(Corruption, match="does not hold CZK"):
        check_successor(link, head(), rows, {"bob": "EUR"})


def test_only_an_issuer_goes_below_zero() -> None:
    state = forming(head(issuer=True))
    link = form(state, pay(("bob", 300))).link
    assert link is not None
    check_successor(link, state.head, [])
    with pytest.raises(Corruption, match="-200 is below zero"):
        check_successor(link, head(), [])


def test_openings_are_applied_to_names_that_are_free() -> None:
    first = opening(NETWORK, "zoe", "CZK", public_key_of("zoe"), nonce_of(1))
    link = form(Forming(None, b"", (), (), 0), first).link
    assert link is not None
    check_successor(link, None, [])
    with pytest.raises(Corruption, match="height 4"):
        check_successor(link, head("zoe"), [])
    later, rows = _link(10)
    with pytest.raises(Corruption, match="nothing is before it"):
        check_successor(later, None, rows)
    for fields, text in (({"prev_hash": bytes(32)}, "name's slot"), ({"balance": 5}, "balance of 5")):
        values = {"prev_hash": link.prev_hash, "balance": 0} | fields
        wrong = build_link(NETWORK, "zoe", 0, values["prev_hash"], values["balance"], 1, 9, link.entries, ())  # type: ignore[arg-type]
        with pytest.raises(Corruption, match=text):
            check_successor(wrong, None, [])


def test_an_opening_stands_at_the_beginning_takes_nothing_up_and_pays_nothing() -> None:
    """Each is wrong in this alone; the balance of the last one is what it was, and less than what it pays."""
    slot = opening_slot(NETWORK, "zoe")
    first = form(Forming(None, b"", (), (), 0), opening(NETWORK, "zoe", "CZK", public_key_of("zoe"), nonce_of(1))).link
    assert first is not None
    income = postings(5)[0].posting
    paid = form(forming(), pay(("bob", 5))).link
    assert paid is not None and paid.debit == 5
    later = build_link(NETWORK, "zoe", 1, slot, 0, 1, 9, first.entries, ())
    richer = build_link(NETWORK, "zoe", 0, slot, 0, 1, 9, first.entries, (income.hash,))
    payer = build_link(NETWORK, "zoe", 0, slot, 0, 1, 9, paid.entries, ())
    for link, confirmed, text in (
        (later, [], "nothing is before it"),
        (richer, [income], "nothing is before it"),
        (payer, [], "opens with"),
        (build_link(NETWORK, "zoe", 0, slot, 0, 1, 9, first.entries * 2, ()), [], "not one opening"),
    ):
        with pytest.raises(Corruption, match=text):
            check_successor(link, None, confirmed)
