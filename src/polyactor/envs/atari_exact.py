"""Emulators whose state can be saved, behind the face of ale-py's vector of them.

That one tells nobody its state, and starts game after game from one random stream. Here every game has a seed of its
own, so a game is its seed and the actions since: both are saved, and a game goes on when they have been played again.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyactor.errors import CheckpointError

Answer = tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]


class Emulators:
    """B of ale-py's vector emulators with one game each; in NEXT_STEP mode.

    Args:
        num_envs: B.
        options: of `ale_py.vector_env.AtariVectorEnv`.
    """

    def __init__(self, num_envs: int, **options: Any) -> None:
        from ale_py.vector_env import AtariVectorEnv

        self.each: list[Any] = []
        with ExitStack() as made:
            made.callback(self.close)
            for _ in range(num_envs):
                self.each.append(AtariVectorEnv(num_envs=1, num_threads=1, **options))
            made.pop_all()
        self.ale = self.each[0].ale
        self.rng = np.random.default_rng()
        self.seeds = [1] * num_envs
        self.played = [bytearray() for _ in self.each]
        self.over = np.zeros(num_envs, np.bool_)

    def reset(self, *, seed: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start B games."""
        self.rng = np.random.default_rng(seed)
        observation, *_, info = _joined([self._start(i) for i in range(len(self.each))])
        return observation, info

    def step(self, actions: NDArray[np.int64]) -> Answer:
        """A step of every game, or the start of the next where it was over."""
        over = self.over
        for i in np.flatnonzero(~over):
            self.each[i].send(actions[i : i + 1])
            self.played[i].append(actions[i])
        answers = _joined([self._start(i) if over[i] else emulator.recv() for i, emulator in enumerate(self.each)])
        self.over = answers[2] | answers[3]
        return answers

    def _start(self, i: int) -> Answer:
        self.seeds[i] = int(self.rng.integers(1, 2**31))
        self.played[i] = bytearray()
        self.over[i] = False
        return self._first(i)

    def _first(self, i: int) -> Answer:
        observation, info = self.each[i].reset(seed=self.seeds[i])
        nothing = np.zeros(1, np.bool_)
        return observation, np.zeros(1, np.float32), nothing, nothing, info

    def close(self) -> None:
        """Stop them."""
        for emulator in self.each:
            emulator.close()

    def snapshot(self) -> dict[str, Any]:
        """Every game's seed and the actions since."""
        played = [np.frombuffer(bytes(actions), np.uint8) for actions in self.played]
        return {"rng": self.rng, "seeds": self.seeds, "played": played, "over": self.over}

    def restore(self, saved: dict[str, Any]) -> None:
        """Play all of it again, as fast as it goes.

        Raises:
            CheckpointError: these are no games of so many emulators.
        """
        b, most = len(self.each), len(self.ale.get_action_set())
        seeds, played, over = saved["seeds"], saved["played"], saved["over"]
        if not len(seeds) == len(played) == len(over) == b or not all(0 < seed < 2**31 for seed in seeds):
            raise CheckpointError("the saved games are not those of so many emulators")
        if any((actions >= most).any() for actions in played):
            raise CheckpointError(f"the saved games have actions beyond the {most} there are")
        self.rng, self.seeds = saved["rng"], list(seeds)
        self.played = [bytearray(actions.tobytes()) for actions in played]
        for i in range(b):
            self._first(i)
        for t in range(max(map(len, played))):
            going = [i for i in range(b) if t < len(played[i])]
            for i in going:
                self.each[i].send(played[i][t : t + 1].astype(np.int64))
            for i in going:
                self.each[i].recv()
        self.over = over


def _joined(answers: list[Answer]) -> Answer:
    observation, reward, terminated, truncated = (np.concatenate([each[k] for each in answers]) for k in range(4))
    info = {"lives": np.concatenate([each[4]["lives"] for each in answers])}
    return observation, reward, terminated, truncated, info
