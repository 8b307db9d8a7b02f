"""Half an hour of faults: every scheme trains while a fault comes every 20 ± 10 s, and all it promises is checked.

python benchmarks/soak.py --minutes 30                     all schemes, one after the other
python benchmarks/soak.py --minutes 30 --together          at the same time
python benchmarks/soak.py --minutes 3 --schemes hogwild
python benchmarks/soak.py --minutes 15 --schemes param-server-ray,actor-learner-ray

A fault is drawn from those that concern the scheme: a worker is killed, or stopped for 2 s; an environment raises,
hangs, answers NaN, or pays a reward whose gradient is not finite; the run is asked to end and resumed, or killed and
resumed; the disk fills up for 6 s (where this may mount a small one). Meanwhile memory, open files and processes are
sampled, and every minute the newest checkpoint is loaded by another process that plays a game. In the end: each fault
has its event, and one only; no time without a newer checkpoint was longer than 30 s, resumes aside; memory is flat;
nothing is left behind. The raw account is kept in benchmarks/results/soak-<scheme>.json.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces

from polyactor.storage.metrics_log import read_rows
from polyactor.system.host import resident_mb, versions

RESULTS = Path(__file__).parent / "results"
SCHEMES = {
    "sync": ["a2c", "--scheme", "sync"],
    "hogwild": ["a3c", "--scheme", "hogwild", "--workers", "2"],
    "param-server": ["a3c", "--scheme", "param-server", "--workers", "2"],
    "actor-learner": ["impala", "--scheme", "actor-learner", "--workers", "2"],
}
SCHEMES |= {f"{name}-ray": [*SCHEMES[name], "--transport", "ray"] for name in ("param-server", "actor-learner")}
EVERY, SPREAD = 20.0, 10.0
"""Seconds between faults."""
SETTLED = 12.0
"""Seconds in which a fault has to have its event."""
WARM_UP = 60.0
"""Seconds of the run in which memory may still grow."""
SAMPLE_EVERY = 5.0
GONE_WITHIN, OVER_RAY = 5.0, 10.0
"""Seconds after which nothing is left of a run that is killed; over Ray a guardian ends Ray's own processes."""
ORDERS = "POLYACTOR_SOAK_ORDERS"
"""The directory in which an environment finds what to do wrong."""
HANG_AFTER = 3.0
"""Seconds, `--env-timeout` of these runs."""


class Faulty(gymnasium.Env[Any, Any]):
    """A walk on a line that goes wrong when it finds an order to; each order is carried out once."""

    observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
    action_space = spaces.Discrete(2)

    def __init__(self) -> None:
        self.orders = Path(os.environ[ORDERS])
        self.place = self.steps = self.clock = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Start in the middle."""
        super().reset(seed=seed)
        self.place, self.steps = 0, 0
        return self.seen(), {}

    def seen(self) -> np.ndarray:
        """What is observed."""
        return np.array([self.place / 10, self.steps / 100, 0, 1], np.float32)

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """One place on, or wrong as ordered."""
        self.steps += 1
        self.clock += 1
        self.place += 1 if action else -1
        observation, reward = self.seen(), float(self.place == 10)
        if self.clock % 16 == 0:
            order = self.order()
            if order == "raise":
                raise RuntimeError("as ordered")
            if order == "hang":
                time.sleep(3600)
            if order == "nan":
                observation = observation * np.nan
            if order == "huge":
                reward = 3e38
        return observation, reward, abs(self.place) == 10, self.steps >= 100, {}

    def order(self) -> str | None:
        """An order that nobody else has taken."""
        for path in self.orders.iterdir():
            try:
                path.unlink()
            except FileNotFoundError:
                continue  # another one was faster
            return path.name
        return None


class Soak:
    """One scheme's run and what is done to it."""

    def __init__(self, scheme: str, folder: Path, seed: int) -> None:
        self.scheme, self.rng = scheme, random.Random(f"{scheme}-{seed}")
        self.folder, self.out, self.orders = folder, folder / "run", folder / "orders"
        self.temporary = folder / "temporary"
        self.environ = os.environ | {ORDERS: str(self.orders), "PYTHONPATH": self.path(), "TMPDIR": str(self.temporary)}
        self.samples: list[dict[str, float]] = []
        self.faults: list[dict[str, Any]] = []
        self.checked: list[int] = []
        self.gap, self.moved, self.known = 0.0, time.monotonic(), 0
        self.blind = False
        """A checkpoint cannot be expected: the run is being resumed, or its disk is full."""
        self.over = False
        self.process: subprocess.Popen[bytes] | None = None

    @staticmethod
    def path() -> str:
        """Where a run finds `Faulty`."""
        return os.pathsep.join(filter(None, [str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")]))

    # -- the run ---------------------------------------------------------------------------------------------------

    def start(self) -> None:
        """From the beginning."""
        where = [*SCHEMES[self.scheme], "--env", "soak:Faulty", "--out", str(self.out)]
        flags = ["--steps", "1000000000", "--envs", "4", "--restarts", "100000", "--env-timeout", str(HANG_AFTER)]
        self.launch(["train", *where, *flags, "--checkpoint-every", "5", "--quiet"])

    def launch(self, arguments: list[str]) -> None:
        """A process, and wait until it has saved something."""
        command = [sys.executable, "-m", "polyactor", *arguments]
        log = (self.folder / "log").open("ab")
        before = self.steps()
        self.process = subprocess.Popen(command, env=self.environ, stdout=log, stderr=log, start_new_session=True)
        log.close()
        self.until(lambda: self.steps() > before or self.process.poll() is not None, 60.0)

    def go_on(self) -> None:
        """From the last checkpoint."""
        self.launch(["resume", str(self.out), "--trust-code", "--quiet"])

    def until(self, condition: Any, seconds: float) -> bool:
        """Wait for a condition; False when it did not come true in time."""
        end = time.monotonic() + seconds
        while not condition():
            if time.monotonic() > end:
                return False
            time.sleep(0.05)
        return True

    def steps(self) -> int:
        """As far as the newest checkpoint says: there is one every 5 s."""
        try:
            name = json.loads((self.out / "checkpoints" / "last.json").read_text())["checkpoint"]
            return int(name.partition(".")[0])
        except (OSError, ValueError):
            return 0

    def events(self) -> Counter[str]:
        """How many of each so far."""
        return Counter(row["event"] for row in read_rows(self.out / "events.jsonl"))

    def family(self) -> list[int]:
        """Process ids of the run and all it has started: those with its orders in their environment."""
        mark, found = f"{ORDERS}={self.orders}".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if mark in (folder / "environ").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
            except OSError:
                continue
        return found

    def workers(self) -> list[int]:
        """Process ids of those at work."""
        started = [
            row
            for row in read_rows(self.out / "events.jsonl")
            if row["event"] in ("worker_started", "worker_restarted")
        ]
        newest = {row["worker"]: row["pid"] for row in started if row.get("pid")}
        return [pid for pid in newest.values() if Path(f"/proc/{pid}").exists()]

    # -- faults ----------------------------------------------------------------------------------------------------

    def kinds(self) -> list[str]:
        """Faults that concern this scheme."""
        kinds = ["raise", "nan", "huge", "hang", "asked", "run killed"]
        kinds += ["worker killed", "worker killed", "worker stopped"] if self.scheme != "sync" else []
        return kinds + ["disk full"] * self.small_disk

    small_disk = False

    def fault(self) -> None:
        """One of them, and whether it had its events."""
        assert self.process is not None
        kind, before, began = self.rng.choice(self.kinds()), self.events(), time.monotonic()
        self.blind = kind in ("asked", "run killed", "disk full")
        expected: dict[str, int] = {}
        if kind in ("raise", "nan", "huge", "hang"):
            (self.orders / kind).touch()
            expected = {"update_skipped": 1} if kind == "huge" else {"env_error": 1}
            if kind == "hang" and self.scheme != "sync":
                expected = {"worker_lost": 1, "worker_restarted": 1}
        elif kind == "worker killed":
            os.kill(self.rng.choice(self.workers()), signal.SIGKILL)
            expected = {"worker_lost": 1, "worker_restarted": 1}
        elif kind == "worker stopped":
            victim = self.rng.choice(self.workers())
            os.kill(victim, signal.SIGSTOP)
            time.sleep(2.0)
            os.kill(victim, signal.SIGCONT)
        elif kind == "asked":
            self.process.send_signal(signal.SIGTERM)
            code = self.process.wait(30.0)
            assert code == 75, f"exit code {code} after SIGTERM"
            self.go_on()
            expected = {"stopping": 1, "resumed": 1}
        elif kind == "run killed":
            self.process.kill()
            self.process.wait()
            within = OVER_RAY if self.scheme.endswith("-ray") else GONE_WITHIN
            alone = self.until(lambda: not self.family(), within)
            assert alone, f"left behind: {self.family()}"
            self.go_on()
            expected = {"resumed": 1}
        elif kind == "disk full":
            ballast = self.folder / "ballast"
            with (
                ballast.open("wb", buffering=0) as file,
                suppress(OSError),
            ):  # a buffer would have to be written in the end
                while file.write(bytes(1 << 16)):
                    pass
            time.sleep(6.0)
            ballast.unlink()
            known = self.steps()
            self.until(lambda: self.steps() > known, 30.0)
        self.blind = False
        met = self.until(lambda: all((self.events() - before)[name] >= n for name, n in expected.items()), SETTLED)
        found = self.events() - before
        told = {
            name: found[name] for name in ("worker_lost", "worker_restarted", "env_error", "update_skipped", "resumed")
        }
        record = {"kind": kind, "at_s": round(began - self.began, 1), "took_s": round(time.monotonic() - began, 2)}
        self.faults.append(record | {"met": met, "expected": expected, "events": {k: v for k, v in told.items() if v}})

    # -- what is looked at -----------------------------------------------------------------------------------------

    def look(self) -> None:
        """In a thread: note how long there was no newer checkpoint."""
        while not self.over:
            steps, now = self.steps(), time.monotonic()
            if self.blind or steps != self.known:
                self.gap = max(self.gap, 0.0 if self.blind else now - self.moved)
                self.moved, self.known = now, steps
            time.sleep(0.1)

    def sample(self) -> None:
        """Memory, processes, open files."""
        family = self.family()
        assert self.process is not None
        files = sum(len(list(Path(f"/proc/{pid}/fd").glob("*"))) for pid in family if Path(f"/proc/{pid}/fd").exists())
        self.samples.append({
            "at_s": round(time.monotonic() - self.began, 1),
            "rss_mb": round(resident_mb(self.process.pid), 1),
            "processes": len(family),
            "files": files,
        })  # fmt: skip

    def check(self) -> None:
        """Another process loads the newest checkpoint and plays."""
        command = [
            sys.executable,
            "-m",
            "polyactor",
            "evaluate",
            str(self.out),
            "--games",
            "1",
            "--trust-code",
            "--tag",
            "last",
        ]
        done = subprocess.run(
            command, env=self.environ | {ORDERS: str(self.folder / "none")}, capture_output=True, timeout=120
        )
        self.checked.append(done.returncode)
        if done.returncode:
            print(done.stderr.decode()[-500:], file=sys.stderr)

    def run(self, minutes: float) -> dict[str, Any]:
        """Soak for so many minutes."""
        (self.folder / "none").mkdir()
        self.began = time.monotonic()
        self.start()
        self.moved = time.monotonic()
        threading.Thread(target=self.look, daemon=True).start()
        end = self.began + 60 * minutes
        next_fault, next_sample, next_check = time.monotonic() + WARM_UP, 0.0, time.monotonic() + 60
        while (now := time.monotonic()) < end:
            if now >= next_sample:
                next_sample = now + SAMPLE_EVERY
                self.sample()
            if now >= next_fault:
                self.fault()
                next_fault = time.monotonic() + self.rng.uniform(EVERY - SPREAD, EVERY + SPREAD)
            if now >= next_check:
                next_check = now + 60
                self.check()
            assert self.process is not None
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"{self.scheme} ended with code {self.process.returncode}: see {self.folder / 'log'}"
                )
            time.sleep(0.1)
        return self.finish(minutes)

    def finish(self, minutes: float) -> dict[str, Any]:
        """End the run; the account."""
        assert self.process is not None
        self.over = True
        self.process.send_signal(signal.SIGTERM)
        code = self.process.wait(30.0)
        time.sleep(1.0)
        steady = [each for each in self.samples if each["at_s"] > WARM_UP]
        leftovers = [str(path) for path in self.temporary.iterdir()]
        leftovers += [
            str(path)
            for path in self.out.rglob("*")
            if path.name.startswith((".saving", ".last")) or path.suffix == ".tmp"
        ]
        rows = read_rows(self.out / "metrics.jsonl")
        steps = [row["agent_steps"] for row in rows]
        return {
            "scheme": self.scheme,
            "minutes": minutes,
            "faults": len(self.faults),
            "by_kind": dict(Counter(fault["kind"] for fault in self.faults)),
            "faults_without_their_event": [fault for fault in self.faults if not fault["met"]],
            "faults_with_more_events": [f for f in self.faults if f["kind"] != "disk full" and too_many(f)],
            "longest_gap_s": round(self.gap, 1),
            "rss_slope_mb_per_min": round(60 * slope([(each["at_s"], each["rss_mb"]) for each in steady]), 3),
            "rss_mb": [steady[0]["rss_mb"], steady[-1]["rss_mb"]] if steady else None,
            "files": [min(each["files"] for each in steady), max(each["files"] for each in steady)] if steady else None,
            "checkpoints_loaded": f"{self.checked.count(0)} of {len(self.checked)}",
            "rows_increase": steps == sorted(set(steps)),
            "exit_code": code,
            "processes_left": len(self.family()),
            "leftovers": leftovers,
            "agent_steps": steps[-1] if steps else 0,
            "recovery_s": spread([fault["took_s"] for fault in self.faults if fault["kind"] == "worker killed"]),
            "versions": versions(),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores",
            "each": self.faults,
        }


def too_many(fault: dict[str, Any]) -> bool:
    """Events of a kind beyond those expected; a skipped update may be told of in two rows."""
    return any(n > fault["expected"].get(name, 0) for name, n in fault["events"].items() if name != "update_skipped")


def slope(points: list[tuple[float, float]]) -> float:
    """Theil–Sen: the median of the slopes between all pairs."""
    slopes = [(y2 - y1) / (x2 - x1) for i, (x1, y1) in enumerate(points) for x2, y2 in points[i + 1 :] if x2 > x1]
    return statistics.median(slopes) if slopes else 0.0


def spread(values: list[float]) -> list[float] | None:
    """Median and maximum."""
    return [round(statistics.median(values), 2), max(values)] if values else None


def main() -> int:
    """Soak, print, keep; 1 where a promise was broken."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--schemes", default=",".join(SCHEMES))
    parser.add_argument("--together", action="store_true", help="all schemes at the same time")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="soak-"))
    soaks = [Soak(scheme, folder / scheme, options.seed) for scheme in options.schemes.split(",")]
    found: list[dict[str, Any]] = []
    small = mounted(folder, soaks)
    try:
        if options.together:
            threads = [
                threading.Thread(target=lambda soak=soak: found.append(soak.run(options.minutes))) for soak in soaks
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        else:
            found = [soak.run(options.minutes) for soak in soaks]
    finally:
        for soak in soaks:
            for pid in soak.family():
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.5)
        for path in small:
            subprocess.run(["umount", path], check=False)
    bad = len(soaks) - len(found)
    for account in found:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / f"soak-{account['scheme']}.json").write_text(json.dumps(account, indent=1) + "\n")
        promises = {
            "each fault has its event": not account["faults_without_their_event"],
            "and one only": not account["faults_with_more_events"],
            "no gap above 30 s": account["longest_gap_s"] <= 30,
            "memory is flat (below 1 MB a minute)": account["rss_slope_mb_per_min"] < 1,
            "every checkpoint loads": account["checkpoints_loaded"].split(" of ")[0]
            == account["checkpoints_loaded"].split(" of ")[1],
            "rows increase": account["rows_increase"],
            "stops when asked": account["exit_code"] == 75,
            "nothing is left behind": not (account["processes_left"] or account["leftovers"]),
        }
        print(json.dumps({key: value for key, value in account.items() if key != "each"}, indent=1))
        for promise, kept in promises.items():
            print(f"{'holds ' if kept else 'BROKEN'}  {account['scheme']}: {promise}")
            bad += not kept
    shutil.rmtree(folder, ignore_errors=True)
    return int(bad > 0)


def mounted(folder: Path, soaks: list[Soak]) -> list[str]:
    """A small disk for each run, where this may mount one."""
    paths = []
    for soak in soaks:
        soak.folder.mkdir(parents=True)
        size = ["-o", "size=32m", "tmpfs", str(soak.folder)]
        if subprocess.run(["mount", "-t", "tmpfs", *size], capture_output=True).returncode == 0:
            paths.append(str(soak.folder))
            soak.small_disk = True
        soak.orders.mkdir(parents=True)
        soak.temporary.mkdir()
    return paths


if __name__ == "__main__":
    sys.exit(main())
