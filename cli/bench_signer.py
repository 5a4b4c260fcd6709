"""The requests of a benchmark: signed ahead, so that what is measured does not wait for it, or when none is left."""

import hashlib
from collections import deque
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.request import NetworkId, Posting, SignedRequest, sign, transfer
from cli.bench_profiles import Draw, Profile
from cli.bench_spec import AMOUNT, Spec, account_key, account_name

SIGN_PER_S: Final = 6000  # requests that are signed ahead for each second of the run; more are signed while it runs
SIGN_POSTINGS_PER_S: Final = 120_000  # the same for requests with many postings
SIGN_BYTES: Final = 400 * 1024 * 1024  # of requests signed ahead


class Signer:
    """Requests of one generator, signed ahead or when they are needed."""

    def __init__(self, spec: Spec, draw: Draw) -> None:
        self._spec = spec
        self._draw = draw
        self._made = 0
        self._keys: dict[int, Ed25519PrivateKey] = {}
        self._network = NetworkId(spec.network)
        self._ahead: dict[int, deque[tuple[int, SignedRequest]]] = {}
        self.before = 0
        self.during = 0

    def sign_ahead(self, share: float) -> None:
        """Sign what the run may need, within bounds; `share`: this generator's part of the traffic."""
        spec = self._spec
        seconds = spec.warm_up_s + spec.duration_s
        wanted = int(min(SIGN_PER_S, SIGN_POSTINGS_PER_S / spec.batch) * seconds * share) + spec.clients
        wanted = min(wanted, SIGN_BYTES // (256 + 128 * spec.batch))
        pooled = spec.profile is Profile.POOL
        for number in range(wanted):
            sender = number % spec.sources if pooled else self._draw.sender(0)
            self._ahead.setdefault(sender if pooled else -1, deque()).append((sender, self._sign(sender)))
        self.before = wanted

    def next(self, client: int) -> tuple[int, SignedRequest]:
        """A request of the next sender, by the profile and the client."""
        sender = self._draw.sender(client) if self._spec.profile is Profile.POOL else -1
        ahead = self._ahead.get(sender)
        if ahead:
            return ahead.popleft()
        self.during += 1
        sender = sender if sender >= 0 else self._draw.sender(client)
        return sender, self._sign(sender)

    def _sign(self, sender: int) -> SignedRequest:
        spec = self._spec
        postings = [Posting(account_name(spec.prefix, self._draw.recipient(sender)), AMOUNT) for _ in range(spec.batch)]
        name = account_name(spec.prefix, sender)
        if sender not in self._keys:
            self._keys[sender] = account_key(spec.secret, sender)
        self._made += 1
        nonce = hashlib.sha256(b"%b %d %d" % (spec.run, spec.worker, self._made)).digest()
        return sign(transfer(self._network, name, postings, nonce), self._keys[sender])
