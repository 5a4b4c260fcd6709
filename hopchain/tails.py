"""Where an account's next link is made, as far as a client can know (design sections 1 and 4).

The hash of an account's last link, its tail hash, is a key among the ids of the nodes, and the node that is closest to
it makes the next link. A request that is handed to that node passes no other one on its way there and back. What a
client knows may be wrong: another client has paid from the account since, or the closest node of the network is none
that this client knows. Then the request takes the hop that it would have taken from any other node.
"""

from typing import Final

from hopchain.wire import AT_ONCE
from routing.keyspace import ID_BYTES, Key, route_key

MAX_ACCOUNTS: Final = 10_000  # remembered by one client: some 2 MB


class Tails:
    """The newest link that a client has heard of, of each account. The account that it heard of least lately goes
    first."""

    def __init__(self, limit: int = MAX_ACCOUNTS) -> None:
        self._limit = limit
        self._known: dict[str, tuple[int, Key | None]] = {}

    def saw(self, account: str, height: int, tail: bytes) -> None:
        """Link `height` of `account` exists, and its hash is `tail`."""
        known = self._known.pop(account, None)
        if len(self._known) >= self._limit:
            del self._known[next(iter(self._known))]
        if known is None or known[0] < height:
            known = (height, route_key(tail) if len(tail) >= ID_BYTES else None)
        self._known[account] = known

    def doubt(self, account: str) -> None:
        """A request of `account` has got no outcome, perhaps because the node that it went to is cut off from the
        others. The next ones go elsewhere, until a newer link is heard of."""
        known = self._known.get(account)
        if known is not None:
            self._known[account] = (known[0], None)

    def height(self, account: str) -> int:
        """Of the newest link of `account` that was heard of; AT_ONCE when none was. The first link is 0: who was told
        that an account is open asks for it."""
        return self._known.get(account, (AT_ONCE, None))[0]

    def key(self, account: str) -> Key | None:
        """The node closest to this makes the next link of `account`; None when nothing is known, or it is in doubt."""
        return self._known.get(account, (AT_ONCE, None))[1]
