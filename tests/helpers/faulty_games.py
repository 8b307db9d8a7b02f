"""Games that fail as they are told to."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from polyactor.envs import VectorEnv
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec

B, LENGTH, FOR_EVER = 3, 7, 10**9
Fault = Callable[[Any], Any]
"""From an answer to what is answered instead."""


class Game(gymnasium.Env[Any, Any]):
    """Noise from its seed and reward 1; games of `LENGTH` steps. Fails where `faults` say so: (verb, call) → how."""

    observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, faults: dict[tuple[str, int], Fault], length: int = LENGTH) -> None:
        self.faults, self.length = faults, length
        self.calls = {"reset": 0, "step": 0}
        self.time, self.closed = 0, 0
        self.seeds: list[int | None] = []
        self.seen: list[Any] = []

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.time = 0
        self.seeds.append(seed)
        return self.answer("reset", (self.observation(), {}))  # type: ignore[no-any-return]

    def step(self, action: Any) -> Any:
        self.time += 1
        return self.answer("step", (self.observation(), 1.0, self.time == self.length, False, {}))

    def observation(self) -> Any:
        self.seen.append(self.np_random.normal(size=2).astype(np.float32))
        return self.seen[-1].copy()

    def answer(self, verb: str, answer: Any) -> Any:
        self.calls[verb] += 1
        fault = self.faults.get((verb, self.calls[verb]))
        return answer if fault is None else fault(answer)

    def close(self) -> None:
        self.closed += 1


class Arcade:
    """Makes games, numbered as they are made; `faults` by number, an exception instead of a game that is not made."""

    def __init__(self, faults: dict[int, Any] | None = None, *, always: Any = None, length: int = LENGTH) -> None:
        self.faults, self.always, self.length = faults or {}, always or {}, length
        self.made: list[Any] = []

    def __call__(self) -> Game:
        faults = self.faults.get(len(self.made), self.always if len(self.made) >= B else {})
        self.made.append(None)
        if isinstance(faults, BaseException):
            raise faults
        self.made[-1] = Game(faults, self.length)
        return self.made[-1]  # type: ignore[no-any-return]


def raises(error: BaseException) -> Fault:
    def fault(answer: Any) -> Any:
        raise error

    return fault


def leaves(answer: Any) -> Any:
    sys.exit(3)


def observes(observation: Any) -> Fault:
    return lambda answer: (observation, *answer[1:])


def ends(terminated: Any, truncated: Any = False) -> Fault:
    return lambda answer: (*answer[:2], terminated, truncated, answer[4])


def pays(reward: Any) -> Fault:
    return lambda answer: (answer[0], reward, *answer[2:])


BOOM = ValueError("boom\nand more")
RAISED: dict[str, tuple[Fault, str]] = {
    "raise": (raises(BOOM), "raised ValueError: boom"),
    "exit": (leaves, "raised SystemExit: 3"),
    "nan": (observes(np.array([0, np.nan], np.float32)), "returned an observation that is not finite"),
    "infinite": (observes(np.array([0, 1e300])), "returned an observation that is not finite|overflow"),
    "shape": (observes(np.zeros(3, np.float32)), r"returned an observation of shape \(3,\) where its space has \(2,\)"),
    "broadcast": (observes(np.float32(1)), r"returned an observation of shape \(\) where its space has \(2,\)"),
    "nothing": (observes(None), "returned an observation of object, which cannot be cast to float32"),
    "masked": (observes(np.ma.array(np.zeros(2), mask=[0, 1])), "returned an observation with numbers that are masked"),
    "complex": (observes(np.zeros(2, complex)), "returned an observation of complex128, which cannot be cast"),
    "ragged": (observes([1.0, [2.0, 3.0]]), "returned an observation that is no array"),
}
WRONG: dict[str, tuple[Fault, str]] = RAISED | {
    "reward-nan": (pays(float("nan")), "returned the reward nan, which is not finite"),
    "reward-inf": (pays(np.float64("-inf")), "returned the reward -inf, which is not finite"),
    "reward-large": (pays(1e300), r"returned the reward 1e\+300, which is not finite"),
    "reward-larger": (pays(10**400), "returned the reward inf, which is not finite"),
    "reward-text": (pays("1.0"), "returned the reward '1.0', which is no number"),
    "reward-array": (pays(np.ones(2)), r"returned the reward array\(\[1., 1.\]\), which is no number"),
    "reward-one": (pays(torch.ones(1)), r"returned the reward tensor\(\[1.\]\), which is no number"),
    "reward-none": (pays(None), "returned the reward None, which is no number"),
    "reward-text-array": (pays(np.array("1.0")), r"returned the reward array\('1.0', .*, which is no number"),
    "reward-span": (pays(np.timedelta64(3)), r"returned the reward np.timedelta64\(3\), which is no number"),
    "end-text": (ends("False"), "returned terminated as 'False', which is neither true nor false"),
    "end-nan": (ends(False, float("nan")), "returned truncated as nan, which is neither true nor false"),
    "end-none": (ends(True, None), "returned truncated as None, which is neither true nor false"),
    "end-two": (ends(np.int64(2)), r"returned terminated as np.int64\(2\), which is neither"),
    "end-array": (ends(np.array([True])), r"returned terminated as array\(\[ True\]\), which is neither"),
    "end-list": (ends([]), r"returned terminated as \[\], which is neither"),
    "end-text-array": (ends(np.array("True")), r"returned terminated as array\('True', .*, which is neither"),
    "four": (lambda answer: answer[:4], "failed: step returned 4 values where Gymnasium has 5"),
    "one": (lambda answer: answer[0], "failed: step returned a single ndarray where Gymnasium has 5"),
}


def model_of(envs: VectorEnv, **spec: Any) -> ActorCritic:
    torch.manual_seed(0)
    model = ActorCritic(envs.observation_space, envs.action_space, ModelSpec(hidden=(8,), **spec))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return model
