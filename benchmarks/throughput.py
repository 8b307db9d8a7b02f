"""Training speed of every algorithm under every scheme with every torso, as a share of what the emulator alone gives.

python benchmarks/throughput.py --seconds 4 --rounds 2
python benchmarks/throughput.py --seconds 4 --rounds 2 --torsos nature-cnn impala-cnn

Pong with the settings of each method for Atari and two workers of 8 environments (`sync` has all 16 in one process).
Every cell takes its turn in every round, the emulator alone before each row of the table. Shown are the median rate and
the median ratio; all of them are kept in ``benchmarks/results/throughput.json``.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import shlex
import statistics
import sys
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from polyactor.algorithms import ALGORITHMS
from polyactor.config import Config
from polyactor.envs import env_spec
from polyactor.report.speed import environments_alone, training_rate
from polyactor.schemes import SCHEMES
from polyactor.settings.check import check
from polyactor.settings.presets import base_config
from polyactor.system.host import cpu_name, versions
from polyactor.system.machine import tune_allocator

RESULTS = Path(__file__).parent / "results"
PONG = "PongNoFrameskip-v4"
TORSOS = ("a3c-cnn", "nature-cnn", "impala-cnn")
PRECISIONS = ("bf16", "fp32")
WORKERS, ENVS = 2, 8

Cell = tuple[str, str, str, str]
"""Torso, precision, algorithm, scheme."""


def main() -> None:
    """Measure, print, keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=4.0, help="of each measurement, start-up excluded")
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--precisions", nargs="+", choices=PRECISIONS, default=["bf16"])
    parser.add_argument("--torsos", nargs="+", choices=TORSOS, default=list(TORSOS[:2]))
    options = parser.parse_args()
    tune_allocator()
    cells: list[Cell] = list(itertools.product(options.torsos, options.precisions, ALGORITHMS, SCHEMES))
    rates: dict[Cell, list[float]] = {cell: [] for cell in cells}
    ratios: dict[Cell, list[float]] = {cell: [] for cell in cells}
    for number in range(options.rounds):
        for i, cell in enumerate(cells):
            config = config_of(*cell)
            if i % len(SCHEMES) == 0:  # it takes longest to start
                emulator = environments_alone(config, WORKERS, options.seconds)
            rate = training_rate(config, env_spec(config.environment, atari=config.atari), options.seconds).rate
            rates[cell].append(rate)
            ratios[cell].append(rate / emulator)
            print(f"round {number + 1}  {' '.join(cell):<48}{rate:>8,.0f} steps/s", file=sys.stderr, flush=True)

    print(f"{cpu_name()}, {WORKERS} workers × {ENVS}, {PONG}, torch {versions()['torch']}")
    print(f"{'steps/s (share of the emulator alone)':<40}" + "".join(f"{scheme:>18}" for scheme in SCHEMES))
    for torso, precision, algorithm in itertools.product(options.torsos, options.precisions, ALGORITHMS):
        shown = [(torso, precision, algorithm, scheme) for scheme in SCHEMES]
        values = [f"{statistics.median(rates[cell]):,.0f} ({statistics.median(ratios[cell]):.3f})" for cell in shown]
        print(f"{f'{torso} {precision} {algorithm}':<40}" + "".join(f"{value:>18}" for value in values))
    said = {
        "command": shlex.join(["python", "benchmarks/throughput.py", *sys.argv[1:]]),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "cpu": cpu_name(),
        "cores": len(os.sched_getaffinity(0)),
        "versions": versions(),
        **vars(options),
        "cells": [{"cell": cell, "rates": rates[cell], "ratios": ratios[cell]} for cell in cells],
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "throughput.json").write_text(json.dumps(said, indent=1) + "\n")


def config_of(torso: str, precision: str, algorithm: str, scheme: str) -> Config:
    """The method of this name, under this scheme, with this torso."""
    config = base_config(algorithm, env=PONG, scheme=scheme)
    single = config.scheme.single
    config = replace(
        config,
        model=replace(config.model, torso=torso),
        precision=precision,
        workers=1 if single else WORKERS,
        envs=WORKERS * ENVS if single else ENVS,
    )
    check(config)
    return config


if __name__ == "__main__":
    main()
