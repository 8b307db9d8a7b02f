"""Processes of workers: their surroundings, what they share, how they end."""

from __future__ import annotations

import multiprocessing
import multiprocessing.util
import os
import random
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from polyactor.errors import Diverged
from polyactor.system import forkserver
from polyactor.transport.processes import ProcessPool
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


@pytest.mark.fault("P21")
def test_the_start_method_of_the_callers_own_processes_stays_open() -> None:
    before = multiprocessing.get_start_method(allow_none=True)
    multiprocessing.set_start_method(None, force=True)
    try:
        finish(ProcessPool(look_around, 1, (torch.zeros(1, 4).share_memory_(),)))  # type: ignore[no-untyped-call]
        assert multiprocessing.get_start_method(allow_none=True) is None
    finally:
        multiprocessing.set_start_method(before, force=True)
