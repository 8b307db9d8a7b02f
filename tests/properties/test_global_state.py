"""A run and its environments share one process: neither disturbs the other, and the caller finds all as it was."""

from __future__ import annotations

import os
import random
import signal
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

import polyactor as pa
from polyactor.envs import check_exact, env_spec
from polyactor.errors import EnvironmentUnsupported, UsageError
from polyactor.evaluation.evaluate import evaluate
from polyactor.settings.presets import base_config
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import read_rows
from polyactor.system.process_state import moved, streams
from tests.helpers.fresh import fresh
from tests.helpers.runs import B, Quiet, events, train

SHORT = 600
CLOCKED = {"wall_s", "steps_per_s", "rss_mb"}


def rows(run: pa.Run) -> list[dict[str, Any]]:
    return [
        {name: value for name, value in row.items() if name not in CLOCKED}
        for row in read_rows(run.path / "metrics.jsonl")
    ]


class Careless(Quiet):
    """Draws from the global streams, as many do; no game ends, so that a run draws no curve."""

    def reset(self, **given: Any) -> Any:
        super().reset(**given)
        return np.random.randn(3).astype(np.float32).clip(-1, 1), {}

    def step(self, action: Any) -> Any:
        self.left -= 1
        return torch.rand(3).numpy(), random.random(), False, False, {}


class CarelessGames(Careless):
    def step(self, action: Any) -> Any:
        observation, reward, *_ = super().step(action)
        return observation, reward, self.left <= 0, False, {}


class CarelessOfNumPy(Careless):
    def step(self, action: Any) -> Any:
        return np.random.rand(3).astype(np.float32), 1.0, False, False, {}


@pytest.mark.fault("P15")
def test_an_environment_that_draws_from_global_streams_is_reproducible_in_one_process(tmp_path: Path) -> None:
    before = streams()
    first = train(tmp_path / "first", env=Careless, steps=SHORT)
    assert not moved(before)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    second = train(tmp_path / "second", env=Careless, steps=SHORT)
    assert rows(first) == rows(second)
    assert rows(first) != rows(train(tmp_path / "third", env=Careless, steps=SHORT, seed=6))


@pytest.mark.fault("P15")
def test_an_evaluation_of_such_an_environment_is_reproducible() -> None:
    config = base_config("a2c", env=CarelessGames)
    tensors = fresh(config).state.views()
    before = streams()
    first, second = (evaluate(config, tensors, games=4, seed=1).scores for _ in range(2))
    assert first == second
    assert not moved(before)


@pytest.mark.fault("P15")
@pytest.mark.parametrize(("env", "where"), [(Careless, "random"), (CarelessOfNumPy, "numpy.random")])
def test_an_exact_resume_of_such_an_environment_is_refused(env: type[Quiet], where: str, tmp_path: Path) -> None:
    with pytest.raises(
        EnvironmentUnsupported, match=rf"{env.__name__} draws from the global random streams of .*{where}"
    ):
        check_exact(env)
    with pytest.raises(UsageError, match=r"--exact-resume is not allowed: .* which are not saved"):
        train(tmp_path / "run", env=env, exact_resume=True)


class TakesSignals(Quiet):
    """Takes the signals of its process when it is made and in each reset, as simulators do; then one comes."""

    steps = 0

    def __init__(self) -> None:
        super().__init__()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)

    def reset(self, **given: Any) -> Any:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        return super().reset(**given)

    def step(self, action: Any) -> Any:
        TakesSignals.steps += 1
        if TakesSignals.steps == 3 * B:
            os.kill(os.getpid(), signal.SIGTERM)
        return super().step(action)


@pytest.mark.fault("P15")
@pytest.mark.fault("P6")
def test_a_signal_stops_a_run_whose_environments_take_signals_and_waits_for_one_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TakesSignals, "steps", 0)
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)]
    run = train(tmp_path / "run", env=TakesSignals, steps=100_000, rollout=1_000)
    assert run.status == "stopped"
    assert TakesSignals.steps <= 4 * B  # not the rest of the rollout
    assert checkpoint.exists(run.path)
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGCHLD)] == handlers


class ClosesLate(Quiet):
    """Notes at its close whether the run is saved."""

    run = Path()
    saved: list[bool] = []  # noqa: RUF012
    steps = 0

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._observation(), 1.0, False, False, {}

    def close(self) -> None:
        if self.steps:
            self.saved.append(checkpoint.exists(self.run))


@pytest.mark.fault("P17")
def test_a_run_is_saved_before_its_environments_are_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ClosesLate, "run", tmp_path / "run")
    monkeypatch.setattr(ClosesLate, "saved", [])
    train(tmp_path / "run", env=ClosesLate, steps=100)
    assert ClosesLate.saved == [True] * (B + 1)  # the last one was made for the film


class Tiny(gymnasium.Env[Any, Any]):
    """Numbers of float64 that are nothing in float32, and switches of libraries set to its liking."""

    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)
    steps = 0

    def __init__(self) -> None:
        np.seterr(all="raise")
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_autocast_enabled("cpu", True)
        torch.set_grad_enabled(False)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> Any:
        super().reset(seed=seed)
        torch.set_grad_enabled(False)
        self.steps = 0
        return np.full(2, 1e-60), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return np.full(2, 1e-60), np.float64(1e-60), False, False, {}


@pytest.mark.fault("P15")
def test_switches_of_environment_and_caller_do_not_reach_what_is_learned(tmp_path: Path) -> None:
    with torch.inference_mode(), np.errstate(all="raise"):
        run = train(tmp_path / "run", env=Tiny, steps=SHORT)
        assert np.geterr()["under"] == "raise"
    assert torch.is_grad_enabled()
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_device().type == "cpu"
    assert not torch.is_autocast_enabled("cpu")
    assert run.summary["status"] == "done"
    assert not events(run.path, "env_error")
    assert not events(run.path, "update_skipped")


def test_looking_at_an_environment_leaves_the_caller_alone() -> None:
    errors, before = np.geterr(), streams()
    env_spec(Tiny)
    env_spec(Careless)
    assert np.geterr() == errors
    assert torch.is_grad_enabled()
    assert not moved(before)


@pytest.mark.fault("P15")
def test_autocast_of_the_caller_does_not_reach_what_is_learned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    def parameters(name: str) -> dict[str, torch.Tensor]:
        return pa.load(train(tmp_path / name, env=Quiet, steps=SHORT).path, env=Quiet).model.state_dict()

    plain = parameters("plain")
    with torch.autocast("cpu", torch.bfloat16):
        cast = parameters("cast")
        policy, seen = pa.load(tmp_path / "cast", env=Quiet), list[bool]()
        distribution = policy.model.distribution

        def watched(params: Any) -> Any:
            seen.append(torch.is_autocast_enabled("cpu"))
            return distribution(params)

        monkeypatch.setattr(policy.model, "distribution", watched)
        policy.act(np.zeros(3, np.float32))
        assert torch.is_autocast_enabled("cpu")
    assert all(torch.equal(plain[name], cast[name]) for name in plain)
    assert seen == [False]


@pytest.mark.fault("P15")
def test_defaults_of_torch_do_not_reach_what_is_learned(tmp_path: Path) -> None:
    torch.set_default_dtype(torch.float64)
    torch.set_default_device("meta")  # as a GPU would be one: its numbers are not to be had
    try:
        run = train(tmp_path / "run", env=Quiet, steps=SHORT)
        for deterministic in (True, False):
            pa.load(run.path, env=Quiet).act(np.zeros(3, np.float32), deterministic=deterministic)
        assert (torch.get_default_dtype(), torch.get_default_device().type) == (torch.float64, "meta")
    finally:
        torch.set_default_device(None)
        torch.set_default_dtype(torch.float32)
    saved = checkpoint.load(run.path).tensors
    assert {tensor.dtype for name, tensor in saved.items() if name.startswith("model.")} == {torch.float32}
