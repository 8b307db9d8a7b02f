"""The faults a run is to survive, or to end of in one sentence: what each is, and what is promised.

A test of one is marked ``@pytest.mark.fault("P1")`` and says what it measured by ``record_property``. ``pytest -m fault
--write-faults`` runs them all and writes docs/faults.md.
"""

from __future__ import annotations

import os
import platform
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

FAULTS: dict[str, tuple[str, str]] = {
    "P1": (
        "a worker is killed, at any moment, inside an update included",
        "noticed within 1 s, sampling again within 10 s, the others never pause for 1 s, parameters finite, at most "
        "the rollout it was at is lost",
    ),
    "P2": (
        "a worker ends or raises as soon as it starts",
        "3 times at most, then the run ends with its own words, in 15 s",
    ),
    "P3": (
        "an environment raises or exits",
        "it is made anew, its game counts nothing, no other game loses a step; 5 times in a row end the run (exit "
        "code 3)",
    ),
    "P4": (
        "an environment hangs, SIGTERM ignored",
        "its worker is ended 2 s after `--env-timeout` at the latest, is named with step and last action, and "
        "replaced; in the run's own process the environment is interrupted",
    ),
    "P5": (
        "the run itself is killed (with it the learner, the server)",
        "its workers are gone within 1 s; what is resumed is at most one checkpoint interval back; first update "
        "within 15 s",
    ),
    "P6": ("SIGTERM or SIGINT", "the run is saved and ends with 75; a second one ends it at once (143, 130)"),
    "P7": ("a worker is stopped for a while, or slow", "it is not taken for dead; the others go on (not in lockstep)"),
    "P8": ("a worker joins or leaves a run", "who comes back plays games of its own; who is gone is not waited for"),
    "P9": ("a process is killed for its memory", "as P1, with a hint; again and again: exit code 9"),
    "P10": ("/dev/shm is too small", "exit code 9 before training, with what is there; no bus error later"),
    "P11": ("what a killed run leaves behind", "nothing: no process, no shared memory, no temporary file"),
    "P21": (
        "an environment or a caller changes the process: random streams, handlers, switches of NumPy and torch",
        "the run trains and stops as without it, and after it all is as before",
    ),
    "P22": ("something else computes while one prediction is made", "one thread, and the number is put back"),
    "P23": (
        "a constructor, a reset, a step, a picture or a close hangs, or is slow",
        "one limit for all, named in a sentence; Ctrl-C waits for one step; the run is saved before anything is "
        "closed; no command is silent for 10 s",
    ),
    "D1": ("NaN or infinity in a reward or an observation", "as P3; it never reaches a rollout"),
    "D2": ("an answer of another shape or kind", "as P3, with what was expected and what came"),
    "D3": (
        "a loss or gradient that is not finite",
        "skipped and counted, nothing moves; more than 20 in a row end the run (6)",
    ),
    "D4": ("gradients or rollouts that are stale", "`--max-staleness` and `--max-lag` are never exceeded"),
    "D5": ("the same message twice, or out of order", "a slot is read once, in order: there is no other channel"),
    "D6": ("a learner that is slow", "queues are bounded: actors wait"),
    "D7": ("an unknown environment, a missing extra", "exit code 3, one line, the nearest name or what to install"),
    "D8": ("a space nobody can observe or act in", "exit code 3, naming it, before any process"),
    "D9": ("an environment of the old gym", "exit code 3, saying so"),
    "D10": ("a checkpoint of another model or environment", "exit code 4; nothing is partly loaded"),
    "D11": ("the clock jumps", "nothing but times in logs changes"),
    "F1": ("a crash at any point of a save", "the old checkpoint or the new one, never a mix"),
    "F2": (
        "the disk is full",
        "training goes on, the last checkpoint stays; the third save in a row that fails ends the run",
    ),
    "F3": (
        "a file that is cut, missing, or has a flipped bit",
        "always noticed; exit code 4, naming the newest good one",
    ),
    "F4": ("a hostile checkpoint", "refused in a sentence: nothing is run, nothing written, memory bounded"),
    "F5": ("a run directory that cannot be written", "exit code 5 before any process"),
    "F6": ("two runs in one directory", "the second ends with 5 and changes nothing; a killed one holds no lock"),
    "F7": ("a checkpoint of a newer format", "exit code 4: please upgrade"),
    "F8": ("a checkpoint that was downloaded", "as F4: polyactor itself downloads nothing"),
}


@dataclass
class Found:
    """What the tests of one fault say."""

    tests: set[str] = field(default_factory=set)
    cases: int = 0
    failed: int = 0
    skipped: int = 0
    values: dict[str, list[float]] = field(default_factory=dict)

    def add(self, test: str, outcome: str, properties: Sequence[tuple[str, object]]) -> None:
        """One case."""
        self.tests.add(test.partition("[")[0])
        self.cases += 1
        self.failed += outcome == "failed"
        self.skipped += outcome == "skipped"
        for name, value in properties:
            if isinstance(value, int | float):
                self.values.setdefault(name, []).append(float(value))

    def measured(self) -> str:
        """Median and range of each value, and how many cases there were."""
        said = [
            f"{name}: {short(statistics.median(each))} [{short(min(each))}–{short(max(each))}]"
            for name, each in self.values.items()
        ]
        state = "**FAILS**" if self.failed else "holds"
        skipped = f", {self.skipped} skipped" if self.skipped else ""
        return "; ".join([*said, f"{state}, {self.cases} case{'s' * (self.cases > 1)}{skipped}"])


def short(value: float) -> str:
    """Three figures."""
    return f"{value:,.0f}" if value == int(value) else f"{value:.3g}"


def write(path: Path, found: Mapping[str, Found]) -> None:
    """The table."""
    lines = [
        "# What can go wrong, and what then happens",
        "",
        "Written by `pytest -m fault --write-faults`, which injects every fault; of each figure the median of all",
        f"cases and the range. Last written with Python {platform.python_version()} on {os.cpu_count()} CPU cores.",
        "",
        "| | fault | promise | measured | tests |",
        "|---|---|---|---|---|",
    ]
    for name, (fault, promise) in FAULTS.items():
        each = found.get(name, Found())
        tests = ", ".join(f"`{test}`" for test in sorted(each.tests))
        lines.append(f"| {name} | {fault} | {promise} | {each.measured() if each.cases else 'not tested'} | {tests} |")
    path.write_text("\n".join(lines) + "\n")
