"""bench/shares.py: each stack of a node is in one part, those of the start in none."""

import json
import sys
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import compare
import pytest
import shares

from chain.load import load
from chain.request import is_signed_by
from chain.store import commit
from node.core import Core

THREAD = "Thread-2 (_connection_worker_thread);threading.Thread.run;core._connection_worker_thread;database._serve"
NODE = "main;network.node;process.run_node;_run.unrolled_run"
TURN = f"{NODE};driver.Driver.run;driver.Driver.turn"


def frame(function: Callable[..., object]) -> str:
    """As the profile of a node names it."""
    code = function.__code__
    return f"{Path(code.co_filename).stem}.{code.co_qualname}"


COMMIT, LOAD, STEP, NEEDS, SIGNED = map(frame, (commit, load, Core.step, Core.needs, is_signed_by))


@pytest.mark.parametrize(
    ("stack", "part"),
    [
        (f"{THREAD};_impl.capture;{COMMIT};store._apply", "commit"),
        (f"{THREAD};_impl.capture;{LOAD}", "load"),
        (f"{THREAD};_entry_queue.TrioToken.run_sync_soon", "hops"),
        ("Thread-2 (_connection_worker_thread);keyed.join", "hops"),
        (f"{NODE};_entry_queue.EntryQueue.task", "hops"),
        (f"{TURN};database._DatabaseThread.run", "hops"),
        (f"{TURN};{STEP};owner.Owner.on_form", "step"),
        (f"{TURN};{NEEDS};admission.Admission._is_signed;{SIGNED};signing.VerifyKey.verify", "signatures"),
        (f"{TURN};{NEEDS};link.decode_link_untrusted", "needs"),
        (f"{TURN};driver.Driver._emit;messages.encode_frames", "rest"),
        (f"{NODE};channel.Channel.run;tls.TlsStream.send_all", "wire"),
        (f"{NODE};client_port.ClientServer._live;{STEP}", "wire"),  # the outermost counts
        (NODE, "rest"),
        ("main;bench_node.main;network.node", None),
        (f"{NODE};<frozen importlib._find_and_load", None),
    ],
)  # fmt: skip
def test_a_stack_is_in_one_part(stack: str, part: str | None) -> None:
    assert shares.part_of(stack.split(";")) == part


def test_shares_are_of_all_that_is_not_the_start() -> None:
    lines = [f"{THREAD};store.commit 600", f"{TURN};core.Core.step 300", f"{NODE} 100", "main;bench_node.main 5000"]
    found = shares.shares(lines)
    assert list(found) == list(shares.PARTS)
    assert {part: share for part, share in found.items() if share} == {"commit": 60.0, "step": 30.0, "rest": 10.0}


@pytest.mark.parametrize("text", ["", "main;bench_node.main 5000\n", "no stacks at all\n", f"{NODE} many\n"])
def test_a_file_without_stacks_is_refused(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "uniform.txt"
    path.write_text(text)
    monkeypatch.setattr(sys, "argv", ["shares.py", str(path)])
    with pytest.raises(SystemExit):
        shares.main()
    assert "uniform.txt is not what `hopchain bench --profile-out FILE.txt` wrote" in capsys.readouterr().err


def test_one_command_profiles_all_runs_and_draws_them_beside_what_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    measured: list[tuple[str, int]] = []

    def measure(profile: str, asked: Namespace, *more: str) -> None:
        measured.append((profile, asked.clients))
        assert more[0] == "--profile-out"
        Path(more[1]).write_text(f"{TURN};{STEP} {1000 * asked.clients}\n{NODE} 1000\n")

    monkeypatch.setattr(compare, "measure_hopchain", measure)
    keep = tmp_path / "shares.json"
    monkeypatch.setattr(sys, "argv", ["shares.py", "--keep", str(keep), "--commit", "1234567"])
    shares.main()
    assert measured == [("uniform", 32), ("uniform", 512), ("hot-sender", 32), ("bulk", 32)]
    found = json.loads(keep.read_text())
    assert found["commit"] == "1234567" and list(found["shares"]) == list(shares.RUNS)
    assert (found["shares"]["bulk"]["step"], found["shares"]["uniform-512"]["rest"]) == (96.97, 0.195)
    assert sorted(found["pictures"]) == sorted(path.name for path in tmp_path.glob("*.svg"))
    drawn = (tmp_path / "bulk.svg").read_text()
    assert "bulk, 32 clients, commit 1234567: CPU of a node, 0.0 s" in drawn
    assert "<title>core.Core.step: 32 ms, 97.0 %</title>" in drawn


def test_stacks_of_before_are_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "node.txt"
    path.write_text(f"{NODE} 5\n")
    monkeypatch.setattr(sys, "argv", ["shares.py", str(path)])
    shares.main()
    assert capsys.readouterr().out.startswith("node: commit 0.0 %")
    monkeypatch.setattr(sys, "argv", ["shares.py", str(path), "--keep", "shares.json"])
    with pytest.raises(SystemExit):
        shares.main()
    assert "what is kept is profiled anew" in capsys.readouterr().err
