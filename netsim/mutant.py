"""A mutant: a rule of the nodes switched off, as an edit of the real code (netsim.mutants)."""

from typing import Final

import msgspec

_ABOUT_VIEWS: Final = ("R1", "R5", "R6", "R7", "R8", "R9")


class Edit(msgspec.Struct, frozen=True):
    """In `target` ("module:function" or "module:Class.method"), `old` becomes `new`."""

    target: str
    old: str
    new: str


class Mutant(msgspec.Struct, frozen=True):
    """A rule switched off. `rule`: its number in the design, or what kind of plain fault it is. `changing`: it can only
    be seen where the members change. `scenario`: the one that ships and shows it, when drawn seeds hardly ever do."""

    name: str
    rule: str
    what: str
    edits: tuple[Edit, ...]
    changing: bool = False
    scenario: str = ""


def mutant(
    name: str, rule: str, what: str, *edits: tuple[str, str, str], changing: bool = False, scenario: str = ""
) -> Mutant:
    """A row of a table of mutants."""
    return Mutant(name, rule, what, tuple(Edit(*edit) for edit in edits), changing or rule in _ABOUT_VIEWS, scenario)
