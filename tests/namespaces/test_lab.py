"""The README's "Run it on several machines" holds as it is written, on machines with addresses of their own."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.namespaces.machines import forbidden

pytestmark = [pytest.mark.cluster, pytest.mark.slow]

ROOT = Path(__file__).parents[2]
LAB_S = 300.0  # it takes half a minute on a machine with nothing else to do
ENDS_S = 60.0


@pytest.fixture(autouse=True)
def namespaces() -> None:
    """Only a kernel that forbids namespaces, or a machine without iproute2, is a reason not to look."""
    why = forbidden()
    if why:
        pytest.skip(why)


def readme_commands() -> list[str]:
    """`MACHINE$ COMMAND` of each command of the section, one line each."""
    section = (ROOT / "README.md").read_text().split("\n## Run it on several machines\n")[1].split("\n## ")[0]
    blocks = re.findall(r"^```\n(.*?)^```$", section, re.MULTILINE | re.DOTALL)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [" ".join(line.split("  #")[0].split()) for line in lines]


def test_the_readmes_commands_do_what_it_says() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.namespaces.lab"], cwd=ROOT, capture_output=True, text=True, timeout=LAB_S
    )
    assert done.returncode == 0, f"{done.stdout}{done.stderr}"
    assert re.search(r"^done in [0-9]+ s: [0-9]+ claims checked, all true$", done.stdout, re.MULTILINE)
    shown = iter([" ".join(line.split()) for line in done.stdout.splitlines()])
    wanted = readme_commands()
    assert len(wanted) > 20
    for command in wanted:
        assert command in shown, f"the README says {command!r}, which was not run there"


def test_nothing_outlives_a_lab_that_is_killed() -> None:
    """Its output is open as long as any process in its namespaces runs."""
    inside = "from tests.namespaces.machines import end_with_parent as e; import subprocess as s; e(); s.run(['sh', '-c', 'echo up; sleep 3600'])"
    program = f"import sys; from tests.namespaces.machines import sealed; sealed([sys.executable, '-c', {inside!r}])"
    with subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"up\n"
        process.kill()
        assert process.communicate(timeout=ENDS_S)[0] == b""
