"""Accounts that this node has met lately: the key that signs for each and the asset that it holds, which never change,
and the last link that it knew.

A turn names its rows before it has any. Whoever is familiar with the account of a client's request knows by then
whether the request is signed, and whether this very node makes the link that it waits for: so the rows of that link are
loaded with those that admit the request, and one turn does both. A head from here is a guess and nothing more: what is
done with the request is judged by the rows. That an account is here, and in which asset, is no guess: accounts are not
closed (ADR 7). So whom a link pays is looked up once, and not for each link.
"""

from collections.abc import Mapping
from itertools import islice
from typing import Final

import msgspec

from chain.link import Link
from chain.rows import AccountHead

MAX_ACCOUNTS: Final = 20_000  # some 10 MB
MAX_ASSETS: Final = 100_000  # some 15 MB


class Familiar:
    """The heads of at most `limit` accounts; the one that was met least lately goes first."""

    def __init__(self, limit: int = MAX_ACCOUNTS) -> None:
        self._limit = limit
        self._heads: dict[str, AccountHead] = {}
        self.assets: dict[str, str] = {}  # by account name: those that are here for certain

    def meet(self, head: AccountHead) -> None:
        """Remember an account as it is now."""
        self._heads.pop(head.name, None)
        if len(self._heads) >= self._limit:
            del self._heads[next(iter(self._heads))]
        self._heads[head.name] = head
        self.assets[head.name] = head.asset

    def expect(self, link: Link) -> None:
        """A decided link has arrived: what comes behind it is for the node that makes the one after it."""
        known = self._heads.get(link.account)
        if known is not None and known.height < link.height:
            self._heads[link.account] = msgspec.structs.replace(known, height=link.height, tip=link.hash)

    def head(self, account: str) -> AccountHead | None:
        """As it was met last."""
        return self._heads.get(account)

    def strangers(self, names: frozenset[str]) -> frozenset[str]:
        """Those of whom must be looked up whether they are here."""
        return names.difference(self.assets)  # not `- keys()`, which goes through all that are known

    def note(self, assets: Mapping[str, str]) -> None:
        """These accounts are here, with what they hold."""
        self.assets.update(assets)

    def tidy(self) -> None:
        """Forget the oldest of too many, a quarter at once; between two turns, because a turn relies on whom it did not
        look up."""
        if len(self.assets) > MAX_ASSETS:
            self.assets = dict(islice(self.assets.items(), len(self.assets) - 3 * MAX_ASSETS // 4, None))
