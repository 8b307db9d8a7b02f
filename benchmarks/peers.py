"""Training speed of polyactor beside other libraries: the same game, network, rollout, batch and epochs.

python benchmarks/peers.py a3c-nature --seconds 15 --rounds 3

and, in the row "scaling", beside itself with half the workers.

Every library has a virtual environment of its own in ``benchmarks/.venvs``, made from the pins in ``benchmarks/peers``,
which are for Python 3.11 on Linux (without torch's package index for the CPU, torch brings several GB of CUDA), and a
driver there that trains and prints how many agent steps its updates have consumed. Rates are measured from outside, by
those lines and one clock, after a warm-up. The contestants of a row take turns in every round, since a machine's speed
drifts: compare ratios, not rates of different rows. Where a contestant has several settings, the table has the one with
the best median and the JSON file in ``benchmarks/results`` has all of them.

What is the same: PongNoFrameskip-v4 as 84 × 84 × 4 bytes (floats in RLlib), four frames a step, no sticky actions,
pixels divided by 255, no running normalisation of observations, returns or rewards; networks with as many weights; and
the allocator that keeps big blocks (polyactor sets it itself, the others get glibc's environment variables).

What is not: every library has its own Atari preprocessing (RLlib: Gymnasium's, which is faster than its own); Sample
Factory and Stable-Baselines3 end an episode when a life is lost, which Pong does not have; learning rates and clipping
are each library's own; bf16 is polyactor's alone; and polyactor's threads sleep between two passes, as its command line
has it (OMP_WAIT_POLICY), where the others' have torch's default.

Left out: CleanRL (its package is for Python below 3.11, and its newer files are in no package), PufferLib (its package
downloads other things when it is built), TorchRL (its trainers are marked experimental and are put together from
environments, collector, network and loss, so the speed would be that of our choices).
"""

from __future__ import annotations

import argparse
import ctypes
import json
import math
import os
import platform
import queue
import shlex
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import venv
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, NoReturn

HERE = Path(__file__).resolve().parent
DRIVERS, VENVS, RESULTS = HERE / "peers", HERE / ".venvs", HERE / "results"

WARM_UP = 5.0
"""Seconds from the first steps until the measurement begins."""
PATIENCE = 180.0
"""Seconds without a line after which a driver is given up."""
GRACE = 5.0
"""Seconds that processes have to end by themselves."""
LAST_LINES = 20
"""Of stderr, shown when a driver fails."""
SHARED_MEMORY_MANAGER = "torch_shm_manag"
"""torch's process that removes shared memory when those who used it have ended, as the kernel shortens its name."""
PR_SET_CHILD_SUBREAPER = 36

ALLOCATOR = {
    "MALLOC_MMAP_THRESHOLD_": "2000000000",
    "MALLOC_TRIM_THRESHOLD_": "8000000000",
    "MALLOC_TOP_PAD_": "268435456",
}
ENVIRONMENT = {
    "polyactor": {"PYTHONPATH": str(HERE.parent / "src"), "OMP_WAIT_POLICY": "PASSIVE"},
    "rllib": {**ALLOCATOR, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"},
    "sample_factory": ALLOCATOR,
    "sb3": ALLOCATOR,
}
"""Of drivers."""

Settings = Mapping[str, Any]


@dataclass(frozen=True)
class Contestant:
    """A line of the table.

    Attributes:
        name: what it is shown as.
        peer: its driver and its pins, by file name.
        settings: what the driver is told, by a name for each choice.
        against: the contestant of the same row whose rate its own is divided by.
        precision: of the network.
    """

    name: str
    peer: str
    settings: Mapping[str, Settings]
    against: str
    precision: str = "fp32"


@dataclass(frozen=True)
class Measurement:
    """One window.

    Attributes:
        rate: agent steps per second.
        pss_mib: proportional size of the process tree before the window and after it, the larger; with this allocator
            no process shrinks, so it is the peak.
        busy_cores: processor seconds of the process tree per second.
        start_s: from the start of the driver to the first steps.
        lines: (seconds, steps) of the window, from the first to the last line.
    """

    rate: float
    pss_mib: float
    busy_cores: float
    start_s: float
    lines: list[tuple[float, int]]


class PeerFailed(Exception):
    """A sentence, and the last lines of the driver's stderr."""

    def __init__(self, sentence: str, said: str = "") -> None:
        super().__init__(sentence)
        self.said = said


class DriverEnded(PeerFailed):
    """By itself, without an error."""


# -- rows ----------------------------------------------------------------------------------------------------------


def polyactor(name: str, against: str, precision: str, *flags: str) -> Contestant:
    """Training with the flags of `polyactor train`."""
    return Contestant(name, "polyactor", {"": {"flags": [*flags, "--precision", precision]}}, against, precision)


def appo(precision: str) -> Contestant:
    """Actors and a learner, in two arrangements: one process more than cores, or as many."""
    choices = {
        f"actors {actors} × {envs}": {
            "flags": [*APPO_NATURE, "--workers", str(actors), "--envs", str(envs), "--precision", precision]
        }
        for actors, envs in ((2, 16), (1, 32))
    }
    return Contestant("polyactor APPO", "polyactor", choices, "Sample Factory APPO", precision)


def alone(name: str, against: str, env: str) -> Contestant:
    """The environments without an agent, a process for each core."""
    settings = {"flags": ["a2c", "--env", env], "environments_alone": True}
    return Contestant(name, "polyactor", {"": settings}, against, "–")


def sb3(name: str, algorithm: str, env: str, envs: int, **values: Any) -> Contestant:
    """Stable-Baselines3 with one and with two torch threads; it is what the others are divided by."""
    settings = {"algorithm": algorithm, "env": env, "envs": envs, "values": values}
    choices = {f"threads {threads}": {**settings, "threads": threads} for threads in (1, 2)}
    return Contestant(name, "sb3", choices, name)


def rllib(name: str, against: str, **settings: Any) -> Contestant:
    """RLlib with 32 environments, in three arrangements."""
    choices = {
        f"runners {runners} × {envs}, threads {threads}": {
            **settings,
            "batch": 1024,
            "runners": runners,
            "envs": envs,
            "threads": threads,
        }
        for runners, envs, threads in ((2, 16, 1), (2, 16, 2), (1, 32, 2))
    }
    return Contestant(name, "rllib", choices, against)


PONG, CARTPOLE, CHEETAH = "PongNoFrameskip-v4", "CartPole-v1", "HalfCheetah-v5"

NATURE = ("--env", PONG, "--model.torso", "nature-cnn", "--normalize.no-observation")
A3C_NATURE = ("a3c", *NATURE, "--optimizer", "rmsprop", "--workers", "2", "--envs", "32", "--rollout", "10")
PPO_NATURE = (
    *("ppo", *NATURE, "--scheme", "param-server", "--scheme.apply", "mean"),
    *("--workers", "2", "--envs", "4", "--rollout", "128"),
    *("--algorithm.epochs", "4", "--algorithm.minibatches", "4"),
)
APPO_NATURE = ("appo", *NATURE, "--rollout", "32", "--algorithm.epochs", "2", "--algorithm.minibatches", "4")
APPO = {"rollout": 32, "minibatch": 256, "epochs": 2}
IMPALA_NATURE = ("impala", *NATURE, "--workers", "2", "--envs", "16", "--rollout", "32")

POLE = ("--env", CARTPOLE, "--envs", "8", "--model.no-share-torso", "--normalize.no-reward")
POLE_A2C = (*POLE, "--optimizer", "rmsprop", "--rollout", "5")
POLE_PPO = (*POLE, "--rollout", "32", "--algorithm.epochs", "10", "--algorithm.minibatches", "4")

RUN = (
    *("ppo", "--env", CHEETAH, "--model.no-share-torso", "--normalize.no-reward", "--normalize.no-observation"),
    *("--algorithm.epochs", "10", "--algorithm.minibatches", "32"),
)
RUN_SB3 = {"batch_size": 64, "n_epochs": 10}

ROWS: dict[str, list[Contestant]] = {
    "scaling": [
        Contestant(
            f"polyactor A3C, {workers} × {envs}",
            "polyactor",
            {"": {"flags": ["pong-a3c", "--precision", "bf16", "--workers", str(workers), "--envs", str(envs)]}},
            f"polyactor A3C, 1 × {envs}",
            "bf16",
        )
        for envs in (8, 32)
        for workers in (1, 2)
    ],
    "a3c-nature": [
        polyactor("polyactor A3C, 2 workers × 32, rollout 10", "SB3 A2C, 32, rollout 10", "bf16", *A3C_NATURE),
        polyactor("polyactor A3C, 2 workers × 32, rollout 10", "SB3 A2C, 32, rollout 10", "fp32", *A3C_NATURE),
        sb3("SB3 A2C, 32, rollout 10", "a2c", PONG, 32, n_steps=10),
        sb3("SB3 A2C, 16, rollout 5", "a2c", PONG, 16),  # its defaults
        alone("emulator alone", "SB3 A2C, 32, rollout 10", PONG),
    ],
    "ppo-nature": [
        # Gradients of both halves of a minibatch, averaged: the same update as with 8 in one process.
        polyactor("polyactor PPO, 2 workers × 4", "SB3 PPO, 8", "bf16", *PPO_NATURE),
        polyactor("polyactor PPO, 2 workers × 4", "SB3 PPO, 8", "fp32", *PPO_NATURE),
        sb3("SB3 PPO, 8", "ppo", PONG, 8, n_steps=128, batch_size=256, n_epochs=4),
        alone("emulator alone", "SB3 PPO, 8", PONG),
    ],
    "appo": [
        appo("bf16"),
        appo("fp32"),
        Contestant(
            "Sample Factory APPO",
            "sample_factory",
            {
                f"workers {workers} × {envs}, splits {splits}": {
                    **APPO,
                    "minibatches": 4,
                    "workers": workers,
                    "envs": envs,
                    "splits": splits,
                }
                for workers, envs, splits in ((2, 16, 2), (2, 32, 2), (4, 16, 2))
            },
            "Sample Factory APPO",
        ),
        rllib("RLlib APPO", "Sample Factory APPO", algorithm="appo", **APPO),
        polyactor("polyactor IMPALA, 2 actors × 16", "RLlib IMPALA", "bf16", *IMPALA_NATURE),
        polyactor("polyactor IMPALA, 2 actors × 16", "RLlib IMPALA", "fp32", *IMPALA_NATURE),
        rllib("RLlib IMPALA", "RLlib IMPALA", algorithm="impala", rollout=32, minibatch=None, epochs=1),
        alone("emulator alone", "Sample Factory APPO", PONG),
    ],
    "cartpole": [
        polyactor("polyactor A2C, 8", "SB3 A2C, 8", "fp32", "a2c", *POLE_A2C),
        polyactor("polyactor A2C, 8, compiled", "SB3 A2C, 8", "fp32", "a2c", *POLE_A2C, "--compile"),
        polyactor("polyactor A3C, 2 workers × 8", "SB3 A2C, 8", "fp32", "a3c", *POLE_A2C, "--workers", "2"),
        sb3("SB3 A2C, 8", "a2c", CARTPOLE, 8, n_steps=5),
        polyactor("polyactor PPO, 8", "SB3 PPO, 8", "fp32", "ppo", *POLE_PPO),
        polyactor(
            "polyactor PPO, hogwild, 2 workers × 8",
            "SB3 PPO, 8",
            "fp32",
            *("ppo", *POLE_PPO, "--scheme", "hogwild", "--workers", "2"),
        ),
        polyactor("polyactor PPO, 8, compiled", "SB3 PPO, 8", "fp32", "ppo", *POLE_PPO, "--compile"),
        sb3("SB3 PPO, 8", "ppo", CARTPOLE, 8, n_steps=32, batch_size=64, n_epochs=10),
    ],
    "halfcheetah": [
        polyactor("polyactor PPO, 1", "SB3 PPO, 1", "fp32", *RUN, "--envs", "1", "--rollout", "2048"),
        polyactor(
            "polyactor PPO, 1, compiled", "SB3 PPO, 1", "fp32", *RUN, "--envs", "1", "--rollout", "2048", "--compile"
        ),
        sb3("SB3 PPO, 1", "ppo", CHEETAH, 1, n_steps=2048, **RUN_SB3),
        polyactor("polyactor PPO, 8", "SB3 PPO, 8", "fp32", *RUN, "--envs", "8", "--rollout", "256"),
        polyactor(
            "polyactor PPO, 8, compiled", "SB3 PPO, 8", "fp32", *RUN, "--envs", "8", "--rollout", "256", "--compile"
        ),
        # Gradients of both halves of a minibatch, averaged: the same update as with 8 in one process.
        polyactor(
            "polyactor PPO, 2 workers × 4",
            "SB3 PPO, 8",
            "fp32",
            *(*RUN, "--scheme", "param-server", "--scheme.apply", "mean"),
            *("--workers", "2", "--envs", "4", "--rollout", "256"),
        ),
        polyactor(
            "polyactor PPO, hogwild, 2 workers × 8",
            "SB3 PPO, 8",
            "fp32",
            *(*RUN, "--scheme", "hogwild", "--workers", "2", "--envs", "8", "--rollout", "256"),
        ),
        sb3("SB3 PPO, 8", "ppo", CHEETAH, 8, n_steps=256, **RUN_SB3),
        alone("physics alone", "SB3 PPO, 8", CHEETAH),
    ],
}


# -- the command ---------------------------------------------------------------------------------------------------


def main() -> None:
    """Measure, print and keep each row."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("rows", nargs="*", metavar="ROW", help=f"{', '.join(ROWS)}; default all")
    parser.add_argument("--seconds", type=float, default=15.0, help="of each measurement, warm-up excluded")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    unknown = [name for name in options.rows if name not in ROWS]
    if unknown:
        parser.error(f"there is no row {unknown[0]}: choose from {', '.join(ROWS)}")
    adopt_orphans()
    signal.signal(signal.SIGTERM, interrupt)
    try:
        for name in options.rows or ROWS:
            keep(name, measure_row(ROWS[name], options.seconds, options.rounds), options)
    except PeerFailed as failure:
        print(failure.said, file=sys.stderr)
        sys.exit(f"peers: {failure}")
    except KeyboardInterrupt:
        sys.exit(130)


def interrupt(*_: object) -> NoReturn:
    """SIGTERM ends it as Ctrl-C does."""
    raise KeyboardInterrupt


Rounds = dict[tuple[int, str], list[Measurement]]
"""By contestant and name of its settings."""


def measure_row(row: list[Contestant], seconds: float, rounds: int) -> Rounds:
    """Everybody in turn, in rounds."""
    pythons = {contestant.peer: interpreter(contestant.peer) for contestant in row}
    found: Rounds = {(i, choice): [] for i, contestant in enumerate(row) for choice in contestant.settings}
    for number in range(rounds):
        for (i, choice), own in found.items():
            contestant = row[i]
            measured = measure(pythons[contestant.peer], contestant, choice, seconds)
            own.append(measured)
            shown = f"{contestant.name} {contestant.precision} {choice}"
            print(f"round {number + 1}  {shown:<60}{measured.rate:>10,.0f} steps/s", file=sys.stderr, flush=True)
    return found


def keep(name: str, found: Rounds, options: argparse.Namespace) -> None:
    """Print the table and write the file."""
    row = ROWS[name]
    best = {i: max(contestant.settings, key=lambda c: median(found[i, c])) for i, contestant in enumerate(row)}
    rates = {contestant.name: [m.rate for m in found[i, best[i]]] for i, contestant in enumerate(row)}
    print(f"\n{name}: {cpu_name()}, {len(os.sched_getaffinity(0))} cores")
    print(f"{'':<56}{'':<6}{'agent steps/s':>24}{'ratio':>24}{'MiB':>8}{'cores':>7}{'start s':>9}  ratio to")
    for i, contestant in enumerate(row):
        own = found[i, best[i]]
        ratios = [m.rate / other for m, other in zip(own, rates[contestant.against], strict=True)]
        print(
            f"{', '.join(filter(None, (contestant.name, best[i]))):<56}{contestant.precision:<6}"
            f"{spread([m.rate for m in own], ',.0f'):>24}{spread(ratios, '.3f'):>24}"
            f"{max(m.pss_mib for m in own):>8,.0f}{statistics.median(m.busy_cores for m in own):>7.2f}"
            f"{statistics.median(m.start_s for m in own):>9.1f}"
            f"  {contestant.against}"
        )
    said = {
        "row": name,
        "command": shlex.join(["python", *sys.argv]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "polyactor": commit(),
        "packages": {peer: packages(peer) for peer in dict.fromkeys(contestant.peer for contestant in row)},
        "warm_up_s": WARM_UP,
        "seconds": options.seconds,
        "contestants": [
            asdict(contestant)
            | {"best": best[i], "rounds": {c: [asdict(m) for m in found[i, c]] for c in contestant.settings}}
            for i, contestant in enumerate(row)
        ],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(said, indent=1, ensure_ascii=False) + "\n")


def median(measurements: list[Measurement]) -> float:
    """Of the rates."""
    return statistics.median(m.rate for m in measurements)


def spread(values: list[float], form: str) -> str:
    """Median, smallest and largest."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}–{max(values):{form}}]"


# -- one measurement -----------------------------------------------------------------------------------------------


def measure(python: Path, contestant: Contestant, choice: str, seconds: float) -> Measurement:
    """Start a driver, let it warm up, count its steps for so many seconds, end it with everything it started."""
    begin = time.perf_counter()
    with driver(python, contestant, choice) as lines:
        first = next(lines).at
        while next(lines).at - first < WARM_UP:
            pass
        size = proportional_mib()
        window = [next(lines)]
        busy = -processor_seconds()
        while window[-1].at - window[0].at < seconds:
            window.append(next(lines))
        busy += processor_seconds()
        size = max(size, proportional_mib())
    (start, before, _), (end, after, _) = window[0], window[-1]
    return Measurement(
        rate=(after - before) / (end - start),
        pss_mib=size,
        busy_cores=busy / (end - start),
        start_s=first - begin,
        lines=[(round(at - start, 4), steps) for at, steps, _ in window],
    )


class Heartbeat(NamedTuple):
    """When it came, the steps it says, and the score where it says one (NaN)."""

    at: float
    steps: int
    score: float


Lines = Iterator[Heartbeat]


@contextmanager
def driver(python: Path, contestant: Contestant, choice: str) -> Iterator[Lines]:
    """The lines of a driver that runs in a scratch folder, in a session of its own that Ctrl-C does not reach."""
    # Not on the module path (-P): a driver has the name of the library it imports.
    command = [str(python), "-P", str(DRIVERS / f"{contestant.peer}.py"), json.dumps(contestant.settings[choice])]
    environment = os.environ | ENVIRONMENT[contestant.peer]
    with tempfile.TemporaryDirectory(prefix="peers-", ignore_cleanup_errors=True) as scratch:
        log = Path(scratch) / "stderr"
        try:
            with log.open("w") as stderr:
                process = subprocess.Popen(
                    command,
                    cwd=scratch,
                    env=environment,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=stderr,
                    text=True,
                    start_new_session=True,
                )
            yield heard(process, f"{contestant.name} {choice}".strip(), log)
        finally:
            end_descendants()


def heard(process: subprocess.Popen[str], name: str, log: Path) -> Lines:
    """Steps, more in every line, and the time they were heard at.

    Raises:
        PeerFailed: the driver has ended, or says nothing.
    """
    lines: queue.SimpleQueue[Heartbeat | None] = queue.SimpleQueue()
    threading.Thread(target=listen, args=(process, lines), daemon=True).start()
    while True:
        try:
            line = lines.get(timeout=PATIENCE)
        except queue.Empty:
            raise PeerFailed(f"{name} has made no step for {PATIENCE:.0f} s", last_lines(log)) from None
        if line is None:
            kind = PeerFailed if process.wait() else DriverEnded
            raise kind(f"{name} ended before it was measured", last_lines(log))
        yield line


def listen(process: subprocess.Popen[str], lines: queue.SimpleQueue[Heartbeat | None]) -> None:
    """A thread's work, so that a line has the time at which it came; None is the end.

    A line that says no more than the one before is left out: windows begin and end with an update.
    """
    assert process.stdout is not None
    last = 0
    with process.stdout:
        for text in process.stdout:
            said = text.split()
            if said[:1] == ["steps"] and int(said[1]) > last:
                last = int(said[1])
                lines.put(Heartbeat(time.perf_counter(), last, float(said[3]) if "score" in said else math.nan))
    lines.put(None)


def last_lines(log: Path) -> str:
    """Of what a driver wrote to stderr."""
    return "\n".join(log.read_text(errors="replace").splitlines()[-LAST_LINES:])


# -- processes -----------------------------------------------------------------------------------------------------


def adopt_orphans() -> None:
    """Ask the kernel to make this process the parent of descendants whose parent ends, so that none is lost (Linux)."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1)


def descendants() -> list[int]:
    """Every process that was started from here, directly or not."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            parent = int(fields(folder.name)[1])
            children.setdefault(parent, []).append(int(folder.name))
    found = list(children.get(os.getpid(), []))
    for pid in found:  # grows while it is read
        found += children.get(pid, [])
    return found


def fields(pid: int | str) -> list[str]:
    """Of ``/proc/PID/stat``, those after the name: state, and so on."""
    return Path(f"/proc/{pid}/stat").read_text(errors="replace").rpartition(")")[2].split()


def end_descendants() -> None:
    """Ask them to end, and kill those that are left after `GRACE`."""
    killing = time.monotonic() + GRACE
    asked: set[int] = set()
    while pids := descendants():
        late = time.monotonic() > killing
        for pid in pids if late else set(pids) - asked:
            with suppress(OSError):
                if late or Path(f"/proc/{pid}/comm").read_text().strip() != SHARED_MEMORY_MANAGER:
                    os.kill(pid, signal.SIGKILL if late else signal.SIGTERM)
        asked.update(pids)
        with suppress(ChildProcessError):
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
        time.sleep(0.02)


def processor_seconds() -> float:
    """Of all descendants, and of their children that have ended."""
    ticks = 0
    for pid in descendants():
        with suppress(OSError):
            ticks += sum(int(value) for value in fields(pid)[11:15])  # utime, stime, cutime, cstime
    return ticks / os.sysconf("SC_CLK_TCK")


def proportional_mib() -> float:
    """Memory of all descendants; a page that n of them share counts 1/n for each."""
    kib = 0
    for pid in descendants():
        with suppress(OSError):
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
            kib += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return kib / 2**10


# -- virtual environments ------------------------------------------------------------------------------------------


def interpreter(peer: str) -> Path:
    """The Python of a peer, with its pins installed.

    Raises:
        PeerFailed: they cannot be installed.
    """
    folder = VENVS / peer
    python = folder / "bin" / "python"
    if not python.exists():
        print(f"{peer}: a virtual environment in {folder}", file=sys.stderr)
        venv.create(folder, with_pip=True)
    pins = DRIVERS / f"{peer}.txt"
    done = pip(python, "install", "--quiet", "--requirement", str(pins))
    if done.returncode:
        raise PeerFailed(f"the packages of {pins.name} could not be installed", done.stderr)
    return python


def packages(peer: str) -> dict[str, str]:
    """Name and version of everything that a peer's virtual environment has."""
    listing = pip(VENVS / peer / "bin" / "python", "list", "--format=json").stdout
    return {package["name"]: package["version"] for package in json.loads(listing)}


def pip(python: Path, *args: str) -> subprocess.CompletedProcess[str]:
    """One command of this interpreter's pip."""
    command = [str(python), "-m", "pip", "--disable-pip-version-check", *args]
    return subprocess.run(command, capture_output=True, text=True)


# -- the machine ---------------------------------------------------------------------------------------------------


def cpu_name() -> str:
    """As the system gives it."""
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.machine()


def commit() -> str:
    """Of the polyactor that was measured."""
    command = ["git", "-C", str(HERE), "describe", "--always", "--dirty"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


if __name__ == "__main__":
    main()
