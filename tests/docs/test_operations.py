"""docs/operations.md and docs/deploy: every alarm and every fatal message is explained, every command exists, every
file is what its reader will accept."""

import ast
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType

import click
import pytest
import yaml

from cli.main import main
from cli.output import Exit
from cli.supervisor import QUICK_FAILURES, STAYS_DOWN
from node.accepting import HANDSHAKE_S, MAX_HANDSHAKES, PATIENCE_S
from node.client_port import HELD_BYTES, IDLE_S, MAX_SESSIONS
from node.config import RESERVED_PART, Limits
from node.descriptors import OWN, shares
from node.jobs import MAX_JOB_BYTES, MAX_JOBS, MAX_JOBS_OF_ONE
from node.process import READY_S
from node.transport import MAX_GUESTS
from node.uncovered import HOUR_BYTES, ROW_BYTES
from node.works import MAX_QUEUE, MAX_QUEUE_BYTES, MAX_QUEUED, MAX_QUEUED_BYTES

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "docs" / "deploy"
OPERATIONS = (ROOT / "docs" / "operations.md").read_text()
README = (ROOT / "README.md").read_text()
FATAL = {
    "Corruption": Exit.REJECTED,
    "StorageFailure": Exit.REJECTED,
    "NotReady": Exit.REJECTED,
    "Quarantined": Exit.OUT_FOR_GOOD,
    "Removed": Exit.OUT_FOR_GOOD,
}
SERVICE = DEPLOY / "hopchain@.service"


def rows(heading: str) -> list[str]:
    """The first column of the table under a heading."""
    section = OPERATIONS.split(f"\n### {heading}\n")[1].split("\n#")[0]
    lines = [line for line in section.splitlines() if line.startswith("| ")]
    return [line.removeprefix("| ").split(" | ")[0] for line in lines[1:]]


def template(node: ast.expr, known: Mapping[str, str] = MappingProxyType({})) -> str:
    """The text that an expression makes, with … for what is filled in; `known`: what constants and functions of the
    program make."""
    match node:
        case ast.Constant(value=str(text)):
            return text
        case ast.JoinedStr(values=values):
            return "".join(template(value, known) for value in values)
        case ast.FormattedValue(value=value):
            return template(value, known)
        case ast.BinOp(left=left, right=right):
            return template(left, known) + template(right, known)
        case ast.Name(id=name) | ast.Call(func=ast.Name(id=name)):
            return known.get(name, "…")
        case _:
            return "…"


def trees() -> Iterator[tuple[Path, ast.Module]]:
    """The code of a node."""
    for package in ("chain", "node", "routing"):
        for path in sorted((ROOT / package).rglob("*.py")):
            yield path, ast.parse(path.read_text())


def helpers() -> dict[str, str]:
    """Name -> text of each constant, and of each function that only returns one."""
    known: dict[str, str] = {}
    for _ in range(2):  # one may use another
        for _, tree in trees():
            for node in tree.body:
                match node:
                    case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
                        known[name] = template(value, known)
                    case ast.FunctionDef(name=name, body=[*_, ast.Return(value=ast.expr() as value)]):
                        known[name] = template(value, known)
    return {name: text for name, text in known.items() if " " in text}


def raised(names: Iterable[str]) -> Iterator[tuple[str, str, str]]:
    """(where, class, text) of each such error that the code of a node makes."""
    known = helpers()
    for path, tree in trees():
        for node in ast.walk(tree):
            match node:
                case ast.Call(func=ast.Name(id=name), args=[text, *_]) if name in names:
                    yield f"{path.name}:{node.lineno}", name, template(text, known)


def sources() -> str:
    """All texts in the code of a node, long ones put together."""
    texts = []
    for _, tree in trees():
        texts += [template(n) for n in ast.walk(tree) if isinstance(n, ast.JoinedStr | ast.Constant)]
    return "\n".join(texts)


def messages() -> dict[str, int]:
    """The pieces of messages that the table names, `like this`, each with the exit code behind it; a row may have
    several."""
    found: dict[str, int] = {}
    for row in rows("What a node says before it ends"):
        pieces: list[str] = []
        for piece, code in re.findall(r"`((?:[^`]|`[^`]+`(?=`))+)`(?: \.\.)?(?: \((\d+)\))?", row):
            pieces.append(piece.strip())
            if code:
                found.update(dict.fromkeys(pieces, int(code)))
                pieces = []
        found.update(dict.fromkeys(pieces, Exit.USAGE))
    return found


def test_every_finding_of_doctor_is_explained_and_no_other() -> None:
    code = (ROOT / "cli/diagnosis.py").read_text() + (ROOT / "cli/doctor.py").read_text()
    found = set(re.findall(r"Finding\(\s*\"([a-z_]+)\"", code))
    assert len(found) > 10
    assert {row.strip("`") for row in rows("What each finding of doctor means")} == found


def test_every_message_that_is_explained_is_one_that_a_node_says() -> None:
    said = sources()
    assert len(messages()) > 20
    for message in messages():
        assert message in said, f"no node says {message!r}"


def test_every_error_that_ends_a_node_is_explained_with_its_exit_code() -> None:
    found = [*raised(FATAL)]
    assert len(found) > 40
    explained = messages()
    disk = dict(re.findall(r'"(SQLITE_[A-Z]+)": "([^"]+)"', (ROOT / "chain/disk.py").read_text()))
    assert len(disk) > 5
    found += [(name, "StorageFailure", text) for name, text in disk.items()]
    for where, error, text in found:
        if text.endswith("; …"):  # what SQLite says, then one of the texts of chain.disk
            assert where.startswith("disk.py:")
            continue
        codes = {code for message, code in explained.items() if message in text}
        assert codes, f"{where} says {text!r}, which operations.md does not explain"
        assert codes == {FATAL[error]}, f"{where} says {text!r} and ends with {FATAL[error]}"


def test_every_warning_that_is_explained_is_one_that_a_node_says() -> None:
    said = sources()
    warnings = re.findall(r"`([^`]+)`", "\n".join(rows("Warnings in the log")))
    assert len(warnings) == 10
    for warning in warnings:
        assert warning in said, f"no node says {warning!r}"


def test_the_causes_of_refused_connections_are_all_explained_and_no_others() -> None:
    files = ("node/accepting.py", "node/hello.py", "node/transport.py", "node/pki.py", "node/client_port.py")
    files += ("node/channel.py", "hopchain/framing.py")
    given = {
        call.args[0].value
        for file in files
        for call in ast.walk(ast.parse((ROOT / file).read_text()))
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name)
        and call.func.id in ("RemoteFault", "SaidRemoved")
        and isinstance(call.args[0], ast.Constant)
    }
    logged = given - {"duplicate", "memory"} | {"refused", "removed"}  # two are only counted; two have other ways
    assert set(re.findall(r"`([a-z_]+)`", "\n".join(rows("Causes of no connection")))) == logged


def test_the_bounds_on_connections_are_those_of_the_code() -> None:
    table = OPERATIONS.split("\n## Sizes and limits\n")[1]
    number = {row.split(" | ")[0].removeprefix("| "): row.split(" | ")[1] for row in table.splitlines() if " | " in row}
    limits = Limits()
    mib = 1024 * 1024
    clients = number["clients of one node at once"]
    assert clients.startswith(f"{limits.client_connections} ") and f"silent for {IDLE_S:g} s" in clients
    assert limits.client_connections == MAX_SESSIONS
    assert number["kept for one client"].startswith(f"{limits.client_queue_bytes // mib} MiB")
    assert number["kept for all clients of one node together"].startswith(f"{HELD_BYTES // mib} MiB")
    assert number["requests that wait at one node to be decided"].startswith(
        f"{MAX_QUEUED_BYTES // mib} MiB, {MAX_QUEUE_BYTES // mib} of one account; "
        f"{MAX_QUEUED:,}, {MAX_QUEUE:,} of one account; and of each account no more than is left free"
    )
    (own,) = (bound for what, bound in number.items() if what.startswith("requests of its own clients that wait"))
    assert own.startswith(
        f"{MAX_JOB_BYTES // mib} MiB; {MAX_JOBS:,}, {MAX_JOBS_OF_ONE:,} of one account; "
        f"and of each account no more than is left free: {MAX_JOB_BYTES // 2 // mib} MiB of one alone"
    )
    (free,) = (bound for what, bound in number.items() if what.startswith("requests in an hour at one node"))
    assert free.startswith(f"{HOUR_BYTES // mib} MiB (") and f"{HOUR_BYTES // 2 // mib} MiB of one alone" in free
    assert limits.uncovered_bytes_per_hour == HOUR_BYTES and ROW_BYTES == 1024
    reserve = number["disk that a node keeps free"]
    assert reserve.startswith(f"{limits.disk_reserve_bytes // 2**30} GiB ") and "a twentieth of" in reserve
    assert RESERVED_PART == 20
    assert number["unsent to one other node"].startswith(f"{limits.peer_queue_bytes // mib} MiB")
    handshakes = number["handshakes at once on each port"]
    assert handshakes.startswith(f"{MAX_HANDSHAKES}, {HANDSHAKE_S:g} s each") and f"after {PATIENCE_S} s" in handshakes
    assert number["guests (joiners, observers) of one node at once"] == str(MAX_GUESTS)
    fewer, least = (int(n.replace(",", "")) for n in re.findall(r"elow ([0-9,]+)", number["open files"]))
    wanted = (MAX_SESSIONS, MAX_HANDSHAKES)
    assert shares(fewer, *wanted).clients == MAX_SESSIONS > shares(fewer - 1, *wanted).clients
    assert shares(least, *wanted).handshakes == MAX_HANDSHAKES > shares(least - 1, *wanted).handshakes
    assert f"{OWN} are of its own" in table


def test_the_exit_codes_are_those_of_the_program_and_of_the_unit() -> None:
    said = {int(row) for row in rows("Exit codes")}
    assert said == {Exit.DONE, Exit.REJECTED, Exit.USAGE, Exit.OUT_FOR_GOOD, Exit.BUG}
    prevented = re.search(r"^RestartPreventExitStatus=(.*)$", SERVICE.read_text(), re.MULTILINE)
    assert prevented is not None
    assert {int(code) for code in prevented[1].split()} == STAYS_DOWN == {Exit.USAGE, Exit.OUT_FOR_GOOD}
    unit = SERVICE.read_text().splitlines()
    assert "Restart=always" in unit, "after code 0 too, as the table says"
    assert f"StartLimitBurst={QUICK_FAILURES}" in unit
    interval = next(line for line in unit if line.startswith("StartLimitIntervalSec="))
    assert int(interval.partition("=")[2]) <= READY_S * QUICK_FAILURES, "who waits for the clock is started without end"


# --- commands --------------------------------------------------------------------------------------------------------


def written_commands() -> list[str]:
    """Each `hopchain ...` line of the operations guide, the README and the files beside it."""
    texts = [OPERATIONS, README, *(path.read_text() for path in sorted(DEPLOY.iterdir()))]
    found = []
    for text in texts:
        joined = text.replace("\\\n", " ")
        found += re.findall(r"(?m)^(?:[^\n`]*?[$;] |\.venv/bin/|\s*(?:exec )?|#   )(hopchain [a-z][^\n`|;&>]*)", joined)
        found += re.findall(r"`(hopchain [a-z][^`]*)`", joined)
    return [re.split(r"\s+#", line)[0].strip() for line in found]


@pytest.mark.parametrize("line", sorted(set(written_commands())))
def test_every_command_that_is_written_down_exists(line: str) -> None:
    words = shlex.split(line.replace("...", ""))[1:]
    command: click.Command = main
    while isinstance(command, click.Group) and words and not words[0].startswith("-"):
        found = command.get_command(click.Context(command), words[0])
        assert found is not None, line
        command, words = found, words[1:]
    known = {option for param in command.params for option in param.opts}
    for word in words:
        assert not word.startswith("--") or word.split("=")[0] in known, f"{line}: there is no {word}"


def test_the_commands_of_who_comes_and_goes_can_be_pasted_in_their_order() -> None:
    """An invitation is made before it is used, and `join` holds its terminal: nothing follows it there."""
    section = README.split("\n## Nodes come and go\n")[1].split("\n## ")[0]
    made: set[str] = set()
    for block in section.split("```\n")[1::2]:
        words = [shlex.split(line, comments=True) for line in block.splitlines()]
        for number, line in enumerate(words, start=1):
            assert {word for word in line if word.endswith(".invite")} <= made, line
            if line[1] == "invite":
                made.add(f"net/{line[line.index('--name') + 1]}.invite")
            assert line[1] != "join" or number == len(words), line
    assert len(made) == 2


def test_links_lead_somewhere() -> None:
    anchors = {
        re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in re.findall(r"(?m)^#+ (.*)$", OPERATIONS)
    }
    for target in re.findall(r"\]\(([^)]+)\)", OPERATIONS):
        file, _, anchor = target.partition("#")
        assert not file or (ROOT / "docs" / file).exists(), target
        assert not anchor or file or anchor in anchors, target
    assert "docs/operations.md#backup" in README and "backup" in anchors


# --- files -----------------------------------------------------------------------------------------------------------


def test_the_kubernetes_file_is_what_it_says() -> None:
    """Also what must hold: one volume for each pod, one pod after the other, key files that stay secret."""
    documents = {d["kind"]: d for d in yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text())}
    assert set(documents) == {"Service", "PodDisruptionBudget", "StatefulSet"}
    spec = documents["StatefulSet"]["spec"]
    pod = spec["template"]["spec"]
    (join,), (node,) = pod["initContainers"], pod["containers"]
    assert documents["Service"]["spec"]["clusterIP"] == "None" and spec["serviceName"] == "hopchain"
    assert documents["PodDisruptionBudget"]["spec"]["maxUnavailable"] == 1
    assert spec["podManagementPolicy"] == "OrderedReady"
    (claim,) = spec["volumeClaimTemplates"]
    assert claim["spec"]["accessModes"] == ["ReadWriteOncePod"]
    volumes = {claim["metadata"]["name"], *(volume["name"] for volume in pod["volumes"])}
    for container in (join, node):
        assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["image"] == f"hopchain:{version()}"
    assert pod["securityContext"]["fsGroupChangePolicy"] == "OnRootMismatch"
    assert node["args"] == ["node", "/data/node"]
    ports = {(port["containerPort"], port["protocol"]) for port in node["ports"]}
    assert ports == {(7400, "TCP"), (7400, "UDP"), (7401, "TCP")}
    assert ports == {(port["port"], port["protocol"]) for port in documents["Service"]["spec"]["ports"]}


def test_the_pods_script_joins_once(tmp_path: Path) -> None:
    """With a `hopchain` that fails first, as one that is killed does."""
    documents = list(yaml.safe_load_all((DEPLOY / "kubernetes.yaml").read_text()))
    join = documents[-1]["spec"]["template"]["spec"]["initContainers"][0]
    for name in ("data", "run", "invite", "bin"):
        (tmp_path / name).mkdir()
    (tmp_path / "invite/node.invite").write_text("secret")
    fake = tmp_path / "bin/hopchain"
    fake.write_text(
        f'#!/bin/sh\necho "$@" >> {tmp_path}/calls\nstat -c %a "$2" >> {tmp_path}/calls\n[ -e {tmp_path}/ready ]\n'
    )
    fake.chmod(0o755)
    script = join["args"][0]
    for there, here in (("/data/", "data/"), ("/run/hopchain/", "run/"), ("/invite/", "invite/")):
        script = script.replace(there, f"{tmp_path}/{here}")
    environment = {"PATH": f"{tmp_path}/bin:/usr/bin:/bin", "POD_NAME": "hopchain-1"}

    def run() -> int:
        return subprocess.run([*join["command"], script], env=environment).returncode

    assert run() == 1
    (tmp_path / "ready").touch()
    assert run() == run() == 0
    calls = (tmp_path / "calls").read_text().splitlines()
    assert len(calls) == 4 and calls[1] == "600", "twice: the failed one and the one that joined"
    assert calls[0] == calls[2]
    assert "--advertise-host hopchain-1.hopchain --exit" in calls[0]


def test_the_container_file_is_complete() -> None:
    lines = re.sub(r"\\\n", " ", (DEPLOY / "Containerfile").read_text()).splitlines()
    words = [line.split()[0] for line in lines if line and not line.startswith("#")]
    assert words == ["FROM", "COPY", "RUN", "USER", "VOLUME", "EXPOSE", "ENTRYPOINT"]
    assert 'ENTRYPOINT ["hopchain"]' in lines, "no shell between the signals and the node"


def version() -> str:
    found = re.search(r'^version = "(.*)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)
    assert found is not None
    return found[1]


def test_the_unit_is_whole() -> None:
    sections: dict[str, dict[str, str]] = {}
    section: dict[str, str] = {}
    for line in SERVICE.read_text().splitlines():
        if line.startswith("["):
            section = sections.setdefault(line.strip("[]"), {})
        elif line and not line.startswith("#"):
            key, equals, value = line.partition("=")
            assert equals and key not in section, line
            section[key] = value
    assert set(sections) == {"Unit", "Service", "Install"}
    assert sections["Service"]["ExecStart"].endswith("/hopchain node /var/lib/hopchain/%i")
    assert sections["Service"]["KillSignal"] == "SIGTERM"
    assert "AF_INET AF_INET6" in sections["Service"]["RestrictAddressFamilies"]


def test_systemd_accepts_the_unit(tmp_path: Path) -> None:
    """Where systemd is; elsewhere the test above has to do."""
    analyze = shutil.which("systemd-analyze")
    if analyze is None:
        pytest.skip("systemd-analyze is not installed")
    program = Path(sys.executable).with_name("hopchain")
    unit = tmp_path / "hopchain@node-1.service"
    unit.write_text(SERVICE.read_text().replace("/opt/hopchain/bin/hopchain", str(program)))
    done = subprocess.run([analyze, "verify", str(unit)], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
