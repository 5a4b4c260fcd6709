"""Accounts that this node has met lately: the key that signs for each, which never changes, and the last link that it knew.

A turn names its rows before it has any. Whoever is familiar with the account of a client's request knows by then whether the
request is signed, and whether this very node makes the link that it waits for: so the rows of that link are loaded with
those that admit the request, and one turn does both. A head from here is a guess and nothing more: what is done with the
request is judged by the rows.
"""

from typing import Final

import msgspec

from chain.link import Link
from chain.rows import AccountHead

MAX_ACCOUNTS: Final = 20_000  # some 10 MB


class Familiar:
    """The heads of at most `limit` accounts; the one that was met least lately goes first."""

    def __init__(self, limit: int = MAX_ACCOUNTS) -> None:
        self._limit = limit
        self._heads: dict[str, AccountHead] = {}

    def meet(self, head: AccountHead) -> None:
        """Remember an account as it is now."""
        self._heads.pop(head.name, None)
        if len(self._heads) >= self._limit:
            del self._heads[next(iter(self._heads))]
        self._heads[head.name] = head

    def expect(self, link: Link) -> None:
        """A decided link has arrived: what comes behind it is for the node that makes the one after it."""
        known = self._heads.get(link.account)
        if known is not None and known.height < link.height:
            self._heads[link.account] = msgspec.structs.replace(known, height=link.height, tip=link.hash)

    def head(self, account: str) -> AccountHead | None:
        """As it was met last."""
        return self._heads.get(account)
