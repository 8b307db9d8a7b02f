"""Every refusal is one sentence that names the environment and the way out."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from contextlib import closing
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

from polyactor.envs import env_spec, gymnasium_env, make_envs
from polyactor.errors import EnvironmentUnsupported


def refusal(env: Any) -> str:
    """The sentence, which `env_spec` and `make_envs` must agree on."""
    with pytest.raises(EnvironmentUnsupported) as cheap:
        env_spec(env)
    with pytest.raises(EnvironmentUnsupported) as full:
        make_envs(env, 2)
    assert str(cheap.value) == str(full.value)
    assert "\n" not in str(full.value)
    assert str(full.value).endswith(".")
    return str(full.value)


class Spaced(gymnasium.Env[Any, Any]):
    def __init__(self, observation_space: spaces.Space[Any], action_space: spaces.Space[Any]) -> None:
        self.observation_space, self.action_space = observation_space, action_space


class OldEnv:
    observation_space = action_space = None

    def reset(self) -> int:
        return 0

    def step(self, action: int) -> tuple[int, float, bool, dict[str, Any]]:
        return 0, 0.0, False, {}


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    made = types.ModuleType("some_games")
    monkeypatch.setitem(sys.modules, "some_games", made)
    return made


@pytest.mark.fault("D7")
@pytest.mark.parametrize(
    ("asked", "meant"),
    [
        ("CartPol-v1", "CartPole-v1"),
        ("CartPole-v7", "CartPole-v1"),
        ("ALE/Pongg-v5", "ALE/Pong-v5"),
        ("gymnasium:Pendulun-v1", "Pendulum-v1"),
        ("polyactor/Chian-v0", "polyactor/Chain-v0"),
    ],
)
def test_unknown_id_suggests_the_nearest(asked: str, meant: str) -> None:
    assert refusal(asked) == f"there is no environment {asked} (did you mean '{meant}'?)."


@pytest.mark.parametrize("asked", ["", "a b", ":", "CartPole-v1:"])
def test_nonsense_is_refused_in_the_same_way(asked: str) -> None:
    refusal(asked)


def test_unknown_module_and_unknown_name_in_a_module(module: types.ModuleType) -> None:
    assert "there is no module no_such_games" in refusal("no_such_games:Env-v0")
    module.Labyrinth = lambda: None  # type: ignore[attr-defined]
    assert "did you mean 'Labyrinth'" in refusal("some_games:Labyrint")


def test_module_that_fails_to_import(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "broken_games.py").write_text("import no_such_dependency\n")
    monkeypatch.chdir(tmp_path)  # a person's own directory is searched
    monkeypatch.setattr(sys, "path", [path for path in sys.path if path])
    sentence = refusal("broken_games:Env-v0")
    assert "broken_games" in sentence
    assert "could not be imported" in sentence
    assert "no_such_dependency" in sentence


def test_module_id_module_callable_and_callable_work(module: types.ModuleType) -> None:
    module.make = lambda: gymnasium.make("Pendulum-v1")  # type: ignore[attr-defined]
    for env in ("some_games:make", "gymnasium:Pendulum-v1", module.make, "Pendulum-v1"):
        env_spec(env)
        assert make_envs(env, 2).reset(0).shape == (2, 3)


@pytest.mark.fault("D9")
def test_old_gym_environments(module: types.ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    module.OldEnv = OldEnv  # type: ignore[attr-defined]
    creator: Any = OldEnv
    monkeypatch.setitem(gymnasium.registry, "Old-v0", gymnasium.envs.registration.EnvSpec("Old-v0", creator))
    for env in ("some_games:OldEnv", OldEnv, lambda: OldEnv(), "Old-v0"):
        assert "old gym" in refusal(env)
        assert "gymnasium.Env" in refusal(env)
    old_gym = types.SimpleNamespace(envs=types.SimpleNamespace(registry={"Older-v0": None}))
    monkeypatch.setitem(sys.modules, "gym", old_gym)
    assert "old gym" in refusal("some_games:Older-v0")
    assert "old gym" in refusal("Older-v0")


def test_a_callable_must_return_one_environment() -> None:
    assert "returns a int" in refusal(lambda: 3)
    assert "vector environment" in refusal(lambda: gymnasium.make_vec("CartPole-v1", 2))


def test_an_environment_that_fails_to_be_made_says_why() -> None:
    def broken() -> gymnasium.Env[Any, Any]:
        raise RuntimeError("no board found\nsecond line")

    assert "RuntimeError: no board found." in refusal(broken)


BOX, DISCRETE = spaces.Box(0.0, 1.0, (2,)), spaces.Discrete(2)


@pytest.mark.fault("D8")
@pytest.mark.parametrize(
    "space",
    [
        spaces.Text(3),
        spaces.Dict(a=DISCRETE),
        spaces.MultiBinary(2),
        spaces.Box(0, 9, (2,), np.int64),
        spaces.MultiDiscrete(np.full((1, 2), 2)),
    ],
)
def test_action_spaces_nobody_can_act_in(space: spaces.Space[Any]) -> None:
    sentence = refusal(lambda: Spaced(BOX, space))
    assert "lambda" in sentence
    assert f"the action space {type(space).__name__}(" in sentence
    assert "Discrete" in sentence


@pytest.mark.fault("D8")
@pytest.mark.parametrize(
    "space", [spaces.Text(3), spaces.Sequence(BOX), spaces.Dict(a=spaces.Tuple((spaces.Text(3),)))]
)
def test_observation_spaces_nobody_can_see(space: spaces.Space[Any]) -> None:
    sentence = refusal(lambda: Spaced(space, DISCRETE))
    assert f"the observation space {type(space).__name__}(" in sentence
    assert "MultiBinary" in sentence


@pytest.mark.fault("D7")
@pytest.mark.parametrize("env", ["ALE/Pong-v5", "PongNoFrameskip-v4"])
def test_missing_ale_py_names_the_extra(env: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(gymnasium.registry, env, raising=False)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert 'pip install "polyactor[atari]"' in refusal(env)


@pytest.mark.fault("D7")
@pytest.mark.parametrize(("env", "extra"), [("HalfCheetah-v5", "mujoco"), ("LunarLander-v3", "box2d")])
def test_missing_simulators_name_the_extra(env: str, extra: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(entry_point: str) -> None:
        raise gymnasium.error.DependencyNotInstalled("not here")

    monkeypatch.setattr(gymnasium_env, "load_env_creator", missing)
    assert f'{env} needs an extra: pip install "polyactor[{extra}]".' == refusal(env)


def test_missing_drawing_library_is_named_when_drawing(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = make_envs("CartPole-v1", 1, render=True)
    envs.reset(0)
    monkeypatch.setitem(sys.modules, "pygame", None)
    with pytest.raises(EnvironmentUnsupported, match=r"CartPole-v1 cannot draw itself: pygame"):
        envs.render()


def test_importing_and_checking_needs_no_torch_and_importing_no_ale_py() -> None:
    script = (
        f"import sys; sys.path = {sys.path!r}; import polyactor.envs as envs; assert 'ale_py' not in sys.modules;"
        "envs.env_spec('CartPole-v1'); envs.env_spec('ALE/Pong-v5'); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", script], check=True)


def test_an_environment_whose_drawing_fails_says_so() -> None:
    class NoScreen(gymnasium.Env[Any, Any]):
        metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
        observation_space = spaces.Box(-1, 1, (1,), np.float32)
        action_space = spaces.Discrete(2)

        def __init__(self, render_mode: str | None = None) -> None:
            self.render_mode = render_mode

        def render(self) -> Any:
            raise ArithmeticError("an OpenGL platform library has not been loaded\nand more")

    with (
        closing(make_envs(NoScreen, 1, render=True)) as envs,
        pytest.raises(EnvironmentUnsupported, match=r"NoScreen cannot draw itself: an OpenGL .* loaded\.$"),
    ):
        envs.render()
