"""The keys that one run of a payment file signs with: each read from the wallet once, and why there is none
remembered."""

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from cli.wallet import Wallet


class RunKeys:
    """The keys of the accounts of one run. Nothing is read before it is asked for."""

    def __init__(self, wallet: Wallet) -> None:
        self._wallet = wallet
        self._found: dict[str, Ed25519PrivateKey | LocalMisuse] = {}

    def key(self, account: str) -> Ed25519PrivateKey:
        """The key of an account. Raises `LocalMisuse` when the wallet has none that can be used."""
        found = self._look(account)
        if isinstance(found, LocalMisuse):
            raise found
        return found

    def why_none(self, account: str) -> str:
        """Why there is no key of this account that can be used; empty when there is one."""
        found = self._look(account)
        return str(found) if isinstance(found, LocalMisuse) else ""

    def forget(self) -> None:
        """Read them all again: keys are made when accounts are opened."""
        self._found.clear()

    def _look(self, account: str) -> Ed25519PrivateKey | LocalMisuse:
        if account not in self._found:
            try:
                self._found[account] = self._wallet.key(account)
            except LocalMisuse as error:
                self._found[account] = error
        return self._found[account]
