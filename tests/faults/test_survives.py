"""Whole runs under fault, from the command line: the run itself is killed, memory is short, the clock jumps."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import polyactor as pa
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import read_rows
from tests.helpers.marks import mostly_slow

METHODS = {
    "sync": ["a2c"],
    "hogwild": ["a3c", "--workers", "2"],
    "param-server": ["a3c", "--scheme", "param-server", "--workers", "2"],
    "actor-learner": ["impala", "--workers", "2"],
}
ENV, STARTED = "polyactor/Chain-v0", 60.0
Launch = Callable[..., subprocess.Popen[bytes]]


@pytest.fixture
def launch() -> Iterator[Launch]:
    """Starts commands; whatever of them is left in the end is killed."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: object, before: str = "") -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "polyactor", *map(str, arguments)]
        if before:
            command = ["unshare", "--mount", "bash", "-c", f'{before} && exec "$@"', "bash", *command]
        started.append(
            subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, start_new_session=True)
        )
        return started[-1]

    yield start
    for process in started:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        assert process.stderr is not None
        process.stderr.close()


def until(condition: Callable[[], Any], deadline: float = STARTED) -> float:
    """Seconds until this holds."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() < began + deadline, f"not within {deadline} seconds"
        time.sleep(0.01)
    return time.monotonic() - began


def saved(run: Path) -> int:
    """Environment steps of the last checkpoint."""
    path = checkpoint.last(run)
    return int(path.name.partition(".")[0]) if path is not None else -1


def steps(run: Path) -> int:
    rows = read_rows(run / "metrics.jsonl")
    return rows[-1]["agent_steps"] if rows else 0


def resumed(run: Path) -> int:
    return sum(event["event"] == "resumed" for event in read_rows(run / "events.jsonl"))


def family(run: Path) -> list[int]:
    """Processes of this run: those that name it on their command line, and those they started."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            environ = (folder / "environ").read_bytes()
            if (
                f"RUN={run}".encode() in environ
                and folder.joinpath("stat").read_text().rpartition(")")[2].split()[0] != "Z"
            ):
                found.append(int(folder.name))
        except OSError:
            continue
    return found


def shared() -> set[str]:
    return {path.name for path in Path("/dev/shm").glob("*") if path.name.startswith(("torch", "psm", "sem."))}


def killed_and_resumed(
    name: str,
    run: Path,
    launch: Launch,
    record: Callable[[str, float], None],
    monkeypatch: pytest.MonkeyPatch,
    times: int,
) -> None:
    """The run is killed so many times, each time at a random moment after its next checkpoint, and resumed."""
    every, rng = 0.5, random.Random(name)
    monkeypatch.setenv("RUN", str(run))
    own = run.with_name("temporary")
    own.mkdir()
    monkeypatch.setenv("TMPDIR", str(own))
    before = shared()
    common = ["--env", ENV, "--envs", 4, "--checkpoint-every", every, "--steps", 10**9, "--quiet", "--out", run]
    process = launch("train", *METHODS[name], *common)
    for _ in range(times):
        known = saved(run)
        until(lambda known=known: saved(run) > known)
        time.sleep(rng.uniform(0.0, 0.6))
        process.kill()
        killed = time.time()
        process.wait()
        gone = until(lambda: not family(run), 5.0)
        record("workers gone, s", gone)
        assert gone < 1.0
        last, kept = saved(run), checkpoint.load(run)
        lost = killed - kept.path.stat().st_mtime
        record("work lost, s", lost)
        assert lost < every + 1.0  # a save takes a moment, too
        assert not checkpoint.not_finite(kept.tensors)
        counters = kept.tensors["board.counters"]
        times_resumed = resumed(run)
        process = launch("resume", run, "--quiet")
        # The rows after the checkpoint are gone only when it says that it goes on.
        first = until(lambda n=times_resumed, last=last: resumed(run) > n and (steps(run) > last or saved(run) > last))
        record("first update after resuming, s", first)
        assert first < 15.0
        until(lambda last=last: saved(run) > last)
        now = checkpoint.load(run).tensors["board.counters"]
        assert now[:, :2].sum() > counters[:, :2].sum()  # updates and steps go on from where they were
    process.send_signal(signal.SIGTERM)
    assert process.wait(30.0) == 75
    rows = [row["agent_steps"] for row in read_rows(run / "metrics.jsonl")]
    assert rows == sorted(set(rows))
    until(lambda: not family(run), 5.0)
    assert not list(own.iterdir())
    until(lambda: shared() <= before, 5.0)
    assert not [path for path in run.rglob("*") if path.suffix == ".tmp" or path.name.startswith(".saving")]


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.fault("P5", "P11")
@pytest.mark.parametrize("name", METHODS)
def test_a_run_that_is_killed_leaves_nothing_and_can_be_resumed(
    name: str, tmp_path: Path, launch: Launch, record_property: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_and_resumed(name, tmp_path / "run", launch, record_property, monkeypatch, times=1)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.fault("P5", "P11")
@pytest.mark.parametrize("name", METHODS)
def test_ten_times_over(
    name: str, tmp_path: Path, launch: Launch, record_property: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    killed_and_resumed(name, tmp_path / "run", launch, record_property, monkeypatch, times=10)


MOUNTS = "mount -t tmpfs -o size=2m tmpfs /dev/shm"


def may_mount() -> bool:
    return (
        shutil.which("unshare") is not None
        and not subprocess.run(["unshare", "--mount", "bash", "-c", MOUNTS], capture_output=True).returncode
    )


@pytest.mark.fault("P10")
@pytest.mark.parametrize("name", mostly_slow([name for name in METHODS if name != "sync"], fast=["actor-learner"]))
def test_too_little_shared_memory_is_said_before_training(name: str, tmp_path: Path, launch: Launch) -> None:
    if not may_mount():
        pytest.skip("this user may not mount a small /dev/shm")
    process = launch(
        "train",
        *METHODS[name],
        "--env",
        "PongNoFrameskip-v4",
        "--steps",
        1000,
        "--out",
        tmp_path / "run",
        before=MOUNTS,
    )
    assert process.wait(60.0) == 9
    assert process.stderr is not None
    said = process.stderr.read().decode()
    (line,) = [line for line in said.splitlines() if "still at work" not in line]  # which a busy machine makes it say
    assert line.startswith("polyactor: not enough shared memory: ")
    assert "--shm-size" in line


@pytest.mark.fault("D11")
@pytest.mark.parametrize("jump", [-86_400.0, 86_400.0])
def test_a_clock_that_jumps_changes_nothing_but_the_logs(
    jump: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = time.time, [0]

    def jumping() -> float:
        calls[0] += 1
        return real() + jump * (calls[0] % 2)

    monkeypatch.setattr(time, "time", jumping)
    run = pa.train("a2c", env=ENV, steps=4_000, out=str(tmp_path / "run"), quiet=True, checkpoint_every=0.05)
    assert run.status == "done"
    assert 0 < run.summary["wall_s"] < 60
    walls = [row["wall_s"] for row in read_rows(run.path / "metrics.jsonl")]
    assert walls == sorted(walls)


@pytest.mark.fault("D11")
def test_no_decision_is_made_by_a_clock_that_can_be_set() -> None:
    """Only where a file or an event is given its time."""
    source = Path(pa.__file__).parent
    users = {path.name for path in source.rglob("*.py") if "time.time(" in path.read_text()}
    assert users <= {"metrics_log.py"}
    dates = {path.name for path in source.rglob("*.py") if "datetime.now(" in path.read_text()}
    assert dates <= {"metrics_log.py", "run_directory.py"}
