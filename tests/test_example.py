"""The example that shows how an algorithm of one's own is written."""

from __future__ import annotations

from pathlib import Path

import pytest

import polyactor as pa

EXAMPLE = Path(__file__).parents[1] / "examples" / "self_imitation.py"


@pytest.mark.parametrize("scheme", ["sync", pytest.param("hogwild", marks=pytest.mark.slow)])
def test_the_example_learns(scheme: str, tmp_path: Path) -> None:
    run = pa.train(
        f"{EXAMPLE}:SelfImitation", env="CartPole-v1", scheme=scheme, steps=20_000, quiet=True, out=tmp_path / "run"
    )
    assert run.status == "done"
    assert run.summary["best_score_mean100"] > 40  # 22 by chance
