"""The pictures of README.md.

python benchmarks/pictures.py curve results/pong-fast/seed-* results/precision-pong-fast/bf16-seed-[12]
python benchmarks/pictures.py film runs/pong-fast-… --start 100 --frames 260
"""

from __future__ import annotations

import argparse
import csv
import json
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from PIL import Image

import polyactor as pa

IMAGES = Path(__file__).parents[1] / "docs" / "images"
BLUE, GREY = "#1f6feb", "#8b949e"


def _scores(run: Path) -> Iterator[tuple[float, float]]:
    """Minutes and mean scores of a kept run that reached its score; its rows are JSON or CSV."""
    if (run / "curve.csv").exists():
        rows = csv.DictReader((run / "curve.csv").read_text().splitlines())
    else:
        rows = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    reached = json.loads((run / "summary.json").read_text())["reached_at_s"]
    for row in rows:
        if row["score_mean100"]:
            yield min(float(row["wall_s"]), reached) / 60, float(row["score_mean100"])


def curve(runs: list[Path], out: Path) -> None:
    """Score over minutes, a line for each run of Pong, to where it reached its score."""
    figure, axes = plt.subplots(figsize=(6, 4.2), dpi=110)
    for i, run in enumerate(runs):
        minutes, scores = zip(*_scores(run), strict=True)
        axes.plot(minutes, scores, color=BLUE, alpha=0.55 + 0.2 * i, linewidth=2)
        axes.plot(minutes[-1:], scores[-1:], "o", color=BLUE)
    axes.axhline(18, color=GREY, linestyle="--", linewidth=1)
    axes.text(0.05, 18.4, "18, where training stops", color=GREY, fontsize=10)
    axes.set(xlabel="minutes", ylabel="mean score of the last 100 games", ylim=(-22, 22), xlim=(0, None))
    axes.set_title(f"Pong, A3C, two CPU cores, {len(runs)} seeds", fontsize=12)
    axes.spines[["top", "right"]].set_visible(False)
    figure.tight_layout()
    figure.savefig(out)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB")


def film(run: Path, out: Path, *, start: int, frames: int, every: int, seed: int) -> None:
    """Part of a game as a GIF that repeats.

    Args:
        run: of the policy.
        out: the file.
        start: agent steps that are left out.
        frames: how many are kept.
        every: agent steps between two frames.
        seed: of the game.
    """
    policy = pa.load(run)
    envs = pa.make_envs(policy.config.env, 1, atari=policy.config.atari, render=True)
    observation, pictures, score = envs.reset(seed)[0], [], 0.0
    for step in range(start + frames * every):
        picture = envs.render()
        if step >= start and (step - start) % every == 0 and picture is not None:
            pictures.append(Image.fromarray(picture))
        action = policy.act(observation, deterministic=False)
        answer = envs.step(np.asarray([action]))
        observation, score = answer.observation[0], score + float(answer.reward[0])
    palette = pictures[0].quantize(16, dither=Image.Dither.NONE)
    small = [picture.quantize(palette=palette, dither=Image.Dither.NONE) for picture in pictures]
    small[0].save(out, save_all=True, append_images=small[1:], duration=60, loop=0, optimize=True)
    print(f"{out}: {out.stat().st_size / 1e3:.0f} kB, score {score:+g} by then")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    kinds = parser.add_subparsers(dest="kind", required=True)
    one = kinds.add_parser("curve")
    one.add_argument("runs", type=Path, nargs="+")
    one.add_argument("--out", type=Path, default=IMAGES / "pong-curve.png")
    two = kinds.add_parser("film")
    two.add_argument("run", type=Path)
    two.add_argument("--out", type=Path, default=IMAGES / "pong.gif")
    two.add_argument("--start", type=int, default=0)
    two.add_argument("--frames", type=int, default=260)
    two.add_argument("--every", type=int, default=2)
    two.add_argument("--seed", type=int, default=0)
    given = vars(parser.parse_args())
    if given.pop("kind") == "curve":
        curve(**given)
    else:
        film(given.pop("run"), given.pop("out"), **given)
