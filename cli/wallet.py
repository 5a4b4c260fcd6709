"""The wallet: one file per account key, and a journal of the requests that were sent.

    HOPCHAIN_HOME/wallet/<first 16 hex digits of the network id>/<account>.key    Ed25519, PKCS #8 PEM, mode 0600
    HOPCHAIN_HOME/wallet/<...>/journal                                           one line a request: id, account, kind

Keys are on disk before the account that they own is opened: an account without its key is money lost. The journal is
append-only and written before a request leaves, so that `outcome` and `cancel` know the account of every request that
may have been sent.
"""

import os
import stat
from collections.abc import Collection, Iterable, Sequence
from pathlib import Path
from typing import Final

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from chain.names import is_name
from chain.request import NetworkId, RequestId
from cli.home import home

_SUFFIX: Final = ".key"
_JOURNAL: Final = "journal"
_OTHERS: Final = stat.S_IRWXG | stat.S_IRWXO


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
            handle = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            raise LocalMisuse(
                f"the wallet has no key for {account}: {path} does not exist. Only who opened an account can spend "
                f"from it; copy the key file there, or open an account of your own"
            ) from None
        with os.fdopen(handle, "rb") as file:
            mode = stat.S_IMODE(os.fstat(file.fileno()).st_mode)
            if mode & _OTHERS:
                raise LocalMisuse(f"{path} has mode {mode:04o}: others can read this key. Run: chmod 600 {path}")
            raw = file.read()
        try:
            key = serialization.load_pem_private_key(raw, None)
        except ValueError:
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise LocalMisuse(f"{path} does not hold an Ed25519 private key in PEM: restore it from a copy")
        return key

    def add(self, account: str, key: Ed25519PrivateKey) -> None:
        """Store a key durably; `LocalMisuse` when there is one already."""
        self._make_directory()
        self._write(account, key, durable=True)
        _sync(self.directory)

    def create(self, accounts: Sequence[str]) -> None:
        """New keys for those of `accounts` that have none, all durable before this returns."""
        missing = [a for a in accounts if not self.has(a)]
        if not missing:
            return
        self._make_directory()
        for account in missing:
            self._write(account, Ed25519PrivateKey.generate(), durable=len(missing) == 1)
        if len(missing) > 1:
            os.sync()  # one flush for thousands of small files
        _sync(self.directory)

    def discard(self, account: str) -> None:
        """Remove the key of an account that turned out to be somebody else's."""
        self.path(account).unlink()

    def record(self, requests: Iterable[tuple[RequestId, str, str]]) -> None:
        """Append (request id, account, kind) to the journal, durably."""
        lines = "".join(f"{request_id.hex()} {account} {kind}\n" for request_id, account, kind in requests)
        if not lines:
            return
        self._make_directory()
        handle = os.open(self.directory / _JOURNAL, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        with os.fdopen(handle, "wb") as file:
            file.write(lines.encode())
            file.flush()
            os.fsync(file.fileno())

    def sender_of(self, request_id: bytes) -> str | None:
        """The account that sent a request, when it was sent from here."""
        journal = self.directory / _JOURNAL
        if not journal.exists():
            return None
        wanted = request_id.hex()
        with journal.open() as lines:
            return next((line.split()[1] for line in lines if line.startswith(wanted)), None)

    def recorded(self, request_ids: Collection[str]) -> set[str]:
        """Those of the requests (ids in hex) that were sent from here."""
        journal = self.directory / _JOURNAL
        if not request_ids or not journal.exists():
            return set()
        with journal.open() as lines:
            return {line.partition(" ")[0] for line in lines}.intersection(request_ids)

    def _make_directory(self) -> None:
        for place in (self.directory.parent.parent, self.directory.parent, self.directory):
            place.mkdir(mode=0o700, parents=True, exist_ok=True)

    def _write(self, account: str, key: Ed25519PrivateKey, *, durable: bool) -> None:
        path = self.path(account)
        pem = key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )
        try:
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:
            raise LocalMisuse(f"{path} exists already: a key is never overwritten") from None
        with os.fdopen(handle, "wb") as file:
            file.write(pem)
            file.flush()
            if durable:
                os.fsync(file.fileno())


def _sync(directory: Path) -> None:
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
