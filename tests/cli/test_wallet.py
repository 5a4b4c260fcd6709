"""The wallet: keys are secret files, never overwritten; the journal knows whose request it was."""

import errno
import fcntl
import os
import stat
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.serialization import BestAvailableEncryption, Encoding, PrivateFormat

from chain.errors import LocalMisuse
from chain.request import NetworkId, RequestId
from cli.durable import one_at_a_time
from cli.output import CommandFailed, Exit
from cli.wallet import Wallet
from tests.cli.conftest import World
from tests.cli.test_remembered import no_space
from tests.hopchain.fake_node import key_number

NETWORK = NetworkId(b"\x5a" * 32)


@pytest.fixture
def wallet(home: Path) -> Wallet:
    return Wallet(NETWORK)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def test_keys_are_in_the_networks_directory_and_secret(wallet: Wallet, home: Path) -> None:
    os.umask(previous := os.umask(0))
    try:
        os.umask(0)  # the worst case: nothing is taken away
        wallet.add("alice", key_number(1))
        wallet.create(["bob", "carol"])
        wallet.record([(RequestId(bytes(32)), "alice", "transfer")])
    finally:
        os.umask(previous)
    place = home / "wallet" / ("5a" * 8)
    assert wallet.path("alice") == place / "alice.key"
    for name in ("alice", "bob", "carol"):
        assert mode(place / f"{name}.key") == 0o600
    assert mode(place / "journal") == 0o600
    for directory in (place, place.parent, home):
        assert mode(directory) == 0o700
    assert wallet.names() == ["alice", "bob", "carol"]


def test_a_key_comes_back_as_it_was(wallet: Wallet) -> None:
    wallet.add("alice", key_number(1))
    assert wallet.key("alice").private_bytes_raw() == key_number(1).private_bytes_raw()
    assert wallet.path("alice").read_text().startswith("-----BEGIN PRIVATE KEY-----")


def test_a_key_is_never_overwritten(wallet: Wallet) -> None:
    wallet.add("alice", key_number(1))
    with pytest.raises(LocalMisuse, match="never overwritten"):
        wallet.add("alice", key_number(2))
    wallet.create(["alice", "bob"])
    assert wallet.key("alice").private_bytes_raw() == key_number(1).private_bytes_raw()
    assert wallet.key("bob").private_bytes_raw() != key_number(1).private_bytes_raw()


def test_the_command_that_hides_a_key_can_be_pasted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOPCHAIN_HOME", str(tmp_path / "my home"))
    wallet = Wallet(NETWORK)
    wallet.add("alice", key_number(1))
    path = wallet.path("alice")
    path.chmod(0o644)
    with pytest.raises(LocalMisuse) as refused:
        wallet.key("alice")
    assert str(refused.value).endswith(f"Run: chmod 600 '{path}'")


@pytest.mark.parametrize("bits", [0o640, 0o604, 0o660, 0o644])
def test_a_key_that_others_can_read_is_refused(wallet: Wallet, bits: int) -> None:
    wallet.add("alice", key_number(1))
    wallet.path("alice").chmod(bits)
    with pytest.raises(LocalMisuse, match=f"mode 0{bits:o}.*chmod 600"):
        wallet.key("alice")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a key",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
        key_number(1).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"password")),
    ],
)
def test_a_damaged_key_is_named(wallet: Wallet, content: bytes) -> None:
    wallet.add("alice", key_number(1))
    wallet.path("alice").write_bytes(content)
    with pytest.raises(LocalMisuse, match=r"alice\.key does not hold an Ed25519 private key"):
        wallet.key("alice")


def test_a_missing_key_says_where_it_should_be(wallet: Wallet) -> None:
    assert not wallet.has("alice")
    assert wallet.names() == []
    with pytest.raises(LocalMisuse, match=r"no key for alice: .*alice\.key"):
        wallet.key("alice")


@pytest.mark.parametrize("name", ["../alice", "a/b", "", "Alice", ".hidden"])
def test_what_is_no_name_is_no_file(wallet: Wallet, name: str) -> None:
    for use in (wallet.has, wallet.key, wallet.path):
        with pytest.raises(LocalMisuse, match="not an account name"):
            use(name)


def test_the_journal_knows_the_account_of_every_request(wallet: Wallet) -> None:
    first, second = RequestId(b"\x01" * 32), RequestId(b"\x02" * 32)
    assert wallet.sender_of(first) is None
    wallet.record([(first, "alice", "transfer")])
    wallet.record([(second, "bob:1", "open")])
    wallet.record([])
    assert wallet.sender_of(first) == "alice"
    assert wallet.sender_of(second) == "bob:1"
    assert wallet.sender_of(b"\x03" * 32) is None
    lines = (wallet.directory / "journal").read_text().splitlines()
    assert lines == [f"{'01' * 32} alice transfer", f"{'02' * 32} bob:1 open"]


def test_a_line_that_was_cut_off_does_not_spoil_the_next(wallet: Wallet) -> None:
    first, second, third = (RequestId(bytes([n]) * 32) for n in (1, 2, 3))
    wallet.record([(first, "alice", "transfer")])
    journal = wallet.directory / "journal"
    with journal.open("a") as cut:
        cut.write(f"{second.hex()} bo")
    wallet.record([(third, "carol", "open")])
    assert wallet.recorded({first.hex(), third.hex()}) == {first.hex(), third.hex()}
    assert [wallet.sender_of(request) for request in (first, second, third)] == ["alice", None, "carol"]
    journal.write_text(second.hex())
    assert wallet.sender_of(second) is None


def test_a_line_without_its_account_counts_as_none_and_is_written_again(wallet: Wallet) -> None:
    first, second = RequestId(b"\x01" * 32), RequestId(b"\x02" * 32)
    wallet.record([(first, "alice", "pay")])
    journal = wallet.directory / "journal"
    with journal.open("a") as cut:
        cut.write(f"{second.hex()} bo")
    assert wallet.recorded({first.hex(), second.hex()}) == {first.hex()} and wallet.all_recorded() == {first}
    wallet.record_new([(first, "alice", "pay"), (second, "bob", "pay")])
    assert wallet.sender_of(second) == "bob" and wallet.all_recorded() == {first, second}


def test_what_the_journal_knows_is_not_written_again(wallet: Wallet) -> None:
    lines = [(RequestId(bytes([n]) * 32), "alice", "pay") for n in range(1, 4)]
    wallet.record_new(lines[:2])
    before = (wallet.directory / "journal").read_bytes()
    wallet.record_new(lines[:2])
    assert (wallet.directory / "journal").read_bytes() == before
    wallet.record_new(lines)
    assert (wallet.directory / "journal").read_bytes() == before + f"{'03' * 32} alice pay\n".encode()


def test_key_files_that_a_kill_left_go_when_keys_are_stored_next(wallet: Wallet) -> None:
    wallet.add("alice", key_number(1))
    (wallet.directory / ".new-unfinished").write_text("half a k")
    os.link(wallet.path("alice"), wallet.directory / ".new-linked")
    assert wallet.names() == ["alice"]
    wallet.create(["alice"])
    assert len(list(wallet.directory.iterdir())) == 3, "nothing was stored"
    wallet.add("bob", key_number(2))
    assert sorted(path.name for path in wallet.directory.iterdir()) == ["alice.key", "bob.key"]
    assert wallet.key("alice").private_bytes_raw() == key_number(1).private_bytes_raw()


def test_keys_that_another_process_is_storing_are_waited_for(wallet: Wallet) -> None:
    wallet.make_directory()
    other = os.open(wallet.directory, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    theirs = wallet.directory / ".new-theirs"
    theirs.write_text("of a process that lives")
    storing = threading.Thread(target=wallet.add, args=("alice", key_number(1)), daemon=True)
    storing.start()
    storing.join(0.05)
    assert storing.is_alive() and theirs.exists() and not wallet.names()
    theirs.rename(wallet.path("bob"))
    os.close(other)
    storing.join(10)
    assert wallet.names() == ["alice", "bob"]


def test_the_name_of_a_new_journal_is_durable_too(wallet: Wallet, monkeypatch: pytest.MonkeyPatch) -> None:
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    wallet.record([(RequestId(bytes(32)), "alice", "transfer")])
    assert {wallet.directory.stat().st_ino, (wallet.directory / "journal").stat().st_ino} <= set(synced)


def test_where_nothing_can_be_locked_keys_are_not_stored_and_what_needs_no_lock_goes_on(
    wallet: Wallet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_locks(handle: int, operation: int) -> None:
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(fcntl, "flock", no_locks)
    with pytest.raises(CommandFailed, match=r"could not be written .Operation not supported"):
        wallet.add("alice", key_number(1))
    assert wallet.names() == []
    with one_at_a_time(tmp_path, must_lock=False):
        pass


def test_a_full_disk_is_told(wallet: Wallet, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(
        CommandFailed, match=r"journal could not be written .No space left on device.: free space"
    ) as told:
        wallet.record([(RequestId(bytes(32)), "alice", "transfer")])
    assert (told.value.exit_code, told.value.code) == (Exit.DISK, "disk")
    with pytest.raises(CommandFailed, match="could not be written"):
        wallet.add("alice", key_number(1))
    assert [path.name for path in wallet.directory.iterdir()] == ["journal"], "no half key, and nothing left over"


def test_many_keys_are_on_disk_before_one_has_its_name(wallet: Wallet, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    monkeypatch.setattr(os, "sync", lambda: seen.append(wallet.names()))
    wallet.create(["alice", "bob"])
    assert seen == [[]]
    assert wallet.names() == ["alice", "bob"] and len(list(wallet.directory.iterdir())) == 2


def test_keys_that_another_process_stores_at_the_same_time_are_used(
    wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    wallet.add("alice", key_number(1))
    monkeypatch.setattr(Wallet, "has", lambda self, account: False)  # it looked before the other one stored
    wallet.create(["alice"])
    wallet.create(["alice", "bob"])
    assert wallet.key("alice").private_bytes_raw() == key_number(1).private_bytes_raw()
    wallet.key("bob")
    wallet.discard("bob")
    wallet.discard("bob")


def test_a_key_that_a_killed_process_named_is_durable_before_its_account_is_opened(
    wallet: Wallet, monkeypatch: pytest.MonkeyPatch
) -> None:
    wallet.add("alice", key_number(1))
    synced: list[int] = []
    monkeypatch.setattr(os, "fsync", lambda handle: synced.append(os.fstat(handle).st_ino))
    wallet.create(["alice"])
    assert synced == [wallet.directory.stat().st_ino, wallet.directory.parent.stat().st_ino]


# --- a wallet that is damaged --------------------------------------------------------------------------------------


def test_a_key_that_is_no_file_is_told(wallet: Wallet) -> None:
    wallet.make_directory()
    wallet.path("alice").mkdir()
    os.mkfifo(wallet.path("bob"), 0o600)
    wallet.path("carol").symlink_to("carol.key")
    for account, what in (("alice", "is not a file"), ("bob", "is not a file"), ("carol", "cannot be read")):
        with pytest.raises(LocalMisuse, match=rf"{account}\.key {what}.*from a copy"):
            wallet.key(account)


def test_a_journal_with_bytes_that_are_no_text_is_refused_where_all_of_it_counts(wallet: Wallet) -> None:
    first, second = RequestId(b"\x01" * 32), RequestId(b"\x02" * 32)
    wallet.record([(first, "alice", "transfer"), (second, "bob", "pay")])
    journal = wallet.directory / "journal"
    whole = journal.read_bytes().splitlines(keepends=True)
    journal.write_bytes(whole[0] + b"\xff\xfe\n" + whole[1])
    assert (wallet.sender_of(first), wallet.sender_of(second)) == ("alice", "bob"), "its own line is whole"
    for ask in (
        wallet.all_recorded,
        lambda: wallet.recorded({second.hex()}),
        lambda: wallet.record_new([(second, "bob", "pay")]),
    ):
        with pytest.raises(LocalMisuse, match=r"journal, line 2, is damaged: it is not text.*from a copy"):
            ask()
    journal.write_bytes(whole[0].replace(b"alice", b"al\xffce"))
    assert wallet.sender_of(first) is None


def test_a_journal_that_is_no_file_is_told(wallet: Wallet) -> None:
    (wallet.directory / "journal").mkdir(parents=True)
    for ask in (wallet.all_recorded, lambda: wallet.recorded({"00" * 32}), lambda: wallet.sender_of(bytes(32))):
        with pytest.raises(LocalMisuse, match=r"journal cannot be read \(Is a directory\)"):
            ask()
    with pytest.raises(CommandFailed, match="journal could not be written"):
        wallet.record([(RequestId(bytes(32)), "alice", "transfer")])


@pytest.mark.parametrize("damage", [b"\xff\n", None], ids=["bytes", "directory"])
def test_commands_say_that_the_journal_is_damaged(world: World, tmp_path: Path, damage: bytes | None) -> None:
    file = tmp_path / "may.csv"
    file.write_text("payer,payee,amount\nmint,bob,1\n")
    world.run("account", "open", "bob")
    journal = world.wallet.directory / "journal"
    journal.unlink()
    if damage is None:
        journal.mkdir()
    else:
        journal.write_bytes(damage)
    columns = ("--from-column", "payer", "--to-column", "payee", "--amount-column", "amount")
    for how in ((), ("--bulk",)):
        refused = world.json("pay", str(file), *columns, *how, code=2)
        assert refused["error"] == "usage" and str(journal) in refused["message"]
        assert not file.with_suffix(".result.csv").exists(), "nothing is said of rows that may have been sent"
    for command in ("outcome", "cancel"):
        refused = world.json(command, "00" * 32, code=1 if damage and command == "outcome" else 2)
        assert refused["error"] == ("not_found" if damage and command == "outcome" else "usage")
    assert world.ledger.accounts["bob"].incoming == 0
