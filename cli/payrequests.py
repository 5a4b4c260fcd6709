"""The requests that rows of a payment file make one by one, and which of all requests of a row was the last that an
earlier run of the same label sent, of whatever kind that run was."""

from collections.abc import Container, Sequence

from chain.request import NetworkId, Posting, Request, RequestId, encode_request, request_id, transfer
from cli.batches import SentBatches
from cli.payfile import Payment, payment_key, payment_nonce, pooled_nonce
from cli.payplan import MAX_ATTEMPTS
from cli.sources import Sources


def row_request(network: NetworkId, run: str, payment: Payment, attempt: int) -> Request:
    """The request of one row alone. `attempt` above 0: once more after a rejection."""
    posting = Posting(payment.recipient, payment.amount, payment.reference)
    return transfer(network, payment.sender, [posting], payment_nonce(run, payment, attempt))


def pooled_request(network: NetworkId, run: str, payment: Payment, accounts: Sequence[str]) -> Request:
    """The request of a row that was to be sent from all of `accounts`, one after the other: that of the last one."""
    posting = Posting(payment.recipient, payment.amount, payment.reference)
    return transfer(network, accounts[-1], [posting], pooled_nonce(run, payment, len(accounts) - 1))


def newest_requests(
    network: NetworkId,
    run: str,
    rows: Sequence[Payment],
    sent: SentBatches,
    sources: Sources,
    journal: Container[bytes],
) -> dict[str, tuple[RequestId, str]]:
    """key -> the newest request, with its account, of those rows that an earlier run sent. `sent` and `sources`: what
    is remembered of run `run`; `journal`: the ids of all requests of earlier runs."""
    found: dict[str, tuple[RequestId, str]] = {}
    for payment in rows:
        key = payment_key(payment)
        if batch := sent.of.get(key):
            found[key] = (RequestId(bytes.fromhex(batch.request_id)), batch.sender)
        elif accounts := sources.tried(key):
            made = request_id(encode_request(pooled_request(network, run, payment, accounts)))
            if made in journal:
                found[key] = (made, accounts[-1])
        else:
            for attempt in range(MAX_ATTEMPTS):
                made = request_id(encode_request(row_request(network, run, payment, attempt)))
                if made not in journal:
                    break
                found[key] = (made, payment.sender)
    return found
