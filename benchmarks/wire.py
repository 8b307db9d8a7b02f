"""How many bytes does an agent step cost between machines, and how many workers can a link and a run carry?

python benchmarks/wire.py --write

Plays the roles of a scheme in turns, one worker, with the code that a run over Ray has. Bytes are those of the letters
that the worker writes and of the parameters that it is given, pickled, and of Ray's calls. Processor time of the
worker's role, and of the run's (unpickling, decoding, and what the scheme's main role does), is that of one core of
this machine; Ray's own is not in it. `--write` puts the table into docs/many-machines.md.
"""

from __future__ import annotations

import argparse
import json
import pickle
import statistics
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from polyactor.agent.parts import Parts
from polyactor.agent.sharing import Sharing
from polyactor.config import Config
from polyactor.data.wire import Wire, decode, encode
from polyactor.envs import env_spec
from polyactor.settings.presets import base_config
from polyactor.shared.slot_queue import WakeUp
from polyactor.system.host import cpu_name, versions
from polyactor.system.machine import torch_threads, tune_allocator

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "benchmarks" / "results", ROOT / "docs" / "many-machines.md"
BEGIN, END = "<!-- table: wire -->\n", "<!-- end -->"
LINK = 0.94e9 / 8
"""Bytes that a link of 1 Gbit/s moves in a second each way: 1,448 of every 1,538 on an Ethernet are data."""
CALL_UP, CALL_DOWN = 1_000, 1_200
"""Bytes that Ray itself sends with each letter, and with each call for one."""
HEAD = (
    "| network, preset | wire | steps | up | down | workers at 1 Gbit/s | at 10 Gbit/s | at one core of the run "
    "| binds first |\n|---|---|---|---|---|---|---|---|---|"
)
PONG, CARTPOLE = "PongNoFrameskip-v4", "CartPole-v1"
ROWS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("A3C network, `pong-a3c-server`", "pong-a3c-server", {}),
    ("the same, `--envs 32`", "pong-a3c-server", {"envs": 32}),
    ("Nature CNN, `--envs 32`", "pong-a3c-server", {"envs": 32, "torso": "nature-cnn"}),
    ("A3C network, `pong-appo`", "pong-appo", {}),
    ("Nature CNN, `pong-appo --envs 32`", "pong-appo", {"envs": 32, "torso": "nature-cnn"}),
    ("A3C network, `impala`", "impala", {"env": PONG}),
    ("MLP, `a3c-server --env CartPole-v1`", "a3c-server", {"env": CARTPOLE}),
    ("MLP, `appo --env CartPole-v1`", "appo", {"env": CARTPOLE}),
)


@dataclass(frozen=True)
class Cost:
    """What one letter of a worker costs.

    Attributes:
        steps: agent steps that the letter is of, T · B.
        up: bytes of the letter, with Ray's own.
        down: bytes of θ and the running statistics, which the worker is given for each letter, with Ray's own.
        worker: µs of processor time of a step in the worker.
        run: µs of processor time of a step in the run's own process.
    """

    steps: int
    up: int
    down: int
    worker: float
    run: float

    def by_link(self, gbit: float) -> float:
        """Return how many workers, each at the speed of one core here, a link of the run carries."""
        return gbit * LINK / (max(self.up, self.down) / self.steps * 1e6 / self.worker)

    @property
    def by_run(self) -> float:
        """Return how many workers, each at the speed of one core here, one core of the run keeps up with."""
        return self.worker / self.run


def main() -> None:
    """Measure, print, keep, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--letters", type=int, default=6, help="letters that are timed in each row")
    parser.add_argument("--write", action="store_true", help="put the table into docs/many-machines.md")
    options = parser.parse_args()
    tune_allocator()
    lines, kept = [], []
    print(HEAD)
    for label, name, values in ROWS:
        config = configured(name, values)
        for wire, found in costs(config, options.letters).items():
            lines.append(line(label, wire, found))
            print(lines[-1], flush=True)
            kept.append({"row": label, "wire": wire, "scheme": config.scheme.name, **vars(found)})
    RESULTS.mkdir(exist_ok=True)
    result = {"rows": kept, "cpu": cpu_name(), "versions": versions()}
    (RESULTS / "wire.json").write_text(json.dumps(result, indent=1) + "\n")
    if options.write:
        before, _, rest = PAGE.read_text().partition(BEGIN)
        PAGE.write_text(before + BEGIN + "\n".join([HEAD, *lines]) + "\n" + END + rest.partition(END)[2])


def line(label: str, wire: Wire, found: Cost) -> str:
    """Return a line of the table."""
    one, ten, run = found.by_link(1), found.by_link(10), found.by_run
    first = "the link" if ten < run else "the link at 1 Gbit/s, the run at 10" if one < run else "the run"
    up, down = found.up / found.steps, found.down / found.steps
    return (
        f"| {label} | {wire} | {found.steps:,} | {up:,.0f} | {down:,.0f} | {one:,.1f} | {ten:,.0f} | {run:,.1f} "
        f"| {first} |"
    )


def configured(name: str, values: dict[str, Any]) -> Config:
    """Return the config of a preset with other values, for one worker without a run directory."""
    values = dict(values)
    torso = values.pop("torso", None)
    config = base_config(name, env=values.pop("env", None))
    if torso is not None:
        config = replace(config, model=replace(config.model, torso=torso))
    return replace(config, workers=1, steps=1 << 40, out=None, **values)


def costs(config: Config, letters: int = 1) -> dict[Wire, Cost]:
    """Play so many letters of one worker, after two to begin with, and return what one costs in fp32 and in bf16."""
    steps = config.rollout * config.envs
    played: dict[Wire, list[tuple[float, float]]] = {"fp32": [], "bf16": []}
    up, down = dict.fromkeys(played, 0), dict.fromkeys(played, 0)
    with torch_threads(1):
        parts = Parts.fresh(config, env_spec(config.env, atari=config.atari))
        split = parts.state.layout.split(parts.state.vector)
        with config.scheme.roles(parts, Sharing(parts, wake_up=WakeUp())) as roles:
            slots, places, _ = roles.shared
            assert roles.work is not None
            work = roles.work(0, parts, *roles.shared)
            for _ in range(letters + 2):
                began, slot, filled = time.process_time(), slots.latest(0), slots.filled(0)
                while slots.filled(0) == filled:
                    next(work)
                worked, named, report = (
                    time.process_time() - began,
                    places.place(0, slot).named(),
                    parts.counters.report(0),
                )
                wired = {wire: travelled(named, report, wire) for wire in played}
                began = time.process_time()
                while slots.waiting(0):
                    next(roles.main)
                applied = time.process_time() - began
                for wire, (size, wrote, read) in wired.items():
                    up[wire] = max(up[wire], size)
                    played[wire].append((worked + wrote, read + applied))
            work.close()
            roles.main.close()
        for wire in played:
            down[wire] = len(pickle.dumps((encode(split, wire), parts.counters.order(0)), protocol=5))
    found = {}
    for wire, times in played.items():
        worker, run = (1e6 * statistics.median(each) / steps for each in zip(*times[2:], strict=True))
        found[wire] = Cost(steps, up[wire] + CALL_UP, down[wire] + CALL_DOWN, worker, run)
    return found


def travelled(named: Mapping[str, Tensor], report: Any, wire: Wire) -> tuple[int, float, float]:
    """Return the bytes of a letter, and the seconds of processor time to write and to read it."""
    began = time.process_time()
    letter = pickle.dumps((encode(named, wire), report), protocol=5)
    wrote = time.process_time() - began
    decode(pickle.loads(letter)[0], {name: tensor.clone() for name, tensor in named.items()})
    return len(letter), wrote, time.process_time() - began - wrote


if __name__ == "__main__":
    main()
