"""What this machine can do at most: matrix products, emulator, inference, training, and the rooflines they make.

python benchmarks/limits.py --game pong --net a3c
python benchmarks/limits.py --net nature --rounds 5 --seconds 1

Nothing of polyactor is used: plain torch, one process with one thread per core, all measured together. The machine's
speed drifts, so everything is measured anew in every round, and a round's rooflines are made of its own rates. What is
shown is the median [min–max] of the rounds; a part's best batch and variant are those of the best median.

A roofline is the rate of a perfect actor-critic, with no other work and nobody ever waiting. An agent step costs
  A3C     one step of the emulator, one pass to act, one forward and backward pass to learn;
  reused  the same, but acting's pass serves learning too, which is the backward pass alone;
  PPO     one step of the emulator, one pass to act, one for the targets, a forward and backward pass per epoch;
          and, with "4 × 128", the same with targets from acting's pass, acting on 4 images and learning from 128.
Each part is at its own best, but for those sizes, also where no program could have both (`reused` with two variants). A
default run ends before any game does, so resets are not in it. "backward" is timed inside "learn": what is left of a
pass after its forward half, from the loss to the optimizer's step.
"""

from __future__ import annotations

import argparse
import ctypes
import functools
import itertools
import json
import multiprocessing
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime
from importlib.metadata import version
from multiprocessing.connection import Connection
from multiprocessing.synchronize import Barrier
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results"
NETS = {
    "a3c": (((16, 8, 4), (32, 4, 2)), 2592, 256),
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 3136, 512),
}
VARIANTS = ("fp32", "fp32 channels-last", "bf16 channels-last", "bf16 autocast")
PRECISIONS = ("fp32", "bf16")
MULTIPLYING, EMULATING = (1024, 2048), (64,)
ACTING, LEARNING = (4, 8, 16, 32, 64, 128), (80, 128, 160, 320, 640)
"""Batch sizes."""
ACTIONS = 6

Once = Callable[[], float]
"""One pass; gives the seconds of it that were a forward pass before learning."""


class Task(NamedTuple):
    """What to measure."""

    kind: str
    what: str
    variant: str
    batch: int


class Net(nn.Module):
    """Convolutions, a dense layer, policy and value."""

    def __init__(self, name: str) -> None:
        super().__init__()
        convolutions, flat, dense = NETS[name]
        layers: list[nn.Module] = []
        channels = 4
        for filters, kernel, stride in convolutions:
            layers += [nn.Conv2d(channels, filters, kernel, stride), nn.ReLU()]
            channels = filters
        self.torso = nn.Sequential(*layers, nn.Flatten(), nn.Linear(flat, dense), nn.ReLU())
        self.heads = nn.Linear(dense, ACTIONS + 1)

    def forward(self, x: Tensor) -> Tensor:
        """``[N, 4, 84, 84]`` to policy and value ``[N, A + 1]``."""
        out: Tensor = self.heads(self.torso(x).float())
        return out


def emulate(game: str, variant: str, batch: int) -> Once:
    """One step of `batch` emulators on one thread."""
    from ale_py.vector_env import AtariVectorEnv

    envs = AtariVectorEnv(game=game, num_envs=batch, num_threads=1)
    envs.reset(seed=0)
    count = envs.single_action_space.n  # type: ignore[attr-defined]
    actions = itertools.cycle(np.random.default_rng(0).integers(0, count, (16, batch)))

    def once() -> float:
        envs.step(next(actions))
        return 0.0

    return once


def prepared(net: str, variant: str, batch: int) -> tuple[Net, Tensor, bool]:
    """The network and its images in this variant."""
    model, images = Net(net), torch.randint(0, 256, (batch, 4, 84, 84), dtype=torch.uint8)
    if "channels-last" in variant:
        images = images.contiguous(memory_format=torch.channels_last)
        model.torso = model.torso.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    if variant.startswith("bf16 channels"):
        model.torso = model.torso.to(torch.bfloat16)
    return model, images, variant == "bf16 autocast"


def scaled(images: Tensor, variant: str) -> Tensor:
    """Bytes to [0, 1]."""
    return images.to(torch.bfloat16 if variant.startswith("bf16 channels") else torch.float32).mul_(1 / 255)


def infer(net: str, variant: str, batch: int) -> Once:
    """One pass to act."""
    model, images, autocast = prepared(net, variant, batch)

    def once() -> float:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(scaled(images, variant))
        return 0.0

    return once


def learn(net: str, variant: str, batch: int) -> Once:
    """Forward, backward, and a step of RMSprop on one flat vector."""
    model, images, autocast = prepared(net, variant, batch)
    size = sum(p.numel() for p in model.parameters())
    theta, square, flat = torch.zeros(size), torch.ones(size), torch.zeros(size)

    def once() -> float:
        start = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(scaled(images, variant))
        forward = time.perf_counter() - start
        loss = out[:, :-1].log_softmax(-1).mean() + out[:, -1].square().mean()
        model.zero_grad()
        loss.backward()
        torch.cat([p.grad.flatten().float() for p in model.parameters() if p.grad is not None], out=flat)
        square.mul_(0.99).addcmul_(flat, flat, value=0.01)
        theta.addcdiv_(flat, square.add(1e-5).sqrt_(), value=-1e-6)
        return forward

    return once


def multiply(what: str, variant: str, batch: int) -> Once:
    """A product of two square matrices."""
    a, b = (torch.randn(batch, batch, dtype=torch.bfloat16 if variant == "bf16" else torch.float32) for _ in range(2))

    def once() -> float:
        torch.mm(a, b)
        return 0.0

    return once


WORK = {"multiply": multiply, "emulate": emulate, "infer": infer, "learn": learn}


@functools.cache
def work(task: Task) -> Once:
    """Made once, passed through once, and kept for all rounds: a reset of the emulators takes seconds."""
    once = WORK[task.kind](task.what, task.variant, task.batch)
    once()
    return once


def worker(tasks: Connection, barrier: Barrier, seconds: float) -> None:
    """One core: sends passes per second of every task, with and without the forward passes before learning."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # keep big blocks: see docs/performance.md
        for name, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 1 << 26)):
            mallopt(name, value)
    torch.set_num_threads(1)
    with suppress(EOFError):  # no more tasks
        while True:
            once = work(tasks.recv())
            once()  # the caches hold what ran before
            barrier.wait()
            passes, forward, start = 0, 0.0, time.perf_counter()
            while (elapsed := time.perf_counter() - start) < seconds:
                forward += once()
                passes += 1
            tasks.send((passes / elapsed, passes / (elapsed - forward)))


def plan(game: str, net: str) -> list[Task]:
    """A round's tasks; all kinds take turns, so that drift within the round meets all of them."""
    kinds = (
        [Task("multiply", "", variant, size) for variant in PRECISIONS for size in MULTIPLYING],
        [Task("emulate", game, "", batch) for batch in EMULATING],
        [Task("infer", net, variant, batch) for variant in VARIANTS for batch in ACTING],
        [Task("learn", net, variant, batch) for variant in VARIANTS for batch in LEARNING],
    )
    return [task for _, task in sorted(((i + 0.5) / len(kind), task) for kind in kinds for i, task in enumerate(kind))]


def measure(tasks: list[Task], rounds: int, seconds: float, processes: int) -> dict[Task, list[float]]:
    """Rates of all processes together in every round, per second; "backward" comes from "learn"."""
    context = multiprocessing.get_context("spawn")
    barrier, connections = context.Barrier(processes, timeout=120), []
    for _ in range(processes):
        ours, theirs = context.Pipe()
        context.Process(target=worker, args=(theirs, barrier, seconds), daemon=True).start()
        theirs.close()  # or a worker's death would not end our recv
        connections.append(ours)
    rates: dict[Task, list[float]] = {}
    for number in range(rounds):
        start = time.perf_counter()
        for task in tasks:
            for connection in connections:
                connection.send(task)
            whole, backward = (sum(each) for each in zip(*(c.recv() for c in connections), strict=True))
            amount = 2 * task.batch**3 if task.kind == "multiply" else task.batch
            rates.setdefault(task, []).append(whole * amount)
            if task.kind == "learn":
                rates.setdefault(task._replace(kind="backward"), []).append(backward * amount)
        print(f"round {number + 1} of {rounds}: {time.perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
    return rates


def cpu_name() -> str:
    """As the system gives it, never empty."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def spread(values: list[float], form: str = ",.0f") -> str:
    """Median [min–max]."""
    return f"{statistics.median(values):{form}} [{min(values):{form}}–{max(values):{form}}]"


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="pong")
    parser.add_argument("--net", default="a3c", choices=NETS)
    parser.add_argument("--seconds", type=float, default=0.5, help="of each measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=4, help="of PPO")
    options = parser.parse_args()
    date, processes = datetime.now(UTC).isoformat(timespec="seconds"), len(os.sched_getaffinity(0))
    versions = {"torch": torch.__version__, "ale_py": version("ale-py")}
    shown = ", ".join(f"{name} {number}" for name, number in versions.items())
    print(f"{cpu_name()}, {processes} processes of one thread, {options.game}, {options.net}, {shown}", flush=True)
    rates = measure(plan(options.game, options.net), options.rounds, options.seconds, processes)

    ranked = sorted(rates, key=lambda task: statistics.median(rates[task]))  # of those under one key the best is last
    of_variant = {(task.kind, task.variant): task for task in ranked}
    of_precision = {(task.kind, task.variant[:4]): task for task in ranked}
    for kind, variant in itertools.product((*WORK, "backward"), dict.fromkeys(("", *PRECISIONS, *VARIANTS))):
        if task := of_variant.get((kind, variant)):
            scale, unit = (1e9, "GFLOP/s") if kind == "multiply" else (1, "agent steps/s")
            print(f"{kind:<10}{variant:<22}{spread([r / scale for r in rates[task]]):>26} {unit}, at {task.batch}")

    rooflines: dict[str, dict[str, list[float]]] = {}
    # Passes of each kind for every step, in batches of this size, or (0) of the best one.
    passes = {"A3C": {"infer": (1, 0), "learn": (1, 0)}, "reused": {"infer": (1, 0), "backward": (1, 0)}}
    ppo = f"PPO, {options.epochs} epochs"
    passes[ppo] = {"infer": (2, 0), "learn": (options.epochs, 0)}
    passes[f"{ppo}, 4 × 128"] = {"infer": (1, 4), "learn": (options.epochs, 128)}
    of_size = {(task.kind, task.variant[:4], task.batch): task for task in ranked}
    emulator = rates[of_precision["emulate", ""]]
    for precision, (method, counts) in itertools.product(PRECISIONS, passes.items()):
        parts = [
            (count, rates[of_size[kind, precision, size] if size else of_precision[kind, precision]])
            for kind, (count, size) in counts.items()
        ]
        roofline = [1 / (1 / e + sum(count / rate[r] for count, rate in parts)) for r, e in enumerate(emulator)]
        ratio = [rate / e for rate, e in zip(roofline, emulator, strict=True)]
        rooflines[f"{method} {precision}"] = {"rates": roofline, "ratios": ratio}
        shown_ratio = f"{spread(ratio, '.3f')} of the emulator alone"
        print(f"roofline  {method + ' ' + precision:<22}{spread(roofline):>26} agent steps/s, {shown_ratio}")

    about = {
        "command": shlex.join(["python", "benchmarks/limits.py", *sys.argv[1:]]),
        "date": date,
        "cpu": cpu_name(),
        "cores": processes,
        "versions": versions,
        **vars(options),
    }
    raw = {" ".join(filter(None, (t.kind, t.variant, str(t.batch)))): r for t, r in rates.items()}
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"limits-{options.game}-{options.net}.json"
    path.write_text(json.dumps({**about, "rates": raw, "rooflines": rooflines}, indent=1) + "\n")
    print(path)


if __name__ == "__main__":
    main()
