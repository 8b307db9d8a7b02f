"""Processes of workers: their surroundings, what they share, how they end."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyactor as pa
from polyactor.errors import Diverged, UsageError, WorkerFailed
from polyactor.storage.metrics_log import read_rows
from polyactor.system import forkserver, script
from polyactor.transport.processes import ProcessPool
from tests.helpers.living import alive
from tests.helpers.programs import environment
from tests.helpers.waiting import STARTED, nap, until


@pytest.fixture(autouse=True)
def _leaves_no_process() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


def look_around(worker: int, seen: torch.Tensor) -> None:
    seen[worker, 0] = torch.get_num_threads()
    seen[worker, 1] = int(os.environ["OMP_NUM_THREADS"])
    seen[worker, 2] = int(os.environ["MKL_NUM_THREADS"])
    seen[worker, 3] = int(signal.getsignal(signal.SIGINT) is signal.SIG_IGN)


def diverge(worker: int) -> None:
    raise Diverged("nothing is finite any more")


def linger(worker: int) -> None:
    """As a process does on its way out when the machine is busy: its files are closed, and it is still there.

    But for the one by which it knows that the run is alive: a thread of it may only now begin to wait for that.
    """
    multiprocessing.util.Finalize(None, lingering, exitpriority=1)


def lingering() -> None:
    run = multiprocessing.parent_process()
    assert run is not None
    os.closerange(3, run.sentinel)
    os.closerange(run.sentinel + 1, 256)
    time.sleep(0.3)


def finish(pool: ProcessPool) -> None:
    try:
        until(lambda: pool.wait(0.1), lambda: None)
    finally:
        pool.stop()


def test_a_worker_has_one_thread_and_leaves_ctrl_c_to_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    seen = torch.zeros(1, 4, dtype=torch.int64).share_memory_()
    pool = ProcessPool(look_around, 1, (seen,))
    assert os.environ["OMP_NUM_THREADS"] == "3"
    assert "MKL_NUM_THREADS" not in os.environ
    finish(pool)
    assert seen.tolist() == [[1, 1, 1, 1]]


def draw(worker: int, drawn: torch.Tensor) -> None:
    drawn[worker, 0], drawn[worker, 1] = float(np.random.random()), float(torch.rand(()))
    drawn[worker, 2] = random.random()


def test_workers_do_not_share_global_random_streams() -> None:
    """Forked from one server, they would all begin with its own."""
    drawn = torch.zeros(3, 3).share_memory_()
    finish(ProcessPool(draw, 3, (drawn,)))
    assert all(len(set(column)) == 3 for column in drawn.T.tolist())


def read_environment(worker: int, seen: torch.Tensor) -> None:
    seen[worker] = int(os.environ.get("POLYACTOR_TEST", "-1"))


def test_a_worker_has_the_environment_of_its_start(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the server's start."""
    seen = torch.zeros(1).share_memory_()
    for value in (7, 8):
        monkeypatch.setenv("POLYACTOR_TEST", str(value))
        finish(ProcessPool(read_environment, 1, (seen,)))
        assert seen.tolist() == [value]
    monkeypatch.delenv("POLYACTOR_TEST")
    finish(ProcessPool(read_environment, 1, (seen,)))
    assert seen.tolist() == [-1]


def fill(worker: int, tensors: list[torch.Tensor]) -> None:
    for tensor in tensors:
        tensor.fill_(worker + 1)


def test_more_shared_tensors_than_the_server_takes() -> None:
    tensors = [torch.zeros(1).share_memory_() for _ in range(300)]
    finish(ProcessPool(fill, 1, (tensors,)))
    assert torch.cat(tensors).eq(1).all()


@pytest.mark.skipif(not forkserver.FORKS, reason="workers are spawned here")
def test_workers_share_what_an_import_allocates() -> None:
    there = torch.zeros(1).share_memory_()
    pool = ProcessPool(hold, 1, (there,))
    try:
        until(lambda: bool(there), nap)
        assert private_mib(pool.processes[0].pid) < 70
    finally:
        pool.stop(grace=0.0)


def hold(worker: int, there: torch.Tensor) -> None:
    there.fill_(1)
    time.sleep(60)


def ignore(worker: int, there: torch.Tensor) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    hold(worker, there[worker : worker + 1])


@pytest.mark.fault("P4")
@pytest.mark.slow
def test_many_that_do_not_end_when_asked_are_waited_for_together() -> None:
    there = torch.zeros(4).share_memory_()
    pool = ProcessPool(ignore, 4, (there,))
    until(lambda: bool(there.all()), nap)
    processes, start = list(pool.processes.values()), time.monotonic()
    pool.stop(grace=0.0)
    assert time.monotonic() - start < 5.0  # 2 s from asking to killing
    assert [process.exitcode for process in processes] == [-signal.SIGKILL] * 4


def private_mib(pid: int) -> float:
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return sum(int(line.split()[1]) for line in lines if line.startswith("Private_Dirty:")) / 2**10


def test_an_error_of_ours_keeps_its_kind_and_so_its_exit_code() -> None:
    with pytest.raises(Diverged) as caught:
        finish(ProcessPool(diverge, 1, ()))
    assert str(caught.value) == "worker 0: nothing is finite any more"


def test_one_wait_is_enough_to_know_that_a_worker_has_ended() -> None:
    pool = ProcessPool(linger, 1, ())
    try:
        assert pool.wait(STARTED)
    finally:
        pool.stop()


@pytest.mark.fault("P15")
def test_the_start_method_of_the_callers_own_processes_stays_open() -> None:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(None, force=True)
    try:
        finish(ProcessPool(look_around, 1, (torch.zeros(1, 4).share_memory_(),)))  # type: ignore[no-untyped-call]
        assert multiprocessing.get_start_method(allow_none=True) is None
    finally:
        multiprocessing.set_start_method(before, force=True)


def begin(worker: int, begun: torch.Tensor) -> None:
    begun[worker, 0] = subprocess.Popen(["sleep", "600"]).pid
    begun[worker, 1] = subprocess.Popen(["sleep", "600"], start_new_session=True).pid
    if worker == 0:
        time.sleep(600)


@pytest.mark.fault("P14")
@pytest.mark.skipif(not forkserver.FORKS, reason="processes are found in /proc alone")
def test_with_a_worker_what_it_has_begun_ends() -> None:
    begun = torch.zeros(2, 2, dtype=torch.int64).share_memory_()
    pool = ProcessPool(begin, 2, (begun,))
    try:
        until(lambda: bool(begun.all()), nap)
        until(lambda: pool.done == {1}, lambda: pool.watch(0.1))
        until(lambda: not alive(int(begun[1, 0])), nap)
        assert alive(int(begun[0, 0]))
        assert os.getpgid(pool.pid(0)) == pool.pid(0) != os.getpgid(0)
        pool.ask(0, kill=True)
        until(lambda: not any(alive(pid) for pid in begun[0].tolist()), nap)
        pool.watch(1.0)
        begun[0] = 0
        pool.start(0)
        until(lambda: bool(begun[0].all()), nap)
    finally:
        pool.stop(grace=0.0)
        left = [pid for pid in (int(begun[1, 1]), int(begun[0, 1])) if alive(pid)]  # theirs lived no more
        for pid in left:
            os.kill(pid, signal.SIGKILL)
    until(lambda: not alive(int(begun[0, 0])), nap)


SCRIPT = """
import gymnasium, numpy, os
import polyactor as pa

class Own(gymnasium.Env):
    observation_space = gymnasium.spaces.Box(-1, 1, (2,), numpy.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.left = 10
        return numpy.zeros(2, numpy.float32), {}

    def step(self, action):
        self.left -= 1
        return numpy.zeros(2, numpy.float32), 1.0, self.left == 0, False, {}

"""
TRAIN = "run = pa.train('a3c', env={env}, steps=500, workers=2, envs=1, quiet=True, out='{out}', evaluate_every=200)"
GUARD = "if __name__ == '__main__':\n    gymnasium.register('Own-v0', entry_point=Own)\n    "
LINE = TRAIN.format(env="Own", out="run")
CALLABLE = TRAIN.format(env="lambda: gymnasium.make('Own-v0')", out="run")


@pytest.mark.fault("P12")
@pytest.mark.parametrize(
    ("text", "given"),
    [
        (LINE, "script.py"),
        *[
            pytest.param(*each, marks=pytest.mark.slow)
            for each in [
                (LINE, "-m script"),
                (LINE, "-"),
                (LINE + "\nrun = pa.train('appo', env=Own, steps=500, workers=2, envs=1, quiet=True)", "script.py"),
                ("os.mkdir('once')\n" + LINE, "script.py"),  # cannot be imported again
                (GUARD + TRAIN.format(env="'Own-v0'", out="run"), "script.py"),
                (GUARD + CALLABLE, "script.py"),
            ]
        ],
    ],
)
def test_a_script_trains_however_it_is_run(text: str, given: str, tmp_path: Path) -> None:
    """Without a guard, on standard input, or with what a worker cannot import."""
    (tmp_path / "script.py").write_text(SCRIPT + text + "\n")
    with open(tmp_path / "script.py") as source:
        done = subprocess.run(
            [sys.executable, *given.split()], stdin=source, cwd=tmp_path, env=environment(), capture_output=True
        )
    assert (done.returncode, done.stderr) == (0, b"")
    runs = 1 + text.count("appo")
    assert len(list(tmp_path.glob("**/config.json"))) == len(list(tmp_path.glob("**/checkpoints/last.json"))) == runs
    reported = [event["event"] for event in read_rows(tmp_path / "run" / "events.jsonl")]
    assert "evaluation" in reported
    assert not {"worker_lost", "evaluation_failed"} & set(reported)


@pytest.mark.fault("P12")
@pytest.mark.slow
def test_workers_are_spawned_where_a_socket_has_no_room(tmp_path: Path) -> None:
    scratch = tmp_path / ("j" * 100)
    scratch.mkdir()
    flags = "--env polyactor/Chain-v0 --steps 500 --workers 2 --envs 1 --quiet --out run"
    command = [sys.executable, "-m", "polyactor", "train", "a3c", *flags.split()]
    done = subprocess.run(command, cwd=tmp_path, env=environment() | {"TMPDIR": str(scratch)}, capture_output=True)
    assert (done.returncode, done.stderr) == (0, b"")
    assert not list(scratch.iterdir())


@pytest.mark.fault("P12")
def test_a_fork_server_that_cannot_start_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> None:
        raise OSError("AF_UNIX path too long")

    monkeypatch.setattr("polyactor.transport.processes.start_forkserver", refuse)
    filled = torch.zeros(1).share_memory_()
    finish(ProcessPool(fill, 1, ([filled],)))
    assert filled.item() == 1


@pytest.mark.fault("P12")
def test_a_process_that_may_start_none_is_told_how_to_train(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in multiprocessing.Pool."""
    monkeypatch.setitem(multiprocessing.current_process()._config, "daemon", True)  # type: ignore[attr-defined]
    given: Any = {"env": "polyactor/Chain-v0", "steps": 100, "workers": 2, "envs": 1, "quiet": True}
    with pytest.raises(UsageError, match=r"daemonic process, as those of multiprocessing.Pool .*transport='inline'"):
        pa.train("a3c", out=str(tmp_path / "run"), **given)
    assert not list(tmp_path.iterdir())
    assert pa.train("a3c", out=str(tmp_path / "run"), transport="inline", **given).status == "done"
    with pytest.raises(WorkerFailed, match="daemonic processes are not allowed to have children"):
        ProcessPool(fill, 1, ([],))


@pytest.mark.fault("P12")
def test_a_process_forked_after_a_run_is_told_to_start_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "_process", os.getpid() - 1)
    with pytest.raises(UsageError, match="forked from one that has trained"):
        pa.train("a2c", env="polyactor/Chain-v0")
