"""The wallet: one file per account key, and a journal of the requests that were sent.

    HOPCHAIN_HOME/wallet/<first 16 hex digits of the network id>/<account>.key    Ed25519, PKCS #8 PEM, mode 0600
    HOPCHAIN_HOME/wallet/<...>/journal                                           one line a request: id, account, kind

Keys are on disk before the account that they own is opened: an account without its key is money lost. The journal is
append-only and written before a request leaves, so that `outcome` and `cancel` know the account of every request that
may have been sent. A line that was cut off while it was written is of a request that did not leave.
"""

import os
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from chain.names import is_name
from chain.request import NetworkId, RequestId
from cli.durable import append, make_durable, on_disk, one_at_a_time
from cli.home import home
from hopchain import load_key
from hopchain.durable import sync_directory
from hopchain.signing import private_key_pem

_SUFFIX: Final = ".key"
_JOURNAL: Final = "journal"
_UNNAMED: Final = ".new-"  # begins the file of a key that is being stored
_ID: Final = re.compile("[0-9a-f]{64}")


class Wallet:
    """The keys of one network that this user holds."""

    def __init__(self, network: NetworkId) -> None:
        self.directory = home() / "wallet" / network.hex()[:16]

    def path(self, account: str) -> Path:
        """Where the key of `account` is, or would be."""
        if not is_name(account):
            raise LocalMisuse(f"{account[:80]!r} is not an account name, so it has no key")
        return self.directory / f"{account}{_SUFFIX}"

    def has(self, account: str) -> bool:
        """True when the key of `account` is here."""
        return self.path(account).exists()

    def names(self) -> list[str]:
        """The accounts whose keys are here, sorted."""
        if not self.directory.exists():
            return []
        return sorted(p.name.removesuffix(_SUFFIX) for p in self.directory.iterdir() if p.suffix == _SUFFIX)

    def key(self, account: str) -> Ed25519PrivateKey:
        """The key of `account`; `LocalMisuse` when it is not here, open to others or damaged."""
        path = self.path(account)
        try:
            return load_key(path)
        except LocalMisuse as error:
            if not isinstance(error.__cause__, FileNotFoundError):
                raise
            raise LocalMisuse(
                f"the wallet has no key for {account}: {path} does not exist. Only this key can spend from the account: copy the "
                "key file there, or open an account of your own"
            ) from None

    def add(self, account: str, key: Ed25519PrivateKey) -> None:
        """Store a key durably; `LocalMisuse` when there is one already."""
        if account not in self._store({account: key}):
            raise LocalMisuse(f"{self.path(account)} exists already: a key is never overwritten")

    def create(self, accounts: Sequence[str]) -> None:
        """New keys for those of `accounts` that have none; the keys of all are durable before this returns, also one
        that a killed process left. Where another process stores one at the same time, one of the two keys is the
        account's."""
        missing = [a for a in accounts if not self.has(a)]
        if missing:
            self._store({account: Ed25519PrivateKey.generate() for account in missing})
        elif accounts:
            with on_disk(self.directory):
                self._sync()

    def discard(self, account: str) -> None:
        """Remove the key of an account that is known to have another one: the key of an account that is open is never
        removed."""
        self.path(account).unlink(missing_ok=True)  # another process may have found the same

    def record(self, requests: Iterable[tuple[RequestId, str, str]]) -> None:
        """Append (request id, account, kind) to the journal, durably."""
        lines = "".join(f"{request_id.hex()} {account} {kind}\n" for request_id, account, kind in requests)
        if not lines:
            return
        self.make_directory()

        def made(handle: int) -> tuple[int, bytes]:
            size = os.fstat(handle).st_size
            cut_off = size > 0 and os.pread(handle, 1, size - 1) != b"\n"
            return size, b"\n" * cut_off + lines.encode()

        append(self.directory / _JOURNAL, made)

    def record_new(self, requests: Iterable[tuple[RequestId, str, str]]) -> None:
        """The same for those that the journal does not have yet: a run that is made again adds nothing to it. Those
        that it has are durable too."""
        asked = list(requests)
        known = self.recorded({request_id.hex() for request_id, _, _ in asked})
        if known:
            make_durable(self.directory / _JOURNAL)
        self.record(line for line in asked if line[0].hex() not in known)

    def sender_of(self, request_id: bytes) -> str | None:
        """The account that sent a request, when it was sent from here. Lines of other requests may be damaged."""
        wanted = request_id.hex().encode()
        with self._journal_lines() as lines:
            found = (line.decode(errors="replace").split() for line in lines if line.startswith(wanted))
            return next((fields[1] for fields in found if len(fields) == 3 and is_name(fields[1])), None)

    def all_recorded(self) -> frozenset[bytes]:
        """The ids of all requests that were sent from here; a line that was cut is none. `LocalMisuse` when one is
        damaged."""
        with self._journal_lines() as lines:
            return frozenset(bytes.fromhex(one) for one in self._whole(lines) if _ID.fullmatch(one))

    def recorded(self, request_ids: Collection[str]) -> set[str]:
        """Those of the requests (ids in hex) that were sent from here. `LocalMisuse` when a line is damaged."""
        if not request_ids:
            return set()
        with self._journal_lines() as lines:
            return set(request_ids).intersection(self._whole(lines))

    @contextmanager
    def _journal_lines(self) -> Iterator[Iterable[bytes]]:
        """The lines of the journal; none before there is one. `LocalMisuse` when it cannot be read."""
        journal = self.directory / _JOURNAL
        try:
            if not journal.exists():
                yield ()
                return
            with journal.open("rb") as lines:
                yield lines
        except OSError as error:
            raise LocalMisuse(
                f"{journal} cannot be read ({error.strerror}), so what was sent before is not known: restore it from a copy"
            ) from None

    def _whole(self, lines: Iterable[bytes]) -> Iterator[str]:
        """The ids of the journal's lines that have all their fields."""
        for number, line in enumerate(lines, start=1):
            try:
                fields = line.decode().split()
            except UnicodeDecodeError:
                raise LocalMisuse(
                    f"{self.directory / _JOURNAL}, line {number}, is damaged: it is not text, and may be of a payment that was "
                    "sent. Restore the journal from a copy; without one, take the line out, and look with `chain` at what the "
                    "accounts paid before you pay again"
                ) from None
            if len(fields) == 3:
                yield fields[0]

    def make_directory(self) -> None:
        """Make the wallet's directory, for this user only."""
        with on_disk(self.directory):
            for place in (self.directory.parent.parent, self.directory.parent, self.directory):
                place.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _store(self, keys: Mapping[str, Ed25519PrivateKey]) -> set[str]:
        """Store keys durably; a key that is there already stays. The accounts whose key is the given one now.

        A key gets its name only when all of it is on disk, so no crash leaves half a key under an account's name. What
        a crash did leave, a file that has no name yet or two, goes when keys are next stored: one process at a time
        stores, so it is nobody's."""
        stored: set[str] = set()
        fresh: dict[str, Path] = {}
        self.make_directory()
        with on_disk(self.directory), one_at_a_time(self.directory, must_lock=True):
            for left in self.directory.glob(f"{_UNNAMED}*"):
                left.unlink()
            try:
                for account, key in keys.items():
                    place = self.path(account)
                    handle, name = tempfile.mkstemp(prefix=_UNNAMED, dir=place.parent)  # mode 0600
                    fresh[account] = Path(name)
                    with os.fdopen(handle, "wb") as file:
                        file.write(private_key_pem(key))
                        file.flush()
                        if len(keys) == 1:
                            os.fsync(handle)
                if len(keys) > 1:
                    os.sync()  # one flush for thousands of small files
                for account, whole in fresh.items():
                    with suppress(FileExistsError):
                        os.link(whole, self.path(account))
                        stored.add(account)
            finally:
                for whole in fresh.values():
                    whole.unlink(missing_ok=True)
            self._sync()
        return stored

    def _sync(self) -> None:
        """Make the names of the keys durable, and that of their directory."""
        sync_directory(self.directory)
        sync_directory(self.directory.parent)
