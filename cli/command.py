"""What all commands share: `--json`, examples in `--help`, errors turned into exit codes, the options that many
take."""

import math
import random
import re
import secrets
import shlex
import signal
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import FrameType
from typing import Final, NoReturn, ParamSpec, TypeVar

import click

from chain.errors import HopchainError, LocalMisuse, RemoteFault
from cli.home import remember_used, used_directory
from cli.output import CommandFailed, Exit, Output, write_any_text

_P = ParamSpec("_P")
_T = TypeVar("_T")
_NEGATIVE: Final = re.compile(r"-[0-9.]")  # how click names an option in -1.50
# Of a word that is longer its ends are shown: a path's name is at its end
_LONG: Final = re.compile(r"(?<!\S)(\S{40})\S{41,}(\S{80})")
INTERRUPTED: Final = 130  # what shells use for Ctrl-C
_AS_CTRL_C: Final = (signal.SIGTERM, signal.SIGHUP)
# Those that come so close are one: a closing terminal sends SIGHUP twice, a service manager both. A second one would
# end what the first one began, such as the result file.
_TOGETHER_S: Final = 1.0
_ANSWERED: Final = frozenset({Exit.DONE, Exit.REJECTED})  # ends by which the network is one that was used


class Seconds(click.FloatRange):
    """A span of time within bounds. (To `float`, "nan" and "inf" are numbers, and nan is within all bounds.)"""

    name = "number"

    def convert(self, value: float, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The seconds; click's error when it is none."""
        seconds = super().convert(value, param, ctx)
        if not math.isfinite(seconds):
            self.fail(f"{value!r} is not a number of seconds", param, ctx)
        return float(seconds)


def check_folder(path: Path | None) -> None:
    """`LocalMisuse` when a file cannot be made there, for it is written at the end of what may take long."""
    if path is not None and not path.resolve().parent.is_dir():
        usage(f"{path} cannot be written: there is no directory {path.parent}")


network_option = click.option(
    "--network",
    "network_dir",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="The network: the directory that `init` made. Default: HOPCHAIN_NETWORK, else the last one made or used.",
)
# The same, for commands that people begin with: `hopchain up net`
network_argument = click.argument("directory", type=click.Path(path_type=Path), metavar="[DIR]", required=False)
at_option = click.option(
    "--at", metavar="HOST:PORT", help="Ask this node only: its client port, its id, or a name like node-3."
)
timeout_option = click.option(
    "--timeout",
    "timeout_s",
    type=Seconds(0.1, 300),
    default=10.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for an answer.",
)


class HopCommand(click.Command):
    """A command with `--json` and examples. Its function gets `out`, where it prints. `own_signals`: it hears SIGTERM
    and SIGHUP itself; to all others they are what Ctrl-C is."""

    def __init__(
        self,
        name: str | None,
        *,
        callback: Callable[..., object],
        params: list[click.Parameter],
        help: str | None,
        examples: Sequence[str],
        own_signals: bool = False,
    ) -> None:
        json_option = click.Option(
            ["--json", "as_json"], is_flag=True, help="Print one JSON document (docs/cli-json.md)."
        )
        super().__init__(name, callback=callback, params=[*params, json_option], help=help)
        self.examples = tuple(examples)
        self.own_signals = own_signals

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Take the command line apart; where click's words for a mistake help nobody, say what to do."""
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as error:
            if _NEGATIVE.fullmatch(error.option_name) and "amount" in self._names:
                raise click.UsageError("an amount is above zero: a payment goes from FROM to TO", ctx) from None
            raise
        except click.UsageError as error:
            if "unexpected extra argument" in error.message and "network_dir" in self._names:
                raise click.UsageError(
                    f"{error.message.rstrip('.')}. A network is named with --network DIR", ctx
                ) from None
            raise

    @property
    def _names(self) -> set[str | None]:
        return {param.name for param in self.params}

    def get_short_help_str(self, limit: int = 45) -> str:
        """What it does, as the list of a group's commands shows it: its first sentence, whole."""
        return super().get_short_help_str(limit=1000)

    def format_epilog(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Put the examples at the end of `--help`."""
        with formatter.section("Examples"):
            for example in self.examples:
                formatter.write(f"  {example}\n")

    def invoke(self, ctx: click.Context) -> object:
        """Run it; errors raised on purpose become a message and an exit code."""
        with nullcontext() if self.own_signals else _told_to_end():
            return self._invoke(ctx)

    def _invoke(self, ctx: click.Context) -> object:
        out = Output(bool(ctx.params.pop("as_json")), on_sending=lambda: remember_used(ctx))
        ctx.params["out"] = out
        write_any_text()
        try:
            _refuse_no_text(list(ctx.params.values()))
            done = super().invoke(ctx)
        except SystemExit as end:
            if end.code in _ANSWERED:
                remember_used(ctx)
            raise
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except BaseException as error:  # noqa: BLE001 - the outermost place: it becomes a message and an exit code
            code = end_with(out, error)
            if code in _ANSWERED:
                remember_used(ctx)
            ctx.exit(code)
        remember_used(ctx)
        return done


@contextmanager
def _told_to_end() -> Iterator[None]:
    """Take SIGTERM and SIGHUP for Ctrl-C: killed at once, a command could not say what became of what it sent. One that
    is ignored (`nohup`) stays so, and so does Ctrl-C, which is blocked instead: what waits for it sees no difference,
    and is told of the other two."""
    mine = threading.current_thread() is threading.main_thread()  # no other may say what a signal does
    taken = [number for number in _AS_CTRL_C if mine and signal.getsignal(number) is signal.SIG_DFL]
    deaf = bool(taken) and signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # as what a script runs in the background
    heard_s = -math.inf

    def hear(number: int, frame: FrameType | None) -> None:
        nonlocal heard_s
        now_s = time.monotonic()
        if now_s - heard_s < _TOGETHER_S:
            return
        heard_s = now_s
        handler = signal.getsignal(signal.SIGINT)
        if not callable(handler):
            raise KeyboardInterrupt
        handler(signal.SIGINT, frame)

    if deaf:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in taken:
        signal.signal(number, hear)
    try:
        yield
    finally:
        for number in taken:  # told once, it is ending
            signal.signal(number, signal.SIG_DFL if heard_s < 0 else signal.SIG_IGN)
        if deaf:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


def _refuse_no_text(value: object) -> None:
    """Refuse a value of the command line, alone or in a list, that holds bytes which are not UTF-8: Python makes
    surrogates of them, which can be neither hashed nor written. `LocalMisuse` names it."""
    if isinstance(value, list | tuple):
        for one in value:
            _refuse_no_text(one)
    elif isinstance(value, str | Path):
        text = str(value)
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise LocalMisuse(
                f"{text[:80]!r} is not UTF-8 text (character {error.start + 1}): give it in UTF-8; if it names a file or "
                "directory, rename that"
            ) from None


def end_with(out: Output, error: BaseException) -> int:
    """Print what ended a command; the exit code to leave with. Only what was raised on purpose may end with a code that
    says something about the network: a script that takes a fault of ours for a rejection pays twice."""
    if _group(error).subgroup(_is_interrupt) is not None:
        out.interrupted()
        return INTERRUPTED
    meant = raised_on_purpose(error)
    return out.bug(error) if meant is None else out.fail(of_this_network(meant))


def of_this_network(error: HopchainError) -> HopchainError:
    """The error of a network that cannot be reached says how to start that one: the library does not know its
    directory."""
    from hopchain.errors import Unreachable

    directory = used_directory()
    if not isinstance(error, Unreachable) or directory is None:
        return error
    return CommandFailed(Exit.UNREACHABLE, "unreachable", error.told(shlex.quote(str(directory))))


def _is_interrupt(error: BaseException) -> bool:
    """Also what failed as one unwound: it may come at any line, and again while the first is being dealt with. (Of one
    that comes while a class is made, Python 3.11 makes a `RuntimeError`; anyio makes one if it comes as a scope
    ends.)"""
    found: BaseException | None = error
    while found is not None and not isinstance(found, KeyboardInterrupt):
        found = found.__cause__ or found.__context__
    return found is not None


def refuse(as_json: bool, error: click.ClickException) -> int:
    """Print what click itself finds wrong with a command line, in the form of all other errors; the exit code to leave
    with."""
    context = getattr(error, "ctx", None)
    path: list[str] = []
    while context is not None and context.parent is not None:
        path.insert(0, context.info_name or "")
        context = context.parent
    # Its lists are one word a line, and it repeats a word however long that is. A path may hold two spaces.
    lines = " ".join(line.strip() for line in error.format_message().splitlines())
    what = _LONG.sub(r"\1...\2", lines).strip().removesuffix(".")
    what = (what[:1].lower() + what[1:] if what[1:2].islower() else what) + ("" if what.endswith("?") else ".")
    text = f"{what} `{' '.join(['hopchain', *path])} --help` says what it takes"
    return Output(as_json).fail(CommandFailed(Exit(error.exit_code), "usage", text))


def raised_on_purpose(error: BaseException) -> HopchainError | None:
    """The error to tell when all that is in `error`, alone or a group, was raised on purpose; else None."""
    errors, others = _group(error).split(HopchainError)
    if others is not None or errors is None:
        return None
    first: BaseException = errors
    while isinstance(first, BaseExceptionGroup):
        first = first.exceptions[0]
    assert isinstance(first, HopchainError)
    return first


def _group(error: BaseException) -> BaseExceptionGroup[BaseException]:
    return error if isinstance(error, BaseExceptionGroup) else BaseExceptionGroup("", [error])


def run(main: Callable[[], Awaitable[_T]]) -> _T:
    """Run the asynchronous part of a command."""
    import anyio

    return anyio.run(main, backend="asyncio")


def fresh_random() -> random.Random:
    """Randomness that differs on every run, for what is not secret (port numbers)."""
    return random.Random(secrets.randbits(64))


def one_directory(argument: Path | None, option: Path | None) -> Path | None:
    """Of a command that takes the network's directory as an argument, too: the one that was named, if any."""
    if argument is not None and option is not None and argument.resolve() != option.resolve():
        usage(f"two networks are named, {argument} and --network {option}: leave one of them out")
    return argument or option


def checked_name(text: str) -> str:
    """An account name from the command line; `LocalMisuse` says what a name may hold."""
    from chain.names import check_name_untrusted

    try:
        return check_name_untrusted(text)
    except RemoteFault as error:
        raise LocalMisuse(error.text) from None


def checked_reference(text: str) -> str:
    """A reference that fits a posting; `LocalMisuse` otherwise."""
    from chain.request import MEMO_BYTES

    size = len(text.encode())
    if size > MEMO_BYTES:
        raise LocalMisuse(f"the reference {text[:40]!r} takes {size} bytes of UTF-8: at most {MEMO_BYTES}")
    if "\0" in text:
        raise LocalMisuse(f"the reference {text[:40]!r} holds a zero character: leave it out")
    return text


def hex_of(text: str, size: int) -> bytes | None:
    """The `size` bytes that hex digits, two for each and nothing between them, stand for; None for any other text."""
    return bytes.fromhex(text) if re.fullmatch(f"[0-9a-fA-F]{{{2 * size}}}", text) else None


def checked_hash(text: str, what: str) -> bytes:
    """32 bytes from 64 hex digits."""
    raw = hex_of(text, 32)
    if raw is None:
        raise LocalMisuse(f"{text[:80]!r} is not a {what}: it must be 64 hex digits, as printed by the other commands")
    return raw


def usage(text: str) -> NoReturn:
    """Fail with exit code 2."""
    raise LocalMisuse(text)
