"""The one contract every environment is met through."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

ActionSpace = gymnasium.spaces.Discrete | gymnasium.spaces.MultiDiscrete | gymnasium.spaces.Box
"""What a policy may be asked to act in."""


class Step(NamedTuple):
    """What B environments answer to one action each. Every array is fresh: the caller may keep it.

    Attributes:
        observation: ``[B, *O]``. Where `done`, it is the true final observation of the game.
        reward: ``[B]`` float32, as the game gave it (never clipped).
        terminated: ``[B]`` bool, nothing follows: do not bootstrap. A lost life may set it without `done`.
        done: ``[B]`` bool, the game really ended (terminated or truncated). The next step of that row ignores its
            action and returns the first observation of the next game, with reward 0 and both flags False.
        lost: ``[B]`` bool, the environment failed and its game is lost without a result: `observation` is the first of
            the next game, with reward 0 and both flags False. The one array that may be shared, and is read-only then.
        why: a sentence for each failure since the step before, in `reset` too. Empty means that no row is lost.
    """

    observation: NDArray[Any]
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    done: NDArray[np.bool_]
    lost: NDArray[np.bool_]
    why: tuple[str, ...] = ()


def none_lost(num_envs: int) -> NDArray[np.bool_]:
    """`Step.lost` of those that never lose a game, to be made once."""
    lost = np.zeros(num_envs, np.bool_)
    lost.flags.writeable = False
    return lost


class Listener(Protocol):
    """Is told what environments are busy with, so that one that never answers can be named."""

    def asked(self, env: int, action: Any) -> None:
        """Environment `env` is about to take a step by this action, or to be made or reset (None)."""


class VectorEnv(Protocol):
    """B copies of one environment, stepped together, in Gymnasium's NEXT_STEP autoreset mode.

    An observation is the first of its game exactly when `done` was True one step before, or `lost` is True now, or it
    came from `reset`.

    Attributes:
        num_envs: B.
        observation_space: of one environment, as this class returns it (flattened and cast): uint8 or float32.
        action_space: of one environment, as `step` takes it: ``Discrete(n)`` and ``MultiDiscrete(nvec)`` count from 0,
            a Box is [-1, 1] in every dimension that the environment bounds on both sides.
    """

    num_envs: int
    observation_space: gymnasium.spaces.Box
    action_space: ActionSpace
    frames_per_second: int
    """Of a film at the speed of the real thing."""

    def reset(self, seed: int | None) -> NDArray[Any]:
        """First observations ``[B, *O]``. Environment i is seeded from `seed` and i; None leaves it to chance."""

    def step(self, action: NDArray[Any]) -> Step:
        """One agent step of every environment.

        Args:
            action: ``[B]`` or ``[B, *A]``, in `action_space`.

        Raises:
            EnvironmentUnsupported: one of them fails again and again; `reset` too.
        """

    def encode(self, observation: Any) -> NDArray[Any]:
        """One observation of the environment itself as `observation_space` has it, ``[*O]``."""

    def decode(self, action: NDArray[Any]) -> NDArray[Any]:
        """Actions ``[B]`` or ``[B, *A]`` in `action_space` as the environment's own ``step`` takes them."""

    def snapshot(self) -> bytes:
        """All that decides what follows, random streams included.

        Raises:
            EnvironmentUnsupported: it cannot be had.
        """

    def restore(self, saved: bytes) -> None:
        """Go on, to the bit, as the B environments that `snapshot` was taken of.

        Raises:
            CheckpointError: it is of another kind of environment.
        """

    def close(self) -> None:
        """Let go of windows, threads and emulators."""

    def render(self) -> NDArray[np.uint8] | None:
        """RGB picture ``[H, W, 3]`` of environment 0, or None when made without ``render=True`` or it has none."""
