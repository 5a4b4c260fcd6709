"""Words that name nodes in a scenario.

    node-2              the node of that number (from 0)
    all                 every node
    majority, minority  the first n // 2 + 1 nodes; the others
    half-1, half-2      the first n // 2 nodes; the others
    third-1 .. third-3  every third node
    owner-of:NAME       the node that makes the account's next link, at that moment
    standby-1-of:NAME   the next one in that slot's group (standby-2-of, ...)
    group-of:NAME       all of that group; outside-of:NAME: the members that are not in it
    members, spares     the members of the newest view, at that moment; the nodes that were in none at the start
    a side's name       what [sides] says
    rest                (for one of [sides]) the nodes that no other side names

With spares, `all` and the words that divide the nodes mean the nodes of the first view. Which nodes a side holds is
settled when it is first used and stays so: the side `cut-off` of an owner is still that node after the next link, when
another node is the owner.
"""

import re
from collections.abc import Callable, Collection, Mapping
from typing import Final

from chain.errors import LocalMisuse

FIXED: Final = ("all", "majority", "minority", "half-1", "half-2", "third-1", "third-2", "third-3", "members", "spares")
_OF: Final = re.compile(r"(owner|standby-([1-9][0-9]?)|group|outside)-of:(.+)")
_NODE: Final = re.compile(r"node-(0|[1-9][0-9]{0,3})")
REST: Final = "rest"


def check_side(where: str, side: str, words: tuple[str, ...]) -> None:
    """Raise `LocalMisuse` when the name of a side is a word that names other nodes."""
    known = side in (*FIXED, REST) or _NODE.fullmatch(side) or _OF.fullmatch(side)
    if known and words != (side,):
        raise LocalMisuse(f"{where}: {side} cannot name {', '.join(words)}: it names nodes already; take another name")


def check_word(
    where: str, word: str, nodes: int, sides: Collection[str], accounts: Collection[str], spares: int = 0
) -> None:
    """Raise `LocalMisuse`, which lists what is allowed, unless the word can name nodes. `nodes`: the spares among
    them."""
    if word == "spares" and not spares:
        raise LocalMisuse(f"{where}: there are no spares; `spares = 1`, above all tables, makes one")
    if word in FIXED or word in sides:
        return
    if match := _NODE.fullmatch(word):
        if int(match[1]) < nodes:
            return
        some = f"{nodes - spares} nodes" + (f" and spares = {spares}" if spares else "")
        hint = "" if spares else " (`spares` adds nodes that are no members)"
        raise LocalMisuse(f"{where}: {word} does not exist: with {some} they are node-0 to node-{nodes - 1}{hint}")
    if match := _OF.fullmatch(word):
        if match[3] in accounts:
            return
        raise LocalMisuse(f"{where}: {word}: the account must be one of {', '.join(sorted(accounts))}")
    named = ", ".join([*FIXED, *sides])
    raise LocalMisuse(
        f"{where}: {word!r} names no nodes; it may be node-0 to node-{nodes - 1}, {named}, owner-of:ACCOUNT, "
        "standby-1-of:ACCOUNT, group-of:ACCOUNT or outside-of:ACCOUNT"
    )


class Roles:
    """What words mean in one run. `group_of` tells the group of an account's next slot, owner first, at this moment;
    `members` who is a member then (by default all nodes of the first view, for ever)."""

    def __init__(
        self,
        nodes: int,
        sides: Mapping[str, tuple[str, ...]],
        group_of: Callable[[str], tuple[int, ...]],
        spares: int = 0,
        members: Callable[[], tuple[int, ...]] | None = None,
    ) -> None:
        self._nodes = nodes
        self._spares = spares
        self._members = members or (lambda: tuple(range(nodes)))
        self._words = dict(sides)
        self._group_of = group_of
        self.sides: dict[str, tuple[int, ...]] = {}

    def settle(self) -> None:
        """Settle every side that is not settled yet."""
        for side in self._words:
            self._side(side)

    def nodes_of(self, words: Collection[str]) -> tuple[int, ...]:
        """The nodes that these words name, ascending, each once."""
        return tuple(sorted({node for word in words for node in self.in_order(word)}))

    def in_order(self, word: str) -> tuple[int, ...]:
        """The nodes of one word; those of a group in the order of their ranks."""
        return self._side(word) if word in self._words else self._named(word)

    def _side(self, side: str) -> tuple[int, ...]:
        if side not in self.sides:
            named: set[int] = set()
            for word in self._words[side]:
                if word == REST:
                    others = {node for other in self._words if other != side for node in self._side(other)}
                    named |= set(range(self._nodes)) - others
                else:
                    named |= set(self._named(word))
            self.sides[side] = tuple(sorted(named))
        return self.sides[side]

    def _named(self, word: str) -> tuple[int, ...]:
        everybody = tuple(range(self._nodes))
        half, most = self._nodes // 2, self._nodes // 2 + 1
        fixed = {
            "all": everybody,
            "majority": everybody[:most],
            "minority": everybody[most:],
            "half-1": everybody[:half],
            "half-2": everybody[half:],
            "third-1": everybody[0::3],
            "third-2": everybody[1::3],
            "third-3": everybody[2::3],
        }
        if word in fixed:
            return fixed[word]
        if word == "members":
            return self._members()
        if word == "spares":
            return tuple(range(self._nodes, self._nodes + self._spares))
        if match := _NODE.fullmatch(word):
            return (int(match[1]),)
        match = _OF.fullmatch(word)
        assert match is not None, word
        group = self._group_of(match[3])
        if match[1] == "outside":
            return tuple(node for node in self._members() if node not in group)
        if match[1] == "group":
            return group
        rank = int(match[2] or 0)
        return group[rank : rank + 1]
