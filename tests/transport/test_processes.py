"""Processes of workers: their surroundings, what they share, how they end."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from polyactor.errors import Diverged
from polyactor.system import forkserver
from polyactor.transport.processes import ProcessPool
from tests.helpers.living import alive
from tests.helpers.waiting import STARTED, nap, until

pytestmark = pytest.mark.alone


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
