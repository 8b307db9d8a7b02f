"""Machines of a test's own: processes, addresses and files in Linux namespaces, joined by a bridge.

    with network() as net:
        head = net.node()
        head.start_ray()
        head.run(sys.executable, "-c", "…")

Each node has a network with one interface, process numbers and ``/tmp/ray`` of its own; everything else is this
machine's. A node ends when the first process in it does, and that one ends when its standard input is closed: with the
test's process, however that ends. The kernel then kills what runs in the node and takes its interface away.
"""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from tests.helpers.programs import environment

PORT = 6379
"""The port of the head's GCS."""
PORTS = (
    "--dashboard-agent-grpc-port=52366",
    "--dashboard-agent-listen-port=52365",
    "--metrics-export-port=52367",
    "--runtime-env-agent-port=52368",
)
"""Ports of each node's helpers, which it would otherwise hear of them, and wait for too briefly on a busy machine."""
STORE = 200 << 20
"""Bytes of each node's object store."""
INSIDE = """
hostname "$0"
ip link set lo up
mkdir -p /tmp/ray && mount -t tmpfs none /tmp/ray
echo ready
read -r _
"""
"""What the first process of a node does. It is a shell, since that waits for processes whose parent has ended."""
RAY = "import sys; sys.modules['grpc'] = None; from ray.scripts.scripts import main; main()"
"""The command ``ray``, which starts a server of Ray Client wherever it can import grpc."""
STARTED = 120.0
"""Seconds within which a node of Ray has started."""


@dataclass
class Node:
    """A machine.

    Attributes:
        name: its host name, and the name of its interface's other end, at the bridge.
        address: its IP address.
        first: the first process in it, by which everything in it ends.
        init: the number of that process on this machine.
        hub: the namespaces of the bridge.
        secret: a file with the token of the cluster.
    """

    name: str
    address: str
    first: subprocess.Popen[str]
    init: int
    hub: int
    secret: Path
    ray: subprocess.Popen[str] | None = None
    said: list[str] = field(default_factory=list)

    def popen(self, *args: str, env: Mapping[str, str] | None = None, **options: Any) -> subprocess.Popen[str]:
        """Start a program in the node, with the cluster's token, in the working directory of this process."""
        values = environment() | {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(self.secret),
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_worker_niceness": "0",
            "RAY_raylet_start_wait_time_s": f"{STARTED:.0f}",
            "OMP_NUM_THREADS": "1",
        }
        return subprocess.Popen(
            _inside(self.init, args, "--pid", "--mount", "--uts"), env=values | dict(env or {}), text=True, **options
        )

    def run(self, *args: str, timeout: float = 120, **options: Any) -> str:
        """Run a program in the node, and return what it printed."""
        with self.popen(*args, stdout=subprocess.PIPE, **options) as process:
            try:
                out, _ = process.communicate(timeout=timeout)
            except BaseException:
                process.kill()
                raise
        assert process.returncode == 0, f"{args} ended with {process.returncode}: {out}"
        return out

    def start_ray(self, head: str | None = None, *, cpus: int = 2, env: Mapping[str, str] | None = None) -> None:
        """Start a node of Ray: the head of a new cluster, or one of the cluster whose head has this address."""
        if find_spec("ray") is None:
            pytest.skip("ray is not installed")
        place = ("--head", f"--port={PORT}", "--include-dashboard=false")
        options = (f"--node-ip-address={self.address}", f"--num-cpus={cpus}", f"--object-store-memory={STORE}")
        self.ray = self.popen(
            *(sys.executable, "-c", RAY, "start", "--block", "--disable-usage-stats", *options, *PORTS),
            *(place if head is None else (f"--address={head}:{PORT}",)),
            env=env,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self.ray.stdout is not None
        end = time.monotonic() + STARTED
        for line in self.ray.stdout:
            self.said.append(line)
            if "Ray runtime started" in line:
                return
            if time.monotonic() > end:
                break
        logs = "tail -n 15 /tmp/ray/session_latest/logs/raylet.* /tmp/ray/session_latest/logs/gcs_server.*"
        with suppress(AssertionError):
            self.said.append(self.run("bash", "-c", f"{logs}; true", stderr=subprocess.STDOUT))
        raise AssertionError(f"no node of Ray: {''.join(self.said)}")

    def processes(self) -> dict[int, str]:
        """Return the command lines of all processes in the node by their numbers on this machine."""
        own, found = os.readlink(f"/proc/{self.init}/ns/pid"), {}
        for place in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if os.readlink(place / "ns" / "pid") == own and int(place.name) != self.init:
                    found[int(place.name)] = (place / "cmdline").read_text().replace("\0", " ")
        return found

    def outside(self, pid: int) -> int:
        """Return the number on this machine of a process that has this number in the node."""
        numbers = {each: Path(f"/proc/{each}/status").read_text() for each in self.processes()}
        (found,) = [each for each, status in numbers.items() if re.search(rf"^NSpid:.*\s{pid}$", status, re.MULTILINE)]
        return found

    def raylet(self) -> int:
        """Return the number of the process of Ray that starts all others in the node."""
        (found,) = [pid for pid, command in self.processes().items() if "/raylet/raylet " in command]
        return found

    def kill(self) -> None:
        """Kill everything in the node at once."""
        self.first.kill()
        self.first.wait()

    def link(self, up: bool) -> None:
        """Plug the node's cable in, or pull it out; nothing is told to those at its ends."""
        _ip(self.hub, "link", "set", self.name, "up" if up else "down")

    def rate(self, mbit: float | None) -> None:
        """Let so many Mbit/s through the node's cable each way, or as many as can be."""
        for pid, device in ((self.hub, self.name), (self.init, "eth0")):
            subprocess.run(_inside(pid, ("tc", "qdisc", "del", "dev", device, "root")), capture_output=True)
            if mbit is not None:
                shaped = f"tc qdisc add dev {device} root tbf rate {mbit}mbit burst 32kbit latency 400ms"
                subprocess.run(_inside(pid, shaped.split()), check=True)

    def moved(self) -> tuple[int, int]:
        """Return the bytes that the node has received and sent so far, with all headers."""
        found = json.loads(_ip(self.init, "-j", "-s", "link", "show", "dev", "eth0"))[0]["stats64"]
        return found["rx"]["bytes"], found["tx"]["bytes"]

    def close(self) -> None:
        """End the node and what runs in it, and wait for it."""
        for process in (self.first, self.ray):
            if process is not None:
                _end(process)


RETRY = "f=/proc/sys/net/ipv4/tcp_rto_max_ms; [ ! -e $f ] || echo 2000 > $f"
"""Lets TCP try every 2 s, as docs/ray.md advises; else its next try after 12.8 s of a cut is at 25.6 s."""


@dataclass
class Network:
    """Nodes that are joined by a bridge.

    Attributes:
        hub: the number of the process whose network the bridge is in.
        secret: a file with the token of the cluster.
        closing: ends everything.
    """

    hub: int
    secret: Path
    closing: ExitStack
    nodes: list[Node] = field(default_factory=list)

    def node(self) -> Node:
        """Add a machine."""
        n = len(self.nodes) + 1
        first, init = _namespaces(self.closing, f"node{n}")
        node = Node(f"node{n}", f"10.77.0.{n}", first, init, self.hub, self.secret)
        self.nodes.append(node)
        self.closing.callback(node.close)
        _ip(self.hub, "link", "add", node.name, "type", "veth", "peer", "name", "eth0", "netns", str(init))
        _ip(self.hub, "link", "set", node.name, "master", "bridge", "up")
        _ip(init, "address", "add", f"{node.address}/24", "dev", "eth0")
        _ip(init, "link", "set", "eth0", "up")
        subprocess.run(_inside(init, ("sh", "-c", RETRY)), check=True)
        return node


@contextmanager
def network(folder: Path) -> Iterator[Network]:
    """Make an empty network, and take it down with all nodes.

    Args:
        folder: where a file with a token is put.
    """
    why = missing()
    if why is not None:
        pytest.skip(why)
    secret = folder / "token"
    secret.touch(0o600)
    secret.write_text(secrets.token_hex(32))
    with ExitStack() as closing:
        _, hub = _namespaces(closing, "hub")
        _ip(hub, "link", "add", "bridge", "type", "bridge")
        _ip(hub, "link", "set", "bridge", "up")
        yield Network(hub, secret, closing)


def missing() -> str | None:
    """Return why there can be no nodes in namespaces here, or None."""
    if not sys.platform.startswith("linux") or os.geteuid() != 0:
        return "namespaces need root on Linux"
    lacking = [tool for tool in ("unshare", "nsenter", "ip", "tc", "bash", "mount") if shutil.which(tool) is None]
    if lacking:
        return f"{', '.join(lacking)} not found"
    tried = subprocess.run(_unshare("true", ""), capture_output=True, text=True)
    return None if tried.returncode == 0 else f"no namespaces here: {tried.stderr.strip()}"


def _unshare(script: str, name: str) -> list[str]:
    new = ("--net", "--pid", "--mount", "--uts", "--fork", "--kill-child=SIGKILL", "--mount-proc")
    return ["unshare", *new, "bash", "-c", script, name]


def _namespaces(closing: ExitStack, name: str) -> tuple[subprocess.Popen[str], int]:
    """Start the first process of new namespaces, and return it and its number on this machine."""
    first = subprocess.Popen(_unshare(INSIDE, name), stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    closing.callback(_end, first)
    assert first.stdout is not None
    assert first.stdout.readline() == "ready\n"
    (init,) = Path(f"/proc/{first.pid}/task/{first.pid}/children").read_text().split()
    return first, int(init)


def _end(process: subprocess.Popen[str]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout):
        if stream is not None:
            stream.close()


def _inside(pid: int, args: Sequence[str], *namespaces: str) -> list[str]:
    return ["nsenter", "--target", str(pid), "--net", *namespaces, "--", *args]


def _ip(pid: int, *args: str) -> str:
    done = subprocess.run(_inside(pid, ("ip", *args)), capture_output=True, text=True)
    assert done.returncode == 0, f"ip {args}: {done.stderr}"
    return done.stdout
