"""The diagnostic environments have the answers their docstrings claim."""

from __future__ import annotations

from itertools import product

import gymnasium
import numpy as np
import pytest
import torch

from polyactor.envs import diagnostic, make_envs
from polyactor.models.encoders import CNN, is_image, make_torso
from polyactor.models.spec import ModelSpec


def test_registration_is_idempotent() -> None:
    before = dict(gymnasium.registry)
    diagnostic.register()
    assert all(gymnasium.registry[env_id] is spec for env_id, spec in before.items())
    assert {f"polyactor/{name}-v0" for name in ("Bandit", "Chain", "TimeLimit", "TMaze", "LQR", "Catch")} <= set(before)


@pytest.mark.filterwarnings("ignore:.*Box (action|observation) space")  # LQR is unbounded, as it must be
@pytest.mark.filterwarnings("ignore:.*For Box action spaces")
@pytest.mark.parametrize("name", list(diagnostic.LIMITS))
def test_environments_keep_to_gymnasiums_rules(name: str) -> None:
    from gymnasium.utils.env_checker import check_env

    check_env(getattr(diagnostic, name)(), skip_render_check=True)


def test_bandit_pays_by_arm_and_ends() -> None:
    envs = make_envs("polyactor/Bandit-v0", 3)
    np.testing.assert_array_equal(envs.reset(0), np.ones((3, 1)))
    step = envs.step(np.arange(3))
    np.testing.assert_array_equal(step.reward, [1, 0.5, 0])
    np.testing.assert_array_equal(step.observation, np.ones((3, 1)))
    assert step.terminated.all()
    assert step.done.all()


def test_chain_has_the_published_values() -> None:
    env = diagnostic.Chain()
    observation, _ = env.reset()
    np.testing.assert_array_equal(observation, [0, 1, 0, 0, 0])
    gamma, rewards, following = 0.9, np.zeros((5, 2)), np.zeros((5, 2, 5))
    for state, action in product(range(5), range(2)):
        env.position = state
        observation, rewards[state, action], terminated, truncated, _ = env.step(np.int64(action))
        assert not truncated
        assert observation.sum() == (0 if terminated else 1)
        following[state, action] = observation
    uniform = np.linalg.solve(np.eye(5) - gamma * following.mean(1), rewards.mean(1))
    best = np.zeros(5)
    for _ in range(100):
        best = (rewards + gamma * following @ best).max(1)
    np.testing.assert_allclose(best, [6.561, 7.29, 8.1, 9, 10])
    np.testing.assert_allclose(uniform, [1.347473194, 1.883273766, 2.837579618, 4.422458719, 6.990106423], rtol=1e-9)


def test_chain_walk_to_and_fro_is_truncated() -> None:
    envs = make_envs("polyactor/Chain-v0", 1)
    envs.reset(0)
    steps = [envs.step(np.array([time % 2])) for time in range(1, 101)]
    assert [time for time, step in enumerate(steps, 1) if step.done[0]] == [100]
    assert not steps[-1].terminated[0]


def test_time_limit_truncates_after_ten() -> None:
    envs = make_envs("polyactor/TimeLimit-v0", 1)
    envs.reset(0)
    steps = [envs.step(np.zeros(1, np.int64)) for _ in range(22)]
    assert [bool(step.done[0]) for step in steps] == ([False] * 9 + [True, False]) * 2
    assert [float(step.reward[0]) for step in steps] == ([1] * 10 + [0]) * 2
    assert not any(step.terminated[0] for step in steps)


def maze(cue: int) -> diagnostic.TMaze:
    env = diagnostic.TMaze()
    for seed in range(50):
        observation, _ = env.reset(seed=seed)
        if observation[cue]:
            np.testing.assert_array_equal(observation, np.eye(4)[cue] + np.eye(4)[2])
            return env
    raise AssertionError("the cue never came")


@pytest.mark.parametrize(("cue", "turn"), list(product((0, 1), (1, 2))))
def test_tmaze_pays_for_the_cued_turn(cue: int, turn: int) -> None:
    env = maze(cue)
    for _ in range(10):
        observation, reward, terminated, _, _ = env.step(np.int64(0))
        assert reward == 0
        assert not terminated
    np.testing.assert_array_equal(observation, [0, 0, 0, 1])
    observation, reward, terminated, _, _ = env.step(np.int64(0))  # forward goes nowhere at the junction
    assert not terminated
    assert observation[3] == 1
    _, reward, terminated, _, _ = env.step(np.int64(turn))
    assert terminated
    assert reward == float(turn - 1 == cue)


def test_tmaze_shows_nothing_of_the_cue_after_the_first_step() -> None:
    actions = np.random.default_rng(0).choice(3, size=(20, 40), p=[0.5, 0.25, 0.25])
    for sequence in actions:
        left, right = maze(0), maze(1)
        for action in sequence:
            one, two = left.step(action), right.step(action)
            if one[2]:
                assert two[2]
                assert {one[1], two[1]} == {0.0, 1.0}
                break
            np.testing.assert_array_equal(one[0], two[0])
            assert one[0][:2].sum() == 0
            assert one[1] == two[1] == 0


def test_tmaze_turning_in_the_corridor_stays_and_the_limit_ends_it() -> None:
    envs = make_envs("polyactor/TMaze-v0", 2)
    assert 2 < make_envs("polyactor/TMaze-v0", 20).reset(0)[:, 0].sum() < 18  # both cues come
    envs.reset(0)
    steps = [envs.step(np.array([1, 2])) for _ in range(50)]
    assert all((step.observation[:, 2] == 1).all() for step in steps)
    assert [time for time, step in enumerate(steps, 1) if step.done.any()] == [50]
    assert not steps[-1].terminated.any()


def test_lqr_costs_what_the_riccati_equation_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostic.LQR, "noise", 0.0)
    env = diagnostic.LQR()
    env.reset(seed=0)
    gain, total = np.array([2.431279548, 3.363814799]), 0.0
    for time in range(2000):
        _, reward, terminated, truncated, _ = env.step(np.array([-gain @ env.x]))
        assert not terminated
        assert not truncated
        total += 0.99**time * reward
    assert total == pytest.approx(-12.52826813, rel=1e-8)


def test_lqr_noise_and_spaces() -> None:
    envs = make_envs("polyactor/LQR-v0", 400)
    np.testing.assert_array_equal(envs.reset(0), [[1, 0]] * 400)
    assert isinstance(envs.action_space, gymnasium.spaces.Box)
    assert np.isinf(envs.action_space.high).all()
    step = envs.step(np.full((400, 1), 20.0, np.float32))  # far beyond 1: an unbounded action is not clipped
    np.testing.assert_allclose(step.reward, -(1 + 0.1 * 400), rtol=1e-6)
    np.testing.assert_allclose(step.observation.mean(0), [1.1, 2.0], atol=0.003)
    np.testing.assert_allclose(step.observation.std(0), [0.01, 0.01], rtol=0.15)


def towards(env: diagnostic.Catch) -> np.int64:
    """The best action."""
    return np.int64(1 + np.sign(env.column - env.paddle))


def test_catch_looks_as_it_is() -> None:
    env = diagnostic.Catch()
    env.reset(seed=0)
    env.paddle, env.row, env.column = 7, 4, 2
    image, *_ = env.step(np.int64(2))
    assert image.shape == (1, 44, 44)
    assert image.dtype == np.uint8
    counters = np.zeros((11, 11), np.uint8)
    counters[5, 2] = counters[10, 8] = 255
    np.testing.assert_array_equal(image[0], np.kron(counters, np.ones((4, 4), np.uint8)))


@pytest.mark.parametrize(("paddle", "column"), list(product(range(11), repeat=2)))
def test_catch_every_ball_can_be_caught(paddle: int, column: int) -> None:
    env = diagnostic.Catch()
    env.reset(seed=0)
    env.paddle, env.column = paddle, column
    rewards = [env.step(towards(env))[1] for _ in range(10)]
    assert rewards == [0] * 9 + [1]
    assert env.row == 0  # the next one is at the top


def test_catch_best_policy_gets_ten_in_a_hundred_steps() -> None:
    env = diagnostic.Catch()
    for seed in range(20):
        env.reset(seed=seed)
        answers = [env.step(towards(env)) for _ in range(100)]
        assert sum(reward for _, reward, *_ in answers) == 10
        assert [terminated for _, _, terminated, *_ in answers] == [False] * 99 + [True]
        assert not any(truncated for *_, truncated, _ in answers)


def test_catch_pays_who_does_not_look_for_one_ball_in_eleven() -> None:
    envs = make_envs("polyactor/Catch-v0", 200)
    envs.reset(0)
    rng = np.random.default_rng(0)
    still = sum(envs.step(np.ones(200, np.int64)).reward for _ in range(100))
    assert np.mean(still) == pytest.approx(-90 / 11, abs=0.4)  # three standard deviations
    envs.step(np.ones(200, np.int64))  # autoreset
    uniform = sum(envs.step(rng.integers(3, size=200)).reward for _ in range(100))
    assert np.mean(uniform) == pytest.approx(-90 / 11, abs=0.4)
    assert set(np.unique(still)) | set(np.unique(uniform)) <= set(range(-10, 11, 2))


def test_catch_is_the_same_with_the_same_seed_and_another_with_another() -> None:
    def played(seed: int) -> list[int]:
        env = diagnostic.Catch()
        env.reset(seed=seed)
        columns = []
        for time in range(100):
            columns += [env.column] * (time % 10 == 0)
            env.step(np.int64(1))
        return columns

    assert played(3) == played(3)
    assert played(3) != played(4)
    assert set(played(3) + played(4) + played(5) + played(6)) == set(range(11))


@pytest.mark.parametrize("name", ["auto", "a3c-cnn", "nature-cnn"])
def test_catch_shows_a_cnn_every_cell(name: str) -> None:
    torch.manual_seed(0)
    space = make_envs("polyactor/Catch-v0", 1).observation_space
    assert is_image(space.shape, torch.uint8)
    assert space.dtype == np.uint8
    torso = make_torso(space, ModelSpec(torso=name))
    assert isinstance(torso, CNN)
    images = torch.rand(8, *space.shape, requires_grad=True)
    torso(images).sum().backward()
    assert images.grad is not None
    size, cell = diagnostic.Catch.size, diagnostic.Catch.cell
    seen = images.grad.abs().sum((0, 1)).view(size, cell, size, cell).amin((1, 3))
    assert (seen > 0).all()


def test_sparse_chain_pays_at_its_ends_and_best_at_the_far_one() -> None:
    env = gymnasium.make("polyactor/SparseChain-v0")
    for action, best in ((1, 12.0), (0, 29 * 0.001)):
        env.reset(seed=0)
        answers = [env.step(action) for _ in range(29)]
        assert sum(float(reward) for _, reward, *_ in answers) == pytest.approx(best)
        assert not any(terminated for _, _, terminated, *_ in answers)
        assert [truncated for *_, truncated, _ in answers] == [False] * 28 + [True]
    assert answers[-1][0].tolist() == [1.0] + [0.0] * 19


@pytest.mark.parametrize(("length", "episodes"), [(20, 1651), (12, 32)])
def test_sparse_chain_is_walked_to_its_end_by_chance_in_one_of_many_episodes(length: int, episodes: int) -> None:
    env, last = diagnostic.SparseChain(length), length - 1
    there = np.zeros(length)
    there[1] = 1.0
    for _ in range(length + 9):
        after = np.zeros_like(there)
        for state, action in product(range(last), range(2)):
            env.position = state
            after[int(env.step(np.int64(action))[0].argmax())] += there[state] / 2
        after[last] += there[last]
        there = after
    assert 1 / there[last] == pytest.approx(episodes, abs=1)


def test_late_catch_pays_all_at_the_end() -> None:
    env = diagnostic.LateCatch()
    for seed in range(5):
        env.reset(seed=seed)
        answers = [env.step(towards(env)) for _ in range(30)]
        assert [reward for _, reward, *_ in answers] == [0.0] * 29 + [3.0]
        assert [terminated for _, _, terminated, *_ in answers] == [False] * 29 + [True]
    env.reset(seed=0)
    env.column = 0 if env.paddle > 0 else 1
    assert sum(env.step(np.int64(1))[1] for _ in range(10)) == 0.0  # missed, and nothing is said of it yet
