"""The interface of B environments that are stepped together."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import gymnasium
import numpy as np
from numpy.typing import NDArray

from polyactor.system.deadline import Call

if TYPE_CHECKING:
    from polyactor.envs.conversion import Conversion

ActionSpace = Any
"""The action space of a policy: Discrete, MultiDiscrete, Box, or a Tuple of the last two, choices before numbers."""
Observation = Any
"""Observations ``[B, *O]``: an array, or a mapping of arrays by the name of the entry, where they have several."""

VECTOR = "vector"
"""The name of the entry of an observation that everything but its images is flattened to, where it has several."""


def row_dtype(space: gymnasium.spaces.Box | gymnasium.spaces.Dict) -> np.dtype[Any]:
    """Return the dtype of one observation, which has a field for each entry where there are several."""
    if isinstance(space, gymnasium.spaces.Box):
        return np.dtype(space.dtype)
    fields: Any = [(name, box.dtype, box.shape) for name, box in space.spaces.items()]
    dtype: np.dtype[Any] = np.dtype(fields, align=True)
    return dtype


def entries(rows: NDArray[Any]) -> Observation:
    """Return observations ``[B, *O]`` of `row_dtype` as they are, or each of several entries by its name."""
    return rows if rows.dtype.names is None else {name: rows[name] for name in rows.dtype.names}


class Step(NamedTuple):
    """The result of one step of B environments. Arrays are new at every step, so the caller may keep them.

    Attributes:
        observation: ``[B, *O]``, or a mapping of such arrays. Where `done`, it is the game's true final observation.
        reward: ``[B]`` float32, as the game gave it (never clipped).
        terminated: ``[B]`` bool, whether the value after this step is 0. A lost life may set it without `done`.
        done: ``[B]`` bool, whether the game ended (terminated or truncated). The next step of that row ignores its
            action and returns the first observation of the next game, with reward 0 and both flags False.
        lost: ``[B]`` bool, whether the environment failed, so that its game has no result. `observation` is the first
            of the next game, with reward 0 and both flags False. This array may be shared and is read-only then.
        why: a sentence for each failure since the step before, including failures in `reset`; empty if no row is lost.
    """

    observation: Observation
    reward: NDArray[np.float32]
    terminated: NDArray[np.bool_]
    done: NDArray[np.bool_]
    lost: NDArray[np.bool_]
    why: tuple[str, ...] = ()


def none_lost(num_envs: int) -> NDArray[np.bool_]:
    """Return a read-only `Step.lost` ``[B]`` for environments that never fail."""
    lost = np.zeros(num_envs, np.bool_)
    lost.flags.writeable = False
    return lost


class Listener(Protocol):
    """An object that is told before each call of an environment, so that one that hangs can be named."""

    def asked(self, env: int, action: Any, call: Call = Call.RESET) -> None:
        """Record that environment number `env` is about to take an action, or another `call` if the action is None."""

    def answered(self) -> None:
        """Record that all environments asked have answered."""


class VectorEnv(Protocol):
    """B copies of one environment that are stepped together, in Gymnasium's NEXT_STEP autoreset mode.

    An observation is the first of its game exactly if `reset` returned it, `done` was True one step before, or `lost`
    is True at this step.

    Attributes:
        num_envs: B.
        observation_space: the space of one observation as `step` returns it: a Box, or a Dict of these where it has
            several entries; flattened and cast to uint8 or float32.
        action_space: the space of one action as `step` takes it. ``Discrete(n)`` and ``MultiDiscrete(nvec)`` count from
            0; a Box is [-1, 1] in every dimension that the environment bounds on both sides.
    """

    num_envs: int
    observation_space: gymnasium.spaces.Box | gymnasium.spaces.Dict
    action_space: ActionSpace
    conversion: Conversion
    """How `reset` and `step` convert observations and actions; it can be used when the environments are closed."""
    frames_per_second: int
    """The number of steps per second in a video at natural speed."""

    @property
    def action_mask(self) -> NDArray[np.bool_] | None:
        """``[B, C]`` bool, the legal choices in the observations that `reset` or `step` returned last.

        It is None where environments give no mask, and before `reset`. The array is new at every step.
        """

    def reset(self, seed: int | None) -> Observation:
        """Start B games and return their first observations ``[B, *O]``.

        Args:
            seed: environment i is seeded by `seed` and i; None seeds at random.

        Raises:
            EnvironmentUnsupported: an environment failed too often in a row.
        """

    def step(self, action: NDArray[Any]) -> Step:
        """Take one agent step in every environment.

        Args:
            action: ``[B]`` or ``[B, *A]``, in `action_space`.

        Raises:
            EnvironmentUnsupported: an environment failed too often in a row.
        """

    def snapshot(self) -> bytes:
        """Return the whole state of the environments, including their random streams.

        Raises:
            EnvironmentUnsupported: the state cannot be saved.
        """

    def restore(self, saved: bytes) -> None:
        """Restore the state of a snapshot, from which the environments continue exactly.

        Raises:
            CheckpointError: the snapshot is of another kind or number of environments.
        """

    def close(self) -> None:
        """Release windows, threads and emulators."""

    def render(self) -> NDArray[np.uint8] | None:
        """Return an RGB picture ``[H, W, 3]`` of environment 0, or None without ``render=True`` or a picture."""
