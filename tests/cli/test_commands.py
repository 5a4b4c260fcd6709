"""Every command: its JSON keys are the documented ones, its exit code is right, errors say what happened."""

import re
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path

import pytest

from chain.link import Outcome, opening_slot
from cli.command import hex_of
from cli.wallet import Wallet
from hopchain import raw_public_key, wire
from node.layout import read_network
from tests.cli.conftest import TIME_MS, Cli, World
from tests.hopchain.fake_node import Drop, FaultMaker, Hang, key_number
from tests.hopchain.ledger import TIME_MS as LINK_TIME_MS

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli-json.md"


def documented(section: str) -> set[str]:
    """The keys that docs/cli-json.md lists for a command."""
    text = DOCUMENT.read_text().split(f"\n## {section}\n")[1].split("\n## ")[0]
    return set(re.findall(r"^- `([a-z_]+)`", text, re.MULTILINE))


def on_submit(answer: wire.ReplyBody | Hang) -> FaultMaker:
    return lambda call: answer if isinstance(call, wire.Submit) else None


def opened(world: World, *names: str) -> None:
    world.run("account", "open", *names)


# --- init, node ----------------------------------------------------------------------------------------------------


def test_init_makes_a_network_and_puts_the_issuers_keys_into_the_wallet(cli: Cli) -> None:
    made = cli.json("init", str(cli.directory), "--nodes", "3", "--asset", "CZK:2", "--issuer", "mint", "--port", "0")
    assert set(made) == documented("init")
    network = read_network(cli.directory)
    assert made["network"] == network.network_id.hex() and made["k"] == 5
    assert [n["name"] for n in made["nodes"]] == ["node-1", "node-2", "node-3"]
    (issuer,) = network.genesis.issuers
    assert (issuer.name, issuer.asset) == ("mint", "CZK")
    key = Wallet(network.network_id).key("mint")
    assert issuer.public_key == raw_public_key(key).hex()
    assert network.genesis.time_ms > TIME_MS
    cli.env.pop("HOPCHAIN_NETWORK")
    assert cli.json("status", code=3)["network"] == made["network"]  # it is the remembered one


def test_init_gives_each_node_two_ports_from_the_first(cli: Cli) -> None:
    made = cli.json(
        "init", str(cli.directory), "--nodes", "2", "--asset", "CZK:2", "--asset", "EUR:2", "--issuer", "a=EUR"
    )
    assert [(n["port"], n["client_port"]) for n in made["nodes"]] == [(7400, 7401), (7402, 7403)]
    assert made["issuers"] == [{"name": "a", "asset": "EUR"}]
    shown = cli.run(
        "init", f"{cli.directory}-2", "--asset", "CZK:2", "--issuer", "mint", "--name", "second", "--k", "3"
    ).stdout
    assert "network second" in shown and "hopchain up" in shown


def test_a_command_that_is_printed_can_be_pasted(cli: Cli) -> None:
    """Whatever its directory is called."""
    place = cli.directory.parent / "my own; net's"
    quoted = shlex.quote(str(place))
    shown = cli.run("init", str(place), "--name", "test", "--nodes", "1", "--asset", "CZK:2", "--port", "0").stdout
    assert f"next: hopchain up {quoted}\n" in shown
    network = ("--network", str(place))
    assert f"`hopchain up {quoted}`" in cli.run("status", *network, code=3).stderr
    assert f"`hopchain up {quoted}`" in cli.json("doctor", *network, code=3)["findings"][0]["do"]


def test_init_gives_each_machine_its_node(cli: Cli) -> None:
    places = ["--node-at", "10.0.0.1", "--node-at", "n2.lan:7500", "--node-at", "[fd00::3]:7600:80"]
    made = cli.json("init", str(cli.directory), *places, "--asset", "CZK:2")
    assert [(n["host"], n["port"], n["client_port"]) for n in made["nodes"]] == [
        ("10.0.0.1", 7400, 7401),
        ("n2.lan", 7500, 7501),
        ("fd00::3", 7600, 80),
    ]
    assert set(made) == documented("init")
    shown = cli.run("init", f"{cli.directory}-2", *places, "--asset", "CZK:2", "--port", "9000").stdout
    assert "10.0.0.1:9000" in shown and "next: copy each node's directory to its machine" in shown


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--node-at", "n1.lan:x"), "'n1.lan:x' is not a place for a node"),
        (("--node-at", "fd00::1"), "an IPv6 address in brackets"),
        (("--node-at", "n1.lan", "--port", "0"), "name one other than 0"),
        (("--node-at", "n1.lan", "--nodes", "2"), "--nodes is 2, but --node-at names 1"),
        (
            ("--node-at", "n1.lan", "--node-at", "n1.lan:7401"),
            "--node-at n1.lan:7401: 7401 is also a port of --node-at n1.lan:",
        ),
        (("--node-at", "n1.lan", "--node-at", "n1.lan"), "--node-at n1.lan: 7400 is also a port of --node-at n1.lan:"),
        (("--node-at", "n1.lan:7400:7400"), "--node-at n1.lan:7400:7400: 7400 is both of its ports"),
        (("--node-at", "0.0.0.0"), "nobody can reach a node at '0.0.0.0'"),
        (
            ("--node-at", "n1.lan:65535"),
            "--node-at n1.lan:65535: its client port would be 65536: name one from 1 to 65535",
        ),
        (("--node-at", "n1.lan", "--port", "65535"), "--node-at n1.lan: its client port would be 65536"),
        (("--node-at", "n1.lan:70000"), "--node-at n1.lan:70000: its port would be 70000"),
        (("--node-at", "n1.lan:7400:0"), "--node-at n1.lan:7400:0: its client port would be 0"),
    ],
)
def test_init_refuses_places_that_are_none(cli: Cli, words: tuple[str, ...], said: str) -> None:
    error = cli.json("init", str(cli.directory), "--asset", "CZK:2", *words, code=2)
    assert said in error["message"]
    assert not cli.directory.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("--asset", "czk:2"),
        ("--asset", "CZK"),
        ("--asset", "CZK:19"),
        ("--asset", "CZK:x"),
        (),
        ("--asset", "CZK:2", "--issuer", "Mint"),
        ("--asset", "CZK:2", "--issuer", "mint=EUR"),
        ("--asset", "CZK:2", "--asset", "CZK:3"),
        ("--asset", "CZK:2", "--nodes", "0"),
        ("--asset", "CZK:2", "--port", "65530"),
        ("--asset", "CZK:2", "--name", "?"),
    ],
)
def test_init_refuses_what_makes_no_sense_and_leaves_nothing(cli: Cli, words: tuple[str, ...]) -> None:
    cli.run("init", str(cli.directory), *words, code=2)
    assert not cli.directory.exists() and not cli.home.exists()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--port", "65530"), "5 nodes from port 65530 on would need ports up to 65539"),
        (("--port", "65530", "--nodes", "256"), "give --port 65024 or less, or 0 for any free ones"),
        (("--issuer", "mint", "--issuer", "mint"), "issuer mint is named more than once"),
        (("--asset", "EUR:2", "--issuer", "mint=CZK", "--issuer", "mint=EUR"), "issuer mint is named more than once"),
    ],
)
def test_init_says_what_to_give_instead(cli: Cli, words: tuple[str, ...], said: str) -> None:
    told = cli.run("init", str(cli.directory), "--asset", "CZK:2", *words, code=2).stderr
    assert said in told and len(told) < 300
    assert not cli.directory.exists()


def test_init_takes_the_last_ports_there_are(cli: Cli) -> None:
    made = cli.json("init", str(cli.directory), "--asset", "CZK:2", "--nodes", "1", "--port", "65534")
    assert [n["client_port"] for n in made["nodes"]] == [65535]


def test_init_says_that_the_name_is_the_directorys(cli: Cli) -> None:
    place = str(cli.directory.with_name("síť"))
    assert "give the network another with --name" in cli.run("init", place, "--asset", "CZK:2", code=2).stderr
    assert "--name" not in cli.run("init", place, "--asset", "CZK:2", "--name", "síť", code=2).stderr
    assert (
        "give the network another with --name"
        in cli.run("init", place, "--asset", "CZK:2", "--name", "", code=2).stderr
    )
    cli.run("init", place, "--asset", "CZK:2", "--name", "sit", "--nodes", "1", "--port", "0")
    other = cli.json("init", f"{cli.directory}-2", "--asset", "CZK:2", "--name", "", "--nodes", "1", "--port", "0")
    assert other["name"] == f"{cli.directory.name}-2", "a variable that is not set names none"


def test_init_refuses_a_directory_with_files(cli: Cli) -> None:
    cli.directory.mkdir()
    (cli.directory / "mine.txt").write_text("mine")
    assert "not an empty directory" in cli.run("init", str(cli.directory), "--asset", "CZK:2", code=2).stderr
    assert (cli.directory / "mine.txt").read_text() == "mine"


def test_init_leaves_no_network_whose_issuers_have_no_keys(cli: Cli) -> None:
    words = ("init", str(cli.directory), "--asset", "CZK:2", "--issuer", "mint", "--port", "0")
    cli.home.mkdir(exist_ok=True)
    (cli.home / "wallet").write_text("")  # keys cannot be put there
    cli.run(*words, code=5)
    assert not cli.directory.exists()
    (cli.home / "wallet").unlink()
    cli.run(*words)


@pytest.mark.parametrize("words", [("node",), ("leave", "--data"), ("verify",)])
def test_the_directory_of_a_network_is_not_that_of_a_node(cli: Cli, words: tuple[str, ...]) -> None:
    cli.run("init", str(cli.directory), "--nodes", "1", "--asset", "CZK:2", "--port", "0")
    said = cli.run(*words, str(cli.directory), code=2).stderr
    assert f"is a network's directory: name that of one node, such as {cli.directory / 'node-1'}" in said
    (cli.directory / "node-1" / "config.toml").unlink()  # a node's directory without it is one all the same
    for directory in (cli.directory, cli.directory / "node-1"):
        assert "a network's directory" not in cli.run(*words, str(directory), code=2).stderr


def test_node_refuses_a_directory_that_is_none(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("node.process.settle_collector", lambda: None)
    assert "not a node's directory" in cli.run("node", str(tmp_path / "node-1"), code=2).stderr
    assert "config.toml" in cli.run("node", str(tmp_path), code=2).stderr


def test_the_process_of_a_node_settles_its_collector(cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[object] = []
    monkeypatch.setattr("node.process.settle_collector", lambda: calls.append("settled"))
    monkeypatch.setattr("node.process.run_node", calls.append)
    cli.run("node", str(tmp_path))
    assert calls == ["settled", tmp_path]


# --- accounts ------------------------------------------------------------------------------------------------------


def test_account_open_makes_a_key_and_opens_once(world: World) -> None:
    first = world.json("account", "open", "alice", "--asset", "CZK")
    assert set(first) == documented("account open")
    (alice,) = first["accounts"]
    assert set(alice) == documented("outcome") | {"public_key", "key_file"}
    assert (alice["outcome"], alice["repeated"]) == ("completed", False)
    assert Path(alice["key_file"]) == world.wallet.path("alice")
    assert world.ledger.accounts["alice"].public_key == raw_public_key(world.wallet.key("alice"))
    (again,) = world.json("account", "open", "alice")["accounts"]
    assert (again["outcome"], again["repeated"]) == ("completed", True)
    assert "open already" in world.run("account", "open", "alice").stdout


def test_account_open_takes_many_names_and_files(world: World, tmp_path: Path) -> None:
    people = tmp_path / "people.csv"
    people.write_text('"bank";"number"\n"AB";1\n"CD";2\n"AB";1\n')
    found = world.json(
        *(
            "account",
            "open",
            "zoe",
            "--from-file",
            str(people),
            "--column",
            "bank",
            "--column",
            "number",
            "--prefix",
            "p-",
        )
    )
    assert [a["account"] for a in found["accounts"]] == ["zoe", "p-ab-1", "p-cd-2"]
    assert set(world.ledger.accounts) >= {"zoe", "p-ab-1", "p-cd-2"}
    assert "p-ab-1" in world.run("account", "open", "zoe", "p-ab-1").stdout
    people.write_text("bank,number\nef,3\ngh,1,000\n")
    words = ("account", "open", "--from-file", str(people), "--column", "bank", "--column", "number")
    assert "people.csv, line 3: the row has 3 cells and the header 2" in world.run(*words, code=2).stderr


def test_a_taken_name_is_told_and_its_useless_key_removed(world: World) -> None:
    world.ledger.open("alice", "CZK", raw_public_key(key_number(5)))
    found = world.json("account", "open", "alice", "bob", code=1)
    assert [a["outcome"] for a in found["accounts"]] == ["refused", "completed"]
    assert found["accounts"][0]["code"] == "name_taken" and found["accounts"][0]["key_file"] is None
    assert world.wallet.names() == ["bob", "mint"]
    assert "choose another name" in world.run("account", "open", "alice", code=1).stdout


def test_a_key_that_was_there_before_stays_when_the_name_is_taken(world: World) -> None:
    world.ledger.open("alice", "CZK", raw_public_key(key_number(5)))
    world.wallet.add("alice", key_number(6))
    world.run("account", "open", "alice", code=1)
    assert world.wallet.has("alice")


def test_the_key_of_an_account_that_another_process_opened_is_never_removed(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stored its key after this process had looked for one, so both use it, and opened the account by another
    request."""
    create = Wallet.create

    def late(wallet: Wallet, names: Sequence[str]) -> None:
        create(wallet, names)
        world.ledger.open("shop", "CZK", raw_public_key(wallet.key("shop")))
        create(wallet, names)

    monkeypatch.setattr(Wallet, "create", late)
    found = world.json("account", "open", "shop", code=1)
    assert found["accounts"][0]["code"] == "name_taken" and found["accounts"][0]["key_file"] is not None
    assert raw_public_key(world.wallet.key("shop")) == world.ledger.accounts["shop"].public_key


@pytest.mark.parametrize(
    "answer", [wire.Refused("memory", "too much is kept"), wire.Accounts((), False, stale=True), Drop()]
)
def test_a_key_stays_while_it_is_not_known_whose_the_account_is(world: World, answer: wire.ReplyBody | Drop) -> None:
    world.ledger.open("alice", "CZK", raw_public_key(key_number(5)))
    for node in world.nodes:
        node.fault = lambda call: answer if isinstance(call, wire.AskAccounts) else None
    world.run("account", "open", "alice", code=1)
    assert world.wallet.has("alice")


def test_an_opening_without_an_answer_keeps_its_key(world: World) -> None:
    for node in world.nodes:
        node.fault = on_submit(Hang())
    (alice,) = world.json("account", "open", "alice", "--timeout", "0.5", code=3)["accounts"]
    assert alice["outcome"] == "unknown" and world.wallet.has("alice")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("Alice",), "look-alike"),
        (("аlice",), "plain ASCII"),  # a Cyrillic letter
        (("alice", "--asset", "EUR"), "no asset 'EUR'; it has CZK"),
        ((), "at least one account"),
        (("--from-file", str(DOCUMENT)), "needs --column"),
        (("--from-file", str(DOCUMENT), "--column", "x"), "no column x"),
    ],
)
def test_account_open_refuses_bad_input_before_anything_is_sent(
    world: World, words: tuple[str, ...], what: str
) -> None:
    assert what in world.run("account", "open", *words, code=2).stderr
    assert world.wallet.names() == ["mint"] and not world.nodes[0].calls


def test_account_list_and_show(world: World) -> None:
    opened(world, "alice")
    world.ledger.open("stranger", "CZK", bytes(32))
    world.run("transfer", "mint", "alice", "12.50")
    listed = world.json("account", "list")
    assert set(listed) == documented("account list")
    assert [a["account"] for a in listed["accounts"]] == ["alice", "mint", "stranger"]
    assert [a["account"] for a in world.json("account", "list", "--mine")["accounts"]] == ["alice", "mint"]
    shown = world.json("account", "show", "alice")
    assert set(shown) == documented("account show")
    assert shown == listed["accounts"][0] | {"stale": False}
    assert (shown["incoming"], shown["available"], shown["in_wallet"]) == (1250, 1250, True)
    assert "12.50 CZK" in world.run("account", "show", "alice").stdout
    assert re.search(r"alice +CZK +0 +0\.00 +12\.50 +wallet", world.run("account", "list").stdout)
    assert world.json("account", "show", "alicf", code=1)["error"] == "not_found"


# --- transfer, outcome, cancel -------------------------------------------------------------------------------------


def test_transfer_prints_a_receipt(world: World) -> None:
    opened(world, "alice")
    receipt = world.json("transfer", "mint", "alice", "12.50", "--reference", "nájem 5/2024")
    assert set(receipt) == documented("transfer")
    assert (receipt["outcome"], receipt["amount"], receipt["balance"]) == ("completed", 1250, -1250)
    assert receipt["decided_by_name"] == "node-1" and receipt["hops"] == 2 and receipt["milliseconds"] > 0
    posting = world.ledger.accounts["mint"].links[-1].postings[0]
    assert (posting.recipient, posting.amount, posting.memo) == ("alice", 1250, "nájem 5/2024")
    shown = world.run("transfer", "mint", "alice", "1").stdout
    for what in ("completed", "-13.50 CZK", "node-1", "height      2", "ms"):
        assert what in shown


def test_the_same_nonce_pays_once_and_no_nonce_pays_each_time(world: World) -> None:
    opened(world, "alice")
    words = ("transfer", "mint", "alice", "5")
    first = world.json(*words, "--nonce", "invoice 1")
    again = world.json(*words, "--nonce", "invoice 1")
    other = world.json(*words, "--nonce", "ab" * 32)
    assert (again["request_id"], again["repeated"]) == (first["request_id"], True)
    assert other["request_id"] != first["request_id"]
    world.run(*words)
    world.run(*words)
    assert world.ledger.accounts["alice"].incoming == 2000
    assert "nothing moved twice" in world.run(*words, "--nonce", "invoice 1").stdout


def test_an_empty_nonce_is_refused(world: World) -> None:
    """Else every payment of a script whose variable is not set would be the first one, and said to be completed."""
    opened(world, "alice")
    sent = world.ledger.submits
    assert "--nonce '' names no payment" in world.run("transfer", "mint", "alice", "1", "--nonce", "", code=2).stderr
    assert world.ledger.submits == sent


def test_a_rejection_says_what_to_do_and_exits_with_1(world: World) -> None:
    opened(world, "alice", "bob")
    receipt = world.json("transfer", "alice", "bob", "1", code=1)
    assert receipt["outcome"] == "insufficient_funds" and "nothing moved" in receipt["reason"]
    assert set(receipt) == documented("transfer")
    assert "insufficient_funds" in world.run("transfer", "alice", "bob", "1", code=1).stdout
    assert world.json("transfer", "mint", "nobody", "1", code=1)["outcome"] == "unknown_recipient"


def test_a_pinned_tip_that_has_moved_is_stale(world: World) -> None:
    opened(world, "alice")
    tip = world.json("account", "show", "mint")["tip"]
    assert world.json("transfer", "mint", "alice", "1", "--expect-tip", tip)["outcome"] == "completed"
    stale = world.json("transfer", "mint", "alice", "1", "--expect-tip", tip, code=1)
    assert (
        stale["outcome"] == "stale" and stale["tip"] == world.ledger.accounts["mint"].tip.hex() and stale["height"] == 1
    )


def test_at_pins_one_node(world: World) -> None:
    opened(world, "alice")
    before = len(world.nodes[1].calls)
    world.run("transfer", "mint", "alice", "1", "--at", "node-2")
    world.run("transfer", "mint", "alice", "1", "--at", f"127.0.0.1:{world.nodes[1].port}")
    assert len(world.nodes[1].calls) == before + 2


def test_no_answer_in_time_tells_how_to_settle_it(world: World) -> None:
    opened(world, "alice")
    for node in world.nodes:
        node.fault = on_submit(Hang())
    unknown = world.json("transfer", "mint", "alice", "1", "--timeout", "0.5", code=3)
    assert unknown["outcome"] == "unknown" and set(unknown) == documented("transfer")
    assert f"hopchain cancel {unknown['request_id']}" in unknown["reason"]
    for node in world.nodes:
        node.fault = lambda call: None
    missing = world.json("outcome", unknown["request_id"], code=1)
    assert missing["error"] == "not_found" and "sent from mint" in missing["message"]
    cancelled = world.json("cancel", unknown["request_id"])
    assert cancelled["account"] == "mint" and cancelled["target_outcome"] == "cancelled"


def test_a_refusal_is_shown_with_its_code(world: World) -> None:
    opened(world, "alice")
    world.wallet.add("ghost", key_number(8))
    refused = world.json("transfer", "ghost", "alice", "1", code=1)
    assert (refused["outcome"], refused["code"]) == ("refused", "unknown_sender") and "open it first" in refused[
        "reason"
    ]


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (("mint", "alice", "12.505"), "at most 2 decimals"),
        (("mint", "alice", "0"), "from 0.01 to"),
        (("mint", "alice", "1e3"), "no sign, comma or exponent"),
        (("mint", "alice", "92233720368547758.08"), "92233720368547758.07"),
        (("mint", "mint", "1"), "cannot pay itself"),
        (("mint", "Alice", "1"), "not an account name"),
        (("mínt", "alice", "1"), "not an account name"),
        (("nobody", "alice", "1"), "no key for nobody"),
        (("mint", "alice", "1", "--reference", "ž" * 29), "58 bytes of UTF-8: at most 56"),
        (("mint", "alice", "1", "--expect-tip", "xyz"), "not a link hash"),
        (("mint", "alice", "1", "--at", "nowhere"), "HOST:PORT"),
    ],
)
def test_transfer_refuses_bad_input_before_anything_is_sent(world: World, words: tuple[str, ...], what: str) -> None:
    failed = world.json("transfer", *words, code=2)
    assert set(failed) == documented("error") and failed["error"] == "usage" and what in failed["message"]
    assert what in world.run("transfer", *words, code=2).stderr
    assert not any(isinstance(c, wire.Submit) for n in world.nodes for c in n.calls)


@pytest.mark.parametrize("text", ["0a" * 3 + "0", "0a 0b0c", "0x0a0b", "٠a0b0c", "0a0b0g", "0a0b0c\n", "0a0b0c0d", ""])
def test_what_is_not_so_many_hex_digits_is_none(text: str) -> None:
    assert hex_of(text, 3) is None


def test_hex_digits_of_either_case_are_bytes() -> None:
    assert hex_of("0a0B0c", 3) == b"\n\x0b\x0c"


def test_a_negative_amount_is_usage(world: World) -> None:
    world.run("transfer", "mint", "alice", "-1", code=2)
    assert "no sign" in world.run("transfer", "mint", "alice", "--", "-1", code=2).stderr


def test_every_request_is_in_the_journal_before_it_leaves(world: World) -> None:
    opened(world, "alice")
    known: list[str | None] = []

    def look(call: wire.CallBody) -> None:
        if isinstance(call, wire.Submit):
            from chain.request import request_id

            known.append(world.wallet.sender_of(request_id(call.raw)))

    world.nodes[0].fault = look
    world.run("transfer", "mint", "alice", "1", "--at", "node-1")
    world.run("account", "open", "bob", "--at", "node-1")
    world.run("cancel", "77" * 32, "--account", "mint", "--at", "node-1")
    assert known == ["mint", "bob", "mint"]


def test_outcome_is_found_at_whichever_node_knows_it(world: World) -> None:
    opened(world, "alice")
    done = world.json("transfer", "mint", "alice", "3")
    world.nodes[0].fault = lambda call: wire.NotFound("?") if isinstance(call, wire.AskOutcome) else None
    found = world.json("outcome", done["request_id"])
    assert set(found) == documented("outcome")
    assert {k: found[k] for k in ("outcome", "link_hash", "account")} == {
        k: done[k] for k in ("outcome", "link_hash", "account")
    }
    assert world.json("outcome", done["request_id"], "--at", "node-1", code=1)["error"] == "not_found"
    rejected = world.json("transfer", "alice", "mint", "900", code=1)
    assert world.json("outcome", rejected["request_id"], code=1)["outcome"] == "insufficient_funds"
    world.run("outcome", "12", code=2)
    asked = [c.account for c in world.nodes[1].calls if isinstance(c, wire.AskOutcome)]
    assert asked == ["mint", "alice"]  # the journal knows whose they are


def test_cancel_of_a_decided_request_shows_what_it_decided(world: World) -> None:
    opened(world, "alice")
    done = world.json("transfer", "mint", "alice", "3")
    late = world.json("cancel", done["request_id"], code=1)
    assert set(late) == documented("cancel")
    assert (late["outcome"], late["target_outcome"]) == ("already_decided", "completed")
    assert "target completed" in world.run("cancel", done["request_id"], code=1).stdout
    for node in world.nodes:  # the question afterwards is refused: the cancellation has its answer all the same
        node.fault = lambda call: (
            wire.Refused("too_large", "asked for less") if isinstance(call, wire.AskOutcome) else None
        )
    later = world.json("cancel", done["request_id"], code=1)
    assert (later["outcome"], later["target_outcome"]) == ("already_decided", None)
    assert "target decided before; ask `outcome` how" in world.run("cancel", done["request_id"], code=1).stdout
    for node in world.nodes:
        node.fault = lambda call: None
    unknown = world.json("cancel", "99" * 32, code=2)
    assert "--account" in unknown["message"]
    early = world.json("cancel", "99" * 32, "--account", "mint")
    assert early["target_outcome"] == "cancelled" and early["target"] == "99" * 32
    assert world.ledger.recorded[b"\x99" * 32].outcome == Outcome.CANCELLED


# --- balance, chain, route, status ---------------------------------------------------------------------------------


def test_amounts_for_people_are_grouped_everywhere_and_json_is_integers(world: World) -> None:
    opened(world, "alice")
    receipt = world.run("transfer", "mint", "alice", "1234567.50").stdout
    assert "mint -> alice  1,234,567.50 CZK" in receipt and "-1,234,567.50 CZK" in receipt
    for words in (("balance", "alice"), ("account", "show", "alice"), ("account", "list"), ("chain", "mint")):
        shown = world.run(*words).stdout
        assert "1,234,567.50" in shown and "1234567" not in shown, words
    assert world.json("balance", "alice")["available"] == 123_456_750


def test_balance(world: World) -> None:
    opened(world, "alice")
    world.run("transfer", "mint", "alice", "100")
    world.run("transfer", "alice", "mint", "30")
    world.run("transfer", "mint", "alice", "0.05")
    found = world.json("balance", "alice", "--linearizable", "--min-height", "1")
    assert set(found) == documented("balance")
    assert [found[k] for k in ("settled", "incoming", "available", "height")] == [7000, 5, 7005, 1]
    assert found["linearizable"] is True and found["time_ms"] == LINK_TIME_MS + 1
    call = world.nodes[0].calls[-1]
    assert isinstance(call, wire.AskBalance) and 0 < call.timeout_ms < 10_000  # its own answer is in time
    assert (call.account, call.linearizable, call.min_height) == ("alice", True, 1)
    shown = world.run("balance", "alice").stdout
    for what in ("settled    70.00 CZK", "incoming   0.05 CZK  (1 posting)", "available  70.05 CZK", "one replica"):
        assert what in shown
    assert "(issuer)" in world.run("balance", "mint").stdout
    assert not found["stale"] and "stale" not in shown
    assert world.json("balance", "nobody", code=1)["error"] == "not_found"
    world.nodes[0].fault = lambda call: wire.Unknown(b"", "no majority")
    late = world.json("balance", "alice", "--linearizable", "--at", "node-1", "--timeout", "1", code=3)
    assert late["error"] == "unknown" and late["message"].endswith(": no majority")
    assert 0.8 < float(late["message"].split()[3]) < 1, "what was waited, not what might have been"


@pytest.mark.parametrize("how", ["--linearizable", "--min-height=0"])
def test_a_balance_is_asked_of_the_next_node_when_one_is_cut_off(world: World, how: str) -> None:
    def cut_off(call: wire.CallBody) -> wire.Unknown | None:
        waits = isinstance(call, wire.AskBalance) and (call.linearizable or call.min_height >= 0)
        return wire.Unknown(b"", "no majority") if waits else None

    world.nodes[0].fault = cut_off
    found = world.json("balance", "mint", how, "--timeout", "5")
    assert found["linearizable"] is (how == "--linearizable") and not found["stale"]
    assert world.json("balance", "mint", how, "--timeout", "1", "--at", "node-1", code=3)["error"] == "unknown"
    assert world.json("balance", "mint", how, "--timeout", "5", "--at", "node-2")["account"] == "mint"
    world.nodes[1].fault = cut_off
    assert "no majority" in world.json("balance", "mint", how, "--timeout", "1", code=3)["message"]


@pytest.mark.parametrize("says", ["unknown", "nothing"])
@pytest.mark.parametrize("how", ["--linearizable", "--min-height=0"])
def test_a_balance_has_all_the_time_when_no_other_node_can_be_reached(world: World, how: str, says: str) -> None:
    first, second = world.nodes
    world.portal.call(second.stop)
    asked: list[int] = []

    def slow(call: wire.CallBody) -> wire.Unknown | Hang | None:
        if not isinstance(call, wire.AskBalance) or len(asked) == 1:
            return None
        asked.append(call.timeout_ms)
        return wire.Unknown(b"", "no majority") if says == "unknown" else Hang()

    first.fault = slow
    assert world.json("balance", "mint", how, "--timeout", "2")["account"] == "mint"


def test_a_balance_that_nobody_tells_says_how_long_each_node_was_waited_for(world: World) -> None:
    first, second = world.nodes
    world.portal.call(second.stop)
    first.fault = lambda call: Hang() if isinstance(call, wire.AskBalance) else None
    for how in ("--linearizable", "--min-height=0"):
        said = world.json("balance", "mint", how, "--timeout", "1", code=3)["message"]
        waited_s = float(said.partition("no answer within ")[2].split()[0])
        assert (0.85 < waited_s <= 1) if how == "--linearizable" else (0.4 < waited_s <= 0.5), said


@pytest.mark.parametrize(
    "words",
    [
        ("balance", "alice"),
        ("chain", "alice"),
        ("account", "list"),
        ("account", "show", "alice"),
        ("route", "alice"),
    ],
)
def test_a_stale_answer_says_so_and_others_are_asked_first(world: World, words: tuple[str, ...]) -> None:
    opened(world, "alice")
    world.nodes[0].stale = True
    found = world.json(*words)
    assert set(found) == documented(" ".join(words).removesuffix(" alice"))
    assert found["stale"] is False, "node 2 is not"
    assert "stale: " not in world.run(*words).stdout
    assert world.json(*words, "--at", "node-1")["stale"] is True
    world.nodes[1].stale = True
    assert world.json(*words)["stale"] is True
    assert "stale: the node that answered was removed, reaches no majority" in world.run(*words).stdout


@pytest.mark.parametrize(
    "words",
    [("balance", "nobody"), ("chain", "nobody"), ("account", "show", "nobody"), ("outcome", "77" * 32)],
)
def test_what_only_stale_nodes_do_not_know_is_not_said_to_be_missing(world: World, words: tuple[str, ...]) -> None:
    world.nodes[0].stale = True
    assert world.json(*words, code=1)["error"] == "not_found", "node 2 is sure"
    world.nodes[1].stale = True
    unsure = world.json(*words, code=3)
    assert unsure["error"] == "stale" and "others may know it" in unsure["message"]


def test_what_a_stale_node_knows_is_better_than_nothing(world: World) -> None:
    opened(world, "alice")
    world.nodes[0].stale = True
    world.nodes[1].fault = lambda call: wire.NotFound("account alice") if isinstance(call, wire.AskBalance) else None
    assert world.json("balance", "alice")["stale"]


def test_balance_is_asked_of_the_next_node_when_one_does_not_know_the_account_yet(world: World) -> None:
    opened(world, "alice")
    world.nodes[0].fault = lambda call: wire.NotFound("account alice") if isinstance(call, wire.AskBalance) else None
    assert world.json("balance", "alice")["account"] == "alice"


def test_chain_shows_links_postings_and_confirmations(world: World) -> None:
    opened(world, "alice")
    for amount in range(1, 31):
        world.ledger.submit(_payment(world, amount), world.nodes[0].id)
    found = world.json("chain", "mint")
    assert set(found) == documented("chain")
    assert [link["height"] for link in found["links"]] == list(range(11, 31))  # the last 20
    last = found["links"][-1]
    assert last["postings"][0]["amount"] == 30 and last["postings"][0]["confirmation"] is None
    assert last["requests"] == [
        {"request_id": last["postings"][0]["request_id"], "kind": "transfer", "outcome": "completed", "total": 30}
    ]
    heights = [link["height"] for link in world.json("chain", "mint", "--from", "3", "--limit", "2")["links"]]
    assert heights == [3, 4]
    assert len(world.json("chain", "mint", "--all")["links"]) == 31
    world.run("transfer", "alice", "mint", "4.60")
    shown = world.run("chain", "alice").stdout
    for what in (
        "#1  2023-11-14",
        "+ 4.65 from mint",
        "- 4.60 to mint",
        "not yet confirmed",
        "transfer of 4.60: completed",
    ):
        assert what in shown
    assert world.json("chain", "nobody", code=1)["error"] == "not_found"


def test_what_chain_shows_can_be_asked_for(world: World) -> None:
    """Ids and hashes that other commands take are whole."""
    opened(world, "alice")
    world.run("transfer", "mint", "alice", "1")
    shown = world.run("chain", "mint", "--limit", "1").stdout
    (request,) = re.findall(r"transfer of 1\.00: completed  (\S+)$", shown, re.M)
    assert request in world.run("outcome", request).stdout
    (link,) = re.findall(r"^     link (\S+)  after [0-9a-f]{16}$", shown, re.M)
    assert world.json("route", link)["account"] is None
    world.run("transfer", "mint", "alice", "2", "--expect-tip", link)


def _payment(world: World, amount: int) -> wire.Submit:
    from chain.request import Posting, sign, transfer
    from tests.hopchain.fake_node import ISSUER_KEY

    network = world.ledger.genesis.network_id
    signed = sign(transfer(network, "mint", [Posting("alice", amount)], amount.to_bytes(32, "big")), ISSUER_KEY)
    return wire.Submit(signed.raw, signed.signature, 1000)


def test_route_says_that_an_account_is_not_open(world: World) -> None:
    found = world.json("route", "ab" * 32, "--account")
    assert (found["account"], found["open"]) == ("ab" * 32, False)
    assert found["slot"] == opening_slot(world.ledger.genesis.network_id, "ab" * 32).hex()
    assert "account alise is not open" in world.run("route", "alise").stderr
    opened(world, "alise")
    assert "not open" not in world.run("route", "alise").stderr


def test_route_takes_names_and_hashes(world: World) -> None:
    opened(world, "alice")
    found = world.json("route", "alice")
    assert set(found) == documented("route")
    assert found["account"] == "alice" and found["slot"] == world.ledger.accounts["alice"].tip.hex()
    assert found["owner"]["name"] == "node-1" and found["group"][0]["rank"] == 0 and found["hops"] == 1
    assert world.json("route", "ab" * 32)["key"] == "ab" * 20
    assert world.json("route", "cd" * 20)["account"] is None
    assert (found["open"], world.json("route", "cd" * 20)["open"]) == (True, None)
    assert "owner" in world.run("route", "alice").stdout
    world.run("route", "Not A Name", code=2)


def test_status_tells_who_is_alive_and_who_lags(world: World) -> None:
    world.nodes[0].log_height, world.nodes[1].log_height = 12, 9
    found = world.json("status")
    assert set(found) == documented("status")
    assert (found["epoch"], found["alive"]) == (1, 2)
    assert [n["lag"] for n in found["nodes"]] == [0, 3]
    assert [n["id"] for n in found["nodes"]] == [n.id.hex() for n in world.nodes]
    world.portal.call(world.nodes[1].stop)
    found = world.json("status")
    assert [n["alive"] for n in found["nodes"]] == [True, False]
    assert set(found["nodes"][0]) == set(found["nodes"][1])
    assert found["nodes"][1]["reason"]
    shown = world.run("status").stdout
    assert "1 of 2 nodes answer" in shown and "alive" in shown and "down" in shown
    world.run("status", "--at", "node-2", code=3)
    only = world.json("status", "--at", f"127.0.0.1:{world.nodes[0].port}")
    assert len(only["nodes"]) == 1


def test_the_port_for_members_is_none_for_clients(world: World) -> None:
    place = read_network(world.directory).nodes[0]
    said = world.run("balance", "alice", "--at", f"127.0.0.1:{place.port}", code=2).stderr
    assert (
        f"127.0.0.1:{place.port} is where other nodes reach node-1: it serves clients at 127.0.0.1:{place.client_port}"
        in said
    )


@pytest.mark.parametrize("words", [("balance", "alice", "--min-height"), ("chain", "alice", "--from")])
def test_a_height_that_cannot_be_is_refused_before_anybody_is_asked(world: World, words: tuple[str, ...]) -> None:
    said = world.run(*words, str(2**63), code=2).stderr
    assert f"0<=x<={2**63 - 1}" in said and "Ask" not in said


def test_all_links_from_one_on(world: World) -> None:
    opened(world, "alice")
    for _ in range(3):
        world.run("transfer", "mint", "alice", "1")
    heights = [link["height"] for link in world.json("chain", "mint", "--all")["links"]]
    assert heights == [0, 1, 2, 3]
    assert [link["height"] for link in world.json("chain", "mint", "--all", "--from", "2")["links"]] == [2, 3]
    assert "contradict" in world.run("chain", "mint", "--all", "--limit", "2", code=2).stderr


def test_nobody_there_is_exit_code_3_everywhere(world: World) -> None:
    opened(world, "alice")
    world.stop()
    nothing = world.json("status", code=3)
    assert set(nothing) == documented("status") and nothing["epoch"] is None and nothing["alive"] == 0
    for words in (
        ("balance", "alice"),
        ("chain", "alice"),
        ("account", "list"),
        ("account", "show", "alice"),
        ("account", "open", "bob"),
        ("transfer", "mint", "alice", "1"),
        ("route", "alice"),
        ("outcome", "00" * 32),
        ("cancel", "00" * 32, "--account", "mint"),
        ("verify", "--cluster"),
    ):
        failed = world.json(*words, code=3)
        assert failed["error"] == "unreachable" and set(failed) == documented("error")
        assert f"`hopchain up {world.directory}`" in world.run(*words, code=3).stderr, "and no other network"


# --- the rest ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script(cli: Cli, shell: str) -> None:
    found = cli.json("completion", shell)
    assert set(found) == documented("completion")
    assert "_HOPCHAIN_COMPLETE" in found["script"]
    assert found["script"] in cli.run("completion", shell).stdout


def test_keys_made_by_commands_are_secret(cli: Cli) -> None:
    cli.run("init", str(cli.directory), "--asset", "CZK:2", "--issuer", "mint", "--port", "0")
    keys = [*cli.home.rglob("*.key"), *cli.directory.rglob("*.key")]
    assert len(keys) == 1 + 3 + 5 * 2
    assert {stat.S_IMODE(k.stat().st_mode) for k in keys} == {0o600}


@pytest.mark.parametrize(
    "words",
    [
        ("transfer", "mint", "alice", "1", "--reference", "\udcff"),  # bytes that are not UTF-8, as Python reads them
        ("transfer", "mint", "alice", "1", "--nonce", "caf\udce9"),
        ("pay", "FILE", "--run", "r\udcff"),
        ("pay", "FILE", "--from-prefix", "\udcff"),
        ("pay", "FILE", "--pool", "shop=\udcff"),
        ("pay", "FILE", "--result", "\udcff.csv"),
        ("pay", "n\udcff.csv"),
        ("account", "open", "\udcff"),
        ("balance", "mint", "--network", "\udcff"),
    ],
)
def test_what_is_no_text_is_refused_before_anything_is_sent(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...]
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("FILE", "n\udcff.csv"):
        (tmp_path / name).write_text("payer,payee,amount\nmint,mint2,1\n")
    columns = ("--from-column", "payer", "--to-column", "payee", "--amount-column", "amount")
    refused = world.json(*words, *(columns if words[0] == "pay" else ()), code=2)
    assert refused["error"] == "usage" and "is not UTF-8 text" in refused["message"]
    assert not world.nodes[0].calls and not (world.wallet.directory / "runs").exists()
