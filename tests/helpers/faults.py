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
        "3 times at most, then the run ends with its own words, in 15 s, over Ray in 30 s",
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
    "P6": (
        "SIGTERM, SIGINT or SIGHUP",
        "the run is saved and ends with 75; a second SIGTERM or SIGINT ends it at once (143, 130)",
    ),
    "P7": ("a worker is stopped for a while, or slow", "it is not taken for dead; the others go on (not in lockstep)"),
    "P8": ("a worker joins or leaves a run", "who comes back plays games of its own; who is gone is not waited for"),
    "P9": ("a process is killed for its memory", "as P1, with a hint; again and again: exit code 9"),
    "P10": ("/dev/shm is too small", "exit code 9 before training, with what is there; no bus error later"),
    "P11": ("what a killed run leaves behind", "nothing: no process, no shared memory, no temporary file"),
    "P12": (
        "workers cannot be started as usual: a script without a guard or a file, a long TMPDIR, a daemonic process",
        "they are started in another way, or a sentence names the way out before there is a file",
    ),
    "P13": (
        "standard streams are closed, full, gone or not UTF-8",
        "the exit code is that of the work, and no line is written into a file of the run",
    ),
    "P14": (
        "an environment has begun processes of its own, such as a simulator",
        "who ends a worker ends them, however it ends; in the run's own process (`sync`) those that its environments "
        "began end with it, unless it is killed by SIGKILL",
    ),
    "P15": (
        "an environment or a caller changes the process: random streams, handlers, switches of NumPy and torch",
        "the run trains and stops as without it, and after it all is as before",
    ),
    "P16": ("something else computes while one prediction is made", "one thread, and the number is put back"),
    "P17": (
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
    "D12": (
        "an end that is neither true nor false, such as the text False; a number that the space's dtype cannot hold",
        "as P3, with what came",
    ),
    "D13": (
        "images with channels first or last, of few pixels, with two or four axes, or in parts of an observation",
        "a CNN on the right axis, or an MLP with a word; an axis that cannot be told is asked for (exit code 2)",
    ),
    "D14": (
        "a space with an odd dtype or odd bounds, empty or huge, no space at all, odd metadata",
        "actions in the space's own dtype; what cannot be trained in is refused in a sentence (exit code 3)",
    ),
    "D15": (
        "a value of another kind: 1e4, a number of NumPy or torch, a list, a path, a text",
        "made what its setting is, or refused in a sentence before anything exists; what is written can be read",
    ),
    "D16": (
        "an environment handed over as an object, a lambda, a callable that cannot be copied",
        "trained in as it is, or refused in a sentence that says what to hand over; names that can be typed",
    ),
    "D17": ("numbers whose squares float32 cannot hold", "exit code 6, naming them, their size and the way out"),
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
    "F9": (
        "an environment, or its module, that changes the working directory",
        "every file lies where --out says; the directory is put back",
    ),
    "F10": (
        "an environment in a file, or in a module called like an installed one",
        "found by its path, or in this directory first; else the sentence says which module was imported",
    ),
    "F11": (
        "a run that is to go on to a total it has reached, with other settings, or with a longer schedule",
        "refused with the way out (exit code 2); a coefficient that jumps is said",
    ),
    "S1": (
        "a film, curve, evaluation or confirmation fails, or what it is given to draw or read is odd",
        "it costs only itself: an event and a line with the reason, and the run ends as it would have",
    ),
    "S2": (
        "games without end, or in which nothing changes for long",
        "they are evaluated as they are; what Atari's limits or a flag cut is said; after `--evaluate.timeout` an "
        "evaluation ends and confirms nothing; films are bounded",
    ),
    "S3": (
        "an environment of which few copies may exist at once",
        "an evaluation makes no more than a worker has; `--evaluate.envs` sets it, 0 included",
    ),
    "M1": (
        "a machine of a cluster is killed, or its raylet, or it is silent for `--ray.lease`",
        "its worker is replaced on another machine within 10 s, 20 s, or 10 s after the lease, and nothing it sends "
        "later is read; where none has room that is said, and the others go on until a machine is added",
    ),
    "M2": (
        "the head of a cluster is lost",
        "the run is saved and ends with 8 within 30 s; it goes on over another cluster, or on one machine",
    ),
    "M3": ("the link to a machine is cut for 20 s, or slow", "nothing is lost; sampling again within 5 s"),
    "M4": (
        "a cluster that cannot be joined or trusted, a machine with other versions or without a module",
        "exit code 8 naming it, before there is a run, or before any rollout; 2 where there is no token",
    ),
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
