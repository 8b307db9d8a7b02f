"""The machines of other tests: what they count, cut and slow down is so, and nothing of them is left."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.helpers.living import alive
from tests.helpers.namespaces import PORT, Node, network
from tests.helpers.programs import program
from tests.helpers.waiting import nap, until

ROOT = Path(__file__).parents[2]
LISTEN = """
import socket
with socket.create_server(("", 5000)) as server:
    print("listening", flush=True)
    while True:
        with server.accept()[0] as connection:
            while connection.recv(1 << 16):
                pass
"""
SEND = """
import socket, sys, time
with socket.create_connection((sys.argv[1], 5000), timeout=float(sys.argv[3])) as connection:
    start = time.monotonic()
    connection.sendall(bytes(int(sys.argv[2])))
    connection.shutdown(socket.SHUT_WR)
    connection.recv(1)
    print(time.monotonic() - start)
"""
HOLD = """
import subprocess, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.helpers.namespaces import network
with network(Path(sys.argv[1])) as net:
    nodes = [net.node() for _ in range(2)]
    for node in nodes:
        node.popen("sh", "-c", "echo up; exec sleep 1000", stdout=subprocess.PIPE).stdout.readline()
    print(net.hub, *(pid for node in nodes for pid in (node.init, *node.processes())), flush=True)
    sys.stdin.readline()
"""
CALL = """
import sys
import numpy as np
import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

@ray.remote(num_cpus=1, max_restarts=0, max_task_retries=0)
class Actor:
    def turn(self, down):
        return np.zeros(5_400_000, np.uint8)

ray.init(address=sys.argv[1], log_to_driver=False, logging_level="ERROR")
(there,) = [node["NodeID"] for node in ray.nodes() if node["NodeManagerAddress"] == sys.argv[2]]
actor = Actor.options(scheduling_strategy=NodeAffinitySchedulingStrategy(there, soft=False)).remote()
down = np.zeros(3_400_000, np.uint8)
while True:
    ray.get(actor.turn.remote(down))
    print("answered", flush=True)
    sys.stdin.readline()
"""


@contextmanager
def listening(node: Node) -> Iterator[None]:
    with node.popen(sys.executable, "-c", LISTEN, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "listening\n"
        yield
        node.close()


def send(sender: Node, receiver: Node, count: int, patience: float = 30) -> float:
    """Send so many bytes, and return the seconds until they had arrived."""
    return float(sender.run(sys.executable, "-c", SEND, receiver.address, str(count), str(patience)))


def test_bytes_are_counted_and_a_link_is_slowed_down_and_cut(tmp_path: Path) -> None:
    with network(tmp_path) as net:
        ours, theirs = net.node(), net.node()
        with listening(theirs):
            send(ours, theirs, 1)
            before = theirs.moved()
            fast = send(ours, theirs, 1_000_000)
            received, sent = (now - then for now, then in zip(theirs.moved(), before, strict=True))
            assert 1_000_000 < received < 1_100_000
            assert sent < 100_000
            theirs.rate(16)
            assert send(ours, theirs, 1_000_000) > 0.45  # and 0.05 s for what the bucket lets through at once
            theirs.rate(None)
            assert fast < 0.45
            theirs.link(False)
            with pytest.raises(AssertionError, match="ended with 1"):
                send(ours, theirs, 1, patience=0.2)
            theirs.link(True)
            send(ours, theirs, 1)


@pytest.mark.parametrize("end", [signal.SIGKILL, None])
def test_nothing_is_left_when_the_test_ends_or_is_killed(tmp_path: Path, end: signal.Signals | None) -> None:
    with network(tmp_path):
        pass  # which skips where there can be none
    with program(tmp_path / "hold.py", HOLD, tmp_path, ROOT) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        pids = [int(pid) for pid in process.stdout.readline().split()]
        assert len(pids) == 5
        assert all(alive(pid) for pid in pids)
        if end is None:
            process.stdin.write("end\n")
            process.stdin.flush()
        else:
            process.send_signal(end)
        until(lambda: not any(alive(pid) for pid in pids), nap, 10)


@pytest.mark.slow
def test_a_call_of_ray_costs_its_bytes_once(tmp_path: Path) -> None:
    with network(tmp_path) as net:
        head, node = net.node(), net.node()
        head.start_ray()
        node.start_ray(head.address)
        program = (sys.executable, "-c", CALL, f"{head.address}:{PORT}", node.address)
        with head.popen(*program, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
            assert process.stdin is not None
            assert process.stdout is not None
            for call in range(11):
                assert process.stdout.readline() == "answered\n"
                if call == 0:  # which tells both sides where the other is
                    before = node.moved()
                elif call == 10:
                    break
                process.stdin.write("\n")
                process.stdin.flush()
            received, sent = (now - then for now, then in zip(node.moved(), before, strict=True))
            process.kill()
        assert 34e6 < received < 1.01 * 34e6
        assert 54e6 < sent < 1.01 * 54e6
        assert received + sent < 1.005 * 88e6
        assert node.raylet() in node.processes()
        processes = list(node.processes())
        node.kill()
        until(lambda: not any(alive(pid) for pid in processes), nap, 10)
