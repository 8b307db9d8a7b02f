"""No command is without a word for more than 10 s, however slow its environment is."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.runs import SOURCE

MOST = 10.0
SLOW = """
import os, time, gymnasium, numpy as np
from gymnasium import spaces

LONG = float(os.environ["LONG"])  # seconds that the first calls of each kind take in each process
left = {"construct": 2, "reset": 2, "step": 1, "render": 1}

def take(kind, usual):
    left[kind] -= 1
    time.sleep(max(LONG, usual) if left[kind] >= 0 else usual)

class Env(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        take("construct", 0.0)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        take("reset", 0.0)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        take("step", 0.3)
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps >= 8, False, {}

    def render(self):
        take("render", 0.0)
        return np.zeros((64, 64, 3), np.uint8)
"""
SMALL = "--envs 3 --rollout 20"
VERBS = {
    "check": "check --env slow_env:Env --env-timeout 30",
    "train": f"train a2c --env slow_env:Env --steps 60 --out OUT {SMALL}",
    "train in workers": "train a3c --env slow_env:Env --workers 1 --steps 30 --out OUT --envs 2 --rollout 15",
    "resume": "resume RUN --steps 120 --trust-code",
    "evaluate": "evaluate RUN --games 3 --trust-code",
    "record": "record RUN --trust-code",
    "compare": "compare RUN RUN",
    "plot": "plot RUN",
    "bench": "bench a2c --env slow_env:Env --seconds 1 --envs 3 --rollout 5",
    "bench in workers": "bench a3c --env slow_env:Env --seconds 1 --envs 6 --rollout 5 --workers 2",
}
FEW = {"bench", "bench in workers"}
"""These make processes again and again, and what is slow there is the sum of steps."""

pytestmark = [pytest.mark.slow, pytest.mark.alone]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose environment was fast, with the environment's file beside it."""
    directory = tmp_path_factory.mktemp("silence")
    (directory / "slow_env.py").write_text(SLOW)
    longest_silence(f"train a2c --env slow_env:Env --steps 60 --out run {SMALL}", directory, 0.0)
    return directory / "run"


@pytest.mark.timeout(240)
@pytest.mark.parametrize("verb", VERBS)
def test_no_verb_is_silent_while_its_environment_is_slow(
    verb: str, run: Path, tmp_path: Path, record_property: Callable[[str, object], None]
) -> None:
    shutil.copytree(run, copy := tmp_path / "run")
    shutil.copy(run.parent / "slow_env.py", tmp_path)
    arguments = VERBS[verb].replace("OUT", str(tmp_path / "out")).replace("RUN", str(copy))
    silence = longest_silence(arguments, tmp_path, 0.0 if verb in FEW else 12.0)
    print(f"{silence:.1f} s: {verb}")
    record_property("silence", silence)
    assert silence <= MOST


def longest_silence(arguments: str, directory: Path, long: float) -> float:
    """Of a command that ends well, in seconds, where an environment's first calls take `long` seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "polyactor", *arguments.split()],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(SOURCE), "LONG": str(long)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    assert process.stdout is not None
    heard, longest, lines = time.monotonic(), 0.0, list[str]()
    with process.stdout:
        for line in process.stdout:
            longest, heard = max(longest, time.monotonic() - heard), time.monotonic()
            lines.append(line)
    assert process.wait() == 0, "".join(lines)
    return max(longest, time.monotonic() - heard)
