"""Before a benchmark: open the accounts that are missing, and give money to those that have too little.

Doing it again does nothing, so that a network that runs on can be measured many times with the same accounts.
"""

import hashlib
import heapq
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Final

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.request import MAX_POSTINGS, NetworkId, Posting, opening, sign, transfer
from cli.bench_spec import (
    AGAIN_S,
    LAST_AGAIN_S,
    PROGRESS_S,
    TAILS_FILE,
    News,
    Ports,
    Spec,
    account_key,
    account_name,
    submit_call,
)
from cli.bench_wire import Lines
from cli.output import CommandFailed, Exit
from hopchain import raw_public_key, wire

FUNDS: Final = 10**9  # minor units that an account is given; it pays 1 at a time
HOT_FUNDS: Final = 10**13  # of the account that pays everybody, and of the sources of a pool
LEAST_FUNDS: Final = 10**7  # an account with less is given more
PREPARE_IN_FLIGHT: Final = 512  # openings at once: enough to fill the nodes' turns
PREPARE_TIMEOUT_S: Final = 60.0
TRIES: Final = 10  # of one request that is not started or unknown: three seconds in all


class Preparation:
    """Opens and funds the accounts."""

    def __init__(self, spec: Spec, lines: Lines, ports: Ports) -> None:
        self._spec = spec
        self._lines = lines
        self._ports = ports
        self._network = NetworkId(spec.network)

    def run(self) -> None:
        """Everything. Raises `CommandFailed` when the network does not do it."""
        spec = self._spec
        balances = self._each("looking at accounts", range(spec.accounts), self._ask_balance)
        missing = [number for number in range(spec.accounts) if not isinstance(balances[number], wire.Balance)]
        opened = self._each("opening accounts", missing, self._opening)
        self._check(opened)
        tails = (_tail(opened.get(number, balances[number])) for number in range(spec.accounts))
        (Path(spec.place) / TAILS_FILE).write_bytes(b"".join(tails))
        poor = [n for n in range(spec.accounts) if self._lacks(n, balances[n])]
        parts = [poor[at : at + MAX_POSTINGS] for at in range(0, len(poor), MAX_POSTINGS)]
        salt = hashlib.sha256(b"".join(msgspec.msgpack.encode(b) for b in balances.values())).digest()
        self._check(self._each("funding accounts", range(len(parts)), lambda n: self._funding(parts[n], n, salt)))

    def _lacks(self, number: int, balance: wire.ReplyBody) -> bool:
        if not isinstance(balance, wire.Balance):
            return True
        return balance.settled + balance.incoming < (HOT_FUNDS // 100 if self._rich(number) else LEAST_FUNDS)

    def _rich(self, number: int) -> bool:
        return number < max(1, self._spec.sources)

    def _ask_balance(self, number: int) -> wire.CallBody:
        return wire.AskBalance(account_name(self._spec.prefix, number))

    def _opening(self, number: int) -> wire.CallBody:
        key = account_key(self._spec.secret, number)
        name = account_name(self._spec.prefix, number)
        return submit_call(
            sign(opening(self._network, name, self._spec.asset, raw_public_key(key), bytes(32)), key), PREPARE_TIMEOUT_S
        )

    def _funding(self, numbers: Sequence[int], part: int, salt: bytes) -> wire.CallBody:
        spec = self._spec
        postings = [
            Posting(account_name(spec.prefix, n), HOT_FUNDS if self._rich(n) else FUNDS, "bench") for n in numbers
        ]
        nonce = hashlib.sha256(salt + part.to_bytes(4, "big")).digest()
        key = Ed25519PrivateKey.from_private_bytes(spec.issuer_key)
        return submit_call(sign(transfer(self._network, spec.issuer, postings, nonce), key), PREPARE_TIMEOUT_S)

    def _each(
        self, what: str, numbers: Sequence[int], make: Callable[[int], wire.CallBody]
    ) -> dict[int, wire.ReplyBody]:
        """The answer for each number, many at once."""
        waiting: dict[int, int] = {}
        answers: dict[int, wire.ReplyBody] = {}
        queue: Iterator[int] = iter(numbers)
        again: list[tuple[float, int]] = []  # when it is due, which
        tries: Counter[int] = Counter()
        told = self._ports.clock()
        while len(answers) < len(numbers):
            now = self._ports.clock()
            while len(waiting) < PREPARE_IN_FLIGHT:
                number = heapq.heappop(again)[1] if again and again[0][0] <= now else next(queue, None)
                if number is None:
                    break
                tries[number] += 1
                waiting[self._lines.call(number % len(self._lines.lines), make(number))] = number
            due_s = again[0][0] - now if again and len(waiting) < PREPARE_IN_FLIGHT else PROGRESS_S
            for _, call, body in self._lines.wait(min(due_s, PROGRESS_S)):
                number = waiting.pop(call)
                if isinstance(body, wire.NotStarted | wire.Unknown) and tries[number] < TRIES:
                    pause_s = min(AGAIN_S * 2 ** tries[number], LAST_AGAIN_S)
                    heapq.heappush(again, (self._ports.clock() + pause_s, number))
                else:
                    answers[number] = body
            if self._ports.clock() - told >= PROGRESS_S:
                told = self._ports.clock()
                self._ports.tell(News("preparing", completed=len(answers), total=len(numbers), message=what))
        return answers

    def _check(self, answers: dict[int, wire.ReplyBody]) -> None:
        for answer in answers.values():
            if not isinstance(answer, wire.Recorded) or not answer.completed:
                raise CommandFailed(
                    Exit.REJECTED, "not_prepared", f"the accounts could not be prepared: {_why_not(answer)}"
                )


def _why_not(answer: wire.ReplyBody) -> str:
    """What an answer that is not `completed` says."""
    match answer:
        case wire.Recorded():
            return f"a request was rejected: {answer.outcome.name.lower()}"
        case wire.NotStarted() | wire.Unknown() | wire.Refused():
            return answer.reason
        case _:
            return f"a node answered {type(answer).__name__}, which is no answer to a request"


def _tail(answer: wire.ReplyBody) -> bytes:
    """The hash of an account's last link."""
    assert isinstance(answer, wire.Balance | wire.Recorded), answer
    return answer.tip if isinstance(answer, wire.Balance) else answer.link_hash
