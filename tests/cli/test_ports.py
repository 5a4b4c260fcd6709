"""HOPCHAIN_PORTS: where commands look for free ports when none is named."""

import random
import socket

import pytest

from chain.errors import LocalMisuse
from cli.join import ports_of
from cli.ports import PORTS, PORTS_VARIABLE, choose_ports, free_ports, port_range
from tests.cli.conftest import Cli
from tests.ports import FOR_COMMANDS, FOR_TESTS, take

HOST = "127.0.0.1"
SOME = FOR_COMMANDS[100:140]
WRONG = ["7400", "7400-", "-7400", "0-7400", "7400-7399", "7400-65536", "7400-7500,7600", "7400 - 7500", "\u0667-9"]


def named(ports: range) -> str:
    return f"{ports[0]}-{ports[-1]}"


def test_the_first_and_the_last_port_belong_to_the_range(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PORTS_VARIABLE, "7400-7402")
    assert list(port_range()) == [7400, 7401, 7402]
    monkeypatch.setenv(PORTS_VARIABLE, "65535-65535")
    assert list(port_range()) == [65535]


@pytest.mark.parametrize("value", ["", None])
def test_without_the_variable_all_ports_are_chosen_from(value: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(PORTS_VARIABLE)
    if value is not None:
        monkeypatch.setenv(PORTS_VARIABLE, value)
    assert port_range() == PORTS


def test_init_chooses_free_ones_of_the_range(cli: Cli) -> None:
    cli.env[PORTS_VARIABLE] = named(SOME)
    made = cli.json("init", str(cli.directory), "--nodes", "3", "--asset", "CZK:2", "--port", "0")
    chosen = {node[key] for node in made["nodes"] for key in ("port", "client_port")}
    assert len(chosen) == 6 and chosen <= set(SOME)
    shown = cli.run("init", f"{cli.directory}-2", "--nodes", "21", "--asset", "CZK:2", "--port", "0", code=2).stderr
    assert f"from {SOME[0]} to {SOME[-1]} are free, not 42: " in " ".join(shown.split())


def test_join_chooses_what_is_not_named_and_never_one_port_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    (port,) = take(1)
    monkeypatch.setenv(PORTS_VARIABLE, f"{port}-{port}")
    assert ports_of(HOST, 0, 7401) == (port, 7401)
    assert ports_of(HOST, 7400, 0) == (7400, port)
    for first, second in ((port, 0), (0, port), (0, 0)):
        with pytest.raises(LocalMisuse, match="are free, not "):
            ports_of(HOST, first, second)
    monkeypatch.setenv(PORTS_VARIABLE, named(SOME))
    both = ports_of(HOST, 0, 0)
    assert len(set(both)) == 2 and set(both) <= set(SOME)
    assert set(choose_ports(30, HOST, besides=both)).isdisjoint(both)
    monkeypatch.setenv(PORTS_VARIABLE, "none")
    assert ports_of(HOST, 7400, 7401) == (7400, 7401), "nothing is to be chosen"


@pytest.mark.parametrize("value", WRONG)
def test_a_wrong_range_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(PORTS_VARIABLE, value)
    with pytest.raises(LocalMisuse, match=r"it must be the first and the last port .* such as 10000-29999") as refused:
        port_range()
    assert repr(value) in str(refused.value)


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("init", "net", "--asset", "CZK:2", "--port", "0"), id="init"),
        pytest.param(("demo",), id="demo"),
        pytest.param(("bench", "uniform"), id="bench"),
    ],
)
def test_commands_that_choose_ports_refuse_a_wrong_range(
    cli: Cli, words: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    cli.home.parent.mkdir(exist_ok=True)
    monkeypatch.chdir(cli.home.parent)
    cli.env[PORTS_VARIABLE] = "7400"
    refused = cli.json(*words, code=2)
    assert refused["error"] == "usage" and "HOPCHAIN_PORTS is '7400'" in refused["message"]
    assert list(cli.home.parent.iterdir()) == []


def test_a_command_that_is_told_its_ports_does_not_look(cli: Cli) -> None:
    cli.env[PORTS_VARIABLE] = "7400"
    made = cli.json("init", str(cli.directory), "--nodes", "1", "--asset", "CZK:2", "--port", "7600")
    assert [(node["port"], node["client_port"]) for node in made["nodes"]] == [(7600, 7601)]


def test_free_ports_are_different_and_free_for_tcp_and_udp() -> None:
    ports = free_ports(20, random.Random(7), among=FOR_TESTS)
    assert len(set(ports)) == 20
    assert set(ports) <= set(FOR_TESTS)
    for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind(("127.0.0.1", ports[0]))
            assert ports[0] not in free_ports(20, random.Random(7), among=FOR_TESTS)


def test_a_port_that_is_named_is_not_chosen_beside_itself() -> None:
    first, second = sorted(free_ports(2, random.Random(7), among=FOR_TESTS))
    either = range(first, second + 1, second - first)
    assert free_ports(1, random.Random(7), among=either, besides=[first]) == [second]
    assert free_ports(1, random.Random(7), among=either, besides=[second]) == [first]


def test_where_no_range_is_named_ports_are_below_those_of_outgoing_connections() -> None:
    assert all(10_000 <= port < 30_000 for port in free_ports(2, random.Random(7)))


def test_more_ports_than_there_are() -> None:
    with pytest.raises(LocalMisuse, match=f"from {FOR_TESTS[0]} to {FOR_TESTS[1]} are free, not 3: .*HOPCHAIN_PORTS"):
        free_ports(3, random.Random(7), among=FOR_TESTS[:2])


@pytest.mark.parametrize(
    ("host", "why"),
    [
        ("192.0.2.1", "this machine has no such address"),
        ("2001:db8::1", "this machine has no such address"),
        ("a.name.of.nobody.invalid", "it is not known as a host here"),
        ("a..b", "it is not known as a host here"),
    ],
)
def test_a_host_that_is_not_this_machines_is_told_apart_from_ports_that_are_taken(
    cli: Cli, host: str, why: str
) -> None:
    asked = ("init", str(cli.directory), "--asset", "CZK:2", "--port", "0", "--host", host)
    said = cli.json(*asked, code=2)["message"]
    assert f"nothing can listen on {host}: {why}" in said and "are free" not in said
    assert not cli.directory.exists()
