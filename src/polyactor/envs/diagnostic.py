"""Small environments with known optimal values, to be tried first when an algorithm does not learn."""

from __future__ import annotations

from typing import Any, ClassVar

import gymnasium
import numpy as np
from gymnasium.spaces import Box, Discrete
from numpy.typing import NDArray

Observation = NDArray[np.float32]
Answer = tuple[Observation, float, bool, bool, dict[str, Any]]
"""Observation, reward, terminated, truncated and info of one step."""
Image = NDArray[np.uint8]

LIMITS = {
    "Bandit": None,
    "Chain": 100,  # a policy that walks to and fro would never end
    "TimeLimit": 10,
    "TMaze": 50,
    "LQR": 200,
    "Catch": None,
    "SparseChain": None,
    "LateCatch": None,
}
"""Steps after which an episode is truncated, by name of the environment."""


def register() -> None:
    """Register ``polyactor/Bandit-v0`` and its siblings with Gymnasium; a second call changes nothing."""
    for name, limit in LIMITS.items():
        env_id = f"polyactor/{name}-v0"
        if env_id not in gymnasium.registry:
            gymnasium.register(env_id, entry_point=f"{__name__}:{name}", max_episode_steps=limit)


def _one_hot(index: int, size: int) -> Observation:
    vector = np.zeros(size, np.float32)
    vector[index] = 1.0
    return vector


class Bandit(gymnasium.Env[Observation, np.int64]):
    """A bandit with three arms that pay 1, 0.5 and 0; an episode is one pull, and every observation is ``[1]``.

    With entropy coefficient β the best policy is softmax(rewards / β), worth β·logsumexp(rewards / β).
    """

    rewards: ClassVar[tuple[float, ...]] = (1.0, 0.5, 0.0)

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(len(self.rewards))

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Return the only observation, ``[1]``."""
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: np.int64) -> Answer:
        """Pull an arm, which ends the episode."""
        return np.ones(1, np.float32), self.rewards[int(action)], True, False, {}


class Chain(gymnasium.Env[Observation, np.int64]):
    """A chain of five states that starts in the second; action 0 goes left, action 1 goes right.

    A step off the left end pays 1, one off the right end 10, and both end the episode. Observations are one-hot,
    ``[5]``, and all zeros off the chain. With γ = .9 the optimal values are [6.561, 7.29, 8.1, 9, 10] and those of
    the uniform policy [1.347473, 1.883274, 2.837580, 4.422459, 6.990106].
    """

    length = 5
    start = 1
    left_reward = 1.0
    right_reward = 10.0

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 1.0, (self.length,), np.float32)
        self.action_space = Discrete(2)
        self.position = self.start

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Return to the second state."""
        super().reset(seed=seed)
        self.position = self.start
        return _one_hot(self.position, self.length), {}

    def step(self, action: np.int64) -> Answer:
        """Move one state to the left (0) or to the right (1)."""
        self.position += 1 if action == 1 else -1
        if self.position < 0:
            return np.zeros(self.length, np.float32), self.left_reward, True, False, {}
        if self.position == self.length:
            return np.zeros(self.length, np.float32), self.right_reward, True, False, {}
        return _one_hot(self.position, self.length), 0.0, False, False, {}


class TimeLimit(gymnasium.Env[Observation, np.int64]):
    """One state, ``[1]``, with reward 1 at every step; the id truncates after 10 steps.

    A critic that bootstraps at a truncation learns V = 1/(1-γ), which is 10 with γ = .9; one that treats it as a
    termination learns 5.263 (TD(0)) or 4.138 (whole episodes).
    """

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 1.0, (1,), np.float32)
        self.action_space = Discrete(2)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Return the only observation, ``[1]``."""
        super().reset(seed=seed)
        return np.ones(1, np.float32), {}

    def step(self, action: np.int64) -> Answer:
        """Return the same observation with reward 1, whatever the action is."""
        return np.ones(1, np.float32), 1.0, False, False, {}


class TMaze(gymnasium.Env[Observation, np.int64]):
    """A corridor of 10 steps to a junction; a cue that is shown only at the start says which turn pays 1.

    Actions: 0 forward, 1 turn left, 2 turn right. In the corridor forward moves and a turn does nothing; at the
    junction a turn ends the episode, with reward 1 if it is the cued one and 0 if not, and forward does nothing.
    Observations, ``[4]``: cue is left, cue is right, in the corridor, at the junction. All other rewards are 0.

    All corridor cells after the first observation look alike, and the junction looks the same for both cues. A policy
    without memory therefore cannot let its turn depend on the cue, and its expected return is at most 1/2. With memory
    the best return is 1, after 11 steps. The id truncates after 50 steps, so that a policy that stands still ends too.
    """

    length = 10

    def __init__(self) -> None:
        self.observation_space = Box(0.0, 1.0, (4,), np.float32)
        self.action_space = Discrete(3)
        self.position = 0
        self.cue = 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start in the corridor with a random cue, which only this observation shows."""
        super().reset(seed=seed)
        self.position = 0
        self.cue = int(self.np_random.integers(2))
        observation = self._observation()
        observation[self.cue] = 1.0
        return observation, {}

    def step(self, action: np.int64) -> Answer:
        """Go forward (0), turn left (1) or turn right (2)."""
        if self.position == self.length and action != 0:
            return self._observation(), float(action - 1 == self.cue), True, False, {}
        if action == 0:
            self.position = min(self.position + 1, self.length)
        return self._observation(), 0.0, False, False, {}

    def _observation(self) -> Observation:
        return _one_hot(3 if self.position == self.length else 2, 4)


class LQR(gymnasium.Env[Observation, NDArray[np.float32]]):
    """A noisy double integrator with quadratic cost: x' = Ax + Bu + w, reward -(x·Qx + u·Ru), x₀ = [1, 0].

    The action ``[1]`` is a force without bounds, the observation ``[2]`` is position and velocity, w has standard
    deviation 0.01. With γ = .99 the best mean is u = -Kx, K = [2.431280, 3.363815]; V(x₀) is -12.528268 without any
    noise and -14.028793 when the policy's own standard deviation is 0.3. The id truncates after 200 steps.
    """

    a: ClassVar[NDArray[np.float64]] = np.array([[1.0, 0.1], [0.0, 1.0]])
    b: ClassVar[NDArray[np.float64]] = np.array([[0.005], [0.1]])
    q: ClassVar[NDArray[np.float64]] = np.eye(2)
    r: ClassVar[NDArray[np.float64]] = np.array([[0.1]])
    noise = 0.01

    def __init__(self) -> None:
        self.observation_space = Box(-np.inf, np.inf, (2,), np.float32)
        self.action_space = Box(-np.inf, np.inf, (1,), np.float32)
        self.x = np.array([1.0, 0.0])

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start at position 1 with velocity 0."""
        super().reset(seed=seed)
        self.x = np.array([1.0, 0.0])
        return self.x.astype(np.float32), {}

    def step(self, action: NDArray[np.float32]) -> Answer:
        """Apply the force `action` ``[1]`` for one step; the cost is of the state before it."""
        u = np.asarray(action, np.float64)
        cost = float(self.x @ self.q @ self.x + u @ self.r @ u)
        self.x = self.a @ self.x + self.b @ u + self.noise * self.np_random.standard_normal(2)
        return self.x.astype(np.float32), -cost, False, False, {}


class Catch(gymnasium.Env[Image, np.int64]):
    """Ten balls that fall down an 11 × 11 board one after the other, one row per step (Mnih et al. 2014).

    A ball starts in a random column of the top row; the paddle, one cell of the bottom row, starts in the middle and
    stays where it is between balls. Actions: 0 left, 1 stay, 2 right. A ball that lands on the paddle pays 1, any other
    -1; an episode is 100 steps. Observations are images, ``[1, 44, 44]`` bytes, 4 × 4 pixels a cell, where ball and
    paddle are white; they do not show the number of balls left.

    The paddle has ten moves until a ball lands and is at most ten columns away: the best return is 10. A policy that
    ignores observations, such as the uniform one, catches one ball in eleven, an expected return of -90/11 = -8.18.
    """

    size = 11
    balls = 10
    cell = 4
    side = size * cell  # 44 pixels, all of which the convolutions of the A3C CNN cover; of 40 or 42 they leave some out

    def __init__(self) -> None:
        self.observation_space = Box(0, 255, (1, self.side, self.side), np.uint8)
        self.action_space = Discrete(3)
        self.paddle = self.row = self.column = self.landed = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Image, dict[str, Any]]:
        """Start the first ball, with the paddle in the middle."""
        super().reset(seed=seed)
        self.paddle, self.landed = self.size // 2, 0
        self._drop()
        return self._image(), {}

    def step(self, action: np.int64) -> tuple[Image, float, bool, bool, dict[str, Any]]:
        """Move the paddle left (0), not at all (1) or right (2); the ball falls one row and is replaced if it lands."""
        self.paddle = min(max(self.paddle + int(action) - 1, 0), self.size - 1)
        self.row += 1
        if self.row < self.size - 1:
            return self._image(), 0.0, False, False, {}
        reward = 1.0 if self.paddle == self.column else -1.0
        self.landed += 1
        over = self.landed == self.balls
        if not over:
            self._drop()
        return self._image(), reward, over, False, {}

    def _drop(self) -> None:
        self.row, self.column = 0, int(self.np_random.integers(self.size))

    def _image(self) -> Image:
        image = np.zeros((1, self.side, self.side), np.uint8)
        for row, column in ((self.row, self.column), (self.size - 1, self.paddle)):
            y, x = row * self.cell, column * self.cell
            image[0, y : y + self.cell, x : x + self.cell] = 255
        return image


class SparseChain(gymnasium.Env[Observation, np.int64]):
    """A chain of N states that starts in the second and has walls at its ends (Osband et al. 2016, §6).

    Action 0 goes left, action 1 goes right. A step that ends in the last state pays 1, one that ends in the first
    0.001, all others 0; an episode is truncated after N + 9 steps. Observations are one-hot, ``[N]``. The best return
    is 12, from going right always. The uniform policy reaches the last of 20 states in one of about 1,650 episodes, and
    the last of 12 in one of about 32; going left is the first thing that pays.

    Args:
        length: N.
    """

    def __init__(self, length: int = 20) -> None:
        self.observation_space = Box(0.0, 1.0, (length,), np.float32)
        self.action_space = Discrete(2)
        self.length, self.position, self.steps = length, 1, 0

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Return to the second state."""
        super().reset(seed=seed)
        self.position, self.steps = 1, 0
        return _one_hot(self.position, self.length), {}

    def step(self, action: np.int64) -> Answer:
        """Move one state to the left (0) or to the right (1), unless there is a wall."""
        last = self.length - 1
        self.position = min(max(self.position + (1 if action == 1 else -1), 0), last)
        self.steps += 1
        reward = {0: 0.001, last: 1.0}.get(self.position, 0.0)
        return _one_hot(self.position, self.length), reward, False, self.steps == self.length + 9, {}


class LateCatch(Catch):
    """Three balls of `Catch`, whose rewards are paid together when the last one has landed, after 30 steps.

    The best return is 3, that of a policy that ignores observations -27/11 = -2.45.
    """

    balls = 3

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Image, dict[str, Any]]:
        """Start the first ball, with nothing owed."""
        self.owed = 0.0
        return super().reset(seed=seed, options=options)

    def step(self, action: np.int64) -> tuple[Image, float, bool, bool, dict[str, Any]]:
        """Move the paddle as in `Catch`, and pay at the end."""
        image, reward, over, truncated, info = super().step(action)
        self.owed += reward
        return image, self.owed if over else 0.0, over, truncated, info
