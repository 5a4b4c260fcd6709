"""`python -m tests.namespaces.lab`: seven machines in network namespaces do what the README's "Run it on several
machines" says, command by command; networks are cut and heal, a machine dies and is replaced, one leaves; the ledger is
checked.

    namespaces (machines.py) ── commands as people type them ── claims, each printed when it was seen to hold

Needs no root, leaves nothing behind, and takes under a minute.
"""

import json
import os
import random
import shutil
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Final

from cli.orders import make_orders
from tests.namespaces.machines import (
    OPERATOR,
    Machines,
    address,
    end_with_parent,
    forbidden,
    python_tools,
    sealed,
    until,
)

INSIDE: Final = "--inside"
UP_S: Final = 40.0
SETTLE_S: Final = 30.0
ORDERS: Final = 1_000  # seconds of work on any machine, so that a cable can be pulled in the midst of it
SEED: Final = 7
DIES, LEAVES, SIXTH, SEVENTH = 2, 3, 6, 7
MINORITY: Final = (4, 5)
MAJORITY: Final = (1, 2, 3, 6)
PAY: Final = (
    "hopchain pay orders.csv --from-column account_id --from-prefix payer- --to-column bank_to --to-column account_to "
    "--amount-column amount --reference-column k_symbol --open-missing --fund-from mint"
)
JOIN: Final = "hopchain join node-{0}.invite --data node-{0} --host 10.74.0.{0} --port 7400 --client-port 7401"


def main() -> int:
    """Run the lab in namespaces of its own; the exit code."""
    if sys.argv[1:2] == [INSIDE]:
        end_with_parent()
        lab = Lab(Path(sys.argv[2]))
        try:
            lab.run()
        except AssertionError as error:
            _say(f"\n{lab.machines.last_words()}\n✗ {error}")
            return 1
        finally:
            lab.machines.stop()
        return 0
    why = forbidden()
    if why:
        sys.stderr.write(f"error: {why}\n")
        return 1
    with TemporaryDirectory(prefix="hopchain-lab-") as place:
        return sealed([sys.executable, "-m", "tests.namespaces.lab", INSIDE, place])


class Lab:
    """The story. `claims`: how many were checked so far, all of them true."""

    def __init__(self, place: Path) -> None:
        python_tools(place / "bin")
        disks = place / "machines"
        (disks / OPERATOR).mkdir(parents=True)
        self.machines = Machines(disks, SEVENTH)
        self.claims = 0
        self._nodes: dict[int, subprocess.Popen[bytes]] = {}
        self._begin = time.monotonic()
        self._env = {k: v for k, v in os.environ.items() if not k.startswith("HOPCHAIN_")} | {
            "PATH": f"{place / 'bin'}:{os.environ['PATH']}",
            "LAB_DISKS": str(disks),
        }

    def run(self) -> None:
        """All chapters."""
        self._make()
        self._pay()
        self._join()
        self._cable()
        self._halves()
        self._one_way()
        self._replace()
        self._leave()
        self._audit()
        took_s = time.monotonic() - self._begin
        _say(f"\ndone in {took_s:.0f} s: {self.claims} claims checked, all true")

    # --- chapters ---

    def _make(self) -> None:
        self._chapter("Seven machines on one switch, and a network of five nodes")
        _say(f"     10.74.0.1 to 10.74.0.7, the operator's is {OPERATOR}")
        self._run(
            0,
            "hopchain init net --asset CZK:2 --issuer mint --node-at 10.74.0.1 --node-at 10.74.0.2 --node-at 10.74.0.3 "
            "--node-at 10.74.0.4 --node-at 10.74.0.5",
        )
        self._run(0, "for n in 1 2 3 4 5; do scp -rp net/node-$n 10.74.0.$n: ; done")
        self._run(0, "rm net/node-*/*.key")
        for number in range(1, 6):
            self._start(number, f"hopchain node node-{number}")
        until("five nodes answer", lambda: self._alive() == 5, UP_S)
        self._run(0, "hopchain status")
        nodes = self._ask("hopchain status")["nodes"]
        self._claim(
            "five machines serve clients, each under its own address",
            [(node["host"], node["client_port"]) for node in nodes] == [(address(n), 7401) for n in range(1, 6)]
            and all(node["alive"] for node in nodes),
        )
        until("all see each other", lambda: self._ask("hopchain doctor", any_code=True)["answered"] == 5, UP_S)

    def _pay(self) -> None:
        self._chapter("Payments from the operator's machine and from a node's")
        self._run(0, "hopchain account open alice bob")
        self._run(0, "hopchain transfer mint alice 100")
        self._run(0, "hopchain transfer alice bob 12.50")
        self._claim("alice has 87.50", self._available("alice") == 8_750)
        self._run(4, "hopchain balance bob --network node-4")
        self._claim("a node's machine needs nothing but its node's directory to ask", self._last_code == 0)

    def _join(self) -> None:
        self._chapter("A sixth machine joins by invitation")
        self._run(0, "hopchain invite net --name node-6")
        self._run(0, "scp -p net/node-6.invite 10.74.0.6:")
        self._start(SIXTH, JOIN.format(SIXTH))
        self._until_joined(SIXTH)
        self._run(0, "hopchain member list --save")
        listed = self._ask("hopchain member list")
        self._claim("it is a member: epoch 2 has six", (listed["epoch"], len(listed["members"])) == (2, 6))
        self._claim(
            "the operator's commands find it where it is",
            any(n["host"] == address(SIXTH) and n["alive"] for n in self._ask("hopchain status")["nodes"]),
        )

    def _cable(self) -> None:
        self._chapter("A cable is pulled while a payment file runs")
        (self.machines.disks / OPERATOR / "orders.csv").write_text(make_orders(ORDERS, random.Random(SEED)))
        _say(f"   operator$ {PAY}")
        with subprocess.Popen(
            [*PAY.split(), "--json"],
            cwd=self.machines.disks / OPERATOR,
            env=self._env | {"HOME": str(self.machines.disks / OPERATOR)},
            stdout=subprocess.PIPE,
        ) as paying:
            before = self._links()
            until("payments are being made", lambda: self._links() > before + ORDERS // 20, UP_S)
            self._fault("ip link set port-5 down", lambda: self.machines.unplug(5))
            in_mid_run = paying.poll() is None
            said, _ = paying.communicate(timeout=UP_S)
        paid = json.loads(said)
        self._claim("the cable was pulled in mid-run", in_mid_run)
        self._claim(f"all {ORDERS} orders were completed", paid["completed"] == ORDERS)
        self._fault("ip link set port-5 up", lambda: self.machines.plug(5))
        self._claim_equal("machine 5 catches up once its cable is back", 6)

    def _halves(self) -> None:
        self._chapter("The switch drops all packets between two machines and the other four")
        self._fault("tc filter: drop 10.74.0.{4,5} -> 10.74.0.{1,2,3,6}", lambda: self.machines.cut(MINORITY, MAJORITY))
        self._fault("tc filter: drop 10.74.0.{1,2,3,6} -> 10.74.0.{4,5}", lambda: self.machines.cut(MAJORITY, MINORITY))
        until("the two know that they are alone", lambda: self._balance("bob", 4)["stale"], UP_S)
        self._claim("a balance asked of the smaller side is marked stale", self._balance("bob", 5)["stale"])
        self._run(0, "hopchain transfer alice bob 50 --nonce halves --at 10.74.0.4:7401 --timeout 2", code=None)
        refused = self._last_code != 0
        self._claim("the smaller side decides nothing: no answer says completed", refused)
        self._run(0, "hopchain transfer alice bob 50 --nonce halves --at 10.74.0.1:7401 --timeout 20")
        self._claim("the larger side pays, the same request once", self._available("alice") == 3_750)
        for side in (MINORITY, MAJORITY):
            self._fault(f"tc qdisc del: {side}", lambda side=side: self.machines.heal(side))
        self._claim_equal("after healing all agree", 6)
        self._claim("the payment was made once", self._available("alice") == 3_750)

    def _one_way(self) -> None:
        self._chapter("One direction of one pair fails")
        self._fault("tc filter: drop 10.74.0.1 -> 10.74.0.2", lambda: self.machines.cut([1], [2]))
        for number in range(3):
            self._run(
                0, f"hopchain transfer alice bob 1 --nonce one-way-{number} --at 10.74.0.{number + 1}:7401 --timeout 30"
            )
        self._claim("payments go on through both and others", self._available("alice") == 3_450)
        self._fault("tc qdisc del: (1,)", lambda: self.machines.heal([1]))

    def _replace(self) -> None:
        self._chapter("A machine dies with its disk, and another takes its place")
        self._fault("kill -9 of 10.74.0.2's node, and its disk is gone", self._kill)
        until("doctor names the dead node", lambda: ("unreachable", "node-2") in self._findings(), UP_S)
        self._run(0, "hopchain doctor", code=1)
        self._claim("`hopchain doctor` names the dead node, and exits with 1", self._last_code == 1)
        self._run(0, "hopchain invite net --name node-7")
        self._run(0, "scp -p net/node-7.invite 10.74.0.7:")
        self._start(SEVENTH, JOIN.format(SEVENTH))
        self._until_joined(SEVENTH)
        self._run(0, "hopchain replace node-2 --with net/node-7.invite")
        self._run(0, "rm net/node-6.invite net/node-7.invite")
        self._run(0, "hopchain member list --save")
        names = self._member_names()
        self._claim("node-2 is no member, the new one is", "node-2" not in names and len(names) == 6)

    def _leave(self) -> None:
        self._chapter("A node leaves")
        self._run(LEAVES, "hopchain leave --data node-3")
        code = self._nodes[LEAVES].wait(UP_S)
        self._claim(f"it has handed over, and its process has ended (exit code {code})", code is not None)
        self._run(0, "hopchain transfer bob alice 1")
        self._run(0, "hopchain member list --save")
        self._claim("five members go on", len(self._member_names()) == 5)

    def _audit(self) -> None:
        self._chapter("Do all agree?")
        self._run(0, "hopchain member list")
        self._run(0, "hopchain verify --cluster")
        self._claim_equal("five replicas are equal, and no money was made or lost", 5)
        self._run(SEVENTH, "hopchain verify node-7")
        self._claim("the newest node's database holds up when derived again from its links", self._last_code == 0)
        balances = [self._available(name) for name in ("alice", "bob")]
        self._claim("alice and bob have 35.50 and 64.50", balances == [3_550, 6_450])
        codes = self.machines.stop()
        self._claim("all five end cleanly", codes == [0] * 5)

    # --- doing ---

    def _kill(self) -> None:
        self._nodes[DIES].kill()
        self._nodes[DIES].wait()
        shutil.rmtree(self.machines.disk(DIES) / "node-2")

    def _environment(self, number: int) -> dict[str, str]:
        return self._env | {"HOME": str(self.machines.disk(number) if number else self.machines.disks / OPERATOR)}

    def _run(self, number: int, command: str, code: int | None = 0) -> None:
        """Run a command as somebody types it on that machine (0: the operator's), and check its exit code."""
        _say(f"   {address(number) if number else 'operator'}$ {command}")
        done = self.machines.run(number, command, self._environment(number))
        self._last_code = done.returncode
        if code is not None and done.returncode != code:
            raise AssertionError(f"exit code {done.returncode}, not {code}: {done.stdout}{done.stderr}")

    def _start(self, number: int, command: str) -> None:
        """Run a command that goes on until it is ended."""
        _say(f"   {address(number)}$ {command}")
        self._nodes[number] = self.machines.start(number, command, self._environment(number))

    def _ask(self, command: str, *, any_code: bool = False) -> Any:
        """What a command of the operator says as JSON, without showing it."""
        done = self.machines.run(0, f"{command} --json", self._environment(0))
        if done.returncode != 0 and not any_code:
            raise AssertionError(f"{command}: exit code {done.returncode}: {done.stdout}{done.stderr}")
        return json.loads(done.stdout)

    def _until_joined(self, number: int) -> None:
        def active() -> bool:
            if self._nodes[number].poll() is not None:
                raise AssertionError(f"node-{number} has ended: {self.machines.log(number)}")
            return "and active in epoch" in self.machines.log(number)

        took_s = until(f"node-{number} is active", active, UP_S)
        self._claim(f"node-{number} copied the ledger, verified it and votes after {took_s:.1f} s", took_s < UP_S)

    def _alive(self) -> int:
        return int(self._ask("hopchain status", any_code=True).get("alive", 0))

    def _links(self) -> int:
        return max(node["log_height"] or 0 for node in self._ask("hopchain status")["nodes"])

    def _balance(self, name: str, number: int) -> Any:
        return self._ask(f"hopchain balance {name} --at {address(number)}:7401")

    def _available(self, name: str) -> int:
        return int(self._ask(f"hopchain balance {name} --linearizable")["available"])

    def _findings(self) -> list[tuple[str, str]]:
        return [(f["code"], f["node"]) for f in self._ask("hopchain doctor", any_code=True)["findings"]]

    def _member_names(self) -> list[str]:
        return [member["name"] for member in self._ask("hopchain member list")["members"]]

    # --- telling ---

    def _chapter(self, title: str) -> None:
        _say(f"\n{title}    ({time.monotonic() - self._begin:.0f} s)")

    def _fault(self, what: str, do: Any) -> None:
        _say(f"   switch# {what}")
        do()

    def _claim(self, text: str, holds: bool) -> None:
        if not holds:
            raise AssertionError(f"claimed, and not so: {text}")
        self.claims += 1
        _say(f"   ✓ {text}")

    def _claim_equal(self, text: str, members: int) -> None:
        found = self._ask(f"hopchain verify --cluster --settle {SETTLE_S:g}", any_code=True)
        if not found.get("ok"):
            raise AssertionError(f"claimed, and not so: {text}: {found}")
        self._claim(text, len(found["nodes"]) == members)


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    sys.exit(main())
