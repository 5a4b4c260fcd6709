"""A network's directory, fake nodes behind it in a thread, and the command line to talk to them."""

import json
import random
import ssl
from collections.abc import Iterator
from pathlib import Path

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal
from click.testing import CliRunner, Result

from chain.genesis import Asset
from cli import paybatches
from cli.main import main
from cli.wallet import Wallet
from hopchain import raw_public_key, submitting
from node.layout import make_network, read_network
from tests.hopchain.fake_node import ISSUER_KEY, FakeNode
from tests.hopchain.ledger import Ledger
from tests.hopchain.membership import Membership

FIRST_FAKE_PORT = 101  # replaced by the ports that the fake nodes got
NODES = 2
TIME_MS = 1_700_000_000_000


class Cli:
    """Runs commands in this process; `home` is HOPCHAIN_HOME, `directory` the network's."""

    def __init__(self, home: Path, directory: Path) -> None:
        self.home = home
        self.directory = directory
        self.env = {"HOPCHAIN_HOME": str(home), "HOPCHAIN_NETWORK": str(directory)}

    def run(self, *words: str, code: int = 0) -> Result:
        """Run a command for people; it must end with `code`."""
        result = CliRunner().invoke(main, list(words), env=self.env)
        shown = f"{result.stdout}{result.stderr}"
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        assert result.exit_code == code, f"exit code {result.exit_code}, not {code}: {shown}"
        return result

    def run_any(self, *words: str) -> int:
        """Run a command that may end with any code: which."""
        result = CliRunner().invoke(main, list(words), env=self.env)
        assert result.exception is None or isinstance(result.exception, SystemExit), repr(result.exception)
        return result.exit_code

    def json(self, *words: str, code: int = 0) -> dict:
        """Run a command with `--json`: its one document."""
        return json.loads(self.run(*words, "--json", code=code).stdout)


class World(Cli):
    """The command line with fake nodes behind it."""

    def __init__(self, home: Path, directory: Path, portal: BlockingPortal, nodes: int = NODES, k: int = 5) -> None:
        super().__init__(home, directory)
        public = raw_public_key(ISSUER_KEY)
        made = make_network(
            directory,
            nodes=nodes,
            k=k,
            assets=[Asset("CZK", 2)],
            issuers={"mint": ("CZK", public)},
            ports=[(FIRST_FAKE_PORT + 2 * n, FIRST_FAKE_PORT + 2 * n + 1) for n in range(nodes)],
            name="test",
            now_ms=TIME_MS,
            days=36_500,
        )
        self.portal = portal
        self.ledger = Ledger(made.genesis)
        self.nodes = [FakeNode(self.ledger, context_of(directory / n.name), i) for i, n in enumerate(made.nodes, 1)]
        self.membership = Membership(made.genesis)
        file = directory / "network.toml"
        text = file.read_text()
        for place, node in zip(made.nodes, self.nodes, strict=True):
            node.id = place.node_id
            node.membership = self.membership
            portal.start_task(node.serve)
            text = text.replace(f"client_port = {place.client_port}\n", f"client_port = {node.port}\n")
        file.write_text(text)
        assert [n.client_port for n in read_network(directory).nodes] == [n.port for n in self.nodes]

    @property
    def wallet(self) -> Wallet:
        return Wallet(self.ledger.genesis.network_id)

    def stop(self) -> None:
        for node in self.nodes:
            self.portal.call(node.stop)


def context_of(directory: Path) -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(directory / "node.crt", directory / "node.key")
    return context


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """HOPCHAIN_HOME of this test; no network is chosen."""
    place = tmp_path / "home"
    monkeypatch.setenv("HOPCHAIN_HOME", str(place))
    monkeypatch.delenv("HOPCHAIN_NETWORK", raising=False)
    return place


@pytest.fixture
def cli(home: Path, tmp_path: Path) -> Cli:
    """The command line without any network."""
    return Cli(home, tmp_path / "net")


@pytest.fixture
def world(home: Path, tmp_path: Path) -> Iterator[World]:
    """The command line with two fake nodes; the wallet holds the issuer's key."""
    with start_blocking_portal() as portal:
        made = World(home, tmp_path / "net", portal)
        made.wallet.add("mint", ISSUER_KEY)
        try:
            yield made
        finally:
            made.stop()


@pytest.fixture
def one_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who submits asks each node once, then waits for its deadline: no question is on its way when that comes."""
    monkeypatch.setattr(submitting, "FIRST_PAUSE_S", 60.0)


@pytest.fixture
def two_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """A request holds two rows."""
    monkeypatch.setattr(paybatches, "MAX_POSTINGS", 2)


@pytest.fixture
def rng() -> random.Random:
    return random.Random(7)
