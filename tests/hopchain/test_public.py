"""`from hopchain import ...` gives everything that a public method takes, gives or raises, with its types."""

import ast
import inspect
import re
import tomllib
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

import hopchain
from chain.errors import HopchainError

ROOT = Path(__file__).parents[2]
TYPED = ("chain", "hopchain", "routing")


def parts(hint: Any) -> Iterator[type]:
    """The project's own classes in a type."""
    for part in get_args(hint):
        yield from parts(part)
    if isinstance(hint, type) and get_origin(hint) is None and hint.__module__.split(".")[0] in TYPED:
        yield hint


def reached() -> Iterator[type]:
    """The classes in the signatures of all that is exported, and in the fields of what they name."""
    todo: list[type] = [thing for name in hopchain.__all__ if isinstance(thing := getattr(hopchain, name), type)]
    functions = [thing for name in hopchain.__all__ if inspect.isfunction(thing := getattr(hopchain, name))]
    seen: set[type] = set()
    for function in functions:
        todo += [part for hint in get_type_hints(function).values() for part in parts(hint)]
    while todo:
        kind = todo.pop()
        if kind in seen:
            continue
        seen.add(kind)
        yield kind
        if issubclass(kind, msgspec.Struct):
            todo += [part for hint in get_type_hints(kind).values() for part in parts(hint)]
        for name, method in vars(kind).items():
            if name == "__init__" or not name.startswith("_"):
                plain = method.fget if isinstance(method, property) else method
                if isinstance(plain, types.FunctionType):
                    todo += [part for hint in get_type_hints(plain).values() for part in parts(hint)]


def test_what_a_caller_gives_or_gets_is_exported() -> None:
    exported = {getattr(hopchain, name) for name in hopchain.__all__}
    assert sorted(kind.__qualname__ for kind in set(reached()) - exported) == []


def test_what_its_docstrings_name_is_exported() -> None:
    """Or is a module of `hopchain`, which says more about it."""
    exported = [getattr(hopchain, name) for name in hopchain.__all__]
    kinds = {*reached(), *(thing for thing in exported if isinstance(thing, type))}
    documented = [*exported, *(each for kind in kinds for name, each in vars(kind).items() if not name.startswith("_"))]
    named = re.compile(r"\b(chain|wire|hopchain)\.(\w+)")
    for text in filter(None, (inspect.getdoc(each) for each in documented)):
        for package, name in named.findall(text):
            assert package == "hopchain", f"callers do not import {package}.{name}: {text}"
            assert name in hopchain.__all__ or (ROOT / "hopchain" / f"{name}.py").is_file(), f"{name}: {text}"


def test_every_name_that_is_imported_is_exported() -> None:
    tree = ast.parse((ROOT / "hopchain" / "__init__.py").read_text())
    imported = [a.name for node in tree.body if isinstance(node, ast.ImportFrom) for a in node.names]
    assert sorted(imported) == sorted(hopchain.__all__)


def test_every_error_of_the_client_is_exported() -> None:
    def below(kind: type[HopchainError]) -> Iterator[type[HopchainError]]:
        for each in kind.__subclasses__():
            yield each
            yield from below(each)

    public = {kind for kind in below(hopchain.ClientError) if kind.__module__.startswith("hopchain.")}
    missing = sorted(kind.__name__ for kind in public if kind.__name__ not in hopchain.__all__)
    assert missing == []


def test_the_packages_that_its_types_are_of_say_that_they_are_typed() -> None:
    """Without the file a caller's mypy takes `Posting(...)` for Any."""
    data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    for package in TYPED:
        assert (ROOT / package / "py.typed").is_file() and "py.typed" in data[package]
    used = {kind.__module__.split(".")[0] for kind in reached()}
    assert used == {"chain", "hopchain"}, "and routing, for what a NodeId is"
