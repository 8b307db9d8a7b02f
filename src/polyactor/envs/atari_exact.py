"""Atari games whose state can be saved, with the interface of ale-py's vector environment.

ale-py's vector environment does not expose its state, and seeds all games from one random stream. Here every game has
its own seed, so its state is the seed and the actions since: both are saved, and restoring plays the game again.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyactor.errors import CheckpointError

Answer = tuple[NDArray[np.uint8], NDArray[Any], NDArray[np.bool_], NDArray[np.bool_], dict[str, Any]]
"""Observation, reward, terminated, truncated and info of one step, as ale-py returns them."""


class ExactAtariVectorEnv:
    """B of ale-py's vector environments with one game each, in NEXT_STEP autoreset mode.

    Args:
        num_envs: B.
        options: arguments of `ale_py.vector_env.AtariVectorEnv`.
    """

    def __init__(self, num_envs: int, **options: Any) -> None:
        from ale_py.vector_env import AtariVectorEnv

        self.emulators: list[Any] = []
        with ExitStack() as made:
            made.callback(self.close)
            for _ in range(num_envs):
                self.emulators.append(AtariVectorEnv(num_envs=1, num_threads=1, **options))
            made.pop_all()
        self.ale = self.emulators[0].ale
        self.rng = np.random.default_rng()
        self.seeds = [1] * num_envs
        self.played = [bytearray() for _ in self.emulators]
        self.over = np.zeros(num_envs, np.bool_)

    def reset(self, *, seed: int) -> tuple[NDArray[np.uint8], dict[str, Any]]:
        """Start B games, whose seeds are drawn from a random stream that begins with `seed`."""
        self.rng = np.random.default_rng(seed)
        observation, *_, info = _concatenated([self._start_game(i) for i in range(len(self.emulators))])
        return observation, info

    def step(self, actions: NDArray[np.int64]) -> Answer:
        """Take a step of every game by actions ``[B]``; where a game was over, start the next one instead."""
        over = self.over
        for i in np.flatnonzero(~over):
            self.emulators[i].send(actions[i : i + 1])
            self.played[i].append(actions[i])
        answers = _concatenated(
            [self._start_game(i) if over[i] else emulator.recv() for i, emulator in enumerate(self.emulators)]
        )
        self.over = answers[2] | answers[3]
        return answers

    def _start_game(self, i: int) -> Answer:
        self.seeds[i] = int(self.rng.integers(1, 2**31))
        self.played[i] = bytearray()
        self.over[i] = False
        return self._reset(i)

    def _reset(self, i: int) -> Answer:
        observation, info = self.emulators[i].reset(seed=self.seeds[i])
        nothing = np.zeros(1, np.bool_)
        return observation, np.zeros(1, np.float32), nothing, nothing, info

    def close(self) -> None:
        """Stop the emulators."""
        for emulator in self.emulators:
            emulator.close()

    def snapshot(self) -> dict[str, Any]:
        """Return every game's seed and its actions so far, and the random stream of the next seeds."""
        played = [np.frombuffer(bytes(actions), np.uint8) for actions in self.played]
        return {"rng": self.rng, "seeds": self.seeds, "played": played, "over": self.over}

    def restore(self, saved: dict[str, Any]) -> None:
        """Restore what `snapshot` returned, by playing the games again.

        Raises:
            CheckpointError: the number of games, a seed or an action does not fit these emulators.
        """
        b, most = len(self.emulators), len(self.ale.get_action_set())
        seeds, played, over = saved["seeds"], saved["played"], saved["over"]
        if not len(seeds) == len(played) == len(over) == b or not all(0 < seed < 2**31 for seed in seeds):
            raise CheckpointError("the saved games are not those of so many emulators")
        if any((actions >= most).any() for actions in played):
            raise CheckpointError(f"the saved games have actions beyond the {most} there are")
        self.rng, self.seeds = saved["rng"], list(seeds)
        self.played = [bytearray(actions.tobytes()) for actions in played]
        for i in range(b):
            self._reset(i)
        for t in range(max(map(len, played))):
            going = [i for i in range(b) if t < len(played[i])]
            for i in going:
                self.emulators[i].send(played[i][t : t + 1].astype(np.int64))
            for i in going:
                self.emulators[i].recv()
        self.over = over


def _concatenated(answers: list[Answer]) -> Answer:
    observation, reward, terminated, truncated = (np.concatenate([each[k] for each in answers]) for k in range(4))
    info = {"lives": np.concatenate([each[4]["lives"] for each in answers])}
    return observation, reward, terminated, truncated, info
