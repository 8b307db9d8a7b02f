"""Write the runs that tests/properties/test_old_runs.py goes on from, with an older polyactor than the one at hand.

Those that are here are of commit 00b18f1: `git worktree add OLD 00b18f1`, then, with torch on one thread,

    OMP_NUM_THREADS=1 PYTHONPATH=OLD/src python tests/properties/old_runs/make.py

A run is made again only if its name is given, or if it is not there: its point is that it is old. `self_imitation.py`
beside this file is examples/self_imitation.py of that commit.
"""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch

import polyactor as pa

HERE = Path(__file__).parent
USUAL: dict[str, Any] = {
    "workers": 2, "envs": 2, "rollout": 5, "steps": 300, "seed": 3, "checkpoint_every": 1e9, "quiet": True,
    "transport": "inline", "precision": "fp32",
}  # fmt: skip
SMALL = {"hidden": (8,)}
LSTM = {"hidden": (8,), "core": "lstm", "core_size": 8}
RUNS: dict[str, dict[str, Any]] = {
    "a2c-exact": {
        "preset": "a2c", "env": "polyactor/TMaze-v0", "workers": 1, "envs": 4, "exact_resume": True, "model": LSTM,
        "normalize": {"observation": True, "reward": True},
    },
    "a3c-normalised": {
        "preset": "a3c", "env": "CartPole-v1", "transport": "local", "model": SMALL,
        "normalize": {"observation": True, "reward": True},
    },
    "a3c-cnn": {
        "preset": "a3c", "env": "polyactor/Catch-v0", "max_episode_steps": 50,
        "model": {"hidden": (8,), "torso": "a3c-conv"},
    },
    "a3c-server": {"preset": "a3c-server", "env": "polyactor/Chain-v0", "optimizer": "adam", "model": SMALL},
    "a3c-per-worker": {
        "preset": "a3c", "env": "polyactor/Chain-v0", "model": SMALL,
        "optimizer": {"name": "rmsprop", "shared": False}, "per_worker": ("algorithm.entropy-coef=.01,.02",),
    },
    "appo-lstm": {
        "preset": "appo", "env": "polyactor/TMaze-v0", "model": LSTM, "algorithm": {"minibatches": 2},
    },
    "acer-exact": {
        "preset": "acer", "env": "CartPole-v1", "scheme": "sync", "workers": 1, "exact_resume": True, "model": SMALL,
        "algorithm": {"replay_capacity": 200, "replay_start": 50},
    },
    "acer-replay": {
        "preset": "acer", "env": "Pendulum-v1", "max_episode_steps": 50, "model": SMALL,
        "algorithm": {"replay_capacity": 200, "replay_start": 50},
    },
    "self-imitation": {
        "preset": "self_imitation.py:SelfImitation", "env": "CartPole-v1", "scheme": "hogwild", "model": SMALL,
    },
}  # fmt: skip
MORE = 600
"""Steps in all, once a run is resumed."""
NOT_KEPT = ("events.out.tfevents.*", "curve.png", "replay.mp4", "run.lock")


def observations(shape: tuple[int, ...], dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Five made-up observations in a row, `[5, *shape]`, the same on every machine."""
    ramp = np.arange(5 * int(np.prod(shape))).reshape(5, *shape)
    return (ramp * 7 % 256).astype(np.uint8) if dtype == np.uint8 else (np.sin(ramp) * 0.5).astype(dtype)


def outputs(run: Path) -> list[list[float]]:
    """Statistics of the policy's distribution, one row per made-up observation of one game."""
    policy = pa.load(run)
    with closing(pa.make_envs(policy.config.env, 1, atari=policy.config.atari)) as envs:
        shape, dtype = envs.observation_space.shape, envs.observation_space.dtype
    state, rows = policy.model.initial_state(1), []
    with torch.inference_mode():
        for i, x in enumerate(observations(shape, dtype)):
            params, state = policy.model.step(torch.from_numpy(x[None]), state, torch.tensor([i == 0]))
            rows.append(params.flatten().tolist())
    return rows


def newest(run: Path) -> Path:
    """The file with every tensor of a run's newest checkpoint."""
    name = json.loads((run / "checkpoints" / "last.json").read_text())["checkpoint"]
    return run / "checkpoints" / name / "state.safetensors"


def make(name: str) -> None:
    """Train one run, note its policy's outputs, and where resuming is exact what it becomes."""
    given = {**USUAL, **RUNS[name]}
    run = pa.train(given.pop("preset"), out=name, **given)
    noted = {"steps": MORE, "outputs": outputs(run.path)}
    if given.get("exact_resume"):
        going_on = shutil.copytree(name, Path("resumed") / name)
        pa.resume(going_on, steps=MORE, quiet=True)
        shutil.copy(newest(going_on), Path(name, "resumed.safetensors"))
    Path(name, "expected.json").write_text(json.dumps(noted, indent=1) + "\n")
    shutil.rmtree(HERE / name, ignore_errors=True)
    shutil.copytree(name, HERE / name, ignore=shutil.ignore_patterns(*NOT_KEPT))


if __name__ == "__main__":
    torch.set_num_threads(1)
    names = sys.argv[1:] or [name for name in RUNS if not (HERE / name).exists()]
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(HERE / "self_imitation.py", folder)
        os.chdir(folder)
        for name in names:
            make(name)
