"""Answers to requests as people and programs read them."""

from typing import assert_never

from chain.genesis import Asset
from chain.link import Outcome
from cli.home import Network
from cli.money import format_amount
from cli.output import Exit, JsonValue, Output
from hopchain import Answer, NotStarted, Recorded, Refused, Stale, Unknown

WHAT_TO_DO = {
    Outcome.INSUFFICIENT_FUNDS: "the account had less than that; nothing moved. Send money to it and pay with a new nonce",
    Outcome.UNKNOWN_RECIPIENT: "there is no account with the recipient's name; nothing moved. Check the spelling",
    Outcome.ASSET_MISMATCH: "sender and recipient hold different assets; nothing moved",
    Outcome.EXPIRED: "the chain grew past the height up to which the request was valid; nothing moved",
    Outcome.CANCELLED: "it was cancelled before it could execute, and never will; nothing moved",
    Outcome.ALREADY_DECIDED: "the request has its outcome already and cannot be cancelled",
    Outcome.ISSUER_LIMIT: "the issuer's balance would fall below what a balance can be; nothing moved",
}


def interrupted(request_id: bytes) -> Unknown:
    """What is known of a request whose answer was not waited for."""
    return Unknown(request_id, "interrupted before the answer came")


def sent_text(request_id: bytes) -> str:
    """How to learn what became of a request whose answer cannot be told."""
    return f"Request {request_id.hex()} was sent: `hopchain outcome {request_id.hex()}` shows what became of it"


def outcome_name(outcome: int) -> str:
    """The stable word for an outcome: `completed`, `insufficient_funds`, ..."""
    return Outcome(outcome).name.lower()


def answer_name(answer: Answer) -> str:
    """One word for any answer."""
    match answer:
        case Recorded():
            return outcome_name(answer.outcome)
        case Stale():
            return "stale"
        case NotStarted():
            return "not_started"
        case Unknown():
            return "unknown"
        case Refused():
            return "refused"
        case _:
            assert_never(answer)


def answer_exit(answer: Answer) -> Exit:
    """The exit code that an answer means."""
    match answer:
        case Recorded():
            return Exit.DONE if answer.completed else Exit.REJECTED
        case Stale() | Refused():
            return Exit.REJECTED
        case NotStarted() | Unknown():
            return Exit.UNREACHABLE
        case _:
            assert_never(answer)


def answer_text(answer: Answer) -> str:
    """What happened and what to do, for everything but `completed`."""
    match answer:
        case Recorded():
            return WHAT_TO_DO.get(answer.outcome, "")
        case Stale():
            return (
                f"the expected tip has a successor: the tip is {answer.tip.hex()} at height {answer.height}. "
                "This request can never execute; look at `chain`, then send a new one"
            )
        case NotStarted():
            return f"nothing is recorded: {answer.reason}. The same command with the same --nonce may be run again"
        case Unknown():
            return (
                f"{answer.reason}. It may still execute: ask `hopchain outcome {answer.request_id.hex()}` later, "
                f"or settle it with `hopchain cancel {answer.request_id.hex()}`"
            )
        case Refused():
            return f"{answer.reason} [{answer.code}]; nothing is recorded"
        case _:
            assert_never(answer)


def answer_document(
    network: Network, answer: Answer, request_id: bytes, account: str, asset: Asset | None
) -> dict[str, JsonValue]:
    """The JSON keys of any answer; those that it does not have are null."""
    document: dict[str, JsonValue] = {
        "request_id": request_id.hex(),
        "account": account,
        "outcome": answer_name(answer),
        "asset": asset.code if asset else None,
        "scale": asset.scale if asset else None,
        "link_hash": None,
        "height": None,
        "balance": None,
        "time_ms": None,
        "decided_by": None,
        "decided_by_name": None,
        "hops": None,
        "repeated": None,
        "tip": None,
        "code": None,
        "reason": answer_text(answer) or None,
    }
    if isinstance(answer, Recorded):
        document |= {
            "account": answer.account,
            "link_hash": answer.link_hash.hex(),
            "height": answer.height,
            "balance": answer.balance,
            "time_ms": answer.time_ms,
            "decided_by": answer.decided_by.hex() or None,
            "decided_by_name": network.name_of(answer.decided_by) if answer.decided_by else None,
            "hops": answer.hops,
            "repeated": answer.repeated,
        }
    if isinstance(answer, Stale):
        document |= {"tip": answer.tip.hex(), "height": answer.height}
    if isinstance(answer, NotStarted | Refused):
        document["code"] = answer.code
    return document


def print_answer(
    out: Output,
    network: Network,
    answer: Answer,
    *,
    request_id: bytes,
    account: str,
    asset: Asset | None,
    milliseconds: float | None = None,
    more: dict[str, JsonValue] | None = None,
) -> Exit:
    """Print an answer as a receipt; the exit code to leave with."""
    document = answer_document(network, answer, request_id, account, asset) | (more or {})
    if milliseconds is not None:
        document["milliseconds"] = round(milliseconds, 1)
    out.data(document)
    exit_code = answer_exit(answer)
    repeated = " (recorded before; nothing moved twice)" if isinstance(answer, Recorded) and answer.repeated else ""
    out.say(answer_name(answer) + repeated, colour="green" if exit_code is Exit.DONE else "red", bold=True)
    if text := answer_text(answer):
        out.say(f"  {text}")
    rows = [("request", request_id.hex())]
    if isinstance(answer, Recorded):
        balance = (
            format_amount(answer.balance, asset.scale, asset.code, grouped=True)
            if asset
            else f"{answer.balance} minor units"
        )
        rows += [
            ("account", answer.account),
            ("link", answer.link_hash.hex()),
            ("height", str(answer.height)),
            ("balance", balance),
            (
                "decided by",
                network.name_of(answer.decided_by) if answer.decided_by else "(not known to the node that answered)",
            ),
            ("hops", str(answer.hops)),
        ]
    if milliseconds is not None:
        rows.append(("took", f"{milliseconds:.1f} ms"))
    out.fields(rows)
    return exit_code
