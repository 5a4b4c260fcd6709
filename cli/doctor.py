"""`hopchain doctor`: what is wrong with a network, and what to do."""

from pathlib import Path

import click

from cli.command import HopCommand, network_option, run
from cli.diagnosis import Finding, Known, diagnose
from cli.home import Network, find_network, start_nodes
from cli.members import Picture, look, now_ms, open_patiently, reason_of
from cli.output import Exit, JsonValue, Output, counted
from hopchain import Unreachable
from hopchain.errors import each_reason


@click.command(
    cls=HopCommand,
    examples=["hopchain doctor", "hopchain doctor --network net --json", "hopchain doctor || page-somebody"],
)
@network_option
def doctor(out: Output, network_dir: Path | None) -> None:
    """Ask all nodes how they are and say what is wrong, with numbers and what to do about it.

    Finds nodes that disagree about owners or lag behind, groups without a majority, full disks, clocks apart,
    certificates that end soon, nodes that are not verified, removed or not reachable.

    Exit code 0: nothing is wrong. 1: something is. 3: no node answers.
    """
    from node.pki import ca_until_ms

    network = find_network(network_dir)

    async def ask() -> Picture:
        async with open_patiently(network) as client:
            return await look(client, network)

    try:
        picture = run(ask)
    except Unreachable as error:
        _report(out, network, None, [nobody(network, error)])
        raise SystemExit(Exit.UNREACHABLE) from None
    findings = diagnose(known_nodes(picture), ca_until_ms(network.genesis.ca), now_ms())
    _report(out, network, picture, findings)
    raise SystemExit(Exit.REJECTED if findings else Exit.DONE)


def known_nodes(picture: Picture) -> list[Known]:
    """Every node that answered or is a member, in the order of the directory, then of their ids."""
    names = {node.id: node.name for node in picture.nodes}
    addressed = {node.id for node in picture.nodes if node.client_port}
    ids = [node.id for node in picture.nodes] + sorted(set(picture.members) - set(names))
    return [
        Known(
            names.get(node, picture.name_of(node)),
            node,
            node in picture.members,
            picture.health.get(node, picture.silent.get(node, "no node knows where it is")),
            node in addressed,
        )
        for node in ids
        if node in picture.health or node in picture.members
    ]


def nobody(network: Network, error: Unreachable) -> Finding:
    """What to say when no node answers."""
    tried = each_reason(error.tried) or reason_of(error)
    return Finding(
        "nobody",
        "",
        f"none of the {len(network.nodes)} nodes answers ({tried})",
        f"start them ({start_nodes(network)}), or run this where their client ports can be reached",
        {"nodes": len(network.nodes)},
    )


def _report(out: Output, network: Network, picture: Picture | None, findings: list[Finding]) -> None:
    out.data(
        {
            "network": network.id.hex(),
            "ok": not findings,
            "epoch": picture.newest.epoch if picture else None,
            "members": len(picture.members) if picture else None,
            "answered": len(picture.health) if picture else 0,
            "findings": [_document(finding) for finding in findings],
        }
    )
    if picture is not None:
        out.say(
            f"network {network.genesis.name}: epoch {picture.newest.epoch}, {counted(len(picture.members), 'member')}, "
            f"{counted(len(picture.health), 'node')} answered",
            bold=True,
        )
    for finding in findings:
        out.say(f"✗ {finding.what}", colour="red")
        out.say(f"  do: {finding.do}")
    if not findings:
        out.say("✓ nothing is wrong", colour="green")


def _document(finding: Finding) -> JsonValue:
    return {
        "code": finding.code,
        "node": finding.node or None,
        "what": finding.what,
        "do": finding.do,
        "numbers": finding.numbers,
    }
