"""What a run has made it closes: its environments, wherever they play and however the run ends."""

from __future__ import annotations

import multiprocessing
import os
import threading
import time
from collections import Counter as Stats
from collections.abc import Callable
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from polyactor import transport
from polyactor.algorithms import A2C
from polyactor.config import Config
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam
from polyactor.schemes import ActorLearner, Hogwild, ParamServer, Sync
from polyactor.shared.counters import SharedCounters
from tests.helpers.fresh import fresh

B, T, W = 2, 5, 2
SCHEMES: dict[str, Any] = {
    "sync": Sync(),
    "hogwild": Hogwild(),
    "threads": Hogwild(workers_as="thread"),
    "server": ParamServer(),
    "learner": ActorLearner(),
}


class Noted(gymnasium.Env[Any, Any]):
    """Writes down when it is made, stepped and closed."""

    observation_space = spaces.Box(-1.0, 1.0, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.name, self.steps = f"{os.getpid()}-{id(self)}-{time.monotonic_ns()}", 0
        self.note("made")

    def note(self, what: str) -> None:
        with open(os.environ["POLYACTOR_TEST_NOTES"], "a") as file:
            file.write(f"{what} {self.name}\n")

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps == 10, False, {}

    def close(self) -> None:
        self.note("closed")


class Grumbling(Noted):
    def close(self) -> None:
        super().close()
        raise OSError("the simulator was gone already")


class Ending(Noted):
    """Raises whatever it is asked from its 30th step on, and so ends its run."""

    total = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        Ending.total += 1
        if Ending.total >= 30:
            raise ArithmeticError("the wheel came off")
        return super().step(action)


class Threaded(Noted):
    """Has a thread that outlives it, in a worker."""

    def __init__(self) -> None:
        super().__init__()
        if multiprocessing.parent_process() is not None:
            threading.Thread(target=threading.Event().wait, args=(90.0,)).start()


@pytest.fixture
def open_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The environments that have been made and not closed."""
    path = tmp_path / "notes"
    monkeypatch.setenv("POLYACTOR_TEST_NOTES", str(path))

    def read() -> list[str]:
        lines = [line.split() for line in path.read_text().splitlines()]
        made, closed = (Stats(name for what, name in lines if what == verb) for verb in ("made", "closed"))
        assert len(made) >= B
        return list((made - closed).elements())

    return read


def config_of(name: str, env: Any, transported: Any = "local", **values: Any) -> Config:
    standard = Config(
        env=env,
        algorithm=A2C(),
        scheme=SCHEMES[name],
        optimizer=Adam(lr=1e-3),
        steps=400,
        workers=1 if name == "sync" else W,
        envs=B,
        rollout=T,
        model=ModelSpec(hidden=(8,)),
        transport=transported,
    )
    return replace(standard, **values)


def play(config: Config, updates: float = float("inf")) -> SharedCounters:
    """Until all steps are done, or so many updates are."""
    parts = fresh(config)
    counters = parts.counters
    with closing(transport.run(parts)) as run:
        for _ in run:
            if counters.version >= updates:
                break
    return counters


PLACES = [(name, "local") for name in SCHEMES] + [
    (name, "inline") for name in SCHEMES if name not in ("threads", "sync")
]


@pytest.mark.parametrize(("name", "transported"), PLACES)
@pytest.mark.parametrize("env", [Noted, Grumbling])
def test_a_run_closes_its_environments(
    name: str, transported: str, env: Any, open_ones: Callable[[], list[str]]
) -> None:
    assert play(config_of(name, env, transported)).steps >= 400
    assert open_ones() == []


@pytest.mark.parametrize(("name", "transported"), PLACES)
def test_a_run_that_is_stopped_does_too(name: str, transported: str, open_ones: Callable[[], list[str]]) -> None:
    play(config_of(name, Noted, transported, steps=10**9), updates=5)
    assert open_ones() == []


@pytest.mark.parametrize("name", ["sync", "hogwild"])
def test_so_does_one_that_an_environment_ends(name: str, open_ones: Callable[[], list[str]]) -> None:
    Ending.total = 0
    with pytest.raises(Exception, match="the wheel came off"):
        play(config_of(name, Ending, workers=1, steps=10**9, restarts=0))
    assert open_ones() == []


def test_a_thread_of_an_environment_does_not_keep_its_worker(open_ones: Callable[[], list[str]]) -> None:
    began = time.monotonic()
    play(config_of("hogwild", Threaded))
    assert time.monotonic() - began < 60.0
    assert open_ones() == []
