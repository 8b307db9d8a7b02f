"""Images that are resized before they are stored, in whatever makes environments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium import spaces

import polyactor as pa
from polyactor.cli import main as cli
from polyactor.cli.flags import read_config
from polyactor.envs import Environment, Specs, check_exact, env_spec, make_envs
from polyactor.envs.answers import Unsound
from polyactor.envs.conversion import Conversion
from polyactor.envs.resizing import Resizing, size_of
from polyactor.errors import EnvironmentUnsupported, UsageError
from polyactor.evaluation.evaluate import evaluate
from polyactor.evaluation.policy import read
from polyactor.training import trainer


class Screens(gymnasium.Env[Any, Any]):
    """A camera with channels last, a map with channels first, and a number; the picture of a film is the camera's."""

    metadata = {"render_modes": ["rgb_array"], "render_fps": 10}  # noqa: RUF012

    def __init__(self, *, render_mode: str | None = None) -> None:
        self.render_mode = render_mode
        self.observation_space = spaces.Dict(
            {
                "camera": spaces.Box(0, 255, (48, 64, 3), np.uint8),
                "level": spaces.Box(0, 1, (1,), np.float32),
                "map": spaces.Box(0, 255, (2, 30, 20), np.uint8),
            }
        )
        self.action_space = spaces.Discrete(2)

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps = 0
        return self._observation(), {}

    def step(self, action: Any) -> Any:
        self.steps += 1
        return self._observation(), 1.0, self.steps == 5, False, {}

    def render(self) -> Any:
        return self.observation["camera"]

    def _observation(self) -> Any:
        camera = np.zeros((48, 64, 3), np.uint8)
        camera[:24, :, 0], camera[:, :32, 1] = 200, self.steps
        maps = np.stack([np.full((30, 20), 7, np.uint8), np.full((30, 20), 9, np.uint8)])
        self.observation = {"camera": camera, "level": np.zeros(1, np.float32), "map": maps}
        return self.observation


class Screen(Screens):
    """The camera alone."""

    def __init__(self, *, render_mode: str | None = None) -> None:
        super().__init__(render_mode=render_mode)
        self.observation_space = self.observation_space["camera"]  # type: ignore[index]

    def _observation(self) -> Any:
        return super()._observation()["camera"]

    def render(self) -> Any:
        return self.observation["camera"]


def test_a_pixel_is_the_mean_of_the_area_that_it_covers() -> None:
    image = np.random.default_rng(0).integers(0, 256, (24, 18, 4), dtype=np.uint8)
    means = image.reshape(8, 3, 6, 3, 4).mean((1, 3))
    last, first = Resizing((24, 18, 4), (8, 6)), Resizing((4, 24, 18), (8, 6))
    assert (last.shape, first.shape) == ((8, 6, 4), (4, 8, 6))
    assert np.abs(last(image) - means).max() < 1  # rounded over rows, and then over columns
    np.testing.assert_array_equal(first(np.moveaxis(image, -1, 0)), np.moveaxis(last(image), -1, 0))
    np.testing.assert_array_equal(Resizing((24, 18, 4), (48, 36))(image), image.repeat(2, 0).repeat(2, 1))


def test_each_image_is_resized_in_its_own_order_of_channels() -> None:
    spec = env_spec(Environment(Screens, resize=(12, 16)))
    assert {name: box.shape for name, box in spec.entries.items()} == {
        "vector": (1,), "camera": (12, 16, 3), "map": (2, 12, 16)
    }  # fmt: skip
    envs = make_envs(Environment(Screens, resize=(12, 16)), 2)
    envs.reset(0)
    seen: Any = envs.step(np.zeros(2, np.int64)).observation
    envs.close()
    assert seen["camera"][1, 0, 0].tolist() == [200, 1, 0]
    assert seen["camera"][1, 11, 15].tolist() == [0, 0, 0]
    assert (seen["map"][1].reshape(2, -1) == [[7], [9]]).all()
    assert env_spec(Environment(Screen, resize=(12, 16))).observation_space.shape == (12, 16, 3)
    check_exact(Environment(Screens, resize=(12, 16)))


def test_what_an_environment_looks_like_is_remembered_by_size() -> None:
    looks = Specs()
    small, large = (looks(Environment(Screen, resize=(n, n))) for n in (8, 9))
    assert (small.observation_space.shape, large.observation_space.shape) == ((8, 8, 3), (9, 9, 3))


def test_an_image_that_its_space_has_not_is_refused() -> None:
    conversion = Conversion(spaces.Box(0, 255, (20, 30, 3), np.uint8), spaces.Discrete(2), "Mine", (10, 10))
    assert conversion.encode(np.zeros((20, 30, 3), np.uint8)).shape == (10, 10, 3)
    with pytest.raises(Unsound, match=r"an observation of shape \(10, 10, 3\) where its space has \(20, 30, 3\)"):
        conversion.encode(np.zeros((10, 10, 3), np.uint8))


def test_a_large_image_counts_once_it_is_resized(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyactor.envs.conversion.MOST_NUMBERS", 1_000)
    large = spaces.Box(0, 255, (40, 30, 3), np.uint8)
    with pytest.raises(EnvironmentUnsupported, match="makes 3,600 numbers"):
        Conversion(large, spaces.Discrete(2), "Mine")
    assert Conversion(large, spaces.Discrete(2), "Mine", (8, 8)).observation_space.shape == (8, 8, 3)
    with pytest.raises(EnvironmentUnsupported, match="makes 10,800 numbers"):
        Conversion(large, spaces.Discrete(2), "Mine", (60, 60))


METHODS = {"sync": "a2c", "hogwild": "a3c", "param-server": "a3c-server", "actor-learner": "impala"}


@pytest.mark.parametrize("scheme", METHODS)
def test_runs_and_whatever_comes_after_them_see_resized_images(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "keepsakes", lambda *_, **__: [])  # pictures take as long as all the rest
    workers = {"transport": "inline"} if scheme != "sync" else {"exact_resume": True}
    env = f"{__name__}:Screens"
    run = pa.train(
        METHODS[scheme], env=env, env_resize=[8, 10], workers=1, envs=2, steps=60, quiet=True, out=tmp_path / "run",
        **workers,
    )  # fmt: skip
    assert json.loads((run.path / "config.json").read_text())["env_resize"] == [8, 10]
    assert run.summary["score_mean100"] == 5
    if scheme == "sync":
        config, tensors = read(run.path, trust_code=True)
        assert tensors["trunk.torso.mlp.1.weight"].shape[1] == 8 * 10 * 3 + 1 + 8 * 10 * 2
        assert evaluate(config, tensors, games=2).scores == (5.0, 5.0)
        game = Screens()
        observation, _ = game.reset(seed=0)
        assert pa.load(run.path, trust_code=True).act(observation) in (0, 1)
        with pytest.raises(UsageError, match=r"an observation of shape \(8, 10, 3\) where its space has \(48, 64, 3\)"):
            pa.load(run.path, trust_code=True).act({**observation, "camera": np.zeros((8, 10, 3), np.uint8)})
        assert pa.resume(run.path, steps=80, trust_code=True, quiet=True).summary["score_mean100"] == 5


def test_a_film_shows_pictures_as_they_are_drawn() -> None:
    envs = make_envs(Environment(Screens, resize=(8, 8)), 1, render=True)
    envs.reset(0)
    picture = envs.render()
    envs.close()
    assert picture is not None
    assert picture.shape == (48, 64, 3)


@pytest.mark.parametrize(
    ("env", "flags", "said"),
    [
        ("CartPole-v1", "--env-resize 8 8", "--env-resize 8 8 is not allowed: CartPole-v1 has the observation space"),
        ("MountainCar-v0", "--env-resize 8 8", "without an image, that is bytes with three axes"),
        ("PongNoFrameskip-v4", "--env-resize 42 42", "with PongNoFrameskip-v4: frames of Atari have a size"),
        ("CartPole-v1", "--env-resize 0 8", "--env-resize 0 8 is not allowed: give a height and a width from 1"),
        ("CartPole-v1", "--env-resize -1 8", "--env-resize -1 8 is not allowed: give a height"),
        ("CartPole-v1", "--env-resize 84", "--env-resize 84 is not allowed: give a height and a width"),
        ("CartPole-v1", "--env-resize 8 8 8", "--env-resize 8 8 8 is not allowed: give a height and a width"),
        ("CartPole-v1", "--env.resize=8.5 8", "--env-resize 8.5 8 is not allowed: give a height and a width"),
        ("CartPole-v1", "--env-resize", "--env-resize needs a value"),
        (f"{__name__}:Screens", "--env-resize 3 8", "--env-resize 3 8 is not allowed for images of shape (48,"),
    ],
)  # fmt: skip
def test_sizes_that_are_refused_before_anything_exists(
    env: str, flags: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if env.startswith("Pong"):
        pytest.importorskip("ale_py")
    monkeypatch.chdir(tmp_path)
    for verb in ("train a2c", "check"):
        with pytest.raises(SystemExit) as stop:
            cli.main([*verb.split(), "--env", env, *flags.split()])
        assert stop.value.code == 2
        assert said in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_both_spellings_of_the_flag_mean_the_same() -> None:
    for flag in ("--env-resize 12 16", "--env.resize 12 16", "--env_resize=12 16"):
        assert read_config(["a2c", "--env", f"{__name__}:Screens", *flag.split(), "--seed", "3"]).env_resize == (12, 16)


@pytest.mark.parametrize("size", ["84", [84], [84.5, 84], [None, 3], [0, 0], [4_097, 84], 84])
def test_a_size_is_two_whole_numbers(size: Any) -> None:
    with pytest.raises(UsageError, match=r"--env-resize .* is not allowed: give a height and a width"):
        size_of(size)
    with pytest.raises(UsageError, match="--env-resize"):
        pa.train("a2c", env=Screen, env_resize=size)


def test_an_axis_of_channels_must_be_told() -> None:
    with pytest.raises(UsageError, match="neither the first nor the last axis has at most 32 channels"):
        Resizing((64, 64, 64), (8, 8))
