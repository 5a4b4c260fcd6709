"""Machines with their own addresses on one switch, made of Linux network namespaces, inside namespaces of this run
alone.

`sealed` runs a program in a user, mount, process and network namespace of its own, as root there, whoever it is
outside: so nothing that it makes has a name outside, and when it ends, however it ends, the kernel takes away all of
it, processes too. Inside, `Machines` makes a bridge (the switch) and one network namespace for each machine:

    machine 10.74.0.1 ── port-1 ──┐
    machine 10.74.0.2 ── port-2 ──┤ switch, 10.74.0.100: the operator's machine
    ...                           │

What is cut is cut on the switch: a port is taken down, or a packet filter drops what a machine sends to others. The
filter is a classic BPF program, so `ip` and `tc` of iproute2 are all that is needed.
"""

import ipaddress
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Final

NETWORK: Final = "10.74.0"
OPERATOR: Final = f"{NETWORK}.100"
SWITCH: Final = "switch"
PROBE_S: Final = 20.0
STOP_S: Final = 20.0
ASK_S: Final = 0.1  # between two looks at a condition

_UNSHARE: Final = (
    *("unshare", "--user", "--map-root-user", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc"),
)
_PROBE: Final = """
set -e
mount -t tmpfs none /run
ip netns add probe
ip link add switch type bridge
ip link add port type veth peer name eth0 netns probe
ip netns exec probe true
tc qdisc add dev port clsact
tc filter add dev port ingress bpf da bytecode '1,6 0 0 2'
"""


def forbidden() -> str:
    """Why machines cannot be made here; empty when they can."""
    for tool, package in (("unshare", "util-linux"), ("ip", "iproute2"), ("tc", "iproute2")):
        if shutil.which(tool, path=_path()) is None:
            return f"{tool} is not installed (package {package})"
    done = subprocess.run(
        [*_UNSHARE, "sh", "-c", _PROBE], capture_output=True, text=True, timeout=PROBE_S, env=_environment()
    )
    if done.returncode == 0:
        return ""
    return f"this kernel does not let network namespaces be made here: {done.stderr.strip()[-300:]}"


def sealed(command: Sequence[str]) -> int:
    """Run a command in namespaces of its own; its exit code. It reads its standard input, which closes with this
    process."""
    process = subprocess.Popen([*_UNSHARE, *command], stdin=subprocess.PIPE, env=_environment())
    assert process.stdin is not None
    try:
        return process.wait()
    finally:
        process.stdin.close()
        process.kill()
        process.wait()


def end_with_parent() -> None:
    """In the sealed program: end, and everything in its namespaces with it, when whoever started it has ended."""
    threading.Thread(target=_wait_for_parent, daemon=True).start()


def _wait_for_parent() -> None:
    while os.read(0, 4096):
        pass
    os._exit(1)


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": _path()}


def until(what: str, holds: Callable[[], bool], timeout_s: float) -> float:
    """Return after how many seconds `holds` says True; `AssertionError` when it does not within `timeout_s`."""
    begin = time.monotonic()
    while not holds():
        if time.monotonic() - begin > timeout_s:
            raise AssertionError(f"not within {timeout_s:g} s: {what}")
        time.sleep(ASK_S)
    return time.monotonic() - begin


def address(number: int) -> str:
    """Of machine `number`."""
    return f"{NETWORK}.{number}"


class Machines:
    """The switch and `count` machines. `disks`: a directory that holds one for each machine, named by its address."""

    def __init__(self, disks: Path, count: int) -> None:
        self.disks = disks
        self._processes: list[subprocess.Popen[bytes]] = []
        _run("mount", "-t", "tmpfs", "none", "/run")  # for `ip netns`; only here
        _run("ip", "link", "set", "lo", "up")
        _run("ip", "link", "add", SWITCH, "type", "bridge")
        _run("ip", "addr", "add", f"{OPERATOR}/24", "dev", SWITCH)
        _run("ip", "link", "set", SWITCH, "up")
        for number in range(1, count + 1):
            self._add(number)

    def _add(self, number: int) -> None:
        name, port = f"machine-{number}", f"port-{number}"
        _run("ip", "netns", "add", name)
        _run("ip", "link", "add", port, "type", "veth", "peer", "name", "eth0", "netns", name)
        _run("ip", "link", "set", port, "master", SWITCH, "up")
        _run("ip", "-n", name, "addr", "add", f"{address(number)}/24", "dev", "eth0")
        _run("ip", "-n", name, "link", "set", "lo", "up")
        _run("ip", "-n", name, "link", "set", "eth0", "up")
        (self.disks / address(number)).mkdir()

    def disk(self, number: int) -> Path:
        """Where the files of a machine are."""
        return self.disks / address(number)

    # --- processes ---

    def start(self, number: int, command: str, environment: dict[str, str]) -> subprocess.Popen[bytes]:
        """Run a shell command on a machine, in its directory. What it prints goes to a file beside that."""
        with (self.disks / f"{address(number)}.log").open("ab") as log:
            process = subprocess.Popen(
                self._on(number, command),
                cwd=self.disk(number),
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
            )
        self._processes.append(process)
        return process

    def run(self, number: int, command: str, environment: dict[str, str]) -> subprocess.CompletedProcess[str]:
        """Run a shell command on a machine to its end. Machine 0: the operator's."""
        words = self._on(number, command) if number else ["sh", "-c", command]
        place = self.disk(number) if number else self.disks / OPERATOR
        return subprocess.run(
            words, cwd=place, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )

    def _on(self, number: int, command: str) -> list[str]:
        return ["ip", "netns", "exec", f"machine-{number}", "sh", "-c", f"exec {command}"]

    def log(self, number: int) -> str:
        """What the long-running commands of a machine printed."""
        path = self.disks / f"{address(number)}.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def last_words(self, lines: int = 15) -> str:
        """The ends of all logs, for people who ask what went wrong."""
        logs = sorted(self.disks.glob("*.log")) + sorted(self.disks.glob("*/*/node.log"))
        return "\n".join("\n".join([f"--- {log.relative_to(self.disks)}", *_tail(log, lines)]) for log in logs)

    def stop(self) -> list[int]:
        """SIGTERM everything that still runs; the exit codes. What does not end in time is killed: -9."""
        running = [process for process in self._processes if process.poll() is None]
        for process in running:
            process.send_signal(signal.SIGTERM)
        deadline = time.monotonic() + STOP_S
        codes = []
        for process in running:
            try:
                codes.append(process.wait(max(0.0, deadline - time.monotonic())))
            except subprocess.TimeoutExpired:
                process.kill()
                codes.append(process.wait())
        return codes

    # --- faults ---

    def unplug(self, number: int) -> None:
        """Pull the machine's cable out of the switch."""
        _run("ip", "link", "set", f"port-{number}", "down")

    def plug(self, number: int) -> None:
        """Put it back."""
        _run("ip", "link", "set", f"port-{number}", "up")

    def cut(self, senders: Iterable[int], receivers: Iterable[int]) -> None:
        """Have the switch drop every IP packet from one of `senders` to one of `receivers`; not the other way."""
        program = _drop_to([address(number) for number in receivers])
        for number in senders:
            port = f"port-{number}"
            _run("tc", "qdisc", "add", "dev", port, "clsact")
            _run("tc", "filter", "add", "dev", port, "ingress", "bpf", "da", "bytecode", program)

    def heal(self, senders: Iterable[int]) -> None:
        """Take the filters of these machines away."""
        for number in senders:
            _run("tc", "qdisc", "del", "dev", f"port-{number}", "clsact")


def _drop_to(addresses: Sequence[str]) -> str:
    """A classic BPF program for `tc`: drop IPv4 packets to these addresses, let everything else pass (ARP too)."""
    drop, passes = 2, 0xFFFFFFFF  # TC_ACT_SHOT, TC_ACT_UNSPEC
    count = len(addresses)
    lines = ["40 0 0 12", f"21 0 {count + 1} {0x0800}", "32 0 0 30"]  # EtherType is IPv4? then load the destination
    for index, text in enumerate(addresses):
        lines.append(f"21 {count - index} 0 {int(ipaddress.IPv4Address(text))}")
    lines += [f"6 0 0 {passes}", f"6 0 0 {drop}"]
    return f"{len(lines)}," + ",".join(lines)


def _run(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True)
    if done.returncode != 0:
        raise AssertionError(f"{' '.join(words)}: {done.stderr.strip()}")


def _tail(log: Path, lines: int) -> list[str]:
    return log.read_text(errors="replace").splitlines()[-lines:]


def python_tools(place: Path) -> None:
    """Put `hopchain` and `scp` into `place`: this project's, and one that copies into the other machine's directory."""
    place.mkdir()
    _script(place / "hopchain", f'exec "{sys.executable}" -m cli.main "$@"')
    _script(place / "scp", 'exec cp "$1" "$2" "$LAB_DISKS/${3%%:*}/${3#*:}"  # no sshd runs in a namespace')


def _script(path: Path, line: str) -> None:
    path.write_text(f"#!/bin/sh\n{line}\n")
    path.chmod(0o755)
