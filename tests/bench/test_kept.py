"""bench/kept.py: a result that is kept names the commit that was measured, and is looked at before anything is
measured."""

import json
import subprocess
from argparse import ArgumentParser, Namespace
from pathlib import Path

import kept
import pytest


def git(tree: Path, *words: str) -> str:
    identity = ["-c", "user.name=t", "-c", "user.email=t@localhost", "-c", "commit.gpgsign=false"]
    done = subprocess.run(["git", "-C", str(tree), *identity, *words], capture_output=True, text=True, check=True)
    return done.stdout.strip()


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone with one commit: code.py and docs/page.md."""
    git(tmp_path, "init", "-q")
    (tmp_path / "docs").mkdir()
    for name in ("code.py", "docs/page.md"):
        (tmp_path / name).write_text("1\n")
    git(tmp_path, "add", ".")
    git(tmp_path, "commit", "-q", "-m", "first")
    return tmp_path


def test_the_commit_is_that_of_the_clone_whatever_its_pages_say(clone: Path) -> None:
    commit = git(clone, "rev-parse", "HEAD")[:7]
    assert kept.head(clone) == commit
    (clone / "docs/page.md").write_text("2\n")
    assert kept.head(clone) == commit, "as the results that were kept just now"


def test_code_that_was_changed_and_a_copy_are_no_commit(clone: Path) -> None:
    (clone / "code.py").write_text("2\n")
    assert kept.head(clone) is None
    git(clone, "add", ".")
    assert kept.head(clone) is None
    assert kept.head(clone / "docs") is None, "a copy of the tree within a clone is not that clone"


def prepared(keep: Path | None, commit: str | None = None) -> Namespace:
    asked = Namespace(keep=keep, commit=commit, load_average=None)
    kept.prepare(ArgumentParser(), asked)
    return asked


def test_nothing_is_asked_of_git_when_nothing_is_kept_or_the_commit_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    assert prepared(None).commit is None
    asked = prepared(tmp_path / "new.json", "1234567")
    assert asked.commit == "1234567" and asked.load_average >= 0


def test_what_cannot_be_kept_is_said_before_the_measurement(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(kept, "ROOT", tmp_path)
    with pytest.raises(SystemExit):
        prepared(tmp_path / "new.json")
    assert "git does not say which commit this is" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        prepared(tmp_path / "nowhere" / "new.json", "1234567")
    assert "there is no directory" in capsys.readouterr().err


def test_a_row_is_a_line(tmp_path: Path) -> None:
    document = {"rows": [{"a": 1, "b": None}, {"a": 2, "b": "x  y"}], "empty": [], "machine": {"cores": 2}}
    kept.write(Namespace(keep=tmp_path / "it.json", commit="1234567", load_average=0.25), document)
    text = (tmp_path / "it.json").read_text()
    assert json.loads(text) == {"commit": "1234567", "load_average": 0.25, **document}
    assert '    { "a": 2, "b": "x  y" }\n' in text and text.endswith("}\n")
    kept.write(Namespace(keep=None, commit=None), document)


def test_a_machine_says_what_a_commit_does_not() -> None:
    assert set(kept.machine()) == {"cores", "cpu", "memory_gb", "kernel", "file_system", "sqlite", "python"}
    assert str(kept.machine()["kernel"]).count(".") <= 1, "a release may have the name of a machine in it"
    assert kept.file_system(Path("/proc/self")) == "proc"


def test_a_processor_is_what_the_kernel_calls_it(tmp_path: Path) -> None:
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Example 9000: 3 GHz\nprocessor\t: 1\nmodel name\t: Other\n")
    assert kept.cpu(info) == "Example 9000: 3 GHz"
    assert kept.cpu(tmp_path / "none") == "unknown"
