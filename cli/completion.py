"""`hopchain completion`: the shell's completion script, by click."""

import click

from cli.command import HopCommand
from cli.output import Output


@click.command(cls=HopCommand, examples=['eval "$(hopchain completion bash)"', "hopchain completion fish | source"])
@click.argument("shell", metavar="SHELL", type=click.Choice(["bash", "zsh", "fish"]))
def completion(out: Output, shell: str) -> None:
    """Print the completion script for a shell: bash, zsh or fish."""
    from click.shell_completion import get_completion_class

    from cli.main import main

    kind = get_completion_class(shell)
    assert kind is not None
    script = kind(main, {}, "hopchain", "_HOPCHAIN_COMPLETE").source()
    out.data({"shell": shell, "script": script})
    out.script(script)
