"""What this machine can do at most: emulator, inference, training, matrix products, and the roofline they make.

python benchmarks/limits.py --game pong --net a3c
python benchmarks/limits.py --net nature --seconds 3

Nothing of polyactor is used: plain torch, one process with one thread per core, all measured together. The roofline is
the rate of a perfect actor-critic: per agent step one step of the emulator, one pass to act and one forward and
backward pass to learn, at the best variant of each, with no other work and nobody ever waiting.
"""

from __future__ import annotations

import argparse
import ctypes
import itertools
import json
import os
import platform
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torch.multiprocessing as multiprocessing
from torch import Tensor, nn

RESULTS = Path(__file__).parent / "results"
NETS = {
    "a3c": (((16, 8, 4), (32, 4, 2)), 2592, 256),
    "nature": (((32, 8, 4), (64, 4, 2), (64, 3, 1)), 3136, 512),
}
VARIANTS = ("fp32", "fp32 channels-last", "bf16 channels-last", "bf16 autocast")
ACTING, LEARNING = (8, 16, 32, 64, 128), (80, 160, 320, 640)
"""Batch sizes."""
ACTIONS = 6


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
        return self.heads(self.torso(x).float())


def emulate(game: str, variant: str, batch: int) -> Callable[[], int]:
    """One step of `batch` emulators on one thread."""
    import numpy as np
    from ale_py.vector_env import AtariVectorEnv

    envs = AtariVectorEnv(game=game, num_envs=batch, num_threads=1)
    envs.reset(seed=0)
    actions = itertools.cycle(np.random.default_rng(0).integers(0, ACTIONS, (16, batch)))

    def once() -> int:
        envs.step(next(actions))
        return batch

    return once


def prepared(net: str, variant: str, batch: int) -> tuple[Net, Tensor, bool]:
    """The network and its images in this variant."""
    model, images = Net(net), torch.randint(0, 256, (batch, 4, 84, 84), dtype=torch.uint8)
    if "channels-last" in variant:
        images = images.contiguous(memory_format=torch.channels_last)
        model.torso = model.torso.to(memory_format=torch.channels_last)
    if variant.startswith("bf16 channels"):
        model.torso = model.torso.to(torch.bfloat16)
    return model, images, variant == "bf16 autocast"


def scaled(images: Tensor, variant: str) -> Tensor:
    """Bytes to [0, 1]."""
    return images.to(torch.bfloat16 if variant.startswith("bf16 channels") else torch.float32).mul_(1 / 255)


def infer(net: str, variant: str, batch: int) -> Callable[[], int]:
    """One pass to act."""
    model, images, autocast = prepared(net, variant, batch)

    def once() -> int:
        with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            model(scaled(images, variant))
        return batch

    return once


def learn(net: str, variant: str, batch: int) -> Callable[[], int]:
    """Forward, backward, and a step of RMSprop on one flat vector."""
    model, images, autocast = prepared(net, variant, batch)
    size = sum(p.numel() for p in model.parameters())
    theta, square, flat = torch.zeros(size), torch.ones(size), torch.zeros(size)

    def once() -> int:
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(scaled(images, variant))
        loss = out[:, :-1].log_softmax(-1).mean() + out[:, -1].square().mean()
        model.zero_grad()
        loss.backward()
        torch.cat([p.grad.flatten().float() for p in model.parameters()], out=flat)
        square.mul_(0.99).addcmul_(flat, flat, value=0.01)
        theta.addcdiv_(flat, square.add(1e-5).sqrt_(), value=-1e-6)
        return batch

    return once


def multiply(net: str, variant: str, batch: int) -> Callable[[], int]:
    """A product of two square matrices; counts operations."""
    a, b = (torch.randn(batch, batch, dtype=torch.bfloat16 if variant == "bf16" else torch.float32) for _ in range(2))

    def once() -> int:
        torch.mm(a, b)
        return 2 * batch**3

    return once


WORK = {"emulate": emulate, "infer": infer, "learn": learn, "multiply": multiply}


def measure(process: int, task: tuple[str, str, str, int], seconds: float, rates: Tensor, barrier: object) -> None:
    """One process's rate, while the others measure theirs."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:  # keep big blocks: see docs/performance.md
        for name, value in ((-3, 1 << 30), (-1, (1 << 31) - 1), (-2, 1 << 26)):
            mallopt(name, value)
    torch.set_num_threads(1)
    kind, what, variant, batch = task
    once = WORK[kind](what, variant, batch)
    for _ in range(3):
        once()
    barrier.wait()  # type: ignore[attr-defined]
    done, start = 0, time.perf_counter()
    while time.perf_counter() - start < seconds:
        done += once()
    rates[process] = done / (time.perf_counter() - start)


def rate(task: tuple[str, str, str, int], seconds: float, processes: int) -> float:
    """Of all processes together, per second."""
    rates = torch.zeros(processes, dtype=torch.float64).share_memory_()
    barrier = multiprocessing.get_context("spawn").Barrier(processes)
    multiprocessing.spawn(measure, (task, seconds, rates, barrier), nprocs=processes)
    return float(rates.sum())


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--game", default="pong")
    parser.add_argument("--net", default="a3c", choices=NETS)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement")
    options = parser.parse_args()
    processes = len(os.sched_getaffinity(0))
    print(f"{processes} processes of one thread, {options.game}, {options.net}, torch {torch.__version__}")
    found: dict[str, float] = {}

    def best(kind: str, what: str, variant: str, batches: tuple[int, ...]) -> float:
        rates = {batch: rate((kind, what, variant, batch), options.seconds, processes) for batch in batches}
        batch = max(rates, key=rates.__getitem__)
        found.update({f"{kind} {variant} {b}".replace("  ", " "): r for b, r in rates.items()})
        unit = "GFLOP/s" if kind == "multiply" else "agent steps/s"
        shown = rates[batch] / 1e9 if kind == "multiply" else rates[batch]
        print(f"{kind:<10}{variant:<22}{shown:>10,.0f} {unit}, at {batch}", flush=True)
        return rates[batch]

    for variant in ("fp32", "bf16"):
        best("multiply", "", variant, (1024, 2048))
    emulator = best("emulate", options.game, "", (64,))
    acting = {variant: best("infer", options.net, variant, ACTING) for variant in VARIANTS}
    learning = {variant: best("learn", options.net, variant, LEARNING) for variant in VARIANTS}
    for kind in ("fp32", "bf16"):
        act, learn_rate = (max(r for v, r in part.items() if v.startswith(kind)) for part in (acting, learning))
        roofline = 1 / (1 / emulator + 1 / act + 1 / learn_rate)
        found[f"roofline {kind}"] = roofline
        print(f"roofline  {kind:<22}{roofline:>10,.0f} agent steps/s, {roofline / emulator:.2f} of the emulator alone")
    RESULTS.mkdir(exist_ok=True)
    about = {"cpu": platform.processor() or platform.machine(), "torch": torch.__version__, "processes": processes}
    path = RESULTS / f"limits-{options.game}-{options.net}.json"
    path.write_text(json.dumps({**vars(options), **about, "rates": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
