"""Several workers on one state: they share what they should, and none dies silently or outlives its run."""

from __future__ import annotations

import fcntl
import gc
import multiprocessing
import multiprocessing.util
import os
import random
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from fresh import fresh
from gymnasium import spaces
from living import alive

from polyactor import transport
from polyactor.algorithms import A2C, ACER, PPO
from polyactor.config import Config
from polyactor.errors import Diverged, EnvironmentUnsupported, PolyactorError, UsageError, WorkerFailed
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam
from polyactor.optim.flat import State
from polyactor.schemes import Hogwild
from polyactor.schemes.hogwild import Lock
from polyactor.shared.counters import METRICS, Counter, SharedCounters
from polyactor.shared.locks import FileLock
from polyactor.system import forkserver
from polyactor.transport.processes import ProcessPool

pytestmark = pytest.mark.alone

SOURCE = Path(__file__).parents[2] / "src"
FOR_EVER = 10**9
STARTED = 90.0
"""Seconds within which workers must have started, however busy the machine is."""


class Counting(gymnasium.Env[Any, Any]):
    """Observations of noise, reward 1, games of 10 steps."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self._observation(), 1.0, self.steps == 10, False, {}

    def _observation(self) -> Any:
        return self.np_random.uniform(-1, 1, 2).astype(np.float32)


class Broken(Counting):
    """Raises at its 20th step, and those made in its place at once."""

    total = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Broken.total += 1
        if Broken.total >= 20:
            raise ArithmeticError("the wheel came off")
        return super().step(action)


class Verbose(Counting):
    """Raises at every step, with more to say than a pipe holds."""

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        raise ArithmeticError("the wheel came off " + "again " * 100_000)


def config_of(env: Any = Counting, **values: Any) -> Config:
    standard = Config(
        env=env,
        algorithm=A2C(),
        scheme=Hogwild(),
        optimizer=Adam(lr=1e-3),
        steps=FOR_EVER,
        workers=2,
        envs=2,
        rollout=5,
        model=ModelSpec(hidden=(8,)),
    )
    return replace(standard, **values)


@contextmanager
def training(config: Config) -> Iterator[tuple[Generator[None, None, None], State, SharedCounters]]:
    parts = fresh(config)
    state, counters = parts.state, parts.counters
    scheme = transport.run(parts)
    try:
        yield scheme, state, counters
    finally:
        scheme.close()


def trained(config: Config, updates: int = 100) -> tuple[State, SharedCounters]:
    """Until every worker has had so many updates; one may start seconds after another."""
    with training(config) as (scheme, state, counters):
        until(lambda: bool((counters.table[:, Counter.UPDATES] >= updates).all()), lambda: next(scheme))
    return state, counters


def until(condition: Callable[[], bool], go_on: Callable[[], object], deadline: float = STARTED) -> None:
    """Go on until the condition holds; fail after so many seconds."""
    end = time.monotonic() + deadline
    while not condition():
        assert time.monotonic() < end, f"not within {deadline} seconds"
        go_on()


def nap() -> None:
    time.sleep(0.01)


def all_update(counters: SharedCounters) -> Callable[[], bool]:
    return lambda: bool((counters.table[:, Counter.UPDATES] > 0).all())


@pytest.fixture(autouse=True)
def _leaves_no_process() -> Iterator[None]:
    yield
    assert multiprocessing.active_children() == []


# ---- what is shared ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("lock", ["none", "update", "both"])
def test_two_workers_count_and_share_one_set_of_statistics(lock: Lock) -> None:
    config = config_of(scheme=Hogwild(lock=lock))
    start = fresh(config).state.vector
    state, counters = trained(config)
    updates, steps = counters.table[:, Counter.UPDATES], counters.table[:, Counter.STEPS]
    assert (updates * 8 <= steps).all()  # a rollout is 10 transitions,
    assert (steps <= updates * 10).all()  # but those from a game's last observation are not counted
    assert counters.steps == steps.sum()
    assert counters.version == updates.sum()
    assert len(state.statistics) == 1
    counted = float(state.statistics[0]["step"])
    if lock == "none":  # two workers may count at once, and one count is lost then
        assert updates.max() < counted <= counters.version
    else:
        assert counted == counters.version
    assert not torch.equal(start, state.vector)
    games = counters.new_games()
    assert {game.worker for game in games} == {0, 1}
    assert {(game.score, game.length) for game in games} == {(10.0, 10)}


def test_workers_stop_at_the_total() -> None:
    config = config_of(steps=2_000)
    with training(config) as (scheme, _, counters):
        until(lambda: next(scheme, "over") == "over", lambda: None)
        assert config.steps <= counters.steps < config.steps + 2 * 10  # each may have been in its last rollout


@pytest.fixture(scope="module")
def unshared() -> tuple[State, SharedCounters]:
    return trained(config_of(optimizer=Adam(shared=False), per_worker=("optimizer.lr=.001,.002",)))


def test_unshared_statistics_are_one_set_per_worker(unshared: tuple[State, SharedCounters]) -> None:
    state, counters = unshared
    assert len(state.statistics) == 2
    own = [float(statistics["step"]) for statistics in state.statistics]
    assert own == counters.table[:, Counter.UPDATES].tolist()
    assert min(own) > 0
    first, second = (statistics["exp_avg_sq"] for statistics in state.statistics)
    assert first.any()
    assert second.any()
    assert not torch.equal(first, second)


def test_per_worker_values_reach_the_workers(unshared: tuple[State, SharedCounters]) -> None:
    _, counters = unshared
    total, count = counters._metrics[:, :, METRICS.index("learning_rate")].numpy()
    assert (total / count).tolist() == pytest.approx([0.001, 0.002])


def test_per_worker_values_repeat_and_leave_the_rest_alone() -> None:
    config = config_of(workers=3, per_worker=("algorithm.entropy-coef=.01,.02", "optimizer.lr=1e-4"))
    seen = [config.for_worker(worker) for worker in range(3)]
    assert [each.algorithm.entropy_coef for each in seen] == [0.01, 0.02, 0.01]  # type: ignore[attr-defined]
    assert [each.optimizer.lr for each in seen] == [1e-4] * 3
    assert [replace(each, algorithm=config.algorithm, optimizer=config.optimizer) for each in seen] == [config] * 3


def test_every_part_of_a_worker_has_its_own_values() -> None:
    config = config_of(
        algorithm=ACER(), workers=2, per_worker=("algorithm.gamma=.5,.9", "algorithm.average-decay=.1,.2")
    )
    parts = fresh(config)
    actors = [parts.actor(worker)[1] for worker in range(2)]
    assert [actor.gamma for actor in actors] == [0.5, 0.9]
    for actor in actors:
        actor.envs.close()
    assert [parts.updater(worker).averaging for worker in range(2)] == [0.1, 0.2]
    whole = config_of(algorithm=PPO(), per_worker=("algorithm.epochs=2,3",))
    assert [repr(whole.for_worker(worker).algorithm.epochs) for worker in range(2)] == ["2", "3"]  # type: ignore[attr-defined]


@pytest.mark.parametrize("entry", ["lr=1", "optimizer.lr=fast", "optimizer.rl=1", "model.core_size=1", "optimizer.lr="])
def test_per_worker_values_that_cannot_be(entry: str) -> None:
    with pytest.raises(UsageError, match="--per-worker"):
        config_of(per_worker=(entry,)).for_worker(0)


# ---- a worker that dies ------------------------------------------------------------------------------------------


def failure(config: Config) -> tuple[PolyactorError, float]:
    """What the run raises, and how many seconds after its workers' first update."""
    with training(config) as (scheme, _, counters):
        started = begun = time.monotonic()
        with pytest.raises(PolyactorError) as caught:  # noqa: PT012
            for _ in scheme:
                now = time.monotonic()
                begun = begun if counters.version else now
                assert now < started + STARTED, "the run hangs"
    return caught.value, time.monotonic() - begun


def test_an_error_in_an_environment_is_the_runs_own_with_its_traceback() -> None:
    error, seconds = failure(config_of(Broken))
    assert type(error) is EnvironmentUnsupported
    assert re.match(r"worker [01]: environment [01] of Broken failed 5 times in a row", str(error))
    assert "raised ArithmeticError: the wheel came off at step" in str(error)
    (trace,) = error.__notes__
    assert 'raise ArithmeticError("the wheel came off")' in trace
    assert Path(__file__).name in trace
    assert seconds < 10


def test_an_error_longer_than_a_pipe_does_not_hang_the_run() -> None:
    error, _ = failure(config_of(Verbose, workers=1))
    assert type(error) is EnvironmentUnsupported
    assert "raised ArithmeticError: the wheel came off again" in str(error)
    assert len(str(error)) < 1_000
    (trace,) = error.__notes__
    assert " […] " in trace
    assert len(trace) < 64_000


def test_pause_stops_everything_resume_goes_on_and_a_killed_worker_is_named() -> None:
    config = config_of(restarts=0)
    with training(config) as (scheme, state, counters):
        until(all_update(counters), lambda: next(scheme))
        begun, version = time.monotonic(), counters.version
        until(lambda: counters.version >= version + 50, nap)
        fifty_updates = time.monotonic() - begun

        with transport.paused(config, counters) as heeded:
            assert heeded
            table, vector = counters.table.copy(), state.vector.clone()
            time.sleep(max(0.2, fifty_updates))  # long enough for fifty, were they running
            assert (counters.table == table).all()
            assert torch.equal(state.vector, vector)
        until(lambda: bool((counters.table[:, Counter.UPDATES] > table[:, Counter.UPDATES]).all()), nap)

        victim = next(child for child in multiprocessing.active_children() if child.name == "polyactor-worker-1")
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        begun = time.monotonic()
        with pytest.raises(WorkerFailed, match="worker 1 was killed by signal 9"):
            until(lambda: False, lambda: next(scheme), deadline=20)
        assert time.monotonic() - begun < 15  # the other worker was told to stop, and did
        assert bool(torch.isfinite(state.vector).all())


def test_a_run_that_is_closed_lets_its_workers_go() -> None:
    with training(config_of()) as (scheme, _, counters):
        until(all_update(counters), lambda: next(scheme))
        scheme.close()
        assert multiprocessing.active_children() == []
        assert counters.table[:, Counter.UPDATES].all()


PARENT = """
import multiprocessing
from polyactor import transport
from polyactor.agent.parts import Parts
from polyactor.envs import env_spec
from polyactor.settings.presets import base_config
from dataclasses import replace

if __name__ == "__main__":
    config = replace(base_config("a3c", env="polyactor/Chain-v0"), workers=2, envs=2, steps=10**9)
    parts = Parts.fresh(config, env_spec(config.env))
    counters = parts.counters
    scheme = transport.run(parts)  # kept, or it would be closed below
    for _ in scheme:
        if (counters.table[:, 0] > 0).all():
            print(*[child.pid for child in multiprocessing.active_children()], flush=True)
            break
    input()
"""


@contextmanager
def program(path: Path, text: str, *args: object) -> Iterator[subprocess.Popen[str]]:
    path.write_text(text)
    process = subprocess.Popen(
        [sys.executable, str(path), *map(str, args)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@pytest.mark.fault("P5")
def test_workers_die_with_the_parent_however_it_dies(tmp_path: Path) -> None:
    with program(tmp_path / "parent.py", PARENT) as parent:
        assert parent.stdout is not None
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(pids) == 2
        assert all(alive(pid) for pid in pids)
        parent.kill()
        try:
            until(lambda: not any(alive(pid) for pid in pids), nap)
        finally:
            for pid in filter(alive, pids):
                os.kill(pid, signal.SIGKILL)


# ---- a worker's surroundings -------------------------------------------------------------------------------------


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


# ---- the lock ----------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from polyactor.shared.locks import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    input()
"""
COUNTER = """
import sys
from pathlib import Path
from polyactor.shared.locks import FileLock
lock, number = FileLock(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
input()
for _ in range(int(sys.argv[3])):
    with lock:
        number.write_text(str(int(number.read_text()) + 1))
"""


def test_the_lock_excludes_and_a_dead_holder_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    entered = threading.Event()

    def enter() -> None:
        with FileLock(str(path)):
            entered.set()

    with program(tmp_path / "holder.py", HOLDER, path) as holder, open(path) as file:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        threading.Thread(target=enter, daemon=True).start()
        assert not entered.wait(0.2)
        holder.send_signal(signal.SIGKILL)
        assert entered.wait(5.0)


@pytest.mark.skipif(sys.platform != "linux", reason="open files are counted in /proc")
def test_a_run_leaves_no_file_open() -> None:
    config = config_of(transport="inline", scheme=Hogwild(lock="both"), steps=100)

    def still_open() -> int:
        with training(config) as (scheme, _, _):
            for _ in scheme:
                pass
        del scheme
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    assert still_open() == still_open()


def test_the_lock_makes_two_processes_take_turns(tmp_path: Path) -> None:
    path, number, times = tmp_path / "lock", tmp_path / "number", 500
    path.touch()
    number.write_text("0")
    with program(tmp_path / "counter.py", COUNTER, path, number, times) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("\n")
        other.stdin.flush()
        lock = FileLock(str(path))
        for _ in range(times):
            with lock:
                number.write_text(str(int(number.read_text()) + 1))
        assert other.wait(30) == 0
    assert int(number.read_text()) == 2 * times
