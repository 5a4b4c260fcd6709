"""`hopchain replace` that stops halfway: when the new node is a member it says so, and never removes the old one."""

import sys

import anyio
import click

from cli import member
from cli.main import main
from cli.member import Done


async def wait_for_the_end(*_: object) -> Done:
    click.echo('{"event": "added"}')
    await anyio.sleep_forever()
    raise AssertionError


member.remove_node = wait_for_the_end
main(sys.argv[1:])
