"""The queue of long runs: killed at any moment it goes on, no run twice, and none lost by more than a checkpoint."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
LIST = """
[[row]]
name = "chain-a2c"
preset = "a2c"
seeds = [1, 2]
flags = "--env polyactor/Chain-v0 --envs 4 --checkpoint-every 0.3"
steps = 30_000
hours = 0.01

[[row]]
name = "chain-a3c"
preset = "a3c"
flags = "--env polyactor/Chain-v0 --envs 4 --workers 2 --checkpoint-every 0.3"
steps = 60_000
hours = 0.01
"""
QUEUE = """
import sys
from pathlib import Path
sys.path.insert(0, {benchmarks!r})
import results
home = Path({home!r})
results.HOME, results.LIST, results.RESULTS = home / "home", home / "list.toml", home / "results"
results.BEGUN, results.SAMPLE_EVERY = home / "results" / "begun.json", 0.1
results.installed = lambda commit: Path(sys.executable)
"""


class Bench:
    """A queue with a list, a home and results of its own."""

    def __init__(self, home: Path) -> None:
        self.home = home
        (home / "list.toml").write_text(LIST)
        (home / "home").mkdir()
        ledger = {"commit": "c" * 40, "precision": "fp32", "runs": {}, "current": {}}
        (home / "home" / "ledger.json").write_text(json.dumps(ledger))
        self.driver = home / "driver.py"
        self.driver.write_text(QUEUE.format(benchmarks=str(ROOT / "benchmarks"), home=str(home)))

    def call(self, code: str) -> str:
        script = self.driver.read_text() + code
        done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=200, check=True)
        return done.stdout

    def start(self) -> subprocess.Popen[bytes]:
        script = self.driver.read_text() + "results.work()"
        return subprocess.Popen([sys.executable, "-c", script])

    def ledger(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.home / "home" / "ledger.json").read_text())
        return found

    def steps(self) -> dict[str, int]:
        """Of the last checkpoint of every run that has begun and is not done."""
        return {
            str(run.relative_to(self.home / "home" / "runs")): int(max(saved).partition(".")[0])
            for run in (self.home / "home" / "runs").glob("*/*")
            if (saved := [path.name for path in (run / "checkpoints").glob("0*")])
        }


@pytest.mark.slow
@pytest.mark.alone
def test_killed_at_five_moments_it_goes_on_and_no_run_is_made_twice(tmp_path: Path) -> None:
    bench, rng = Bench(tmp_path), random.Random(0)
    before: dict[str, int] = {}
    for _ in range(5):
        queue = bench.start()
        time.sleep(rng.uniform(2.0, 6.0))
        queue.send_signal(signal.SIGKILL)
        queue.wait()
        now = bench.steps()
        assert all(now.get(key, 0) >= steps for key, steps in before.items()), "a checkpoint was lost"
        before = now
    assert bench.start().wait(timeout=200) == 0
    begun = json.loads((tmp_path / "results" / "begun.json").read_text())
    assert set(begun) == {"chain-a2c/seed-1", "chain-a2c/seed-2", "chain-a3c/seed-1"}
    for key, entry in begun.items():
        assert entry["times"] == 1, f"{key} was begun again"
        summary = json.loads((tmp_path / "results" / key / "summary.json").read_text())
        assert summary["status"] == "done"
        assert summary["queue"]["processor_s"] > 0
        rows = (tmp_path / "results" / key / "metrics.jsonl").read_text().splitlines()
        assert 0 < len(rows) <= 200
        steps = [json.loads(row)["agent_steps"] for row in rows]
        assert steps == sorted(set(steps))
    assert sum(entry["resumed"] for entry in bench.ledger()["runs"].values()) >= 1
    assert bench.start().wait(timeout=60) == 0  # nothing is left to do
    assert json.loads((tmp_path / "results" / "begun.json").read_text()) == begun


@pytest.mark.slow
@pytest.mark.alone
def test_paused_it_has_saved_and_a_new_machine_begins_anew_and_says_so(tmp_path: Path) -> None:
    bench = Bench(tmp_path)
    (tmp_path / "list.toml").write_text(LIST.replace("30_000", "30_000_000"))
    queue = bench.start()
    end = time.monotonic() + 60
    while not bench.steps() and time.monotonic() < end:
        time.sleep(0.05)
    assert "at work" in bench.call("results.go(None)")
    assert bench.call("results.pause()") == "saved and paused\n"
    assert queue.wait(timeout=10) == 0
    (key,) = [key for key in bench.steps() if not (tmp_path / "results" / key / "summary.json").exists()][:1]
    assert "waiting" in bench.call("results.status()")
    assert bench.call("results.pause()") == "the queue is not at work\n"
    new = tmp_path / "other machine"
    new.mkdir()
    other = Bench(new)
    os.rename(tmp_path / "results", new / "results")  # what was committed
    assert other.start().wait(timeout=200) == 0
    assert json.loads((new / "results" / key / "summary.json").read_text())["queue"]["began_anew"] == 1


def test_rows_are_thinned_evenly_and_the_last_one_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import results

    lines = [str(i) for i in range(1_234)]
    kept = results.thinned(lines)
    assert len(kept) == results.MOST_ROWS
    assert kept[-1] == "1233"
    gaps = {int(b) - int(a) for a, b in itertools.pairwise(kept)}
    assert gaps <= {6, 7}
    assert results.thinned(lines[:200]) == lines[:200]


def test_every_row_of_the_list_is_a_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import results  # isort: skip
    from polyactor.cli.flags import read_config

    found = results.rows()
    assert len({row.key for row in found}) == len(found)
    for row in found:
        verb, *arguments = results.command(row, "fp32")
        config = read_config(arguments)
        assert verb == "train"
        assert (config.steps, config.seed) == (row.steps, row.seed)
