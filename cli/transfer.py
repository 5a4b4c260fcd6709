"""`hopchain transfer`, `outcome`, `cancel`: one request at a time."""

import hashlib
import secrets
import time
from contextlib import suppress
from pathlib import Path
from typing import Final

import click

from chain.errors import LocalMisuse
from chain.link import Outcome
from chain.request import ANY_TIP, MEMO_BYTES, Posting, RequestId, cancellation
from chain.request import transfer as transfer_request
from cli.command import (
    HopCommand,
    at_option,
    checked_hash,
    checked_name,
    checked_reference,
    hex_of,
    network_option,
    run,
    timeout_option,
    usage,
)
from cli.home import find_network
from cli.money import format_amount, parse_amount
from cli.output import Exit, JsonValue, Output
from cli.receipt import interrupted, print_answer, sent_text
from cli.session import ask_until_found, asset_of, not_found, open_client, pinned, say_remembered
from cli.wallet import Wallet
from hopchain import Answer, ClientError, NotFound, Recorded, sign_request

_NONCE_TAG: Final = b"hopchain:nonce:1\0"


@click.command(
    cls=HopCommand,
    examples=[
        "hopchain transfer mint alice 100",
        'hopchain transfer alice bob 12.50 --reference "invoice 4711" --at node-3',
        "hopchain transfer alice bob 12.50 --nonce invoice-4711    # run twice, it pays once",
    ],
)
@click.argument("sender", metavar="FROM")
@click.argument("recipient", metavar="TO")
@click.argument("amount", metavar="AMOUNT")
@click.option(
    "--reference", default="", metavar="TEXT", help=f"Text for the recipient: at most {MEMO_BYTES} bytes of UTF-8."
)
@click.option(
    "--nonce",
    metavar="N",
    help="Identifies this payment: 64 hex digits, or any text. The same command with the same nonce pays once.",
)
@click.option("--expect-tip", metavar="HASH", help="Pay only if the account's last link is this one; else `stale`.")
@at_option
@timeout_option
@network_option
def transfer(
    out: Output,
    sender: str,
    recipient: str,
    amount: str,
    reference: str,
    nonce: str | None,
    expect_tip: str | None,
    at: str | None,
    timeout_s: float,
    network_dir: Path | None,
) -> None:
    """Pay AMOUNT (decimals of the asset, such as 12.50) from one account to another and print the receipt."""
    checked_name(sender)
    checked_name(recipient)
    if sender == recipient:
        usage(f"{sender} cannot pay itself: name another recipient")
    checked_reference(reference)
    tip = ANY_TIP if expect_tip is None else checked_hash(expect_tip, "link hash")
    network = find_network(network_dir)
    say_remembered(out, network, network_dir)
    wallet = Wallet(network.id)
    key = wallet.key(sender)
    node = pinned(network, at)

    async def main() -> Exit:
        async with open_client(network) as client:
            asset = await asset_of(client, network, sender, node)
            minor = parse_amount(amount, asset.scale, asset.code)
            request = transfer_request(
                network.id, sender, [Posting(recipient, minor, reference)], nonce_bytes(nonce), expect_tip=tip
            )
            signed = sign_request(request, key)
            wallet.record([(signed.request_id, sender, "transfer")])
            begin = time.perf_counter()

            def tell(answer: Answer) -> Exit:
                took_ms = (time.perf_counter() - begin) * 1000
                paid: dict[str, JsonValue] = {
                    "from": sender,
                    "to": recipient,
                    "amount": minor,
                    "reference": reference,
                    "network": network.id.hex(),
                }
                out.say(f"{sender} -> {recipient}  {format_amount(minor, asset.scale, asset.code, grouped=True)}")
                return print_answer(
                    out,
                    network,
                    answer,
                    request_id=signed.request_id,
                    account=sender,
                    asset=asset,
                    milliseconds=took_ms,
                    more=paid,
                )

            out.sending(sent_text(signed.request_id), lambda: tell(interrupted(signed.request_id)))
            answer = await client.submit(signed, timeout_s=timeout_s, at=node)
            return tell(answer)

    raise SystemExit(run(main))


@click.command(cls=HopCommand, examples=["hopchain outcome 5f0c...e1", "hopchain outcome 5f0c...e1 --at node-2 --json"])
@click.argument("request", metavar="REQUEST_ID")
@click.option("--account", metavar="NAME", help="Whose request it is. Default: as the wallet's journal remembers.")
@at_option
@network_option
def outcome(out: Output, request: str, account: str | None, at: str | None, network_dir: Path | None) -> None:
    """Show what became of a request. All nodes are asked until one knows it, or only the one named with --at."""
    request_id = checked_hash(request, "request id")
    network = find_network(network_dir)

    journal = Wallet(network.id).sender_of(request_id)
    sender = checked_name(account) if account is not None else journal or ""
    node = pinned(network, at)

    async def main() -> Exit:
        async with open_client(network) as client:
            answer = await ask_until_found(
                network, node, lambda address: client.outcome(request_id, sender, at=address)
            )
            if isinstance(answer, NotFound):
                sent = f" (sent from {journal} by this wallet; it may still execute)" if journal else ""
                raise not_found(f"request {request_id.hex()}{sent}", node, stale=answer.stale)
            asset = await asset_of(client, network, answer.account, node)
        return print_answer(out, network, answer, request_id=request_id, account=answer.account, asset=asset)

    raise SystemExit(run(main))


@click.command(cls=HopCommand, examples=["hopchain cancel 5f0c...e1", "hopchain cancel 5f0c...e1 --account alice"])
@click.argument("request", metavar="REQUEST_ID")
@click.option("--account", metavar="NAME", help="Whose request it is. Default: as the wallet's journal remembers.")
@at_option
@timeout_option
@network_option
def cancel(
    out: Output, request: str, account: str | None, at: str | None, timeout_s: float, network_dir: Path | None
) -> None:
    """Make sure that a request never executes, or show the outcome that it has already."""
    target = checked_hash(request, "request id")
    network = find_network(network_dir)
    wallet = Wallet(network.id)
    sender = checked_name(account) if account is not None else wallet.sender_of(target)
    if sender is None:
        raise LocalMisuse(f"request {target.hex()[:16]} was not sent from this wallet: name its account with --account")
    key = wallet.key(sender)
    node = pinned(network, at)

    async def main() -> Exit:
        signed = sign_request(cancellation(network.id, sender, RequestId(target), target), key)
        wallet.record([(signed.request_id, sender, "cancel")])
        async with open_client(network) as client:
            asset = await asset_of(client, network, sender, node)
            begin = time.perf_counter()

            def tell(answer: Answer, took_s: float, already: int | None = None) -> Exit:
                more: dict[str, JsonValue] = {
                    "target": target.hex(),
                    "target_outcome": _target_outcome(answer, already),
                }
                before = isinstance(answer, Recorded) and answer.outcome == Outcome.ALREADY_DECIDED
                settled = more["target_outcome"] or ("decided before; ask `outcome` how" if before else "not settled")
                out.say(f"cancel {target.hex()}: target {settled}")
                return print_answer(
                    out,
                    network,
                    answer,
                    request_id=signed.request_id,
                    account=sender,
                    asset=asset,
                    milliseconds=took_s * 1000,
                    more=more,
                )

            out.sending(sent_text(target), lambda: tell(interrupted(signed.request_id), time.perf_counter() - begin))
            answer = await client.submit(signed, timeout_s=timeout_s, at=node)
            took_s = time.perf_counter() - begin
            decided = None
            if isinstance(answer, Recorded) and answer.outcome == Outcome.ALREADY_DECIDED:
                with suppress(ClientError):  # the cancellation has its answer, whatever becomes of this question
                    decided = await ask_until_found(
                        network, node, lambda address: client.outcome(target, sender, at=address)
                    )
        return tell(answer, took_s, decided.outcome if isinstance(decided, Recorded) else None)

    raise SystemExit(run(main))


def _target_outcome(answer: object, already: int | None) -> str | None:
    if already is not None:
        return Outcome(already).name.lower()
    if isinstance(answer, Recorded) and answer.completed:
        return Outcome.CANCELLED.name.lower()
    return None


def nonce_bytes(text: str | None) -> bytes:
    """32 bytes: the hex given, the hash of any other text, or random ones. `LocalMisuse` for an empty text: it comes of
    a variable that is not set, and would make all payments of a script the same one."""
    if text is None:
        return secrets.token_bytes(32)
    if not text:
        raise LocalMisuse("--nonce '' names no payment: leave it out, or give a text that no other payment has")
    return hex_of(text, 32) or hashlib.sha256(_NONCE_TAG + text.encode()).digest()
