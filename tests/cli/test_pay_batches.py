"""Which rows of a file go together in one request: cut in order, remembered, and made again as they were."""

import errno
import os
import random
import shutil
from pathlib import Path

import pytest

from chain.errors import LocalMisuse
from chain.names import MAX_AMOUNT
from chain.request import NetworkId
from cli.batches import Batch, SentBatches
from cli.output import CommandFailed, Output
from cli.paybatches import RunBatches, cut
from cli.payfile import Payment, payment_key
from cli.payplan import Plan, Settings
from cli.progress import Progress
from cli.sources import Sources
from cli.wallet import Wallet
from hopchain import Choice
from tests.hopchain.fake_node import key_number

NETWORK = NetworkId(b"n" * 32)
ROWS = [Payment(n + 2, "ann", "bob", n + 1, "", 0) for n in range(4)]
KEYS = [payment_key(row) for row in ROWS]


# --- cutting -------------------------------------------------------------------------------------------------------


def parts(*rows: tuple[str, str, int]) -> list[list[int]]:
    return cut([(n, Payment(n, *row, "", 0)) for n, row in enumerate(rows)])


def test_rows_of_a_payer_go_together_as_long_as_a_request_holds_them(two_rows: None) -> None:
    assert parts() == []
    assert parts(("a", "x", 1), ("b", "x", 1), ("a", "y", 1), ("a", "z", 1), ("b", "z", 1)) == [[0, 2], [1, 4], [3]]
    assert parts(("a", "x", MAX_AMOUNT), ("a", "y", 1), ("a", "z", MAX_AMOUNT - 1)) == [[0], [1, 2]]


def test_a_payer_that_is_paid_in_between_begins_a_new_request() -> None:
    assert parts(("a", "b", 1), ("a", "c", 1), ("b", "d", 1), ("c", "b", 1), ("b", "d", 2), ("a", "d", 1)) == [
        *([0, 1, 5], [2], [3], [4])
    ]


# --- made and made again -------------------------------------------------------------------------------------------


@pytest.fixture
def wallet(home: Path) -> Wallet:
    return Wallet(NETWORK)


def run_of(wallet: Wallet) -> RunBatches:
    """The batches of a run of ROWS; every account has the same key."""
    settings = Settings("may", "CZK", 2, False, None, False, 1, 1.0)
    sources = Sources(wallet.directory, "may", {}, Choice.ROUND_ROBIN, random.Random(1))
    plan = Plan(wallet, ROWS, settings, sources, Progress(Output(True)))
    return RunBatches(plan, NETWORK, lambda account: key_number(1), SentBatches(wallet.directory, "may"))


def test_a_remembered_batch_is_the_same_request_again(wallet: Wallet) -> None:
    first = run_of(wallet)
    assert first.earlier({}) == [] == first.earlier(dict.fromkeys(KEYS, 0))
    assert first.new([]) == [] and not wallet.directory.exists(), "nothing to remember"
    made = first.new([([0, 2], "ann"), ([1, 3], "eve")])
    assert [part.rows for part in made] == [[0, 2], [1, 3]]
    assert [part.batch for part in made] == [
        Batch("ann", 0, made[0].signed.request_id.hex(), (KEYS[0], KEYS[2])),
        Batch("eve", 0, made[1].signed.request_id.hex(), (KEYS[1], KEYS[3])),
    ]
    for known in (first, run_of(wallet)):
        found = known.earlier({key: n for n, key in enumerate(KEYS)})
        assert found == [(part.batch, part.rows) for part in made]
        assert [known.again(batch, rows) for batch, rows in found] == made
    shutil.rmtree(wallet.directory)
    assert run_of(wallet).new([([0, 2], "ann"), ([1, 3], "eve")]) == made, "another wallet makes the same"


def test_rows_that_went_together_before_make_another_request(wallet: Wallet) -> None:
    batches = run_of(wallet)
    ids = [batches.new([([0, 1], "ann")])[0].batch.request_id for _ in range(3)]
    assert len(set(ids)) == 3
    (mixed,) = run_of(wallet).new([([1, 2], "ann")])
    assert mixed.batch.attempt == 3, "one of its rows was in three"


def test_a_row_is_in_its_newest_batch_and_only_rows_of_the_file_are_left(wallet: Wallet) -> None:
    batches = run_of(wallet)
    old, new = (batches.new([(rows, "ann")])[0].batch for rows in ([0, 1, 2], [2, 3]))
    assert batches.earlier({KEYS[2]: 2, KEYS[1]: 1, KEYS[0]: 0}) == [(new, [2]), (old, [0, 1])]
    assert batches.earlier({KEYS[1]: 7, KEYS[3]: 9}) == [(old, [7]), (new, [9])], "wherever they are now"


def test_a_batch_that_makes_another_request_than_is_remembered_is_refused(wallet: Wallet) -> None:
    batches = run_of(wallet)
    (part,) = batches.new([([0, 1], "ann")])
    damaged = Batch("ann", 0, "00" * 32, part.batch.rows)
    with pytest.raises(
        LocalMisuse, match=f"remembers request {'00' * 32} for 2 rows .*, and they make {part.batch.request_id}"
    ):
        batches.again(damaged, [0, 1])


# --- what is remembered --------------------------------------------------------------------------------------------


def test_batches_are_remembered_in_order_with_their_attempts(tmp_path: Path) -> None:
    first = SentBatches(tmp_path, "may")
    old, new = Batch("ann", 0, "11", ("r1", "r2")), Batch("ann", 1, "22", ("r2", "r3"))
    first.add([old])
    first.add([new])
    for known in (first, SentBatches(tmp_path, "may")):
        assert known.of == {"r1": old, "r2": new, "r3": new}
        assert [known.attempts([row]) for row in ("r1", "r2", "r3", "r4")] == [1, 2, 1, 0]
        assert known.attempts(["r4", "r2"]) == 2
    assert not SentBatches(tmp_path, "june").of
    first.give_up(new)
    first.give_up(new)
    for known in (first, SentBatches(tmp_path, "may")):
        assert known.void == {"22"} and known.of == {"r1": old, "r2": new, "r3": new}
        assert known.attempts(["r2"]) == 2
    (path,) = (tmp_path / "bulk").iterdir()
    assert path.read_bytes().count(b"\n") == 3


def test_a_batch_that_could_not_be_made_durable_is_not_remembered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is one given up whose line was not written: its request could be sent, and its rows be paid by another one
    later."""
    batches = SentBatches(tmp_path, "may")
    sent = Batch("ann", 0, "11", ("r1",))
    batches.add([sent])

    def full(handle: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    for act in (lambda: batches.add([Batch("ann", 1, "22", ("r1", "r2"))]), lambda: batches.give_up(sent)):
        with pytest.raises(CommandFailed, match="free space"):
            act()
    assert batches.of == {"r1": sent} and not batches.void
    assert batches.attempts(["r1"]) == 1
