"""How fast does a run over Ray begin, how many small letters does it take in, and what memory does a worker have?

python benchmarks/cluster.py
python benchmarks/cluster.py --pairs 5 --seconds 20

The second compares Pong over Ray with Pong without it: both train in turn with two workers, each in a process of its
own, and the ratios within a pair are printed. CPU is all that this machine spends meanwhile, so nothing else may run.

All on this machine. Letters have the size of gradients of a small MLP (19 kB). One worker sends the same one again and
again, and gets the newest parameters for each; then one sends gradients of one step of one environment. Memory is that
of the worker's process, shared pages in equal parts, with 2 and 64 workers in the config, of which one has a place.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from polyactor import transport
from polyactor.agent.parts import Parts
from polyactor.agent.sharing import Sharing
from polyactor.algorithms import A2C
from polyactor.config import Config, RayOptions, Role, Roles
from polyactor.envs import env_spec
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam
from polyactor.schemes import ActorLearner, ParamServer
from polyactor.settings.presets import base_config
from polyactor.shared.counters import Counter
from polyactor.shared.slot_queue import SlotQueue
from polyactor.storage.metrics_log import read_rows
from polyactor.system.host import cpu_name, resident_mb, versions
from polyactor.system.machine import tune_allocator

TURNS = 5
"""Rollouts after which a worker's memory is measured."""


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--seconds", type=float, default=10.0, help="for which letters, or steps of one run, are counted"
    )
    parser.add_argument("--pairs", type=int, default=0, help="compare Pong over Ray with Pong without it so many times")
    parser.add_argument("--measure", nargs=2, metavar=("METHOD", "TRANSPORT"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(pong(*options.measure, options.seconds)))
        return
    print(f"{cpu_name()}, torch {versions()['torch']}", flush=True)
    if options.pairs:
        for method in ("a3c-server", "appo"):
            compare(method, options.pairs, options.seconds)
        return
    print(f"first update {until_first_update():.1f} s after the command")
    from polyactor.transport.ray.cluster import joined

    with joined(RayOptions(), workers=1, room=0):
        ways: dict[str, ParamServer] = {f"at most {queue} on their way": Letters(queue=queue) for queue in (1, 2, 4)}
        for way, scheme in (ways | {"computed": ParamServer()}).items():
            letters, cpu, size = letters_per_second(scheme, options.seconds)
            print(f"{way}: {letters:,.0f} letters/s of {size / 1e3:.0f} kB, each {1e3 * cpu:.2f} ms of the run's CPU")
        few, many = (memory_mb(workers) for workers in (2, 64))
        print(f"a worker of 2 has {few:.0f} MiB, one of 64 has {many:.0f} MiB")


def compare(method: str, pairs: int, seconds: float) -> None:
    """Print how fast a method trains on Pong over Ray beside the same on one machine, and the CPU that a step takes."""
    speeds, costs = list[float](), list[float]()
    for pair in range(pairs):
        found = {}
        for transported in ("local", "ray") if pair % 2 else ("ray", "local"):
            command = [sys.executable, __file__, "--seconds", str(seconds), "--measure", method, transported]
            found[transported] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        (local, local_cpu), (ray, ray_cpu) = found["local"], found["ray"]
        speeds.append(ray / local)
        costs.append(ray_cpu / local_cpu)
        said = (
            f"{local:,.0f} and over Ray {ray:,.0f} steps/s; {local_cpu:.0f} and over Ray {ray_cpu:.0f} µs of CPU a step"
        )
        print(f"{method}: {said}", flush=True)
    for name, ratios in (("speed", speeds), ("CPU of a step", costs)):
        print(f"{method}: {name} over Ray {statistics.median(ratios):.3f} [{min(ratios):.3f}–{max(ratios):.3f}]")


def pong(method: str, transported: Any, seconds: float) -> tuple[float, float]:
    """Return the steps per second of two workers, and the microseconds of this machine's CPU that each step takes."""
    tune_allocator()
    config = replace(base_config(method, env="PongNoFrameskip-v4"), workers=2, steps=10**12, transport=transported)
    with training(config) as (run, parts, _):
        go_on(run, lambda: bool((parts.counters.table[:, Counter.TURNS] > 2 * TURNS).all()))
        start, spent, before = time.perf_counter(), machine_cpu(), parts.counters.steps
        go_on(run, lambda: time.perf_counter() - start > seconds)
        steps = parts.counters.steps - before
        return steps / (time.perf_counter() - start), 1e6 * (machine_cpu() - spent) / steps


def machine_cpu() -> float:
    """Return the seconds of CPU that this machine has spent in programs and in the kernel."""
    user, nice, system, *_ = map(int, Path("/proc/stat").read_text().split("\n")[0].split()[1:])
    return (user + nice + system) / os.sysconf("SC_CLK_TCK")


def until_first_update() -> float:
    """Return the seconds from the start of ``polyactor train … --transport ray`` to its first update."""
    flags = "a3c-server --env CartPole-v1 --transport ray --workers 2 --steps 1000000 --checkpoint-every 0 --quiet"
    with tempfile.TemporaryDirectory() as folder:
        start, out = time.perf_counter(), Path(folder) / "run"
        process = subprocess.Popen([sys.executable, "-m", "polyactor", "train", *flags.split(), "--out", str(out)])
        try:
            while not (out / "metrics.jsonl").exists() or not read_rows(out / "metrics.jsonl"):
                assert process.poll() is None, f"it ended with {process.returncode}"
                time.sleep(0.01)
            return time.perf_counter() - start
        finally:
            process.terminate()
            process.wait()


def config_of(scheme: Any, **values: Any) -> Config:
    """Return a config of CartPole that does not end by itself."""
    standard = Config(
        env="CartPole-v1", algorithm=A2C(), scheme=scheme, optimizer=Adam(), steps=10**12, transport="ray"
    )
    return replace(standard, **values)


@dataclass(frozen=True)
class Letters(ParamServer):
    """A parameter server without computing: a worker sends what lies in its slots, and the server counts an update."""

    @contextmanager
    def roles(self, parts: Parts, sharing: Sharing) -> Iterator[Roles]:
        """Give the roles: workers that send, and a main role that takes in."""
        shared = sharing.gradients(self.queue, 1)
        yield Roles(parts.config.workers, send, shared, main=take_in(parts, shared.slots), lost=shared.slots.lost)


def send(worker: int, _: Parts, slots: SlotQueue, *__: Any) -> Role:
    """Send a letter whenever there is room for one."""
    slots.arrive(worker)
    while True:
        while slots.free(worker) is None:
            yield slots.wake_ups[worker]
        slots.put(worker)
        yield None


def take_in(parts: Parts, slots: SlotQueue) -> Role:
    """Take letters in, and count an update for each, so that the worker is sent the parameters again."""
    while True:
        slots.admit()
        arrived = [i for i in range(parts.config.workers) if slots.waiting(i)]
        for i in arrived:
            parts.counters.count(i, Counter.UPDATES, 1)
            slots.release(i)
        yield None if arrived else slots.main


def letters_per_second(scheme: ParamServer, seconds: float) -> tuple[float, float, int]:
    """Return the letters that a run takes in per second from one worker, the seconds of its CPU, and the bytes of one.

    The seconds are those of all threads of the run's process, Ray's and the server's included.
    """
    config = config_of(scheme, workers=1, envs=1, rollout=1, model=ModelSpec(hidden=(64, 64)))
    with training(config) as (run, parts, _):
        go_on(run, lambda: parts.counters.version > 100)
        start, spent, before = time.perf_counter(), time.process_time(), parts.counters.version
        go_on(run, lambda: time.perf_counter() - start > seconds)
        count = parts.counters.version - before
        cpu = (time.process_time() - spent) / count
        return count / (time.perf_counter() - start), cpu, 4 * parts.state.layout.theta


def memory_mb(workers: int) -> float:
    """Return the memory in MiB of one worker that has a place, with that many workers in the config."""
    config = config_of(ActorLearner(max_lag=1), workers=workers, envs=32, rollout=20)
    with training(config) as (run, parts, begun):
        go_on(run, lambda: parts.counters.table[:, Counter.TURNS].sum() > TURNS)
        return resident_mb(begun[0]["pid"])


@contextmanager
def training(config: Config) -> Iterator[tuple[Any, Parts, list[dict[str, Any]]]]:
    """Train inside the with block; the third value gets the fields of each event that a worker has begun."""
    parts, begun = Parts.fresh(config, env_spec(config.environment)), list[dict[str, Any]]()

    def tell(event: str, reason: str = "", **fields: Any) -> None:
        begun.extend([fields] * (event == "worker_started"))

    run = transport.run(parts, tell)
    try:
        yield run, parts, begun
    finally:
        run.close()


def go_on(run: Any, until: Any) -> None:
    """Go on with a run until a condition holds."""
    while not until():
        next(run)


if __name__ == "__main__":
    main()
