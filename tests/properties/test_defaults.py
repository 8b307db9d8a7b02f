"""What an engineer gets first: a method's defaults solve every space of actions, and swing a pendulum up."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest

import polyactor as pa
from polyactor.evaluation.evaluate import evaluate
from polyactor.evaluation.policy import read
from polyactor.settings.presets import base_config
from tests.helpers.toys import IDENTITIES, Identity

PAGE = Path(__file__).parents[2] / "docs" / "spaces.md"
BEGIN, END = "<!-- begin defaults -->\n", "<!-- end defaults -->"
METHODS = ("a2c", "ppo", "acer")
SEEDS = (1, 2, 3)
STEPS, GAMES = 100_000, 50
ENOUGH = 0.9 * Identity.length

Scores = dict[tuple[str, str], list[float]]


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[Scores]:
    """Collects the scores by method and space; ``--write-docs`` puts them into the page, when all have been run."""
    scores: Scores = {(method, kind): [] for method in METHODS for kind in IDENTITIES}
    yield scores
    if request.config.getoption("--write-docs"):
        assert {len(each) for each in scores.values()} == {len(SEEDS)}, (
            "the page is written from all runs or not at all"
        )
        head, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(head + BEGIN + rendered(scores) + END + rest.split(END)[1])


def rendered(scores: Scores) -> str:
    lines = ["| actions | " + " | ".join(f"`{method}`" for method in METHODS) + " |", "| --- " * 4 + "|"]
    for kind in IDENTITIES:
        cells = [", ".join(f"{score:.1f}" for score in scores[method, kind]) for method in METHODS]
        lines.append(f"| `{kind}` | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", IDENTITIES)
@pytest.mark.parametrize("method", METHODS)
def test_a_methods_defaults_solve_every_space_of_actions(
    method: str, kind: str, seed: int, table: Scores, tmp_path: Path
) -> None:
    config = replace(base_config(method, env=partial(Identity, kind)), steps=STEPS, seed=seed, quiet=True)
    run = pa.train(replace(config, transport="inline", out=str(tmp_path / "run")))
    config, tensors = read(run.path, "last", given=("env",))
    config = replace(config, env=partial(Identity, kind))
    score = evaluate(config, tensors, games=GAMES, deterministic=True, seed=seed).mean
    table[method, kind].append(score)
    print(f"{method} {kind} seed {seed}: {score:.2f} of {Identity.length}")
    assert score >= ENOUGH


@pytest.mark.slow
@pytest.mark.parametrize(("method", "enough"), [("a2c", -500.0), ("a3c", -500.0), ("acer", -300.0)])
def test_a_methods_defaults_swing_a_pendulum_up(method: str, enough: float, tmp_path: Path) -> None:
    scores = []
    for seed in SEEDS:
        config = replace(base_config(method, env="Pendulum-v1"), steps=500_000, seed=seed, quiet=True, stop_at=enough)
        run = pa.train(replace(config, out=str(tmp_path / f"{seed}")))
        scores.append(run.summary["best_score_mean100"])
        print(f"{method} seed {seed}: {scores[-1]:.0f} after {run.summary['agent_steps']:,} steps")
    assert min(scores) >= enough


def test_the_page_has_every_space_and_method() -> None:
    rows = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    assert rows.splitlines()[0] == " | ".join(["| actions", *(f"`{method}`" for method in METHODS)]) + " |"
    for kind in IDENTITIES:
        assert rows.count(f"| `{kind}` |") == 1
