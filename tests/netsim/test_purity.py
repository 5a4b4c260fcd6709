"""Nothing in a simulated run reads a real clock, real randomness or the real network: all of them raise, and it
passes."""

import os
import random
import secrets
import socket
import time
import types
from collections.abc import Callable

import pytest

from netsim.draw import draw_plan
from netsim.run import run_plan
from tests.netsim.seeds import MIXED, run_once

CLOCKS = ("time", "time_ns", "monotonic", "monotonic_ns", "perf_counter", "perf_counter_ns", "sleep", "process_time")
SECRETS = ("token_bytes", "token_hex", "token_urlsafe", "randbelow", "choice")


def module_functions() -> list[str]:
    """The functions of `random` that use its hidden generator."""
    return [
        name for name in random.__all__ if isinstance(vars(random)[name], types.MethodType | types.BuiltinMethodType)
    ]


def forbidden(name: str) -> Callable[..., object]:
    def raises(*args: object, **kwargs: object) -> object:
        raise AssertionError(f"{name} was called in a simulated run")

    return raises


@pytest.mark.parametrize("seed", MIXED)
def test_real_clocks_randomness_and_network_raise(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = run_once(seed)  # also imports all that is imported late
    with monkeypatch.context() as patched:
        for name in CLOCKS:
            patched.setattr(time, name, forbidden(f"time.{name}"))
        for name in module_functions():
            patched.setattr(random, name, forbidden(f"random.{name}"))
        for name in SECRETS:
            patched.setattr(secrets, name, forbidden(f"secrets.{name}"))
        patched.setattr(os, "urandom", forbidden("os.urandom"))
        patched.setattr(socket, "socket", forbidden("socket.socket"))
        result = run_plan(draw_plan(seed))
    assert result.ok, result.problem
    assert result == expected


def test_the_functions_that_must_raise_are_found() -> None:
    assert {"random", "randint", "choice", "shuffle", "seed", "randbytes"} <= set(module_functions())
