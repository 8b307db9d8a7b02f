"""A queue of long runs in the background: the rows of ``benchmarks/results.toml``, one at a time, at low priority.

python benchmarks/results.py go        # start, or go on
python benchmarks/results.py status    # done, running, left in hours
python benchmarks/results.py pause     # save and stop: before measuring speed, and at the end of work
python benchmarks/results.py speed     # pause, measure steps/s of rows that have none with `polyactor bench`, go on

Runs are made outside the repository, from a clone at the commit that ``go`` was first given, with packages of their own
(``requirements.lock``), so that editing disturbs nothing. A run that was paused, or whose queue was killed, is resumed
from its last checkpoint. On a new machine the runs that had not ended begin anew, and say so. What a run resolves from
its CPU is resolved once and pinned. When a run ends its summary, at most 200 of its rows, its config and its curve are
put into ``results/``, ready to be committed.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import fcntl
import json
import os
import shlex
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
LIST, RESULTS = ROOT / "benchmarks" / "results.toml", ROOT / "results"
HOME = Path(os.environ.get("POLYACTOR_QUEUE", Path.home() / ".cache" / "polyactor-queue"))
BEGUN = RESULTS / "begun.json"
"""Which runs have begun, on which machine: what a new machine knows of those that were lost."""
MOST_ROWS = 200
SAVED_AND_STOPPED = 75
SAMPLE_EVERY = 5.0
"""Seconds between two looks at the processor time of a run."""
ENDED_WITHIN = 120.0
"""Seconds in which a run that was asked to stop saves and ends."""
TRIES = 3
"""Times in a row that a run may fail before the queue goes on with the next one."""


@dataclass(frozen=True)
class Row:
    """One run of the list.

    Attributes:
        name: folder in ``results/``.
        preset: what `polyactor train` is given.
        seed: of every random stream.
        steps: agent steps at most.
        hours: that it is expected to take on two quiet cores.
        flags: further flags.
    """

    name: str
    preset: str
    seed: int
    steps: int
    hours: float
    flags: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        """What tells it from the other runs."""
        return f"{self.name}/seed-{self.seed}"

    @property
    def kept(self) -> Path:
        """Where its results go."""
        return RESULTS / self.key

    @property
    def done(self) -> bool:
        """Whether its results are there."""
        return (self.kept / "summary.json").is_file()

    @property
    def run(self) -> Path:
        """Its run directory."""
        return HOME / "runs" / self.key


def rows() -> list[Row]:
    """The list, in the order in which it is run."""
    found = []
    for entry in tomllib.loads(LIST.read_text())["row"]:
        for seed in entry.get("seeds", [1]):
            found.append(
                Row(
                    entry["name"], entry.get("preset", entry["name"]), seed, entry["steps"], entry["hours"],
                    tuple(shlex.split(entry.get("flags", ""))),
                )
            )  # fmt: skip
    return found


@dataclass
class Ledger:
    """What the queue knows of its runs, in a file that is replaced whole.

    Attributes:
        commit: that the runs are made at.
        precision: of networks, as this CPU has it.
        runs: by key: processor seconds, how often it was resumed, failures in a row, whether it began anew.
        current: the run under way and its process.
    """

    commit: str = ""
    precision: str = ""
    runs: dict[str, dict[str, Any]] = field(default_factory=dict)
    current: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls) -> Ledger:
        """The one that is kept, or a new one."""
        path = HOME / "ledger.json"
        return cls(**json.loads(path.read_text())) if path.is_file() else cls()

    def write(self) -> None:
        """Keep it."""
        replace(HOME / "ledger.json", json.dumps(vars(self), indent=1))

    def of(self, row: Row) -> dict[str, Any]:
        """What is known of a run."""
        return self.runs.setdefault(row.key, {"cpu_s": 0.0, "resumed": 0, "failed": 0, "anew": 0})


def replace(path: Path, text: str) -> None:
    """Write a file so that a reader finds the old one or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_name(path.name + ".new")
    scratch.write_text(text)
    scratch.replace(path)


@contextlib.contextmanager
def alone() -> Iterator[bool]:
    """Hold the queue's lock inside; gives False where another process has it. The kernel lets go of it at any death."""
    HOME.mkdir(parents=True, exist_ok=True)
    with (HOME / "queue.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
            return
        lock.seek(0)
        lock.truncate()
        lock.write(str(os.getpid()))
        lock.flush()
        yield True


def owner() -> int | None:
    """The process that works at the queue, if any does."""
    with alone() as free:
        if free:
            return None
    return int((HOME / "queue.lock").read_text() or 0) or None


# -- where runs are made ---------------------------------------------------------------------------------------------


def installed(commit: str) -> Path:
    """The Python of a clone at a commit, which is made where it is not there yet."""
    clone, venv = HOME / f"clone-{commit[:12]}", HOME / f"venv-{commit[:12]}"
    if not (venv / ".ready").exists():
        if not clone.exists():
            subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        subprocess.run(["git", "-C", str(clone), "checkout", "--quiet", commit], check=True)
        subprocess.run([sys.executable, "-m", "venv", str(venv)], check=True)
        pip = [str(venv / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", str(clone / "requirements.lock")], check=True)
        subprocess.run([*pip, "--no-deps", "--no-build-isolation", "--editable", str(clone)], check=True)
        (venv / ".ready").touch()
    return venv / "bin" / "python"


def native_precision(python: Path) -> str:
    """bf16 where this CPU multiplies it, as `--precision auto` has it for images."""
    said = subprocess.run(
        [str(python), "-c", "import torch; print(torch.cpu._is_avx512_bf16_supported())"],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    return "bf16" if said.strip() == "True" else "fp32"


def command(row: Row, precision: str) -> list[str]:
    """What a person types for a run."""
    pinned = [] if "--precision" in row.flags else ["--precision", precision]
    return [
        "train", row.preset, "--seed", str(row.seed), "--steps", str(row.steps), "--env-timeout", "600", *pinned,
        *row.flags,
    ]  # fmt: skip


# -- work ------------------------------------------------------------------------------------------------------------


class Queue:
    """Works at the list until it is through or asked to pause."""

    def __init__(self) -> None:
        self.ledger, self.asked = Ledger.read(), False
        self.python = installed(self.ledger.commit)

    def work(self) -> None:
        """Run what is left, in order."""
        signal.signal(signal.SIGTERM, self._pause)
        os.nice(19)
        self._take_over()
        for row in rows():
            while not (row.done or self.asked or self.ledger.of(row)["failed"] >= TRIES):
                self._run(row)
            if self.asked:
                return
        say("the list is through")

    def _pause(self, *_: object) -> None:
        self.asked = True
        with contextlib.suppress(KeyError, ProcessLookupError):
            os.kill(self.ledger.current["pid"], signal.SIGTERM)

    def _take_over(self) -> None:
        """Wait for a run that outlives a queue that was killed, by what it takes to save, and count its seconds."""
        current, self.ledger.current = self.ledger.current, {}
        end = time.monotonic() + ENDED_WITHIN
        while Path(f"/proc/{current.get('pid')}").exists() and time.monotonic() < end:
            time.sleep(0.2)
        if current:
            self.ledger.runs[current["key"]]["cpu_s"] += current.get("cpu_s", 0.0)
            self.ledger.write()

    def _run(self, row: Row) -> None:
        known = self.ledger.of(row)
        again = (row.run / "checkpoints").is_dir() and any((row.run / "checkpoints").iterdir())
        if again:
            arguments = ["resume", str(row.run), "--quiet"]
            known["resumed"] += 1
        else:
            self._begin(row)
            arguments = [*command(row, self.ledger.precision), "--out", str(row.run), "--quiet"]
        log = HOME / "logs" / f"{row.key.replace('/', '-')}.txt"
        log.parent.mkdir(parents=True, exist_ok=True)
        say(f"{'resuming' if again else 'beginning'} {row.key}")
        with log.open("a") as said:
            process = subprocess.Popen(
                [str(self.python), "-m", "polyactor", *arguments],
                cwd=HOME, stdout=said, stderr=said, start_new_session=True, preexec_fn=_behind_all_else,
            )  # fmt: skip
        self.ledger.current = {"key": row.key, "pid": process.pid}
        self.ledger.write()
        if self.asked:  # between the look at it and here
            process.terminate()
        known["cpu_s"] += self._watched(process)
        self.ledger.current = {}
        finished = process.returncode == 0 and (row.run / "summary.json").is_file()
        known["failed"] = (
            0 if finished or process.returncode == SAVED_AND_STOPPED or self.asked else known["failed"] + 1
        )
        if finished:
            self._keep(row)
        elif known["failed"]:
            say(f"{row.key} ended with {process.returncode}: {log}")
        self.ledger.write()

    def _begin(self, row: Row) -> None:
        """Note that a run begins; whether it had begun before on a machine that is gone."""
        begun = json.loads(BEGUN.read_text()) if BEGUN.is_file() else {}
        known = self.ledger.of(row)
        known["anew"] = begun.get(row.key, {}).get("times", 0)
        begun[row.key] = {"times": known["anew"] + 1, "commit": self.ledger.commit, "at": now()}
        replace(BEGUN, json.dumps(dict(sorted(begun.items())), indent=1) + "\n")
        subprocess.run(["rm", "-rf", str(row.run)], check=True)
        row.run.parent.mkdir(parents=True, exist_ok=True)

    def _watched(self, process: subprocess.Popen[bytes]) -> float:
        """Processor seconds that a run and all it started have taken, until it has ended."""
        taken: dict[int, float] = {}
        while process.poll() is None:
            taken |= processor_seconds(process.pid)
            self.ledger.current["cpu_s"] = round(sum(taken.values()), 1)
            self.ledger.write()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(SAMPLE_EVERY)
        return round(sum(taken.values()), 1)

    def _keep(self, row: Row) -> None:
        known, summary = self.ledger.of(row), json.loads((row.run / "summary.json").read_text())
        queue = {
            "commit": self.ledger.commit,
            "command": "polyactor " + shlex.join(command(row, self.ledger.precision)),
            "precision": self.ledger.precision,
            "processor_s": known["cpu_s"],
            "resumed": known["resumed"],
            "began_anew": known["anew"],
            "ended": now(),
        }
        lines = (row.run / "metrics.jsonl").read_text().splitlines()
        row.kept.mkdir(parents=True, exist_ok=True)
        replace(row.kept / "metrics.jsonl", "\n".join(thinned(lines)) + "\n")
        config = json.loads((row.run / "config.json").read_text()) | {"out": None}
        replace(row.kept / "config.json", json.dumps(config, indent=1) + "\n")
        if (row.run / "curve.png").is_file():
            (row.kept / "curve.png").write_bytes((row.run / "curve.png").read_bytes())
        replace(row.kept / "summary.json", json.dumps(summary | {"queue": queue}, indent=1) + "\n")  # last: it is done
        say(f"{row.key}: {summary['status']}, score {summary['score_mean100']}")


def thinned(lines: list[str]) -> list[str]:
    """At most 200 of them, evenly, the last one always among them."""
    if len(lines) <= MOST_ROWS:
        return lines
    return [lines[round((i + 1) * len(lines) / MOST_ROWS) - 1] for i in range(MOST_ROWS)]


def processor_seconds(session: int) -> Mapping[int, float]:
    """Seconds of user and system time of each process of a session that is alive."""
    tick, found = os.sysconf("SC_CLK_TCK"), {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = (folder / "stat").read_text(errors="replace").rpartition(")")[2].split()
            if int(fields[3]) == session:
                found[int(folder.name)] = (int(fields[11]) + int(fields[12])) / tick
    return found


def _behind_all_else() -> None:
    """Ask the kernel to end a run, which then saves, when the queue dies, and to run it behind other sessions (Linux).

    Sessions share the processor evenly, whatever the niceness of their processes, unless theirs is set as well.
    """
    ctypes.CDLL(None).prctl(1, signal.SIGTERM)
    with contextlib.suppress(OSError):
        Path("/proc/self/autogroup").write_text("19")


def now() -> str:
    """The time, in UTC, to the minute."""
    return datetime.now(UTC).isoformat(timespec="minutes")


def say(line: str) -> None:
    """Note a line in the queue's own log."""
    with (HOME / "queue.txt").open("a") as log:
        log.write(f"{now()}  {line}\n")


# -- what a person types ---------------------------------------------------------------------------------------------


def go(commit: str | None) -> None:
    """Start the queue in the background, unless it is at work."""
    if owner() is not None:
        print("the queue is at work already")
        return
    ledger = Ledger.read()
    if commit or not ledger.commit:
        ledger.commit = subprocess.run(
            ["git", "-C", str(ROOT), "rev-parse", commit or "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
    python = installed(ledger.commit)
    ledger.precision = ledger.precision or native_precision(python)
    ledger.write()
    with (HOME / "queue.txt").open("a") as log:
        subprocess.Popen(
            [sys.executable, __file__, "work"], cwd=HOME, start_new_session=True, stdin=subprocess.DEVNULL,
            stdout=log, stderr=log,
        )  # fmt: skip
    print(f"the queue is at work, at commit {ledger.commit[:12]} in {HOME}")


def work() -> None:
    """Work at the queue in this process; whoever only asks who does holds the lock for a moment."""
    for _ in range(20):
        with alone() as mine:
            if mine:
                Queue().work()
                return
        time.sleep(0.1)


def pause() -> None:
    """Have the run under way saved and ended, and the queue with it."""
    pid = owner()
    if pid is None:
        print("the queue is not at work")
        return
    os.kill(pid, signal.SIGTERM)
    end = time.monotonic() + ENDED_WITHIN
    while owner() is not None:
        if time.monotonic() > end:
            sys.exit(f"the queue (process {pid}) has not ended after {ENDED_WITHIN:.0f} s")
        time.sleep(0.2)
    print("saved and paused")


def status() -> None:
    """Print a line for each run, and what is left in hours."""
    ledger, left = Ledger.read(), 0.0
    for row in rows():
        steps = _steps(row)
        share = 1.0 if row.done else min(1.0, steps / row.steps)
        left += (1 - share) * row.hours
        known = ledger.runs.get(row.key, {})
        state = "done" if row.done else "running" if ledger.current.get("key") == row.key and owner() else "waiting"
        state = "failed" if not row.done and known.get("failed", 0) >= TRIES else state
        print(f"{state:8} {row.key:42} {steps:>12,} of {row.steps:,}  resumed {known.get('resumed', 0)}")
    print(f"left: {left:.1f} hours of two quiet cores")


def _steps(row: Row) -> int:
    """Steps of a run so far."""
    path = row.kept / "summary.json" if row.done else row.run / "metrics.jsonl"
    with contextlib.suppress(OSError, ValueError, IndexError, KeyError):
        text = path.read_text()
        return int(json.loads(text if row.done else text.splitlines()[-1])["agent_steps"])
    return 0


def speed(seconds: float) -> None:
    """Measure the speed of every preset that is done and has none, with the queue paused."""
    was_at_work = owner() is not None
    pause()
    ledger = Ledger.read()
    python, done = installed(ledger.commit), {row.name: row for row in rows() if row.done}
    for name, row in done.items():
        kept = RESULTS / name / "speed.txt"
        if kept.is_file():
            continue
        flags = ["--seconds", str(seconds), "--precision", ledger.precision, *row.flags]
        found = subprocess.run(
            [str(python), "-m", "polyactor", "bench", row.preset, *flags],
            capture_output=True, text=True, cwd=HOME, env=os.environ | {"COLUMNS": "120"},
        )  # fmt: skip
        print(name, found.stdout, found.stderr)
        if found.returncode == 0:
            replace(kept, f"$ polyactor bench {row.preset} {shlex.join(flags)}\n{found.stdout}")
    if was_at_work:
        go(None)


def main() -> None:
    """Read the verb and do it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("verb", choices=["go", "pause", "status", "speed", "work"])
    parser.add_argument("--commit", help="go: make runs at this commit from now on; default that of the first go")
    parser.add_argument("--seconds", type=float, default=15.0, help="speed: of each measurement")
    options = parser.parse_args()
    verbs = {"pause": pause, "status": status, "work": work}
    if options.verb == "go":
        go(options.commit)
    elif options.verb == "speed":
        speed(options.seconds)
    else:
        verbs[options.verb]()


if __name__ == "__main__":
    main()
