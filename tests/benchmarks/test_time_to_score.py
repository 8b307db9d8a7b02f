"""benchmarks/time_to_score.py, with drivers that are lines of Python instead of libraries."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

HARNESS = """
import itertools, sys, time
from pathlib import Path
from types import SimpleNamespace
sys.path.insert(0, sys.argv[1])
import peers, time_to_score
ticks = itertools.count()  # every line of a driver comes a hundredth of a second after the one before
peers.time = SimpleNamespace(perf_counter=lambda: next(ticks) / 100, monotonic=time.monotonic, sleep=time.sleep)
peers.DRIVERS = peers.RESULTS = Path(sys.argv[2])
peers.ENVIRONMENT = {"driver": {}}
peers.interpreter = lambda peer: Path(sys.executable)
peers.packages = lambda peer: {}
time_to_score.LIMIT = 2.0
row = [(name, "driver", {"slope": slope}, "slow") for name, slope in (("fast", 200), ("slow", 100), ("never", 0))]
time_to_score.ROWS = {"row": (50.0, row)}
sys.argv[1:] = ["row", "--seeds", "2"]
time_to_score.main()
"""

CLIMBING = """
import json, sys, time
slope, steps = json.loads(sys.argv[1])["slope"], 0
while True:
    time.sleep(0.01)
    steps += 10
    if not slope and steps > 500:
        break
    score = slope * steps / 1000
    print("steps", steps, *(["score", score] if steps > 50 else []), flush=True)
"""


@pytest.mark.slow
def test_times_are_measured_and_a_run_that_fails_says_so(tmp_path):
    (tmp_path / "driver.py").write_text(CLIMBING)
    command = [sys.executable, "-P", "-c", HARNESS, str(BENCHMARKS), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert run.returncode == 0, run.stderr
    said = json.loads((tmp_path / "time-to-score-row.json").read_text())
    fast, slow, never = (contestant["seconds_and_steps"] for contestant in said["contestants"])
    assert [seconds for seconds, _ in fast] == pytest.approx([0.24, 0.24])
    assert [seconds for seconds, _ in slow] == pytest.approx([0.49, 0.49])
    assert never == [None, None]
    lines = run.stdout.splitlines()
    assert "0 of 2 seeds" in lines[-1]
    assert lines[-2].endswith("1.000 of slow's better")
