"""Nodes of a cluster die, fall silent and are added, while a run goes on over the others."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest

cluster_utils = pytest.importorskip("ray.cluster_utils", reason="ray is not installed")

from tests.helpers.living import alive  # noqa: E402
from tests.helpers.runs import events, program, until  # noqa: E402

pytestmark = pytest.mark.slow
FLAGS = "--env CartPole-v1 --transport ray --workers 2 --envs 2 --steps 100000000 --quiet"


@dataclass
class Nodes:
    """A cluster whose head has no room for workers, and a run over it."""

    cluster: Any
    folder: Path
    process: subprocess.Popen[str] | None = None
    nodes: list[Any] = field(default_factory=list)

    def add(self) -> None:
        self.nodes.append(self.cluster.add_node(num_cpus=1, object_store_memory=100 << 20))

    def of(self, event: str) -> list[dict[str, Any]]:
        return events(self.folder, event) if (self.folder / "events.jsonl").exists() else []

    def until(self, condition: Any, deadline: float = 120.0) -> float:
        assert self.process is not None
        start = time.monotonic()
        until(condition, self.process, deadline)
        return time.monotonic() - start

    def raylet(self, i: int) -> int:
        (process,) = self.nodes[i].all_processes["raylet"]
        return int(process.process.pid)

    def workers_of(self, i: int) -> list[int]:
        """The processes of the run's workers on node i."""
        begun = self.of("worker_started") + self.of("worker_restarted")
        children = Path(f"/proc/{self.raylet(i)}/task/{self.raylet(i)}/children").read_text().split()
        return [each["pid"] for each in begun if str(each["pid"]) in children]

    @contextmanager
    def training(self, *flags: str) -> Iterator[None]:
        address = ("--ray.address", self.cluster.address, "--out", str(self.folder))
        with program("-m", "polyactor", "train", "a3c-server", *FLAGS.split(), *address, *flags) as self.process:
            yield
            self.process.send_signal(signal.SIGTERM)
            assert self.process.wait(60.0) == 75
        assert read_steps(self.folder) > 0


def read_steps(folder: Path) -> int:
    return int(events(folder, "checkpoint_saved")[-1]["path"])


@pytest.fixture
def nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Nodes]:
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path))  # where no token is
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv("RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "0")
    monkeypatch.setattr("ray._private.ray_constants.ENABLE_RAY_CLUSTER", False)
    arguments = {"num_cpus": 0, "include_dashboard": False, "object_store_memory": 100 << 20}
    cluster = cluster_utils.Cluster(initialize_head=True, head_node_args=arguments)
    try:
        yield Nodes(cluster, tmp_path / "run")
    finally:
        cluster.shutdown()


def test_a_node_that_dies_has_its_worker_replaced_on_another(nodes: Nodes, record_property: Any) -> None:
    for _ in range(3):
        nodes.add()
    with nodes.training():
        nodes.until(lambda: len(nodes.of("worker_started")) == 2)
        (victim, *_) = [i for i in range(3) if nodes.workers_of(i)]
        nodes.cluster.remove_node(nodes.nodes[victim], allow_graceful=False)
        known = nodes.until(lambda: nodes.of("worker_lost"))
        again = nodes.until(lambda: nodes.of("worker_restarted"))
    record_property("replaced, s", round(known + again, 2))
    print(f"node killed: known after {known:.1f} s, replaced after {known + again:.1f} s")
    assert known + again < 60.0


def test_a_raylet_that_dies_takes_its_worker_along(nodes: Nodes) -> None:
    for _ in range(3):
        nodes.add()
    with nodes.training():
        nodes.until(lambda: len(nodes.of("worker_started")) == 2)
        (victim, *_) = [i for i in range(3) if nodes.workers_of(i)]
        (worker,) = nodes.workers_of(victim)
        os.kill(nodes.raylet(victim), signal.SIGKILL)
        gone = nodes.until(lambda: not alive(worker))
        again = nodes.until(lambda: nodes.of("worker_restarted"))
    print(f"raylet killed: its worker gone after {gone:.1f} s, replaced after {gone + again:.1f} s")
    assert gone < 30.0


def test_a_silent_node_is_given_up_after_the_lease(nodes: Nodes) -> None:
    for _ in range(3):
        nodes.add()
    with nodes.training("--ray.lease", "5"):
        nodes.until(lambda: len(nodes.of("worker_started")) == 2)
        (victim, *_) = [i for i in range(3) if nodes.workers_of(i)]
        stopped = [nodes.raylet(victim), *nodes.workers_of(victim)]
        for pid in stopped:
            os.kill(pid, signal.SIGSTOP)
        try:
            known = nodes.until(lambda: nodes.of("worker_lost"))
            again = nodes.until(lambda: nodes.of("worker_restarted"))
        finally:
            for pid in stopped:
                os.kill(pid, signal.SIGCONT)
        assert "gave no answer for 5 s" in nodes.of("worker_lost")[0]["reason"]
        print(f"node silent, lease 5 s: known after {known:.1f} s, replaced after {known + again:.1f} s")


def test_a_run_begins_with_the_workers_that_have_a_place_and_admits_the_rest(nodes: Nodes) -> None:
    nodes.add()
    with nodes.training():
        nodes.until(lambda: nodes.of("worker_started"))
        added = datetime.now().timestamp()
        nodes.add()
        nodes.until(lambda: len(nodes.of("worker_started")) == 2)
        second = datetime.fromisoformat(nodes.of("worker_started")[1]["time"]).timestamp()
        print(f"node added: its worker delivers after {second - added:.1f} s")
