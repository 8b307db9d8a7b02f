"""What an environment looks like is asked once: nothing is made but what is stepped, and one to be asked."""

from __future__ import annotations

import os
import sys
import time
from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest

import polyactor as pa
from polyactor.config import Config
from polyactor.envs import EnvSpec, env_spec, make_envs
from polyactor.errors import EnvironmentUnsupported
from polyactor.evaluation.evaluate import evaluate
from polyactor.evaluation.policy import Policy, parameters
from polyactor.settings.check import check
from polyactor.settings.presets import base_config
from polyactor.storage import checkpoint
from polyactor.training.trainer import resume, train

LENGTH = 8
"""Steps of a game."""


class Diary(gymnasium.Env[Any, Any]):
    """Three numbers, two actions, games of eight steps; writes what happens to it to a file that processes share."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}  # noqa: RUF012 (Gymnasium's own)
    observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, file: Path, render_mode: str | None, together: int) -> None:
        self.file, self.render_mode, self.together = file, render_mode, together
        self.name = f"{os.getpid()}-{id(self)}-{os.urandom(4).hex()}"
        self.time, self.stepped, self.closed = 0, False, False
        self.note("made")

    def note(self, what: str) -> None:
        with open(self.file, "a") as file:  # one short write: lines of several processes stay whole
            file.write(f"{what} {self.name}\n")

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        self.time = 0
        return np.zeros(3, np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if not self.stepped:
            self.stepped = True
            self.note("stepped")
            # One worker alone could do all steps before the other has begun.
            end = time.monotonic() + 60.0
            while self.together > sum(what == "made" for what, _ in events(self.file)) and time.monotonic() < end:
                time.sleep(0.01)
        self.time += 1
        return np.full(3, self.time / LENGTH, np.float32), float(action), self.time == LENGTH, False, {}

    def render(self) -> Any:
        return np.zeros((32, 32, 3), np.uint8)

    def close(self) -> None:
        if not self.closed:
            self.closed = True
            self.note("closed")


@dataclass(frozen=True)
class Make:
    """Makes them; from the one of this number on it cannot. Their first steps wait until so many have been made."""

    file: Path
    fails_at: int | None = None
    together: int = 0

    def __call__(self, render_mode: str | None = None) -> Diary:
        if self.fails_at is not None and len(events(self.file)) >= self.fails_at - 1:
            raise RuntimeError("there are no more of them")
        return Diary(self.file, render_mode, self.together)


def events(file: Path) -> list[tuple[str, str]]:
    lines = file.read_text().splitlines() if file.exists() else []
    return [(line.split()[0], line.split()[1]) for line in lines]


def counted(file: Path) -> tuple[int, int]:
    """How many were stepped, and how many were made only to be asked; those were closed before another was made."""
    seen = events(file)
    made = [name for what, name in seen if what == "made"]
    stepped = {name for what, name in seen if what == "stepped"}
    asked = [name for name in made if name not in stepped]
    for name in asked:
        after = seen[seen.index(("made", name)) + 1 :]
        assert after[:1] == [("closed", name)], "it is closed before anything else is made"
    return len(stepped), len(asked)


def config_of(method: str, scheme: str, file: Path, **values: Any) -> Config:
    config = base_config(method, env="CartPole-v1", scheme=scheme)  # of the same kind
    usual = {
        "env": Make(file),
        "envs": 8,
        "rollout": 4,
        "steps": 400,
        "seed": 1,
        "quiet": True,
        "out": str(file.with_name("run")),
    }
    config = replace(config, **usual | values)
    check(config)
    return config


@pytest.mark.parametrize(
    ("method", "scheme", "workers", "transport"),
    [
        ("a3c", "hogwild", 2, "local"),
        ("a3c", "hogwild", 2, "inline"),
        ("a3c", "param-server", 2, "inline"),
        ("ppo", "sync", 1, "local"),
        ("ppo", "actor-learner", 2, "local"),
        ("acer", "sync", 1, "local"),
        ("acer", "hogwild", 2, "inline"),
    ],
)
def test_a_run_makes_what_it_steps_and_one_to_be_asked(
    method: str, scheme: str, workers: int, transport: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("polyactor.training.trainer.keepsakes", lambda *_, **__: [])  # the film has a test of its own
    file = tmp_path / "diary"
    config = config_of(method, scheme, file, workers=workers, transport=transport)
    together = workers * 8 + 1 if transport == "local" else 0  # inline a worker is made when it is its turn
    run = pa.train(replace(config, env=Make(file, together=together)))
    assert run.status == "done"
    assert counted(file) == (workers * 8, 1)
    assert Counter(what for what, _ in events(file)) == {"made": workers * 8 + 1, "stepped": workers * 8,
                                                         "closed": workers * 8 + 1}  # fmt: skip


def test_a_run_that_is_handed_a_spec_makes_none_to_be_asked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyactor.training.trainer.keepsakes", lambda *_, **__: [])
    file = tmp_path / "diary"
    config = config_of("ppo", "sync", file, workers=1)
    spec = env_spec(config.env)
    file.unlink()
    train(config, spec)
    assert counted(file) == (8, 0)


def test_going_on_evaluating_filming_and_loading(tmp_path: Path) -> None:
    pytest.importorskip("imageio_ffmpeg")
    file = tmp_path / "diary"
    config = config_of("a2c", "sync", file, workers=1)
    run = pa.train(config)
    assert (run.path / "replay.mp4").exists()
    asked = 2 if sys.platform == "linux" else 1  # one draws in a copy of the process, to see whether that ends it
    assert counted(file) == (8 + 1, asked)  # the film's is stepped

    file.unlink()
    resume(run.path, steps=800, env=config.env, quiet=True)
    assert checkpoint.load(run.path).meta["agent_steps"] >= 800
    assert counted(file) == (8 + 1, asked)

    file.unlink()
    tensors = parameters(run.path)
    evaluate(config, tensors, games=5)
    assert counted(file) == (5, 0)

    file.unlink()
    policy = Policy(config, tensors)
    assert policy.act(np.zeros(3, np.float32)) in (0, 1)
    assert [what for what, _ in events(file)] == ["made", "closed"]  # it is asked for its spaces, and no more


@pytest.mark.parametrize(("method", "scheme"), [("ppo", "sync"), ("a3c", "hogwild"), ("ppo", "actor-learner")])
def test_when_not_all_can_be_made_those_that_were_are_closed(method: str, scheme: str, tmp_path: Path) -> None:
    file = tmp_path / "diary"
    config = config_of(method, scheme, file, workers=1, transport="inline")
    spec = env_spec(config.env)
    file.unlink()
    with pytest.raises(EnvironmentUnsupported, match="there are no more of them"):
        train(replace(config, env=Make(file, fails_at=3)), spec)
    assert Counter(what for what, _ in events(file)) == {"made": 2, "closed": 2}


def test_an_environment_that_cannot_be_acted_in_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Diary, "action_space", gymnasium.spaces.Text(2))
    with pytest.raises(EnvironmentUnsupported, match="a policy can act in"):
        env_spec(Make(tmp_path / "diary"))
    assert [what for what, _ in events(tmp_path / "diary")] == ["made", "closed"]


def test_when_an_actor_cannot_be_made_its_environments_are_closed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cannot(*_: Any, **__: Any) -> None:
        raise RuntimeError("no room for a replica")

    file = tmp_path / "diary"
    config = config_of("ppo", "sync", file, workers=1)
    monkeypatch.setattr("polyactor.agent.parts.Replica", cannot)
    with pytest.raises(RuntimeError, match="no room for a replica"):
        pa.train(config)
    assert Counter(what for what, _ in events(file)) == {"made": 9, "closed": 9}


def test_a_spec_says_what_the_environments_show() -> None:
    for env, stack, limit in (("CartPole-v1", 1, 500), ("polyactor/Catch-v0", 1, None)):
        spec, envs = env_spec(env), make_envs(env, 2)
        try:
            assert spec.observation_space == envs.observation_space
            assert spec.action_space == envs.action_space
            assert (spec.stack, spec.max_episode_steps) == (stack, limit)
            assert EnvSpec.of(envs).frames_per_second == spec.frames_per_second
        finally:
            envs.close()
    assert env_spec("CartPole-v1").bytes is False
    assert env_spec("polyactor/Catch-v0").image is True
