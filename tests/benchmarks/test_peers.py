"""The harness of benchmarks/peers.py, with drivers that are lines of Python instead of libraries."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"

HARNESS = """
import itertools, signal, sys, time
from pathlib import Path
from types import SimpleNamespace
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, sys.argv[1])
import peers
ticks = itertools.count()  # every line of a driver comes a hundredth of a second after the one before
peers.time = SimpleNamespace(perf_counter=lambda: next(ticks) / 100, monotonic=time.monotonic, sleep=time.sleep)
peers.DRIVERS, peers.RESULTS, peers.WARM_UP = Path(sys.argv[2]), Path(sys.argv[2]), 0.2
peers.ENVIRONMENT = {"driver": {}}
peers.interpreter = lambda peer: Path(sys.executable)
peers.packages = lambda peer: {}
peers.ROWS = {"row": [peers.Contestant("a driver", "driver", {"": {}}, "a driver")]}
sys.argv[1:] = sys.argv[3:]
peers.main()
"""

STEPPING = """
import itertools, os, subprocess, sys, time
# A grandchild in a session of its own, whose parent ends at once.
sleeper = "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)"
start = "import subprocess, sys; subprocess.Popen([sys.executable, '-c', *sys.argv[1:]], start_new_session=True)"
subprocess.run([sys.executable, "-c", start, sleeper, {pid!r}], check=True)
while not (os.path.exists({pid!r}) and os.path.getsize({pid!r})):
    time.sleep(0.01)
for steps in itertools.count(10, 10):
    print("steps", steps, flush=True)
    time.sleep(0.01)
"""


def harness(folder: Path, driver: str, *args: str) -> subprocess.Popen[str]:
    """The command, with this driver."""
    (folder / "driver.py").write_text(driver)
    command = [sys.executable, "-P", "-c", HARNESS, str(BENCHMARKS), str(folder), *args]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_the_rate_is_measured_and_nothing_is_left(tmp_path):
    pid = tmp_path / "pid"
    run = harness(tmp_path, STEPPING.format(pid=str(pid)), "row", "--seconds", "0.5", "--rounds", "2")
    out, err = run.communicate(timeout=60)
    assert run.returncode == 0, err
    said = json.loads((tmp_path / "row.json").read_text())
    rounds = said["contestants"][0]["rounds"][""]
    assert [measured["rate"] for measured in rounds] == pytest.approx([1000, 1000])
    assert all(measured["pss_mib"] > 0 for measured in rounds)
    assert "1.000 [1.000–1.000]" in out
    assert not Path(f"/proc/{pid.read_text()}").exists()


def test_an_interrupt_leaves_nothing(tmp_path):
    pid = tmp_path / "pid"
    run = harness(tmp_path, STEPPING.format(pid=str(pid)), "row", "--seconds", "60")
    end = time.monotonic() + 30
    while not (pid.exists() and pid.read_text()) and time.monotonic() < end:
        time.sleep(0.01)
    os.kill(run.pid, signal.SIGINT)
    run.communicate(timeout=30)
    assert run.returncode == 130
    assert not Path(f"/proc/{pid.read_text()}").exists()


def test_a_driver_that_dies_is_one_sentence(tmp_path):
    run = harness(tmp_path, "raise SystemExit('no such game')", "row")
    _, err = run.communicate(timeout=30)
    assert run.returncode == 1
    assert err.splitlines()[-2:] == ["no such game", "peers: a driver ended before it was measured"]
