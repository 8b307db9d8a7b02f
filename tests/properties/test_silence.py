"""No command is without a word for more than 10 s, however slow its environment is."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.helpers.runs import SOURCE

MOST = 10.0
SLOW = """
import time, gymnasium, numpy as np
from gymnasium import spaces

class Env(gymnasium.Env):
    metadata = {"render_modes": ["rgb_array"], "render_fps": 30}
    observation_space = spaces.Box(-1, 1, (2,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self, render_mode=None):
        self.render_mode = render_mode
        time.sleep(4)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        time.sleep(4)
        self.steps = 0
        return np.zeros(2, np.float32), {}

    def step(self, action):
        time.sleep(0.3)
        self.steps += 1
        return np.zeros(2, np.float32), 1.0, self.steps >= 8, False, {}

    def render(self):
        return np.zeros((64, 64, 3), np.uint8)

class Less(Env):
    def __init__(self):
        self.render_mode = None
        time.sleep(0.1)

    def reset(self, **given):
        time.sleep(0.1)
        self.steps = 0
        return np.zeros(2, np.float32), {}
"""
SMALL = "--envs 3 --rollout 20"


@pytest.mark.slow
@pytest.mark.alone
def test_no_verb_is_silent_while_its_environment_is_slow(tmp_path: Path) -> None:
    (tmp_path / "slow_env.py").write_text(SLOW)
    for arguments in (
        "check --env slow_env:Env",
        f"train a2c --env slow_env:Env --steps 60 --out run {SMALL}",
        f"train a3c --env slow_env:Env --workers 1 --steps 60 --out other {SMALL}",
        "resume run --steps 120 --trust-code",
        "evaluate run --games 3 --trust-code",
        "record run --trust-code",
        "compare run other",
        "plot run",
        "bench a2c --env slow_env:Less --seconds 1 --envs 3",
    ):
        silence = longest_silence(arguments, tmp_path)
        print(f"{silence:.1f} s: {arguments}")
        assert silence <= MOST, arguments


def longest_silence(arguments: str, directory: Path) -> float:
    """Of a command that ends well, in seconds."""
    process = subprocess.Popen(
        [sys.executable, "-m", "polyactor", *arguments.split()],
        cwd=directory,
        env=os.environ | {"PYTHONPATH": str(SOURCE)},
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
