"""Environments of Gymnasium: what they give, and those that are refused in a sentence."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
import types
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces
from gymnasium.envs.classic_control import CartPoleEnv

from polyactor.envs import VectorEnv, env_spec, gymnasium_env, make_envs, resolved
from polyactor.envs.serial_vector_env import SerialVectorEnv
from polyactor.errors import EnvironmentUnsupported


class Echo(gymnasium.Env[Any, Any]):
    """Observes the action it was given; ends after `length` steps with reward 1 each."""

    metadata = {"render_modes": ["rgb_array"]}  # noqa: RUF012

    def __init__(self, action_space: spaces.Space[Any], length: int = 100, render_mode: str | None = None) -> None:
        self.action_space = action_space
        self.observation_space = spaces.Box(-np.inf, np.inf, (int(np.prod(action_space.shape or (1,))),), np.float64)
        self.length, self.time, self.render_mode = length, 0, render_mode

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        return np.zeros(self.observation_space.shape), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.action_space.contains(action), action
        self.time += 1
        return np.array(action, np.float64).reshape(-1), 1.0, self.time >= self.length, False, {}

    def render(self) -> Any:
        return np.full((2, 3, 3), self.time, np.uint8)


def echo(space: spaces.Space[Any], num_envs: int = 2, **options: Any) -> VectorEnv:
    envs = make_envs(lambda: Echo(space), num_envs, **options)
    envs.reset(0)
    return envs


def test_cartpole_native_vector_gives_the_true_final_observation_and_then_a_reset_row() -> None:
    envs = make_envs("CartPole-v1", 3, max_episode_steps=20)
    assert not isinstance(envs._envs, SerialVectorEnv)  # type: ignore[attr-defined]
    single: Any = CartPoleEnv()
    single.reset()
    rng = np.random.default_rng(0)
    observation = envs.reset(7)
    ended, steps, lengths = np.zeros(3, bool), np.zeros(3, int), []
    seen = {"terminated": 0, "truncated": 0}
    for _ in range(200):
        action = rng.integers(0, 2, 3) if rng.random() < 0.9 else np.zeros(3, np.int64)
        step = envs.step(action)
        assert step.reward.dtype == step.observation.dtype == np.float32
        for row in range(3):
            if ended[row]:
                assert step.reward[row] == 0
                assert not step.terminated[row]
                assert not step.done[row]
                assert np.abs(step.observation[row]).max() <= 0.05
                steps[row] = 0
                continue
            steps[row] += 1
            single.state = observation[row].astype(np.float64)
            single.steps_beyond_terminated = None
            by_hand, reward, terminated, _, _ = single.step(int(action[row]))
            np.testing.assert_allclose(step.observation[row], by_hand, rtol=1e-4, atol=1e-6)
            assert (step.reward[row], step.terminated[row]) == (reward, terminated)
            assert step.done[row] == (terminated or steps[row] == 20)
            if step.done[row]:
                lengths.append(steps[row])
                seen["terminated" if terminated else "truncated"] += 1
        observation, ended = step.observation, step.done
    assert min(seen.values()) > 0
    assert max(lengths) == 20


def test_sync_vector_equals_single_environments_stepped_by_hand() -> None:
    envs = make_envs("Acrobot-v1", 2, max_episode_steps=5)
    singles = [gymnasium.make("Acrobot-v1", max_episode_steps=5) for _ in range(2)]
    observation = envs.reset(3)
    for row, single in enumerate(singles):
        np.testing.assert_array_equal(observation[row], single.reset(seed=3 + row)[0])
    rng = np.random.default_rng(0)
    for time in range(1, 25):
        action = rng.integers(0, 3, 2)
        step = envs.step(action)
        for row, single in enumerate(singles):
            if time % 6 == 0:  # five steps, then the reset row
                answer: tuple[Any, ...] = (single.reset()[0], 0.0, False, False)
            else:
                answer = single.step(action[row])[:4]
                assert answer[3] == (time % 6 == 5)
            np.testing.assert_array_equal(step.observation[row], answer[0])
            assert (step.reward[row], step.terminated[row], step.done[row]) == (answer[1], False, answer[3])


def test_termination_sets_both_flags_once() -> None:
    envs = make_envs(lambda: Echo(spaces.Discrete(2), length=3), 2)
    envs.reset(0)
    steps = [envs.step(np.ones(2, np.int64)) for _ in range(8)]
    assert [bool(step.terminated[0]) for step in steps] == [False, False, True, False] * 2
    assert [bool(step.done[0]) for step in steps] == [False, False, True, False] * 2
    assert [float(step.reward[0]) for step in steps] == [1, 1, 1, 0] * 2
    assert [float(step.observation[0, 0]) for step in steps] == [1, 1, 1, 0] * 2


@pytest.mark.parametrize("env", ["CartPole-v1", "Acrobot-v1"])
def test_returned_arrays_are_the_callers_to_keep(env: str) -> None:
    envs = make_envs(env, 2)
    kept = [envs.reset(0)]
    copies = [kept[0].copy()]
    for _ in range(5):
        step = envs.step(np.ones(2, np.int64))
        kept += step[:5]
        copies += [array.copy() for array in step[:5]]
    for array, copy in zip(kept, copies, strict=True):
        np.testing.assert_array_equal(array, copy)


def test_max_episode_steps_of_a_callable() -> None:
    envs = make_envs(lambda: Echo(spaces.Discrete(2)), 1, max_episode_steps=4)
    envs.reset(0)
    steps = [envs.step(np.zeros(1, np.int64)) for _ in range(4)]
    assert [bool(step.done[0]) for step in steps] == [False, False, False, True]
    assert not steps[-1].terminated[0]


def test_pendulum_action_is_rescaled_and_clipped() -> None:
    envs = make_envs("Pendulum-v1", 4)
    assert envs.action_space == spaces.Box(-1.0, 1.0, (1,), np.float32)
    envs.reset(5)
    step = envs.step(np.array([[0.5], [-1.0], [7.0], [0.0]], np.float32))
    for row, torque in enumerate([1.0, -2.0, 2.0, 0.0]):
        single: Any = gymnasium.make("Pendulum-v1")
        single.reset(seed=5 + row)
        by_hand, reward, *_ = single.step(np.array([torque], np.float32))
        np.testing.assert_allclose(step.observation[row], by_hand, rtol=1e-6)
        np.testing.assert_allclose(step.reward[row], reward, rtol=1e-6)


def test_box_dimensions_without_two_bounds_pass_through() -> None:
    space = spaces.Box(np.array([0.0, -np.inf, 1.0]), np.array([10.0, np.inf, np.inf]), dtype=np.float64)
    envs = echo(space, 1)
    assert isinstance(envs.action_space, spaces.Box)
    np.testing.assert_array_equal(envs.action_space.high, [1, np.inf, np.inf])
    np.testing.assert_array_equal(envs.action_space.low, [-1, -np.inf, -np.inf])
    np.testing.assert_array_equal(envs.step(np.array([[0.5, 50.0, 3.0]])).observation, [[7.5, 50.0, 3.0]])
    np.testing.assert_array_equal(envs.step(np.array([[-3.0, -50.0, -3.0]])).observation, [[0.0, -50.0, 1.0]])


def test_discrete_actions_count_from_zero_whatever_their_start() -> None:
    envs = echo(spaces.Discrete(3, start=5))
    assert envs.action_space == spaces.Discrete(3)
    np.testing.assert_array_equal(envs.step(np.array([0, 2])).observation, [[5], [7]])
    envs = echo(spaces.MultiDiscrete([3, 4], start=[1, -2]))
    assert envs.action_space == spaces.MultiDiscrete([3, 4])
    np.testing.assert_array_equal(envs.step(np.array([[0, 0], [2, 3]])).observation, [[1, -2], [3, 1]])


class Observes(gymnasium.Env[Any, Any]):
    """Observes samples of a space."""

    action_space = spaces.Discrete(2)

    def __init__(self, space: spaces.Space[Any]) -> None:
        self.observation_space = space
        self.history: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        self.history.append(self.observation_space.sample())
        return self.history[-1], {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        return self.reset()[0], 0.0, False, False, {}


NESTED = spaces.Dict(
    {
        "where": spaces.Box(-1.0, 1.0, (2, 2), np.float64),
        "what": spaces.Tuple((spaces.Discrete(3, start=1), spaces.MultiBinary(2))),
        "which": spaces.MultiDiscrete([2, 3]),
    }
)


@pytest.mark.parametrize("space", [NESTED, spaces.Discrete(4), spaces.MultiBinary(3), spaces.Box(0, 9, (), np.float32)])
def test_structured_observations_are_flattened_to_float32(space: spaces.Space[Any]) -> None:
    made: list[Observes] = []
    envs = make_envs(lambda: made.append(Observes(space)) or made[-1], 2)  # type: ignore[func-returns-value]
    observations = [envs.reset(0), envs.step(np.zeros(2, np.int64)).observation]
    for time, observation in enumerate(observations):
        assert observation.dtype == np.float32
        assert observation.shape[1:] == envs.observation_space.shape == (spaces.flatdim(space),)
        for row, env in enumerate(made):
            expected: Any = spaces.flatten(space, env.history[time])
            np.testing.assert_allclose(observation[row], expected, rtol=1e-6)


def test_box_observations_keep_their_shape_and_uint8() -> None:
    pixels = make_envs(lambda: Observes(spaces.Box(0, 255, (3, 4, 5), np.uint8)), 2)
    assert pixels.reset(0).dtype == np.uint8
    assert pixels.reset(0).shape == (2, 3, 4, 5)
    wide = make_envs(lambda: Observes(spaces.Box(-1.8e308, 1.0, (2, 3), np.float64)), 2)
    assert wide.reset(0).dtype == np.float32
    assert wide.reset(0).shape == (2, 2, 3)
    assert wide.observation_space.dtype == np.float32
    assert np.isneginf(wide.observation_space.low).all()


def test_same_seed_same_trajectory() -> None:
    def run(seed: int) -> list[np.ndarray]:
        envs = make_envs("Acrobot-v1", 2, max_episode_steps=6)
        return [envs.reset(seed)] + [envs.step(np.array([0, 2])).observation for _ in range(15)]

    np.testing.assert_array_equal(run(4), run(4))
    assert not np.array_equal(run(4), run(5))


def test_render_shows_environment_zero_only_when_asked() -> None:
    space = spaces.Discrete(2)

    def factory(render_mode: str | None = None) -> gymnasium.Env[Any, Any]:
        return Echo(space, render_mode=render_mode)

    silent = make_envs(factory, 2)
    silent.reset(0)
    assert silent.render() is None
    shown = make_envs(factory, 2, render=True)
    shown.reset(0)
    shown.step(np.zeros(2, np.int64))
    picture = shown.render()
    assert picture is not None
    assert picture.dtype == np.uint8
    assert picture.shape == (2, 3, 3)
    assert (picture == 1).all()
    assert echo(space, render=True).render() is None  # a factory that takes no render_mode
    shown.close()


def test_render_by_id_draws_without_changing_the_trajectory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(CartPoleEnv, "render", lambda self: np.zeros((4, 5, 3), np.uint8))
    acrobot = make_envs("polyactor/Chain-v0", 1, render=True)  # draws nothing, which is no error
    acrobot.reset(0)
    assert acrobot.render() is None
    plain, shown = make_envs("CartPole-v1", 2), make_envs("CartPole-v1", 2, render=True)
    np.testing.assert_array_equal(plain.reset(1), shown.reset(1))
    monkeypatch.setattr(type(shown._envs), "render", lambda self: (np.ones((4, 5, 3)),) * 2)  # type: ignore[attr-defined]
    picture = shown.render()
    assert picture is not None
    assert picture.shape == (4, 5, 3)
    assert plain.render() is None


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


def test_a_module_that_imports_late_what_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lazy_games.py").write_text("def __getattr__(name):\n    import no_such_dependency\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "could not be imported: ModuleNotFoundError: No module named 'no_such_dep" in refusal("lazy_games:Env")


def test_module_id_module_callable_and_callable_work(module: types.ModuleType) -> None:
    module.make = lambda: gymnasium.make("Pendulum-v1")  # type: ignore[attr-defined]
    for env in ("some_games:make", "gymnasium:Pendulum-v1", module.make, "Pendulum-v1"):
        env_spec(env)
        assert make_envs(env, 2).reset(0).shape == (2, 3)


@pytest.mark.fault("F10")
@pytest.mark.parametrize("asked", ["lake.py:Lake", "./lake.py:make", "lake.py:Lake-v0", "types:make", "test:make"])
def test_an_environment_in_a_file_here(asked: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`types` is a module of Python's that is imported already, `test` one that is not."""
    lines = [
        "import gymnasium", "from gymnasium.envs.classic_control import PendulumEnv as Lake",
        "make = lambda: gymnasium.make('Pendulum-v1')",
        "gymnasium.register('Lake-v0', 'gymnasium.envs.classic_control:PendulumEnv')",
    ]  # fmt: skip
    monkeypatch.setattr(gymnasium, "registry", dict(gymnasium.registry))
    monkeypatch.setattr(gymnasium.envs.registration, "registry", gymnasium.registry)
    for name in ("lake.py", "types.py", "test.py"):
        (tmp_path / name).write_text("\n".join(lines))
    monkeypatch.chdir(tmp_path)
    assert make_envs(asked, 2).reset(0).shape == (2, 3)
    whole = resolved(asked)
    monkeypatch.chdir("/")
    assert make_envs(whole, 2).reset(0).shape == (2, 3)  # as in a worker whose environment has gone elsewhere
    assert sys.modules["types"] is types


@pytest.mark.fault("F10")
def test_a_name_that_is_not_there_says_what_was_imported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert refusal("types:Envy").startswith(
        f"there is no environment types:Envy in types, which was imported from {types.__file__}"
    )
    (tmp_path / "ends.py").write_text("raise SystemExit(3)")
    assert "could not be imported: SystemExit: 3 (line 1)." in refusal("ends.py:Env")
    assert "--env ./lake:flat is not allowed: there is no module ./lake; a file ends with .py." in refusal(
        "./lake:flat"
    )


@pytest.mark.fault("F9")
def test_to_look_at_an_environment_leaves_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "goes.py").write_text(
        "import os, gymnasium\nos.chdir('/')\ndef make():\n    os.chdir('/')\n    return gymnasium.make('Pendulum-v1')"
    )
    monkeypatch.chdir(tmp_path)
    env_spec("goes.py:make")
    assert Path.cwd() == tmp_path


@pytest.mark.fault("D16")
def test_objects_that_are_no_function_without_arguments() -> None:
    made = gymnasium.make("Pendulum-v1")
    for env in (made, gymnasium.make_vec("Pendulum-v1", 2), gymnasium.spec("Pendulum-v1"), [lambda: made], 5):
        words = (
            f"an environment cannot be given as an object of type {type(env).__name__}: hand over an id, or a function"
        )
        assert refusal(env).startswith(words)
    for needy in (lambda i: made, partial(gymnasium.make)):
        assert "cannot be called without arguments: hand over an id, or a function without" in refusal(needy)
    with pytest.raises(EnvironmentUnsupported, match="is the same object twice"):
        make_envs(lambda: made, 2)


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
        spaces.Dict(a=spaces.Text(3)),
        spaces.Sequence(DISCRETE),
        spaces.Box(0, 9, (2,), np.int64),
        spaces.Tuple([DISCRETE, spaces.Box(0, 9, (2,), np.uint8)]),
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
