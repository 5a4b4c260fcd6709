"""`hopchain`: the command line. Commands are loaded when they are used, so that `--help` and completion are quick."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import Final

try:
    import click
except KeyboardInterrupt:
    raise SystemExit(130) from None  # as everywhere (cli.command); nothing has begun

_WORDS: Final = "hopchain.words"  # of the command line, as a context keeps them
# Of a group without a command. Before click 8.2 it was no error.
_HELP_IS_SHOWN: Final[tuple[type[BaseException], ...]] = tuple(
    kind for kind in [getattr(click.exceptions, "NoArgsIsHelpError", None)] if kind is not None
)

# command -> (module, what it does, as `--help` lists it)
COMMANDS: Final[dict[str, tuple[str, str]]] = {
    "init": ("cli.network", "Make a new network: genesis, CA, one directory per node, wallet."),
    "up": ("cli.network", "Run all nodes of a network as processes on this machine."),
    "node": ("cli.network", "Run one node in the foreground."),
    "account": ("cli.account", "Open, list and show accounts."),
    "transfer": ("cli.transfer", "Pay from one account to another."),
    "pay": ("cli.pay", "Execute a payment file; run it twice, it pays once."),
    "balance": ("cli.read", "Show settled, incoming and available money of an account."),
    "chain": ("cli.read", "Print the links of an account with their postings and confirmations."),
    "outcome": ("cli.transfer", "Show what became of a request."),
    "cancel": ("cli.transfer", "Make sure that a request never executes."),
    "route": ("cli.route", "Look up which nodes decide for an account or a hash."),
    "status": ("cli.route", "Show all nodes: alive, epoch, log, lag, queues."),
    "verify": ("cli.verify", "Audit a database from its links, or compare all replicas."),
    "bench": ("cli.bench", "Measure transfers per second, latency and cost, and check the promises."),
    "invite": ("cli.invite", "Make an invitation: a file that lets one new node join."),
    "join": ("cli.join", "Become a node of a network: copy, verify, become a member, run."),
    "leave": ("cli.leave", "Take a node out of the network, and stop it."),
    "member": ("cli.member", "See the views; add or remove a member."),
    "replace": ("cli.member", "Put a new node in the place of a dead one."),
    "doctor": ("cli.doctor", "Say what is wrong with the network, and what to do."),
    "certificate": ("cli.certificate", "See when certificates end; renew them."),
    "sim": ("cli.sim", "Cut, kill and delay a simulated network, and see what it does."),
    "demo": ("cli.demo", "Five nodes move money, lose one and agree again: under two minutes."),
    "completion": ("cli.completion", "Print the completion script for a shell."),
}


@contextmanager
def _ended_well(words: Sequence[str]) -> Iterator[None]:
    """What ends a command before it runs becomes an exit code that says so, as it does later (cli.command)."""
    try:
        yield
    except _HELP_IS_SHOWN:
        raise
    except click.ClickException as error:
        from cli.command import refuse

        raise click.exceptions.Exit(refuse("--json" in words, error)) from None
    except (click.exceptions.Exit, click.Abort, SystemExit):
        raise
    except BaseException as error:  # noqa: BLE001 - the outermost place: it becomes a message and an exit code
        from cli.command import end_with
        from cli.output import Output, lost

        if isinstance(error, OSError):
            error = lost(error)  # of a help text: nothing else is written before a command runs
        raise click.exceptions.Exit(end_with(Output("--json" in words), error)) from None


class LazyGroup(click.Group):
    """The top-level group: knows the names of its commands and imports one only to run it."""

    def make_context(
        self, info_name: str | None, args: list[str], parent: click.Context | None = None, **extra: object
    ) -> click.Context:
        """Read the command line up to the command's name."""
        words = tuple(args)
        with _ended_well(words):
            made = super().make_context(info_name, args, parent, **extra)
            made.meta[_WORDS] = words
            return made

    def invoke(self, ctx: click.Context) -> object:
        """Import the command, read its part of the command line, run it."""
        with _ended_well(ctx.meta[_WORDS]):
            return super().invoke(ctx)

    def list_commands(self, ctx: click.Context) -> list[str]:
        """All commands, in the order of use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command, imported now."""
        if cmd_name not in COMMANDS:
            return None
        command = getattr(import_module(COMMANDS[cmd_name][0]), cmd_name)
        assert isinstance(command, click.Command)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that is named; for none, the one that may have been meant."""
        try:
            return super().resolve_command(ctx, args)
        except click.UsageError as error:
            from difflib import get_close_matches

            meant = get_close_matches(args[0], COMMANDS, 1)
            if meant:
                raise click.UsageError(f"{error.message} Did you mean {meant[0]}?", ctx) from None
            raise

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The list in `--help`, without importing anything."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, what) for name, (_, what) in COMMANDS.items()])


@click.command(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120},
    epilog="Example: hopchain init net --asset CZK:2 --issuer mint && hopchain up net",
)
@click.version_option(package_name="hopchain")
def main() -> None:
    """A peer-to-peer payment network. Every account is a chain of links; the last link's hash picks who makes the next.

    Exit codes: 0 done, 1 rejected or audit failed, 2 usage, 3 unreachable or no answer in time,
    4 this node was removed or quarantined and must not be started again, 5 a file or standard output could not be
    used here, 70 a fault of this program, 130 interrupted.
    """


if __name__ == "__main__":
    main()
