"""The contract on Atari, against the emulator driven without us."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec

from polyactor.envs import AtariOptions, Step, VectorEnv, env_spec, make_envs
from polyactor.errors import EnvironmentUnsupported, UsageError

vector_env = pytest.importorskip("ale_py.vector_env")


def emulator(num_envs: int, **options: Any) -> Any:
    return vector_env.AtariVectorEnv("breakout", num_envs, reward_clipping=False, num_threads=1, **options)


def play(envs: VectorEnv, steps: int, seed: int = 0) -> Iterator[tuple[np.ndarray, Step]]:
    rng = np.random.default_rng(seed)
    for _ in range(steps):
        action = rng.integers(0, 4, envs.num_envs)
        yield action, envs.step(action)


def same_game(envs: VectorEnv, raw: Any, steps: int = 80) -> bool:
    """Whether both show the same observations, seeded alike."""
    same = np.array_equal(envs.reset(11), raw.reset(seed=11)[0])
    return same and all(np.array_equal(step.observation, raw.step(action)[0]) for action, step in play(envs, steps))


def register(monkeypatch: pytest.MonkeyPatch, **kwargs: Any) -> str:
    spec = EnvSpec("Mine-v0", "ale_py.env:AtariEnv", kwargs={"game": "breakout", **kwargs})
    monkeypatch.setitem(gymnasium.registry, "Mine-v0", spec)
    return "Mine-v0"


@pytest.mark.parametrize(
    ("env", "sticky", "expected"),
    [
        ("ALE/Breakout-v5", None, 0.25),
        pytest.param("BreakoutNoFrameskip-v4", 0.25, 0.25, marks=pytest.mark.slow),
        pytest.param("BreakoutNoFrameskip-v4", None, 0.0, marks=pytest.mark.slow),
        pytest.param("ALE/Breakout-v5", 0.0, 0.0, marks=pytest.mark.slow),
    ],
)
def test_sticky_actions_are_the_ids_own_unless_said_otherwise(env: str, sticky: float | None, expected: float) -> None:
    options = AtariOptions(sticky=sticky)
    assert same_game(make_envs(env, 2, atari=options), emulator(2, repeat_action_probability=expected))
    assert not same_game(make_envs(env, 2, atari=options), emulator(2, repeat_action_probability=0.25 - expected))


def test_preprocessing_options_reach_the_emulator() -> None:
    options = AtariOptions(frame_skip=3, frame_size=42, noop_max=5, fire_reset=False, stack=2)
    envs = make_envs("BreakoutNoFrameskip-v4", 2, atari=options, threads=2)
    assert envs.observation_space.shape == (2, 42, 42)
    assert envs.observation_space.dtype == np.uint8
    raw = emulator(2, frameskip=3, img_height=42, img_width=42, noop_max=5, use_fire_reset=False, stack_num=2)
    assert same_game(envs, raw)


def test_a_crop_is_rows_of_the_taller_frame() -> None:
    envs = make_envs("BreakoutNoFrameskip-v4", 2, atari=AtariOptions(resize_height=110, crop_top=18))
    raw = emulator(2, img_height=110, img_width=84)
    assert envs.observation_space.shape == (4, 84, 84)
    assert np.array_equal(envs.reset(3), raw.reset(seed=3)[0][:, :, 18:102])
    for action, step in play(envs, 80):
        assert np.array_equal(step.observation, raw.step(action)[0][:, :, 18:102])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (AtariOptions(crop_top=1), "--atari.resize-height none is not allowed: .* need at least 85"),
        (AtariOptions(resize_height=101, crop_top=18), "--atari.resize-height 101 is not allowed: .* at least 102"),
        (AtariOptions(resize_height=50), "--atari.resize-height 50 is not allowed: .* at least 84"),
    ],
)
def test_a_crop_that_is_not_there_is_refused(options: AtariOptions, said: str) -> None:
    with pytest.raises(UsageError, match=said):
        make_envs("ALE/Pong-v5", 1, atari=options)


def test_spaces_and_dtypes() -> None:
    envs = make_envs("ALE/Pong-v5", 3)
    observation = envs.reset(0)
    assert observation.dtype == np.uint8
    assert observation.shape == (3, *envs.observation_space.shape)
    assert envs.observation_space.shape == (4, 84, 84)
    assert envs.action_space == gymnasium.spaces.Discrete(6)
    step = envs.step(np.zeros(3, np.int32))
    assert step.reward.dtype == np.float32
    assert step.terminated.dtype == step.done.dtype == np.bool_


def test_rewards_are_the_games_own() -> None:
    envs = make_envs("ALE/SpaceInvaders-v5", 2)
    envs.reset(0)
    assert max(step.reward.max() for _, step in play(envs, 150)) >= 5  # an invader is worth 5 to 30 points


def test_full_action_space_is_the_ids_own(monkeypatch: pytest.MonkeyPatch) -> None:
    env = register(monkeypatch, full_action_space=True)
    assert make_envs(env, 1).action_space == gymnasium.spaces.Discrete(18)


def test_an_id_the_vector_emulator_cannot_serve_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    env = register(monkeypatch, mode=2, obs_type="ram")
    with pytest.raises(EnvironmentUnsupported, match="Mine-v0 sets mode, obs_type"):
        env_spec(env)
    with pytest.raises(EnvironmentUnsupported, match="Mine-v0 sets mode, obs_type"):
        make_envs(env, 1)


def test_life_loss_marks_lost_lives_and_nothing_else() -> None:
    envs = make_envs("BreakoutNoFrameskip-v4", 2, atari=AtariOptions(life_loss=True))
    plain = make_envs("BreakoutNoFrameskip-v4", 2)
    raw = emulator(2)
    before, lives = envs.reset(1), raw.reset(seed=1)[1]["lives"]
    plain.reset(1)
    over = np.zeros(2, bool)
    score, raw_score, scores, raw_scores = np.zeros(2), np.zeros(2), [], []
    lost = games = 0
    for action, step in play(envs, 450):
        observation, reward, terminated, _, info = raw.step(action)
        np.testing.assert_array_equal(step.observation, observation)
        fell = (info["lives"] < lives) & ~over
        np.testing.assert_array_equal(step.terminated, fell | terminated)
        np.testing.assert_array_equal(step.done, terminated)  # only the end of the game
        other = plain.step(action)
        np.testing.assert_array_equal(other.terminated, terminated)
        np.testing.assert_array_equal(other.done, terminated)
        # The stack goes on through a lost life and is emptied at the start of a game.
        np.testing.assert_array_equal(step.observation[~over, :-1], before[~over, 1:])
        assert not step.observation[over, :-1].any()
        assert not step.reward[over].any()
        assert not step.terminated[over].any()
        assert not step.done[over].any()
        score, raw_score = score + step.reward, raw_score + reward
        scores += list(score[step.done])
        raw_scores += list(raw_score[terminated])
        score[step.done] = raw_score[terminated] = 0
        lost, games = lost + int((fell & ~terminated).sum()), games + int(terminated.sum())
        before, lives, over = step.observation, info["lives"], step.done
    assert games >= 2
    assert lost >= 4 * games
    assert scores == raw_scores
    assert max(scores) > 0


class Scripted:
    """An emulator whose lives follow a script; stands in where a random game would not go."""

    def __init__(self, lives: list[int], truncated: list[bool]) -> None:
        self.script = iter(list(zip(lives, truncated, strict=True)))

    def step(self, action: np.ndarray) -> tuple[Any, ...]:
        lives, truncated = next(self.script)
        flags = np.array([False]), np.array([truncated])
        return np.zeros((1, 4, 84, 84), np.uint8), np.zeros(1, np.int32), *flags, {"lives": np.array([lives])}


def test_a_restart_with_fewer_lives_loses_none() -> None:
    envs: Any = make_envs("ALE/Breakout-v5", 1, atari=AtariOptions(life_loss=True))
    envs.reset(0)
    envs._emulators = Scripted([6, 7, 5, 4, 4], [False, True, False, False, False])  # lives won, truncated, restart
    steps = [envs.step(np.zeros(1, np.int64)) for _ in range(5)]
    assert [bool(step.terminated[0]) for step in steps] == [False, False, False, True, False]
    assert [bool(step.done[0]) for step in steps] == [False, True, False, False, False]


def test_one_life_ends_the_episode_and_restarts_the_game() -> None:
    envs: Any = make_envs("BreakoutNoFrameskip-v4", 2, atari=AtariOptions(one_life=True))
    envs.reset(1)
    over, episodes = np.zeros(2, bool), 0
    for _, step in play(envs, 200):
        np.testing.assert_array_equal(step.terminated, step.done)
        assert (envs._lives[step.done] == 4).all()  # the first of five lives
        assert (envs._lives[over] == 5).all()
        assert not step.observation[over, :-1].any()
        episodes += int(step.done.sum())
        over = step.done
    assert episodes >= 6


@pytest.mark.parametrize("frame_skip", [3, 4])
def test_max_episode_steps_are_agent_steps_and_truncate(frame_skip: int) -> None:
    envs = make_envs("ALE/Breakout-v5", 2, atari=AtariOptions(frame_skip=frame_skip), max_episode_steps=7)
    envs.reset(0)
    done = [bool(step.done.all()) for _, step in play(envs, 24) if not step.terminated.any()]
    assert done == ([False] * 6 + [True, False]) * 3


def test_the_ids_own_limit_is_in_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    envs = make_envs(register(monkeypatch, max_num_frames_per_episode=40), 1)
    envs.reset(0)
    assert [bool(step.done[0]) for _, step in play(envs, 11)] == [False] * 9 + [True, False]
    made: dict[str, Any] = {}
    original = vector_env.AtariVectorEnv

    def spy(**options: Any) -> Any:
        made.update(options)
        return original(**options)

    monkeypatch.setattr(vector_env, "AtariVectorEnv", spy)
    for env in ("ALE/Pong-v5", "PongNoFrameskip-v4", register(monkeypatch)):
        make_envs(env, 1)
        assert made["max_num_frames_per_episode"] == 108_000


def test_same_seed_same_trajectory_and_none_draws_one() -> None:
    envs = make_envs("ALE/Breakout-v5", 2)

    def run(seed: int | None) -> np.ndarray:
        return np.stack([envs.reset(seed)] + [step.observation for _, step in play(envs, 30)])

    first = run(5)
    assert np.array_equal(first, run(5))
    assert not np.array_equal(first, run(6))
    assert not np.array_equal(run(None), run(None))
    assert np.array_equal(run(2**40 + 5), run(2**40 + 5))  # beyond what the emulator takes


def test_returned_arrays_are_the_callers_to_keep() -> None:
    envs = make_envs("ALE/Breakout-v5", 2)
    kept = [envs.reset(0)]
    copies = [kept[0].copy()]
    for _, step in play(envs, 40):
        kept += step[:4]
        copies += [array.copy() for array in step[:4]]
    assert all(np.array_equal(array, copy) for array, copy in zip(kept, copies, strict=True))
    assert not any(np.shares_memory(a, b) for a, b in zip(kept[1::4], kept[5::4], strict=False))


@pytest.mark.slow
def test_render_stays_in_step_with_environment_zero() -> None:
    envs: Any = make_envs("ALE/Breakout-v5", 2, atari=AtariOptions(life_loss=True), render=True)
    silent = make_envs("ALE/Breakout-v5", 2)
    answers: list[tuple[Any, ...]] = []
    twin_step = envs._twin.step

    def recorded(action: np.ndarray) -> tuple[Any, ...]:
        answers.append(twin_step(action))
        return answers[-1]

    envs._twin.step = recorded
    np.testing.assert_array_equal(envs.reset(3), silent.reset(3))
    first = envs.render()
    assert first.shape == (210, 160, 3)
    assert first.dtype == np.uint8
    assert first.any()
    games = 0
    for action, step in play(envs, 700):
        colour, reward, terminated, truncated, info = answers.pop()
        np.testing.assert_array_equal(envs.render(), colour[0, 0])
        assert (reward[0], terminated[0] or truncated[0]) == (step.reward[0], step.done[0])
        assert info["lives"][0] == envs._lives[0]
        assert silent.step(action).reward[0] == step.reward[0]
        games += int(step.done[0])
    assert games >= 2
    assert not np.array_equal(first, envs.render())
    assert silent.render() is None
    envs.close()
