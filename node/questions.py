"""What clients ask of a replica: the questions, whose links the answers show, and which of them nothing can answer."""

from typing import assert_never

from chain.errors import RemoteFault
from chain.names import check_name_untrusted
from chain.request import HASH_BYTES
from hopchain import wire
from routing.keyspace import ID_BYTES

Question = (
    wire.AskOutcome
    | wire.AskBalance
    | wire.AskChain
    | wire.AskAccounts
    | wire.AskRoute
    | wire.AskStatus
    | wire.AskDigest
    | wire.AskMembers
    | wire.AskHealth
)


def account_asked(body: Question) -> str | None:
    """The account whose links the answer shows: empty when it may be any, None when it shows none."""
    match body:
        case wire.AskBalance() | wire.AskChain() | wire.AskOutcome():
            return body.account
        case wire.AskRoute():
            return body.account or None
        case wire.AskAccounts() | wire.AskDigest():
            return ""
        case wire.AskStatus() | wire.AskMembers() | wire.AskHealth():
            return None
        case _:
            assert_never(body)


def check_question_untrusted(body: Question) -> None:
    """Raise `RemoteFault` for a question about what cannot be a name (`bad_name`), an id or a key (`bad_key`)."""
    match body:
        case wire.AskBalance() | wire.AskChain():
            check_name_untrusted(body.account)
        case wire.AskOutcome():
            _check_length_untrusted("a request id", body.request_id, HASH_BYTES, HASH_BYTES)
            if body.account:  # empty: none is named
                check_name_untrusted(body.account)
        case wire.AskRoute():
            if body.account:
                check_name_untrusted(body.account)
            else:
                _check_length_untrusted("a key", body.key, ID_BYTES, HASH_BYTES)
        case wire.AskAccounts() | wire.AskStatus() | wire.AskDigest() | wire.AskMembers() | wire.AskHealth():
            pass
        case _:
            assert_never(body)


def _check_length_untrusted(what: str, raw: bytes, least: int, most: int) -> None:
    if not least <= len(raw) <= most:
        raise RemoteFault("bad_key", f"{what} has {least} to {most} bytes, this one {len(raw)}")
