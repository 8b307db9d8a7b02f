"""Workers that are lost: killed anywhere, hanging, stopped. The run goes on, and replaces them."""

from __future__ import annotations

import multiprocessing
import os
import random
import re
import signal
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from polyactor import transport
from polyactor.algorithms import A2C, ACER, PPO, VTrace
from polyactor.config import Config, Scheme
from polyactor.errors import EnvironmentUnsupported, OutOfResources, WorkerFailed
from polyactor.models.spec import ModelSpec
from polyactor.optim.flat import State
from polyactor.schemes import ActorLearner, Hogwild, ParamServer
from polyactor.settings.presets import base_config
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.system import failpoints
from polyactor.system import forkserver as workers_start
from polyactor.transport import pause as pausing
from polyactor.transport import processes
from tests.helpers.fresh import fresh
from tests.helpers.living import alive
from tests.helpers.marks import also_over_ray, mostly_slow
from tests.helpers.toys import Everything

W, T, B = 2, 5, 2
Record = Callable[[str, object], None]
SCHEMES: dict[str, Scheme] = {
    "hogwild": Hogwild(),
    "hogwild-locked": Hogwild(lock="both"),
    "server": ParamServer(),
    "server-bounded": ParamServer(max_staleness=1),
    "server-mean": ParamServer(apply="mean", accumulate=2),
    "learner": ActorLearner(),
    "learner-lag": ActorLearner(max_lag=2, batch=2),
}


def config_of(scheme: Scheme, **values: Any) -> Config:
    algorithm = VTrace() if isinstance(scheme, ActorLearner) else A2C()
    config = replace(base_config("a3c", env="polyactor/Chain-v0"), scheme=scheme, algorithm=algorithm)
    return replace(config, **({"workers": W, "envs": B, "rollout": T, "steps": 10**9} | values))


@dataclass
class Training:
    """A run in this process and what it told."""

    config: Config
    state: State
    counters: SharedCounters
    scheme: Any = None
    told: list[tuple[float, str, str, dict[str, Any]]] = field(default_factory=list)

    def tell(self, event: str, reason: str = "", **fields: Any) -> None:
        self.told.append((time.monotonic(), event, reason, fields))

    def events(self, name: str) -> list[tuple[float, str, dict[str, Any]]]:
        return [(when, reason, fields) for when, event, reason, fields in self.told if event == name]

    def until(self, condition: Any, deadline: float = 60.0) -> float:
        """Go on until this holds; gives the longest time in which there was no update."""
        end = time.monotonic() + deadline
        longest, last, version = 0.0, time.monotonic(), self.counters.version
        while not condition():
            assert time.monotonic() < end, f"not within {deadline} seconds"
            next(self.scheme)
            if self.counters.version > version:
                version, now = self.counters.version, time.monotonic()
                longest, last = max(longest, now - last), now
        return max(longest, time.monotonic() - last)

    def turns(self, worker: int) -> int:
        return int(self.counters.table[worker, Counter.TURNS])

    def pid(self, worker: int) -> int:
        begun = [fields for event in ("worker_started", "worker_restarted") for _, _, fields in self.events(event)]
        return int([fields["pid"] for fields in begun if fields["worker"] == worker][-1])

    def at_work(self, more: int = 3) -> None:
        """Every worker has done something, and something more than now."""
        wanted = [self.turns(worker) + more for worker in range(self.config.workers)]
        self.until(lambda: all(self.turns(worker) >= wanted[worker] for worker in range(self.config.workers)))

    def finite(self) -> bool:
        return all(bool(tensor.isfinite().all()) for tensor in self.state.tensors().values())


@contextmanager
def training(config: Config) -> Iterator[Training]:
    others = multiprocessing.active_children()
    parts = fresh(config)
    state, counters = parts.state, parts.counters
    run = Training(config, state, counters)
    run.scheme = transport.run(parts, run.tell)
    try:
        yield run
    finally:
        run.scheme.close()
    assert set(multiprocessing.active_children()) <= set(others)


@pytest.mark.alone
@pytest.mark.fault("P1")
@pytest.mark.parametrize("name", mostly_slow(SCHEMES, fast=["hogwild", "server", "learner"]))
def test_a_killed_worker_is_replaced_and_the_others_go_on(name: str, record_property: Record) -> None:
    with training(config_of(SCHEMES[name])) as run:
        run.at_work()
        for victim in (0, 1):
            before, killed = run.counters.steps, time.monotonic()
            os.kill(run.pid(victim), signal.SIGKILL)
            run.until(lambda n=victim + 1: len(run.events("worker_lost")) == n)
            detected, reason, fields = run.events("worker_lost")[-1]
            record_property("noticed, s", detected - killed)
            assert detected - killed < 1.0
            assert fields["worker"] == victim
            assert "killed by signal 9" in reason
            pause = run.until(lambda n=victim + 1: len(run.events("worker_restarted")) == n)
            turns = run.turns(victim)
            pause = max(pause, run.until(lambda v=victim, t=turns: run.turns(v) > t + 2, deadline=10.0))
            record_property("sampling again, s", time.monotonic() - killed)
            record_property("longest pause of updates, s", pause)
            assert pause < 1.0
            assert run.counters.steps > before
        assert run.finite()
        assert [int(n) for n in run.counters.table[:, Counter.STARTS]] == [1, 1]
        assert len(run.events("worker_lost")) == 2


@pytest.mark.slow
@pytest.mark.fault("P1", "P3")
@pytest.mark.parametrize(("name", "transported"), also_over_ray(["hogwild", "server", "learner"], fast=[]))
def test_it_is_replaced_with_masks_images_and_memory_too_where_environments_fail(name: str, transported: Any) -> None:
    model = ModelSpec(hidden=(8,), core="gru", core_size=8)
    values = {"env": partial(Everything, failing=0.003), "model": model, "precision": "fp32", "env_timeout": 30.0}
    with training(config_of(SCHEMES[name], transport=transported, **values)) as run:
        run.at_work()
        os.kill(run.pid(1), signal.SIGKILL)
        run.until(lambda: bool(run.events("worker_restarted")))
        run.at_work()
        run.until(lambda: int(run.counters.table[:, Counter.ENV_ERRORS].sum()) >= 3)
        run.at_work()
        assert len(run.events("worker_lost")) == 1
        assert run.finite()
        assert all("raised OSError: the camera is gone" in why for _, why in run.counters.new_env_errors())


@pytest.mark.fault("P1", "P11")
@pytest.mark.skipif(not workers_start.FORKS, reason="workers are spawned here")
@pytest.mark.parametrize("name", mostly_slow(["hogwild", "server", "learner"], fast=["hogwild"]))
def test_when_the_server_they_are_forked_from_is_killed_all_are_replaced_and_none_is_left(name: str) -> None:
    """Nobody says then how a worker ended, nor whether it has."""
    with training(config_of(SCHEMES[name])) as run:
        run.at_work()
        orphans = [run.pid(worker) for worker in range(W)]
        server: Any = forkserver._forkserver  # type: ignore[attr-defined]
        os.kill(server._forkserver_pid, signal.SIGKILL)
        run.until(lambda: len(run.events("worker_restarted")) == W)
        run.at_work()
        run.until(lambda: not any(alive(pid) for pid in orphans))
        assert len(run.events("worker_lost")) == W
        assert run.finite()


@pytest.mark.fault("P1")
@pytest.mark.parametrize("place", ["read", "rollout", "gradient", "update", "update.inside", "send"])
@pytest.mark.parametrize(
    "name", mostly_slow(["hogwild", "hogwild-locked", "server", "learner"], fast=["hogwild-locked", "server"])
)
def test_wherever_it_is_killed(name: str, place: str, monkeypatch: pytest.MonkeyPatch) -> None:
    own = {"hogwild": {"read", "rollout", "gradient", "update", "update.inside"}}
    own["server"] = {"read", "rollout", "gradient", "send"}
    if place not in own.get(name.partition("-")[0], {"read", "rollout", "send"}):
        place = "rollout"  # that place is in the run's own process
    monkeypatch.setenv(failpoints.VARIABLE, f"{place}=kill@7/1")
    with training(config_of(SCHEMES[name])) as run:
        run.until(lambda: bool(run.events("worker_restarted")))
        run.at_work(5)
        assert len(run.events("worker_lost")) == 1
        assert run.finite()
        skipped = int(run.counters.table[:, Counter.SKIPPED].sum())
        assert skipped == 0


@pytest.mark.fault("P1")
@pytest.mark.parametrize("name", mostly_slow(SCHEMES, fast=["hogwild", "learner"]))
def test_a_pause_does_not_wait_for_one_that_dies_meanwhile(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pausing, "HEED_WITHIN", 30.0)
    with training(config_of(SCHEMES[name])) as run:
        for pause in (transport.still, transport.paused):
            run.at_work()
            pid = run.pid(1)
            os.kill(pid, signal.SIGSTOP)  # so that it does not heed the pause before it dies
            threading.Timer(0.2, os.kill, (pid, signal.SIGKILL)).start()
            began, version = time.monotonic(), run.counters.version
            with pause(run.config, run.counters) as heeded:
                assert heeded
            assert time.monotonic() - began < 10.0  # of 30
            run.until(lambda version=version: run.counters.version > version + 5)
            run.until(lambda run=run: not run.counters.table[1, Counter.PAUSED] < 0)
        assert len(run.events("worker_lost")) == 2


@pytest.mark.fault("P4", "P7")
@pytest.mark.parametrize("name", mostly_slow(SCHEMES, fast=["hogwild", "server"]))
def test_a_checkpoint_does_not_wait_for_one_that_hangs(name: str) -> None:
    with training(config_of(SCHEMES[name])) as run:
        run.at_work()
        pid = run.pid(1)
        os.kill(pid, signal.SIGSTOP)
        began = time.monotonic()
        with transport.still(run.config, run.counters) as heeded:
            assert heeded == (not run.config.scheme.applies_apart)
        assert time.monotonic() - began < 10.0  # another pause waits for 30
        os.kill(pid, signal.SIGCONT)
        run.at_work()


class Slow(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Takes long to be made once there is a file."""

    def __init__(self) -> None:
        if Path(os.environ["POLYACTOR_TEST_MARK"]).exists():
            time.sleep(3.0)
        super().__init__(gymnasium.make("polyactor/Chain-v0"))


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.fault("P1")
@pytest.mark.parametrize("name", mostly_slow(SCHEMES, fast=["server", "learner"]))
def test_nobody_waits_for_one_that_takes_long_to_come_back(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, record_property: Record
) -> None:
    monkeypatch.setenv("POLYACTOR_TEST_MARK", str(tmp_path / "mark"))
    with training(config_of(SCHEMES[name], env=Slow)) as run:
        run.at_work()
        (tmp_path / "mark").touch()
        os.kill(run.pid(0), signal.SIGKILL)
        turns = run.turns(0)
        pause = run.until(lambda: run.turns(0) > turns + 5)
        record_property("longest pause of updates, s", pause)
        assert pause < 1.0


@pytest.mark.fault("P1")
@pytest.mark.parametrize(("name", "transported"), also_over_ray(SCHEMES, fast=["learner"]))
def test_a_total_that_is_reached_with_a_loss_on_the_way_ends_the_run(name: str, transported: Any) -> None:
    with training(config_of(SCHEMES[name], steps=3_000, transport=transported)) as run:
        run.until(lambda: run.counters.steps > 500)
        os.kill(run.pid(1), signal.SIGKILL)
        for _ in run.scheme:
            pass
        assert run.counters.steps >= 3_000
        assert len(run.events("worker_lost")) == 1
        assert run.finite()


@pytest.mark.fault("P8")
@pytest.mark.parametrize(("name", "transported"), also_over_ray(SCHEMES, fast=["server", "learner"]))
def test_without_replacement_it_goes_on_with_those_that_are_left(name: str, transported: Any) -> None:
    with training(config_of(SCHEMES[name], restarts=None, transport=transported)) as run:
        run.at_work()
        os.kill(run.pid(0), signal.SIGKILL)
        run.until(lambda: bool(run.events("worker_lost")))
        turns = run.turns(1)
        run.until(lambda: run.turns(1) > turns + 20)
        assert not run.events("worker_restarted")
        assert not run.counters.starts(0)
        with transport.paused(run.config, run.counters) as heeded:
            assert heeded  # who is lost need not answer
        os.kill(run.pid(1), signal.SIGKILL)
        with pytest.raises(WorkerFailed, match="worker 1 was killed"):
            run.until(lambda: False, deadline=10.0)


@pytest.mark.fault("P8")
@pytest.mark.parametrize("name", mostly_slow(SCHEMES, fast=["learner-lag"]))
def test_without_replacement_the_rest_reaches_the_total(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "rollout=kill@3/0")
    with training(config_of(SCHEMES[name], restarts=None, steps=5_000)) as run:
        for _ in run.scheme:
            pass
        assert run.counters.steps >= 5_000
        assert len(run.events("worker_lost")) == 1


def test_more_losses_than_allowed_stop_the_run() -> None:
    with training(config_of(Hogwild(), restarts=1)) as run:
        run.at_work()
        os.kill(run.pid(0), signal.SIGKILL)
        run.until(lambda: bool(run.events("worker_restarted")))
        run.at_work()
        os.kill(run.pid(0), signal.SIGKILL)
        with pytest.raises(WorkerFailed, match="loss 2 of this worker within an hour, and --restarts allows 1"):
            run.until(lambda: False, deadline=10.0)


@pytest.mark.fault("P8")
def test_a_worker_that_comes_back_plays_other_games_and_the_pause_does_not_wait_for_it() -> None:
    with training(config_of(Hogwild())) as run:
        run.at_work()
        os.kill(run.pid(0), signal.SIGKILL)
        run.until(lambda: bool(run.events("worker_restarted")))
        began = time.monotonic()
        with transport.paused(run.config, run.counters) as heeded:
            assert heeded
        assert time.monotonic() - began < 10.0  # of 30
        turns = run.turns(0)
        run.until(lambda: run.turns(0) > turns + 3)
        assert run.counters.table[0, Counter.PAUSED] >= 0  # from now on it is waited for
        with transport.paused(run.config, run.counters) as heeded:
            assert heeded
            counters = run.counters.table.copy()
            time.sleep(0.3)
            assert (counters == run.counters.table).all()


class Doomed(gymnasium.Env[Any, Any]):
    """Ends its process in the third step."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 3:
            self.end()
        return np.zeros(2, np.float32), 1.0, self.steps % 7 == 0, False, {}

    def end(self) -> None:
        os._exit(0)


class Killed(Doomed):
    def end(self) -> None:
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.fault("P2", "P9")
@pytest.mark.parametrize(("env", "name", "transported", "kind", "why"), [
    pytest.param(
        Doomed, "hogwild", "local", EnvironmentUnsupported, "ended with code 0 before its work was done",
        marks=pytest.mark.slow,
    ),
    (Killed, "hogwild", "local", OutOfResources, r"killed by signal 9 \(out of memory\?\)"),
    *(
        pytest.param(
            Killed, name, "ray", OutOfResources, r"killed on its node \(out of memory\?\)", marks=pytest.mark.slow
        )
        for name in ("server", "learner")
    ),
])  # fmt: skip
def test_three_processes_that_get_nowhere_are_enough(
    env: Any, name: str, transported: Any, kind: Any, why: str, record_property: Record
) -> None:
    began = time.monotonic()
    config = config_of(SCHEMES[name], env=env, transport=transported)
    with training(config) as run, pytest.raises(kind, match=why) as caught:
        run.until(lambda: False, deadline=60.0)
    assert "3 processes in a row" in str(caught.value)
    record_property("until it ends, s", time.monotonic() - began)
    assert time.monotonic() - began < 30.0


class Parent(Doomed):
    """Starts a process of its own, which outlives it and has its files."""

    def end(self) -> None:
        if os.fork() == 0:
            time.sleep(20.0)
            os._exit(0)
        os.kill(os.getpid(), signal.SIGKILL)


@pytest.mark.alone
@pytest.mark.slow
def test_a_process_that_an_environment_has_started_holds_nobody_up() -> None:
    began = time.monotonic()
    with training(config_of(Hogwild(), env=Parent)) as run, pytest.raises(OutOfResources):
        run.until(lambda: False, deadline=60.0)
    assert time.monotonic() - began < 18.0


def test_one_that_cannot_be_started_leaves_none_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    real = processes._started

    def started(i: int, *args: Any) -> Any:
        if i == 1:
            raise WorkerFailed("worker 1 could not be started: too many open files")
        return real(i, *args)

    monkeypatch.setattr(processes, "_started", started)
    with training(config_of(Hogwild())) as run, pytest.raises(WorkerFailed, match="could not be started"):
        next(run.scheme)
    assert multiprocessing.active_children() == []


@pytest.mark.slow
def test_who_takes_the_place_of_one_whose_queue_is_full_waits_for_the_server() -> None:
    """Its gradient is held back for another that is stopped; only when it has been applied does the new one pull."""
    with training(config_of(ParamServer(max_staleness=1))) as run:
        run.at_work()
        other = run.pid(1)
        os.kill(other, signal.SIGSTOP)
        end = time.monotonic() + 1.0
        run.until(lambda: time.monotonic() > end)  # worker 0 waits with a full queue
        os.kill(run.pid(0), signal.SIGKILL)
        end = time.monotonic() + 3.0
        run.until(lambda: time.monotonic() > end)
        assert len(run.events("worker_lost")) == 1
        os.kill(other, signal.SIGCONT)
        run.at_work()
        assert len(run.events("worker_lost")) == 1


class Wrong(A2C):
    def loss(self, *args: Any) -> Any:
        raise ArithmeticError("the sign was wrong")


@pytest.mark.fault("P2")
@pytest.mark.parametrize(
    ("name", "transported"), [("hogwild", "local"), pytest.param("server", "ray", marks=pytest.mark.slow)]
)
def test_what_raises_before_anything_was_done_is_not_tried_again(name: str, transported: Any) -> None:
    with training(config_of(SCHEMES[name], algorithm=Wrong(), transport=transported)) as run:
        with pytest.raises(WorkerFailed, match=r"the sign was wrong\nTraceback"):
            run.until(lambda: False)
        assert not run.events("worker_restarted")


class Hanging(Doomed):
    """Hangs in step 40 of the first process that makes it, which makes the file `mark`."""

    def __init__(self, mark: Path) -> None:
        super().__init__()
        self.mark = mark

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        if self.steps == 40 and not self.mark.exists():
            self.mark.touch()
            self.hang()
        return np.zeros(2, np.float32), 1.0, self.steps % 7 == 0, False, {}

    def hang(self) -> None:
        time.sleep(3600)


class Stubborn(Hanging):
    def hang(self) -> None:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        while True:
            time.sleep(3600)


@pytest.mark.alone
@pytest.mark.fault("P4")
@pytest.mark.parametrize(
    ("name", "transported", "env", "most"),
    [
        ("hogwild", "local", Stubborn, 4.5),
        ("server", "local", Hanging, 2.0),
        pytest.param("learner", "local", Hanging, 2.0, marks=pytest.mark.slow),
        pytest.param("hogwild", "local", Hanging, 2.0, marks=pytest.mark.slow),
        pytest.param("server", "local", Stubborn, 4.5, marks=pytest.mark.slow),
        pytest.param("learner", "local", Stubborn, 4.5, marks=pytest.mark.slow),
        pytest.param("server", "ray", Hanging, 8.0, marks=pytest.mark.slow),  # a sign of life is a second old
        pytest.param("learner", "ray", Hanging, 8.0, marks=pytest.mark.slow),
    ],
)
def test_an_environment_that_hangs_is_ended_and_named(
    name: str, transported: Any, env: Any, most: float, tmp_path: Path, record_property: Record
) -> None:
    mark = tmp_path / "mark"
    config = config_of(SCHEMES[name], env=partial(env, mark), env_timeout=1.0, transport=transported)
    with training(config) as run:
        run.until(mark.exists)
        began = mark.stat().st_mtime
        run.until(lambda: bool(run.events("worker_restarted")))
        record_property("ended and replaced after the limit, s", time.time() - began - 1.0)
        assert time.time() - began < 1.0 + most
        _, reason, fields = run.events("worker_lost")[0]
        assert fields["worker"] in (0, 1)
        kind = env.__name__
        assert reason.startswith(f"worker {fields['worker']} was ended: {kind}: ")
        assert re.search(r"not answered for \d+ s, in step \d+, after the action [01]", reason)
        run.at_work(5)


@pytest.mark.fault("P4")
@pytest.mark.parametrize("transported", ["sync", "inline"])
def test_one_that_hangs_in_the_runs_own_process_is_interrupted(transported: str, tmp_path: Path) -> None:
    values: dict[str, Any] = {"env": partial(Hanging, tmp_path / "mark"), "env_timeout": 0.5}
    if transported == "sync":
        config = replace(base_config("a2c", env=values["env"]), steps=10**9, **values)
    else:
        config = config_of(Hogwild(), transport="inline", **values)
    with training(config) as run:
        run.until(lambda: run.counters.steps > 2_000)
        assert (tmp_path / "mark").exists()


@pytest.mark.fault("P7")
@pytest.mark.parametrize(("name", "transported"), also_over_ray(SCHEMES, fast=["hogwild"]))
def test_a_worker_that_is_only_stopped_for_a_while_is_not_lost(name: str, transported: Any) -> None:
    with training(config_of(SCHEMES[name], transport=transported)) as run:
        run.at_work()
        pid = run.pid(1)
        os.kill(pid, signal.SIGSTOP)
        end = time.monotonic() + 1.5
        run.until(lambda: time.monotonic() > end)
        os.kill(pid, signal.SIGCONT)
        run.at_work()
        assert not run.events("worker_lost")


@pytest.mark.skipif(sys.platform != "linux", reason="whether a process is stopped is read in /proc")
@pytest.mark.fault("P7")
@pytest.mark.parametrize(
    "name",
    mostly_slow(["hogwild", "server", "server-mean", "learner", "learner-lag"], fast=["learner"]),
)
def test_one_that_is_stopped_while_it_reads_the_parameters_holds_up_nobody(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "read=stop@9/1")
    with training(config_of(SCHEMES[name])) as run:
        next(run.scheme)
        stat = Path(f"/proc/{run.pid(1)}/stat")
        run.until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
        alone = "learner" in name  # it learns from rollouts of all: then there are none
        wanted = run.counters.version + (0 if alone else 20)
        end = time.monotonic() + 1.5
        run.until(lambda: time.monotonic() > end and run.counters.version >= wanted)
        os.kill(run.pid(1), signal.SIGCONT)
        run.at_work()
        assert not run.events("worker_lost")


@pytest.mark.slow
@pytest.mark.fault("P1")
def test_acer_loses_at_most_the_rollout_it_was_at(tmp_path: Path) -> None:
    algorithm = ACER(replay_capacity=4_000, replay_start=100)
    for scheme in (Hogwild(), ActorLearner()):
        config = config_of(scheme, algorithm=algorithm, out=str(tmp_path / scheme.name))
        with training(config) as run:
            run.until(lambda run=run: run.counters.steps > 1_000)
            os.kill(run.pid(1), signal.SIGKILL)
            run.until(lambda run=run: bool(run.events("worker_restarted")))
            run.at_work(10)
            assert run.finite()


@pytest.mark.fault("P1")
def test_ppo_learns_from_a_batch_that_is_half_there() -> None:
    config = config_of(ActorLearner(max_lag=0), algorithm=PPO(minibatches=2), envs=4, restarts=None)
    with training(config) as run:
        run.at_work()
        os.kill(run.pid(0), signal.SIGKILL)
        version = run.counters.version
        run.until(lambda: run.counters.version > version + 50)
        assert run.finite()
        assert not run.counters.table[:, Counter.SKIPPED].any()


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.fault("P1")
@pytest.mark.parametrize("name", ["hogwild", "server", "learner"])
def test_twenty_random_moments(name: str, record_property: Record) -> None:
    rng = random.Random(7)
    with training(config_of(SCHEMES[name], restarts=1000)) as run:
        run.at_work()
        for kill in range(20):
            end = time.monotonic() + rng.uniform(0.0, 0.3)
            run.until(lambda end=end: time.monotonic() > end)
            victim = kill % W
            begun, turns = time.monotonic(), run.turns(victim)
            os.kill(run.pid(victim), signal.SIGKILL)
            pause = run.until(lambda n=kill: len(run.events("worker_lost")) > n, deadline=2.0)
            noticed = run.events("worker_lost")[-1][0] - begun
            record_property("noticed, s", noticed)
            assert noticed < 1.0
            pause = max(pause, run.until(lambda v=victim, t=turns: run.turns(v) > t, deadline=10.0))
            record_property("sampling again, s", time.monotonic() - begun)
            record_property("longest pause of updates, s", pause)
            assert pause < 1.0
        assert run.finite()


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.fault("P1")
@pytest.mark.parametrize("name", ["hogwild", "server", "learner"])
def test_speed_after_losing_one_of_two(name: str, record_property: Record) -> None:
    """At least 0.9 of the other's share: a whole run and one that lost a worker, by turns, so that no drift decides."""

    def speed(run: Training, pids: list[int], seconds: float = 2.0) -> float:
        for pid in pids:
            os.kill(pid, signal.SIGCONT)
        turns = run.turns(1)
        run.until(lambda: run.turns(1) > turns + 10)
        steps, began = run.counters.steps, time.monotonic()
        run.until(lambda: time.monotonic() > began + seconds)
        rate = (run.counters.steps - steps) / (time.monotonic() - began)
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        return rate

    config = config_of(SCHEMES[name], restarts=None, envs=16, rollout=20)
    with training(config) as lost:
        lost.at_work()
        os.kill(lost.pid(0), signal.SIGKILL)
        lost.until(lambda: bool(lost.events("worker_lost")))
        with training(config) as whole:
            whole.at_work()
            both, left = [whole.pid(0), whole.pid(1)], [lost.pid(1)]
            for pid in both + left:
                os.kill(pid, signal.SIGSTOP)
            shares = [speed(lost, left) / speed(whole, both) for _ in range(7)]
            for pid in both + left:
                os.kill(pid, signal.SIGCONT)
    print(name, *(f"{share:.3f}" for share in shares))
    record_property("speed after losing 1 of 2, as a share", statistics.median(shares))
    assert statistics.median(shares) >= 0.9 / 2, shares
