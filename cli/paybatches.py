"""Which rows of a payment file go together in one request (cli.paybulk sends them).

The rows of each payer, in order, are cut into requests of at most MAX_POSTINGS rows.

Which rows went together must stay so, or a row could be paid in two requests. So the batches of a run are remembered in
the wallet before they leave (cli.batches), and made again as they were:

* rows that are new in the file make new batches;
* a batch whose rows are not all in the file any more (or, with `--atomic`, are not the whole file) cannot be made
  again. It is given up: that is remembered too, then it is cancelled. When it was rejected, or now never executes, what
  is left of its rows makes a new batch. So does a batch that is whole again and turns out cancelled after it was given
  up.

Where nothing is remembered, the same file cuts into the same requests, so it is paid once from another wallet too.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence

import msgspec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from chain.errors import LocalMisuse
from chain.names import MAX_AMOUNT
from chain.request import MAX_POSTINGS, NetworkId, Posting, SignedRequest, transfer
from cli.batches import Batch, SentBatches
from cli.payfile import Payment, bulk_nonce, payment_key
from cli.payplan import Plan
from hopchain import sign_request


class Part(msgspec.Struct):
    """A batch that is to be sent, with its rows' places in the file."""

    batch: Batch
    rows: list[int]
    signed: SignedRequest


class RunBatches:
    """Makes the batches of one run. `key`: the key of an account, which must have one; `sent`: what is remembered of
    the run."""

    def __init__(
        self, plan: Plan, network: NetworkId, key: Callable[[str], Ed25519PrivateKey], sent: SentBatches
    ) -> None:
        self._sent = sent
        self._rows = plan.rows
        self._label = plan.settings.label
        self._directory = plan.wallet.directory
        self._network = network
        self._key = key

    def earlier(self, payable: Mapping[str, int]) -> list[tuple[Batch, list[int]]]:
        """The remembered batches that hold rows of `payable`, places in the file by key: each with those of its rows
        that are in no newer batch."""
        left: dict[int, tuple[Batch, list[int]]] = {}
        for key in payable:
            batch = self._sent.of.get(key)
            if batch is not None and id(batch) not in left:
                here = [payable[row] for row in batch.rows if row in payable and self._sent.of[row] is batch]
                left[id(batch)] = (batch, here)
        return list(left.values())

    def new(self, cuts: Sequence[tuple[list[int], str]]) -> list[Part]:
        """New batches, each of these rows from this account; remembered when this returns."""
        made = [self._made(rows, sender, self._sent.attempts(self._keys_of(rows))) for rows, sender in cuts]
        if made:
            self._sent.add([part.batch for part in made])
        return made

    def again(self, batch: Batch, rows: list[int]) -> Part:
        """A remembered batch as it was; `rows` are all of its rows. `LocalMisuse` when they make another request."""
        part = self._made(rows, batch.sender, batch.attempt)
        if part.batch.request_id != batch.request_id:
            raise LocalMisuse(
                f"the wallet remembers request {batch.request_id} for {len(rows)} rows of run {self._label!r}, and they make "
                f"{part.batch.request_id}: restore {self._directory} from a copy"
            )
        return part

    def _made(self, rows: list[int], sender: str, attempt: int) -> Part:
        keys = self._keys_of(rows)
        postings = [Posting(p.recipient, p.amount, p.reference) for p in (self._rows[index] for index in rows)]
        nonce = bulk_nonce(self._label, sender, attempt, keys)
        signed = sign_request(transfer(self._network, sender, postings, nonce), self._key(sender))
        return Part(Batch(sender, attempt, signed.request_id.hex(), keys), rows, signed)

    def _keys_of(self, rows: Sequence[int]) -> tuple[str, ...]:
        return tuple(payment_key(self._rows[index]) for index in rows)


def cut(rows: Sequence[tuple[int, Payment]]) -> list[list[int]]:
    """The rows, with their places in the file, of each payer in parts that one request can hold: their places, in order
    of the parts' first rows. A payer's part ends where it is paid itself, so that its later rows may spend that."""
    parts: list[list[int]] = []
    open_: dict[str, list[int]] = {}
    totals: Counter[str] = Counter()
    for index, payment in rows:
        part = open_.get(payment.sender)
        if part is None or len(part) == MAX_POSTINGS or totals[payment.sender] + payment.amount > MAX_AMOUNT:
            part = open_[payment.sender] = []
            totals[payment.sender] = 0
            parts.append(part)
        part.append(index)
        totals[payment.sender] += payment.amount
        open_.pop(payment.recipient, None)
    return parts
