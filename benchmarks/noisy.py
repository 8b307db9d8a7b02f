"""NoisyNet-A3C beside A3C where rewards are rare or late: the score of each after the same number of steps, by seed.

python benchmarks/noisy.py chain-20 --seeds 5
python benchmarks/noisy.py chain-12 --seeds 5
python benchmarks/noisy.py catch --seeds 5

Settings are the same for all, but for the noise and the entropy bonus. A score is the mean of 100
fresh games at the end of training, with sampled actions and, of NoisyNet, without noise.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

import polyactor as pa
from polyactor.evaluation.evaluate import evaluate
from polyactor.evaluation.policy import read
from polyactor.storage.metrics_log import read_rows

CHAIN = {"env": "polyactor/SparseChain-v0", "steps": 150_000, "optimizer.lr": 1e-3}
ENVS = {
    "chain-20": ("a3c", CHAIN),
    "chain-12": ("a3c", {**CHAIN, "env_kwargs": {"length": 12}}),
    "catch": (
        "catch-a3c",
        {"env": "polyactor/LateCatch-v0", "steps": 100_000, "stop_at": None, "algorithm.gamma": 0.99},
    ),
}
"""By name: the method or preset, and its settings."""
CONTESTANTS = {
    "A3C, β = 0.01": {"algorithm.entropy_coef": 0.01},
    "A3C, β = 0": {"algorithm.entropy_coef": 0.0},
    "NoisyNet-A3C, heads, factorised": {"model.noisy": "heads"},
    "NoisyNet-A3C, heads, independent": {"model.noisy": "heads", "model.noisy_kind": "independent"},
    "NoisyNet-A3C, dense, factorised": {"model.noisy": "dense"},
}
GAMES = 100


def main() -> None:
    """Run, print a row for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("env", choices=ENVS)
    parser.add_argument("--seeds", type=int, default=5, help="seeds 1 to N")
    parser.add_argument("--steps", type=int, help="agent steps of each run, in place of those of the environment")
    parser.add_argument("--only", help="contestants whose name has this text")
    options = parser.parse_args()
    print("| contestant | median | each seed | mean σ at the end |\n|---|---|---|---|", flush=True)
    for name, settings in CONTESTANTS.items():
        if options.only is None or options.only in name:
            runs = [run(options, settings, seed) for seed in range(1, options.seeds + 1)]
            scores, sigmas = zip(*runs, strict=True)
            sigma = "" if sigmas[0] is None else f"{statistics.median(sigmas):.4f}"
            each = ", ".join(f"{score:.2f}" for score in scores)
            print(f"| {name} | {statistics.median(scores):.2f} | {each} | {sigma} |", flush=True)


def run(options: argparse.Namespace, settings: dict[str, object], seed: int) -> tuple[float, float | None]:
    """Train with one seed; the mean score of fresh games, and the mean σ of the noise, if there is any."""
    preset, own = ENVS[options.env]
    sections: dict[str, dict[str, object]] = {}
    values: dict[str, object] = {"workers": 2, "seed": seed, "quiet": True}
    for path, value in {**own, **settings, **({} if options.steps is None else {"steps": options.steps})}.items():
        section, dot, field = path.partition(".")
        if dot:
            sections.setdefault(section, {})[field] = value
        else:
            values[path] = value
    with tempfile.TemporaryDirectory() as scratch:
        done = pa.train(preset, out=str(Path(scratch) / "run"), **values, **sections)  # type: ignore[arg-type]
        config, tensors = read(done.path, "last")
        score = evaluate(config, tensors, games=GAMES, deterministic=False, seed=seed).mean
        sigma = read_rows(done.path / "metrics.jsonl")[-1].get("noise_sigma")
    return score, sigma


if __name__ == "__main__":
    main()
