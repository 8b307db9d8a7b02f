"""Arguments and wrappers of an environment: as texts, as values, and in whatever makes environments."""

from __future__ import annotations

import json
import math
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.toy_text.frozen_lake import FrozenLakeEnv

import polyactor as pa
from polyactor.cli import main as cli
from polyactor.cli.flags import read_config
from polyactor.envs import Environment, Specs, check_exact, env_spec, make_envs, name_of
from polyactor.envs.environment import parsed, written
from polyactor.envs.serial_vector_env import SerialVectorEnv
from polyactor.errors import EnvironmentUnsupported, UsageError
from polyactor.evaluation.evaluate import evaluate
from polyactor.evaluation.policy import read
from polyactor.report.speed import environments_alone
from polyactor.settings.autotune import Stopwatch
from polyactor.settings.presets import base_config
from polyactor.training.resume import refuse_inexact
from tests.helpers.runs import events

VALUES: dict[str, Any] = {
    "off": False, "number": -3, "small": 1e-30, "text": "8x8", "digits": "8", "nothing": None, "lower": "false",
    "sizes": (5, 5), "rows": ["SF", "FG"], "table": {"a": {1, 2}}, "lines": "a\nb='c'", "empty": "",
}  # fmt: skip


def test_values_come_back_as_they_were() -> None:
    again = parsed(written(VALUES))
    assert again == VALUES
    assert {name: type(value) for name, value in again.items()} == {n: type(value) for n, value in VALUES.items()}
    assert all(text.isprintable() for text in written(VALUES))
    assert written({"size": np.int64(3)}) == ("size=3",)


def test_what_is_typed_is_a_literal_or_a_text() -> None:
    typed = ["a=False", "b=8x8", "c=1.5", "d=[1, 'x']", "e=", "f=x=y", "g='7'", "h=__import__('os')"]
    wanted = {"a": False, "b": "8x8", "c": 1.5, "d": [1, "x"], "e": "", "f": "x=y", "g": "7", "h": "__import__('os')"}
    assert parsed(typed) == wanted


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["slippery"], "--env-kwargs slippery is not allowed: write it as name=value"),
        (["is-slippery=False"], "--env-kwargs is-slippery=False is not allowed: write it as name=value"),
        (["a=1", "a=2"], "--env-kwargs a=2 is not allowed: a is given twice"),
        (["a=false"], "write a=False, or a='false' for the text"),
        (["a=none"], "write a=None, or a='none' for the text"),
        (["a=" + "[" * 20_000], r"--env-kwargs a=\[+… is not allowed"),
    ],
)
def test_arguments_that_are_none(arguments: list[str], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        parsed(arguments)


@pytest.mark.parametrize("value", [print, math.inf, np.zeros(3), object(), {"a": [print]}, float("nan")])
def test_values_that_a_config_cannot_hold(value: Any) -> None:
    with pytest.raises(UsageError, match=r"env_kwargs a=.* is not allowed: a value is a number, .*functools\.partial"):
        written({"a": value})


# ---- made with arguments, and wrapped ------------------------------------------------------------------------------


def doubled(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return gymnasium.wrappers.TransformReward(env, lambda reward: 2 * float(reward))


def plus_one(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
    return gymnasium.wrappers.TransformReward(env, lambda reward: float(reward) + 1)


class Skip(gymnasium.Wrapper[Any, Any, Any, Any]):
    """Takes each action three times."""

    def step(self, action: Any) -> Any:
        for _ in range(3):
            answer = self.env.step(action)
            if answer[2] or answer[3]:
                break
        return answer


class Longer(gymnasium.ObservationWrapper[Any, Any, Any]):
    """Adds a number to the observation, and the space says so."""

    def __init__(self, env: gymnasium.Env[Any, Any]) -> None:
        super().__init__(env)
        self.observation_space = spaces.Box(-np.inf, np.inf, (5,), np.float32)

    def observation(self, observation: Any) -> Any:
        return np.append(observation, np.float32(7))


def reward(env: Environment) -> float:
    envs = make_envs(env, 1)
    envs.reset(0)
    return float(envs.step(np.zeros(1, np.int64)).reward[0])


def test_arguments_reach_the_constructor_of_an_id_and_of_a_callable() -> None:
    for source in ("FrozenLake-v1", FrozenLakeEnv, f"{FrozenLakeEnv.__module__}:FrozenLakeEnv"):
        assert env_spec(Environment(source, ("map_name='8x8'",))).observation_space.shape == (64,)
        assert env_spec(source).observation_space.shape == (16,)


def test_arguments_reach_gymnasiums_vector_class() -> None:
    envs: Any = make_envs(Environment("CartPole-v1", ("sutton_barto_reward=True",)), 2)
    assert not isinstance(envs._envs, SerialVectorEnv)
    envs.reset(0)
    assert envs.step(np.zeros(2, np.int64)).reward.tolist() == [0, 0]


def test_wrappers_are_applied_in_their_order() -> None:
    assert reward(Environment("CartPole-v1", (), (plus_one, doubled))) == 4
    assert reward(Environment("CartPole-v1", (), (doubled, plus_one))) == 3
    assert reward(Environment("CartPole-v1", ("sutton_barto_reward=True",), (plus_one, doubled))) == 2
    assert reward(Environment(lambda: gymnasium.make("CartPole-v1"), (), (doubled,))) == 2


def test_a_changed_space_is_that_of_the_run() -> None:
    spec = env_spec(Environment("CartPole-v1", (), (Longer,)))
    assert spec.observation_space.shape == (5,)
    envs = make_envs(Environment("CartPole-v1", (), (Longer,)), 2)
    assert envs.reset(0)[:, 4].tolist() == [7, 7]
    flat = Environment("CartPole-v1", (), ("gymnasium.wrappers:FlattenObservation", Longer))
    assert env_spec(flat).observation_space.shape == (5,)


def test_a_limit_counts_steps_of_the_agent() -> None:
    """Not those inside a wrapper that takes several for each."""
    for source in ("MountainCar-v0", lambda: gymnasium.make("MountainCar-v0", max_episode_steps=1_000)):
        envs = make_envs(Environment(source, (), (Skip,)), 1, max_episode_steps=250)
        envs.reset(0)
        ends = [bool(envs.step(np.ones(1, np.int64)).done[0]) for _ in range(250)]
        assert ends.index(True) == 249
    assert env_spec(Environment("MountainCar-v0", (), (Skip,))).max_episode_steps is None


class Tinted(gymnasium.Wrapper[Any, Any, Any, Any]):
    def render(self) -> Any:
        return np.full((2, 3, 3), 9, np.uint8)


def test_a_picture_is_what_the_outermost_wrapper_draws() -> None:
    envs = make_envs(Environment("CartPole-v1", (), (Tinted,)), 1, render=True)
    envs.reset(0)
    picture = envs.render()
    assert picture is not None
    assert picture.shape == (2, 3, 3)


def test_an_environment_is_looked_at_anew_only_for_other_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = Specs()
    assert looks("CartPole-v1") is looks(Environment("CartPole-v1"))
    wrapped = looks(Environment("CartPole-v1", (), (Longer,)))
    assert wrapped.observation_space.shape == (5,)
    assert wrapped is looks(Environment("CartPole-v1", (), (Longer,)))
    small, large = (looks(Environment("FrozenLake-v1", (f"map_name='{n}x{n}'",))) for n in (4, 8))
    assert (small.observation_space.shape, large.observation_space.shape) == ((16,), (64,))


def test_a_wrapped_environment_goes_on_exactly_if_its_wrappers_can_be_saved() -> None:
    check_exact(Environment("MountainCar-v0", (), (Skip, doubled)))

    def drawn(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.TransformReward(env, lambda reward: float(reward) + np.random.random())

    with pytest.raises(EnvironmentUnsupported, match=r"global random streams of numpy\.random"):
        check_exact(Environment("MountainCar-v0", (), (drawn,)))


def test_an_environment_is_called_what_its_source_is_called() -> None:
    assert name_of(Environment("CartPole-v1", ("a=1",), (doubled,))) == "CartPole-v1"
    assert name_of(Environment(FrozenLakeEnv)) == "FrozenLakeEnv"


# ---- what is none --------------------------------------------------------------------------------------------------


class Closing(gymnasium.Env[Any, Any]):
    observation_space, action_space = spaces.Box(-1, 1, (1,), np.float32), spaces.Discrete(2)
    closed = 0

    def close(self) -> None:
        Closing.closed += 1


def nothing(env: gymnasium.Env[Any, Any]) -> Any:
    """Forgets to return."""


def broken(env: gymnasium.Env[Any, Any]) -> Any:
    raise ValueError("no luck\nat all")


@pytest.mark.parametrize(
    ("wrapper", "said"),
    [
        (nothing, "--env-wrapper nothing returned a NoneType; it must return one gymnasium.Env."),
        (broken, "--env-wrapper broken raised ValueError: no luck."),
        (gymnasium.wrappers.TimeLimit, "--env-wrapper TimeLimit raised TypeError: .* argument: 'max_episode_steps'"),
    ],
)
def test_a_wrapper_that_fails_is_named_and_what_it_was_given_is_closed(wrapper: Any, said: str) -> None:
    Closing.closed = 0
    with pytest.raises(EnvironmentUnsupported, match=said):
        make_envs(Environment(Closing, (), (wrapper,)), 2)
    assert Closing.closed == 1


@pytest.mark.parametrize(
    ("source", "argument", "said"),
    [
        ("FrozenLake-v1", "is_slipery=False", "--env-kwargs is_slipery=False is not allowed: FrozenLake-v1 takes no"
         r" argument is_slipery \(did you mean 'is_slippery'\?\); it takes .*map_name"),
        ("CartPole-v1", "gravity=3", "--env-kwargs gravity=3 is not allowed: CartPole-v1 takes no argument gravity"),
        ("CartPole-v1", "max_episode_steps=3", "is not allowed: .*use --max-episode-steps"),
        (FrozenLakeEnv, "is_slipery=False", r"FrozenLakeEnv takes no argument is_slipery \(did you mean"),
    ],
)  # fmt: skip
def test_an_argument_that_nobody_takes_is_named(source: Any, argument: str, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        env_spec(Environment(source, (argument,)))


def test_a_value_that_the_environment_refuses_is_said_with_its_argument() -> None:
    with pytest.raises(
        EnvironmentUnsupported, match=r"FrozenLake-v1 could not be made with --env-kwargs map_name='9x9': "
    ):
        env_spec(Environment("FrozenLake-v1", ("map_name=9x9",)))


def test_a_callable_may_need_its_arguments() -> None:
    def made(size: int) -> gymnasium.Env[Any, Any]:
        return gymnasium.make("FrozenLake-v1", map_name=f"{size}x{size}")

    assert env_spec(Environment(made, ("size=8",))).observation_space.shape == (64,)
    with pytest.raises(EnvironmentUnsupported, match="made cannot be called without arguments"):
        env_spec(made)


# ---- games of Atari ------------------------------------------------------------------------------------------------

PONG = "PongNoFrameskip-v4"


def test_arguments_of_atari_are_those_that_its_emulator_has() -> None:
    pytest.importorskip("ale_py")
    assert env_spec(Environment(PONG, ("full_action_space=True",))).action_space == spaces.Discrete(18)
    envs: Any = make_envs(Environment("ALE/Pong-v5", ("max_num_frames_per_episode=40",)), 1)
    envs.reset(0)
    assert sum(bool(envs.step(np.zeros(1, np.int64)).done[0]) for _ in range(12)) == 1
    for argument, said in (
        ("frameskip=3", "may be given full_action_space, repeat_action_probability, .* the flags --atari"),
        ("mode=1", "--env-kwargs mode=1 is not allowed"),
        ("full_action_space=3", "it must be true or false"),
        ("repeat_action_probability=2", "it must be a number from 0 to 1"),
        ("max_num_frames_per_episode=0", "it must be a number of at least 1"),
        ("max_num_frames_per_episode=1.5", "it must be a number of at least 1"),
    ):
        with pytest.raises(UsageError, match=said):
            env_spec(Environment(PONG, (argument,)))
    with pytest.raises(
        UsageError, match=r"--env-wrapper doubled is not allowed with PongNoFrameskip-v4: games of Atari"
    ):
        env_spec(Environment(PONG, (), (doubled,)))


# ---- runs ----------------------------------------------------------------------------------------------------------

PARTS = """
import gymnasium
from collections import deque
from pathlib import Path

def lake(size, is_slippery=True):
    env = gymnasium.make("FrozenLake-v1", map_name=f"{size}x{size}", is_slippery=is_slippery)
    assert size == 4 and is_slippery is False
    return env

class Paying(gymnasium.Wrapper):
    def step(self, action):
        x, _, terminated, truncated, info = self.env.step(action)
        return x, 5.0, terminated, truncated, info

def negative(env):
    return gymnasium.wrappers.TransformReward(env, lambda reward: -reward)
"""
NEEDS = """
import gymnasium

class Wide(gymnasium.ActionWrapper):
    def __init__(self, env):
        super().__init__(env)
        self.action_space = gymnasium.spaces.Discrete(9)

    def action(self, action):
        return action % 4

def made(size):
    return gymnasium.make("FrozenLake-v1", map_name=f"{size}x{size}")
"""
METHODS = {"sync": "a2c", "hogwild": "a3c", "param-server": "a3c-server", "actor-learner": "impala"}


@pytest.mark.parametrize("scheme", [*METHODS, pytest.param("sync, evaluated beside", marks=pytest.mark.slow)])
def test_a_run_has_arguments_and_wrappers_under_every_scheme(scheme: str, tmp_path: Path) -> None:
    """And so has whatever comes after it; the environment asserts its arguments, and a wrapper turns rewards to -5."""
    file, (scheme, _, evaluated) = tmp_path / "my.py", scheme.partition(", ")
    file.write_text(PARTS)
    values = {"workers": 1, "envs": 2, "steps": 200, "max_episode_steps": 6, "quiet": True, "out": tmp_path / "run"}
    values |= {"evaluate_every": 100} if evaluated else {}
    wrappers = [f"{file}:Paying", f"{file}:negative"]
    parts: Any = {"env_kwargs": {"size": 4, "is_slippery": False}, "env_wrappers": wrappers}
    run = pa.train(METHODS[scheme], env=f"{file}:lake", **parts, **values)
    assert -30 <= run.summary["score_mean100"] <= -5
    saved = json.loads((run.path / "config.json").read_text())
    assert (saved["env"], saved["env_kwargs"]) == (f"{file}:lake", ["size=4", "is_slippery=False"])
    assert saved["env_wrappers"] == wrappers
    if evaluated:
        (row,) = events(run.path, "evaluation")[:1]
        assert -30 <= row["evaluation_score"] <= -5
    if scheme == "sync":
        played = evaluate(*read(run.path, trust_code=True), games=2)
        assert all(-30 <= score <= -5 for score in played.scores)
        assert pa.load(run.path, trust_code=True).act(0) in range(4)
        with pytest.raises(UsageError, match=f": the environment {file}:lake, the wrapper .*, the wrapper .*negative;"):
            pa.resume(run.path, steps=300, quiet=True)
    again = pa.resume(run.path, steps=300, trust_code=True, quiet=True)
    assert -30 <= again.summary["score_mean100"] <= -5


def test_objects_are_sent_to_workers_and_asked_for_again_where_they_have_no_name(tmp_path: Path) -> None:
    def negative(env: gymnasium.Env[Any, Any]) -> gymnasium.Env[Any, Any]:
        return gymnasium.wrappers.TransformReward(env, lambda reward: -float(reward))

    wrappers = [gymnasium.wrappers.FlattenObservation, negative]
    values: Any = {"envs": 2, "steps": 100, "max_episode_steps": 6, "quiet": True, "env_wrappers": wrappers}
    run = pa.train("a3c", env="CartPole-v1", workers=1, out=tmp_path / "run", **values)
    assert run.summary["score_mean100"] == -6
    saved = json.loads((run.path / "config.json").read_text())["env_wrappers"]
    assert saved == ["gymnasium.wrappers:FlattenObservation", f"{__name__}:<{negative.__qualname__.strip('<>')}>"]
    for call in (pa.load, pa.resume):
        with pytest.raises(UsageError, match=r"wrapper of this run .* hand it over again, in Python: env_wrappers="):
            call(run.path, trust_code=True)
    assert pa.load(run.path, env_wrappers=wrappers).config.env_wrappers == tuple(wrappers)
    assert pa.resume(run.path, steps=200, quiet=True, env_wrappers=wrappers).summary["score_mean100"] == -6


class AtOnce:
    """Does the work of a pool in this process."""

    def __init__(self, work: Any, workers: int, args: tuple[Any, ...]) -> None:
        work(0, *args)

    def wait(self, seconds: float) -> bool:
        return True

    def stop(self) -> None:
        """There is nothing to stop."""


def test_whatever_measures_or_proves_makes_the_whole_environment(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which cannot be made without its argument, and whose wrapper makes the action space larger."""
    (tmp_path / "my.py").write_text(NEEDS)
    wrappers = (f"{tmp_path}/my.py:Wide",)
    config = replace(
        base_config("a2c", env=f"{tmp_path}/my.py:made", env_kwargs=("size=4",), env_wrappers=wrappers),
        exact_resume=True,
    )  # fmt: skip
    refuse_inexact(config)
    with closing(Stopwatch(config)) as measured:
        assert measured.envs.action_space == spaces.Discrete(9)
        assert measured(4) > 0
    monkeypatch.setattr("polyactor.report.speed.ProcessPool", AtOnce)
    assert environments_alone(config, 1, 0.1) > 0


@pytest.mark.parametrize(
    ("flags", "code", "said"),
    [
        ("--env-kwargs", 2, "--env-kwargs needs a value"),
        ("--env-kwargs slippery", 2, "--env-kwargs slippery is not allowed: write it as name=value"),
        ("--env-kwargs gravity=3", 2, "--env-kwargs gravity=3 is not allowed: CartPole-v1 takes no argument gravity"),
        ("--env-wrapper my.py:negativ", 2, "/my.py has no negativ (did you mean 'negative'?)"),
        ("--env-wrapper nowhere.py:negative", 2, "nowhere.py:negative is not allowed: there is no file"),
        ("--env-wrapper no_module:negative", 2, "no_module:negative is not allowed: there is no module no_module"),
        ("--env-wrapper negative", 2, "--env-wrapper negative is not allowed: it must be file.py:name or module:name"),
        ("--env-wrapper gymnasium.wrappers:Flaten", 2, "gymnasium.wrappers has no Flaten (did you mean 'Flatten"),
        ("--env-wrapper my.py:number", 2, "my.py:number is not allowed: it is a int, not a function or class"),
        ("--env-wrapper my.py:lake", 3, "--env-wrapper my.py:lake returned a int; it must return one gymnasium.Env."),
    ],
)
def test_flags_that_are_refused_before_anything_exists(
    flags: str,
    code: int,
    said: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    (tmp_path / "my.py").write_text(f"{PARTS}\n\ndef lake(env): return 3\nnumber = 3")
    monkeypatch.chdir(tmp_path)
    for verb in ("train a2c", "check"):
        with pytest.raises(SystemExit) as stop:
            cli.main([*verb.split(), "--env", "CartPole-v1", *flags.split()])
        assert stop.value.code == code
        assert said in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir() if path.suffix] == ["my.py"]
    assert not (tmp_path / "runs").exists()


def test_flags_may_be_given_again_and_with_several_values() -> None:
    flags = "a2c --env FrozenLake-v1 --env-wrapper=gymnasium.wrappers:FlattenObservation --env-kwargs map_name=8x8"
    more = "success_rate=0.5 --seed 3 --env-wrapper gymnasium.wrappers:NormalizeReward --env_kwargs=is_slippery=False"
    config = read_config([*flags.split(), *more.split()])
    assert config.env_kwargs == ("map_name=8x8", "success_rate=0.5", "is_slippery=False")
    assert config.env_wrappers == tuple(
        f"gymnasium.wrappers:{name}" for name in ("FlattenObservation", "NormalizeReward")
    )
    assert config.seed == 3
