"""Rules of a node switched off one by one, for tests that show that the checks see it.

An `Edit` replaces text of one function of the code under test. The text must be there exactly once: a mutant that no
longer fits the code fails its test and is brought up to date, it does not pass in silence.
"""

import importlib
import inspect
import sys
import textwrap
from typing import NamedTuple

import pytest


class Edit(NamedTuple):
    """In `target` ("module:function" or "module:Class.method"), `old` becomes `new`."""

    target: str
    old: str
    new: str


def apply_edit(monkeypatch: pytest.MonkeyPatch, edit: Edit) -> None:
    """Put the changed function in the place of the original, also where it was imported by name."""
    module_name, _, path = edit.target.partition(":")
    module = importlib.import_module(module_name)
    *parents, name = path.split(".")
    owner: object = module
    for parent in parents:
        owner = getattr(owner, parent)
    original = inspect.getattr_static(owner, name)
    is_property = isinstance(original, property)
    source = textwrap.dedent(inspect.getsource(original.fget if is_property else original))
    assert source.count(edit.old) == 1, f"{edit.target} does not hold {edit.old!r} once: bring this mutant up to date"
    made: dict[str, object] = {}
    exec(compile(source.replace(edit.old, edit.new), f"<mutant of {edit.target}>", "exec"), vars(module), made)
    monkeypatch.setattr(owner, name, made[name])
    if owner is module:
        for other_name, other in list(sys.modules.items()):
            if other_name.split(".")[0] in ("node", "chain") and vars(other).get(name) is original:
                monkeypatch.setattr(other, name, made[name])
