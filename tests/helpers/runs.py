"""Whole runs, in this process and from the command line."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

import polyactor as pa
from polyactor.storage.metrics_log import read_rows

SOURCE = Path(pa.__file__).parents[1]
ROW = [
    "agent_steps", "updates", "games", "games_per_worker", "wall_s", "steps_per_s", "score_mean100", "score_last",
    "length_mean100", "policy_lag", "gradient_staleness", "grad_norm", "entropy", "value_loss", "policy_loss",
    "learning_rate", "rss_mb", "updates_skipped", "worker_restarts", "env_errors",
]  # fmt: skip
STEPS, T, B = 4_000, 10, 4


class Quiet(gymnasium.Env[Any, Any]):
    """Draws nothing, so that a run of it makes no film. Reward 1 a step; games of 10, or of 5 from time to time."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1, 1, (3,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.left = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.left = 10 if self.np_random.random() < 0.8 else 5
        return self._observation(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.left -= 1
        return self._observation(), 1.0, self.left == 0, False, {}

    def _observation(self) -> Any:
        return self.np_random.uniform(-1, 1, 3).astype(np.float32)


def train(out: Path, **values: Any) -> pa.Run:
    standard = {"env": "CartPole-v1", "steps": STEPS, "seed": 5, "envs": B, "rollout": T, "quiet": True}
    standard |= {"optimizer": {"lr": 1e-3}}  # it learns slowly, so that games stay short and are more than 100
    return pa.train("a2c", out=str(out), **(standard | values))


def events(run: Path, name: str) -> list[dict[str, Any]]:
    return [event for event in read_rows(run / "events.jsonl") if event["event"] == name]


def until(condition: Callable[[], bool], process: subprocess.Popen[str], deadline: float = 60.0) -> None:
    end = time.monotonic() + deadline
    while not condition():
        assert process.poll() is None, f"it ended with {process.returncode}"
        assert time.monotonic() < end, f"not within {deadline} seconds"
        time.sleep(0.02)


@contextmanager
def program(*args: str, cwd: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    path = os.pathsep.join(filter(None, (str(SOURCE), os.environ.get("PYTHONPATH"))))
    environment = os.environ | {"PYTHONPATH": path}
    process = subprocess.Popen(
        [sys.executable, *args],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        for stream in (process.stdout, process.stderr):
            assert stream is not None
            stream.close()
