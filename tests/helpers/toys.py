"""Toys with known best returns, for every observation and action space, with masks and with something to remember."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

LENGTH = 8
"""Steps of an episode of `Matching`, each worth 1 at best."""

ACTIONS: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(3, start=-1),
    "multidiscrete": spaces.MultiDiscrete([[2, 3], [2, 2]], start=[[1, 0], [5, 0]]),
    "multibinary": spaces.MultiBinary(3),
    "box": spaces.Box(-3, 5, (2, 1), np.float64),
    "tuple": spaces.Tuple([spaces.Discrete(3), spaces.Box(-1, 1, (1,), np.float32)]),
    "dict": spaces.Dict(
        {
            "one": spaces.Discrete(2, start=4),
            "two": spaces.MultiDiscrete([2, 2]),
            "three": spaces.MultiBinary(2),
            "four": spaces.Box(0, 1, (1,), np.float32),
        }
    ),
}
"""Action spaces of every kind, by name."""

IMAGE = spaces.Box(0, 255, (20, 20, 1), np.uint8)
OBSERVATIONS: dict[str, spaces.Space[Any]] = {
    "box": spaces.Box(-2, 2, (3,), np.float64),
    "discrete": spaces.Discrete(4, start=2),
    "bits": spaces.MultiBinary(4),
    "image": IMAGE,
    "dict": spaces.Dict(
        {
            "camera": IMAGE,
            "inner": spaces.Dict({"place": spaces.Box(-1, 1, (2,), np.float32), "which": spaces.Discrete(3)}),
            "said": spaces.Text(9),
        }
    ),
    "tuple": spaces.Tuple([IMAGE, spaces.MultiDiscrete([2, 3])]),
    "small": spaces.Dict({"image": spaces.Box(0, 255, (7, 7, 3), np.uint8), "direction": spaces.Discrete(4)}),
}
"""Observation spaces of every kind, by name."""


def parts(space: spaces.Space[Any], value: Any) -> Iterator[tuple[spaces.Space[Any], Any]]:
    """Iterate over the parts of a value of a Dict or Tuple, each with its space."""
    if isinstance(space, spaces.Dict):
        for key, part in space.spaces.items():
            yield from parts(part, value[key])
    elif isinstance(space, spaces.Tuple):
        for part, each in zip(space.spaces, value, strict=True):
            yield from parts(part, each)
    else:
        yield space, value


def likeness(space: spaces.Space[Any], action: Any, target: Any) -> float:
    """The share of an action's numbers that match a target: equal choices, and max(0, 1 − 2 |a − x| / range)."""
    shares: list[float] = []
    for (part, a), (_, x) in zip(parts(space, action), parts(space, target), strict=True):
        if isinstance(part, spaces.Box):
            shares += np.ravel(np.maximum(0.0, 1 - 2 * np.abs(a - x) / (part.high - part.low))).tolist()
        else:
            shares += np.ravel(np.asarray(a) == np.asarray(x)).astype(float).tolist()
    return float(np.mean(shares))


IDENTITIES: dict[str, spaces.Space[Any]] = {
    "discrete": spaces.Discrete(5, start=-1),
    "multidiscrete": spaces.MultiDiscrete([3, 4], start=[1, 2]),
    "multibinary": spaces.MultiBinary(3),
    "box": spaces.Box(-1, 1, (1,), np.float32),
    "wide": spaces.Box(-3, 5, (2,), np.float64),
    "dict": spaces.Dict(
        {
            "one": spaces.Discrete(3),
            "two": spaces.MultiDiscrete([2, 3]),
            "three": spaces.MultiBinary(2),
            "four": spaces.Box(-1, 1, (1,), np.float32),
        }
    ),
}
"""Spaces of `Identity`, by name."""


class Identity(gymnasium.Env[Any, Any]):
    """Each step shows a value of a space, drawn evenly, and asks for the same value as the action.

    Where actions are choices alone a step pays 1 for all of them right and nothing otherwise; where they have numbers
    it pays `likeness`. The best return is `length`.

    Args:
        kind: name of the space in `IDENTITIES`.
    """

    length = 32

    def __init__(self, kind: str) -> None:
        self.observation_space = self.action_space = copy.deepcopy(IDENTITIES[kind])

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        if seed is not None:
            self.action_space.seed(seed)
        self.steps, self.shown = 0, self.action_space.sample()
        return self.shown, {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), repr(action)
        alike = likeness(self.action_space, action, self.shown)
        numbers = any(isinstance(part, spaces.Box) for part, _ in parts(self.action_space, action))
        reward = alike if numbers else float(alike == 1)
        self.steps, self.shown = self.steps + 1, self.action_space.sample()
        return self.shown, reward, self.steps == self.length, False, {}


class Matching(gymnasium.Env[Any, Any]):
    """Two or three pairs of an observation and an action: the reward is how much the action is like the one asked for.

    Args:
        observed: name of the observation space in `OBSERVATIONS`.
        acted: name of the action space in `ACTIONS`.
        remembered: whether a step is rewarded for the observation before the present one, which is no longer shown.
        pairs: the number of pairs.
    """

    def __init__(self, observed: str, acted: str, *, remembered: bool = False, pairs: int = 2) -> None:
        self.observation_space, self.action_space = OBSERVATIONS[observed], ACTIONS[acted]
        self.remembered = remembered
        self.observations = [_sample(self.observation_space, seed) for seed in range(pairs)]
        self.targets = [_sample(self.action_space, 100 + seed) for seed in range(pairs)]
        self.which = self.before = self.steps = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.before, self.which = 0, -1, self._drawn()
        return self.observations[self.which], {}

    def step(self, action: Any) -> Any:
        assert self.action_space.contains(action), repr(action)
        asked = self.before if self.remembered else self.which
        reward = 1.0 if asked < 0 else likeness(self.action_space, action, self.targets[asked])
        self.steps, self.before, self.which = self.steps + 1, self.which, self._drawn()
        return self.observations[self.which], reward, self.steps == LENGTH, False, {}

    def _drawn(self) -> int:
        return int(self.np_random.integers(len(self.targets)))


def _sample(space: spaces.Space[Any], seed: int) -> Any:
    space.seed(seed)
    return space.sample()


class Masked(gymnasium.Env[Any, Any]):
    """Two of five choices are legal in each step; the state says which two, and which of them pays 1.

    An illegal choice fails the environment. A policy that knows the mask and not the state gets 1/2 on average.

    Args:
        told: how the mask is given: info, observation, method, or not: then an illegal choice pays 0.
        remembered: how many steps before it is needed the state is shown; 0 shows it at once. As many steps at first,
            whose state was not shown, pay 1 for any legal choice.
        ranked: whether the state says only if the lower or the higher of the legal choices pays. Who does not know the
            mask then gets 2/5 at best: by the lowest choice, which is legal so often, or by the highest.
        parts: the number of parts of an action, each with a mask of its own: 1 is Discrete, more MultiDiscrete.
        numbers: whether actions have a number beside the choices, which is to be 0.5.
    """

    choices = 5

    def __init__(
        self, told: str = "info", *, remembered: int = 0, ranked: bool = False, parts: int = 1, numbers: bool = False
    ) -> None:
        self.told, self.remembered, self.ranked, self.parts, self.numbers = told, remembered, ranked, parts, numbers
        seen = spaces.Box(0, 1, (parts, 2 * self.choices), np.float32)
        mask = spaces.MultiBinary(parts * self.choices)
        self.observation_space = seen if told != "observation" else spaces.Dict({"action_mask": mask, "seen": seen})
        one: Any = spaces.Discrete(5) if parts == 1 else spaces.MultiDiscrete([self.choices] * parts)
        self.action_space = spaces.Tuple([one, spaces.Box(-1, 1, (1,), np.float32)]) if numbers else one
        self.states: list[Any] = []
        if told == "method":
            self.action_masks = self._mask

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        self.steps, self.states = 0, [self._drawn() for _ in range(self.remembered + 1)]
        return self._observation(), self._info()

    def step(self, action: Any) -> Any:
        choice, number = action if self.numbers else (action, 0.5)
        legal, pays = self.states[0]
        chosen = np.ravel(choice)
        if self.told != "not":
            for part, each in enumerate(chosen):
                assert each in legal[part], f"illegal: {each} of {legal[part]}"
        reward = 1.0 if self.steps < self.remembered else float(np.mean(chosen == pays))
        if self.numbers:
            reward = (reward + max(0.0, 1 - abs(float(np.ravel(number)[0]) - 0.5))) / 2
        self.steps, self.states = self.steps + 1, [*self.states[1:], self._drawn()]
        over = self.steps == LENGTH
        if over:
            self.states[0] = ([[]] * self.parts, self.states[0][1])  # a final state has no legal choice
        return self._observation(), reward, over, False, self._info()

    def _drawn(self) -> Any:
        legal = [sorted(self.np_random.choice(self.choices, 2, replace=False).tolist()) for _ in range(self.parts)]
        return legal, np.array([each[int(self.np_random.integers(2))] for each in legal])

    def _mask(self) -> Any:
        mask = np.zeros((self.parts, self.choices), np.int8)
        for part, legal in enumerate(self.states[0][0]):
            mask[part, legal] = 1
        return mask.ravel()

    def _info(self) -> dict[str, Any]:
        return {"action_mask": self._mask()} if self.told == "info" else {}

    def _observation(self) -> Any:
        legal, pays = self.states[-1]
        seen = np.zeros((self.parts, 2 * self.choices), np.float32)
        for part, each in enumerate(legal):
            if self.ranked:
                seen[part, 0] = pays[part] in each[1:]
            else:
                seen[part, each] = seen[part, self.choices + pays[part]] = 1
        return seen if self.told != "observation" else {"action_mask": self._mask(), "seen": seen}


class Everything(Masked):
    """A Dict with an image, two masked choices with a number beside them, and something to remember; never quite still.

    It fails in a step with the probability `failing`.
    """

    def __init__(self, failing: float = 0.0) -> None:
        super().__init__(remembered=1, parts=2, numbers=True)
        self.failing = failing
        noise = spaces.Box(-np.inf, np.inf, (3,), np.float32)
        self.observation_space = spaces.Dict({"camera": IMAGE, "noise": noise})

    def step(self, action: Any) -> Any:
        if self.np_random.random() < self.failing:
            raise OSError("the camera is gone")
        return super().step(action)

    def _observation(self) -> Any:
        picture = (200 * super()._observation()).astype(np.uint8).repeat(10, 0).repeat(2, 1)
        picture += self.np_random.integers(30, size=picture.shape, dtype=np.uint8)
        return {"camera": picture[..., None], "noise": self.np_random.normal(size=3).astype(np.float32)}
