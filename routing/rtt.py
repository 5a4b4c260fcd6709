"""How long to wait for a contact, and when it is given up: measured per contact, without a clock of its own.

Timeouts follow RFC 6298: smoothed RTT + 4 x its variation, doubled at each repetition. A contact not heard of yet gets
the estimate over all contacts. A sample is taken from the *first* sending of a call, so that one that is slower than
its timeout is learned and not asked too early for ever.

A call to a healthy contact is sent up to ATTEMPTS times, so that a lost datagram costs a repetition and not a contact.
One that failed the last time gets a single, longer attempt: a dead node named by others delays a lookup by one timeout.
It is given up after FAILURES_TO_EVICT failed calls in a row; calls in flight together count once, so that one short
stall is one failure.
"""

from collections import OrderedDict
from typing import Final

from routing.keyspace import NodeId

ATTEMPTS: Final = 3  # at 10 % loss each way, 0.7 % of calls to a healthy contact fail
FAILURES_TO_EVICT: Final = 3
FIRST_TIMEOUT_S: Final = 0.3  # before anything was measured: a round trip across a continent, with room
MIN_TIMEOUT_S: Final = 0.1  # a busy process may pause that long
MAX_TIMEOUT_S: Final = 1.0  # nobody waits longer for one datagram
MAX_CONTACTS: Final = 8192  # about 2 MiB; the least recently called one is forgotten


class _Estimate:
    """Smoothed round-trip time and its variation, seconds."""

    def __init__(self) -> None:
        self.rtt_s: float | None = None
        self._variation_s = 0.0

    def add(self, sample_s: float) -> None:
        if self.rtt_s is None:
            self.rtt_s, self._variation_s = sample_s, sample_s / 2
            return
        self._variation_s += (abs(sample_s - self.rtt_s) - self._variation_s) / 4
        self.rtt_s += (sample_s - self.rtt_s) / 8

    @property
    def timeout_s(self) -> float:
        if self.rtt_s is None:
            return FIRST_TIMEOUT_S
        return min(max(self.rtt_s + 4 * self._variation_s, MIN_TIMEOUT_S), MAX_TIMEOUT_S)


class _Contact:
    def __init__(self) -> None:
        self.estimate = _Estimate()
        self.failures = 0
        self.failed_at = 0.0


class RoundTrips:
    """What is known about the patience each contact needs."""

    def __init__(self) -> None:
        self._all = _Estimate()
        self._contacts: OrderedDict[NodeId, _Contact] = OrderedDict()

    def timeouts(self, node: NodeId | None) -> tuple[float, ...]:
        """Seconds to wait after each sending of a call to `node` (None: id not known yet)."""
        contact = self._contacts.get(node) if node is not None else None
        measured = contact is not None and contact.estimate.rtt_s is not None
        first = (contact.estimate if contact is not None and measured else self._all).timeout_s
        if contact is not None and contact.failures:
            return (min(first * 2**contact.failures, MAX_TIMEOUT_S),)
        return tuple(min(first * 2**n, MAX_TIMEOUT_S) for n in range(ATTEMPTS))

    def answered(self, node: NodeId, sample_s: float) -> None:
        """A reply came `sample_s` after the first sending."""
        contact = self._contact(node)
        contact.failures = 0
        contact.estimate.add(sample_s)
        self._all.add(sample_s)

    def silent(self, node: NodeId, asked_at: float, now: float) -> bool:
        """A call made at `asked_at` failed; True when the contact is to be given up."""
        contact = self._contact(node)
        if not contact.failures or asked_at >= contact.failed_at:
            contact.failures += 1
            contact.failed_at = now
        return contact.failures >= FAILURES_TO_EVICT

    def forgive(self, node: NodeId) -> None:
        """A contact that was not in the table called us: its failures belong to its life before."""
        contact = self._contacts.get(node)
        if contact is not None:
            contact.failures = 0

    def _contact(self, node: NodeId) -> _Contact:
        contact = self._contacts.get(node)
        if contact is None:
            contact = self._contacts[node] = _Contact()
            if len(self._contacts) > MAX_CONTACTS:
                self._contacts.popitem(last=False)
        self._contacts.move_to_end(node)
        return contact
