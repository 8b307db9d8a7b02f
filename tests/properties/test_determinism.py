"""`sync` is exact: a seed decides everything but the time it takes."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import pytest

import polyactor as pa
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import read_rows

TIMED = {"wall_s", "steps_per_s", "rss_mb"}


def outcome(directory: Path, seed: int) -> tuple[list[dict[str, Any]], str]:
    """The rows without their clock, and a hash over every tensor of the last checkpoint."""
    run = pa.train(
        "a2c",
        env="polyactor/TMaze-v0",
        steps=1_000,
        seed=seed,
        envs=4,
        rollout=10,
        model={"core": "lstm", "core_size": 16, "hidden": (16,)},
        normalize={"observation": True, "reward": True},
        out=str(directory),
        quiet=True,
    )
    rows = [
        {name: value for name, value in row.items() if name not in TIMED}
        for row in read_rows(run.path / "metrics.jsonl")
    ]
    digest = hashlib.sha256()
    for name, tensor in sorted(checkpoint.load(run.path).tensors.items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    return rows, digest.hexdigest()


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[list[dict[str, Any]], str]:
    return outcome(tmp_path_factory.mktemp("first") / "run", seed=3)


def test_the_same_seed_gives_the_same_run(first: tuple[list[dict[str, Any]], str], tmp_path: Path) -> None:
    rows, parameters = first
    assert len(rows) >= 20
    assert any(row["score_mean100"] is not None for row in rows)
    again_rows, again_parameters = outcome(tmp_path / "run", seed=3)
    assert again_rows == rows
    assert again_parameters == parameters


def test_another_seed_gives_another_run(first: tuple[list[dict[str, Any]], str], tmp_path: Path) -> None:
    rows, parameters = first
    other_rows, other_parameters = outcome(tmp_path / "run", seed=4)
    assert other_parameters != parameters
    assert [row["entropy"] for row in other_rows] != [row["entropy"] for row in rows]
