"""Every action space with every observation space, every core and every algorithm: trains, and solves a toy."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from polyactor import transport
from polyactor.agent.parts import Parts
from polyactor.algorithms import A2C, ACER, PPO, VTrace
from polyactor.algorithms.base import Algorithm
from polyactor.config import Config, Normalize
from polyactor.envs import EnvSpec, make_envs
from polyactor.evaluation.evaluate import play
from polyactor.evaluation.policy import make_trained
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam
from polyactor.schemes import SCHEMES
from tests.helpers.fresh import fresh
from tests.helpers.toys import ACTIONS, LENGTH, OBSERVATIONS, Matching

PAGE = Path(__file__).parents[2] / "docs" / "spaces.md"
BEGIN, END = "<!-- begin table -->\n", "<!-- end table -->"
CORES = ("none", "lstm", "gru")
ALGORITHMS: dict[str, Algorithm] = {
    "a2c": A2C(gamma=0.5, gae_lambda=0.9, entropy_coef=0.005),
    "ppo": PPO(gamma=0.5, gae_lambda=0.9, entropy_coef=0.005, minibatches=2, epochs=4),
    "vtrace": VTrace(gamma=0.5, trace_lambda=0.9, entropy_coef=0.005),
    "acer": ACER(gamma=0.5, entropy_coef=0.005, replay_capacity=8_000, replay_start=500, replay_ratio=2.0),
}
RATES = {"a2c": 3e-3, "ppo": 3e-3, "vtrace": 3e-3, "acer": 1e-3}
"""Step sizes; with 3e-3 replay drives some of ACER's policies into a corner that they do not leave."""
ENOUGH = 0.9
"""Share of the best return that solves a toy."""
MOST_STEPS = 120_000


@dataclass(frozen=True)
class Cell:
    """One combination."""

    algorithm: str
    observed: str
    acted: str
    core: Any

    @property
    def env(self) -> Any:
        """With memory, what was asked for one step before counts."""
        return partial(Matching, self.observed, self.acted, remembered=self.core != "none")

    def config(self, **values: Any) -> Config:
        """Settings that learn toys in seconds."""
        return Config(
            env=self.env,
            algorithm=ALGORITHMS[self.algorithm],
            optimizer=Adam(lr=RATES[self.algorithm], max_grad_norm=1.0),
            rollout=LENGTH,
            envs=16,
            model=ModelSpec(hidden=(32,), core=self.core, core_size=32, log_std_start=-0.7),
            normalize=Normalize(observation=True),
            precision="fp32",
            transport="inline",
            **values,
        )


ALL = [Cell(*each) for each in itertools.product(ALGORITHMS, OBSERVATIONS, ACTIONS, CORES)]


def pairwise(cells: Sequence[Cell]) -> list[Cell]:
    """Few of the cells, in which each pair of two choices occurs: of those left, the one with the most new pairs."""

    def pairs(cell: Cell) -> set[Any]:
        return set(itertools.combinations(enumerate((cell.algorithm, cell.observed, cell.acted, cell.core)), 2))

    missing, chosen = set().union(*map(pairs, cells)), list[Cell]()
    while missing:
        best = max(cells, key=lambda cell: len(pairs(cell) & missing))
        chosen.append(best)
        missing -= pairs(best)
    return chosen


FEW = pairwise(ALL)


def name_of(cell: Cell) -> str:
    """In the output of pytest."""
    return f"{cell.algorithm}-{cell.observed}-{cell.acted}-{cell.core}"


@pytest.mark.parametrize("cell", FEW, ids=name_of)
def test_an_update_changes_theta_and_keeps_it_finite(cell: Cell) -> None:
    kind = list(SCHEMES.values())[FEW.index(cell) % len(SCHEMES)]
    scheme = kind(threads=1) if kind.single else kind()  # else all cores, for images
    updates(cell.config(scheme=scheme, workers=1, steps=3 * LENGTH * 4))


def updates(config: Config) -> None:
    """Assert that a run changes θ and keeps it finite; the environment asserts that each action is one of its space."""
    parts = fresh(replace(config, envs=4))
    before = parts.state.vector.clone()
    for _ in transport.run(parts):
        pass
    assert parts.counters.version >= 1
    assert not torch.equal(before, parts.state.vector)
    assert bool(torch.isfinite(parts.state.vector).all())


def greedy(parts: Parts) -> float:
    """The mean return of greedy games, as a share of the best."""
    config = parts.config
    envs = make_envs(config.env, 16)
    model = make_trained(config, EnvSpec.of(envs), {name: each.clone() for name, each in parts.state.views().items()})
    found = play(model, envs, games=32, deterministic=True, seed=1)
    envs.close()
    return found.mean / LENGTH


def learned(cell: Cell) -> tuple[float, int]:
    """The share of the best return once it is enough, or at the end; and the agent steps."""
    parts = fresh(cell.config(scheme=SCHEMES["sync"](), workers=1, steps=MOST_STEPS))
    looked, share = 0, 0.0
    for _ in transport.run(parts):
        if parts.counters.steps - looked >= 4_000:
            looked, share = parts.counters.steps, greedy(parts)
            if share >= ENOUGH:
                break
    return share, parts.counters.steps


@dataclass(frozen=True)
class Result:
    """What was measured of one combination."""

    cell: Cell
    share: float


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Result]]:
    """Collects what was measured; ``--write-docs`` puts it into the page."""
    results: list[Result] = []
    yield results
    if request.config.getoption("--write-docs"):
        head, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(head + BEGIN + rendered(results) + END + rest.split(END)[1])


def rendered(results: Sequence[Result]) -> str:
    """The tables: for each pair of spaces, and of core and algorithm, the least share of what was run."""

    def least(**of: Any) -> str:
        shares = [each.share for each in results if all(getattr(each.cell, name) == own for name, own in of.items())]
        return f"{min(shares):.2f}" if shares else "–"

    def rows(corner: str, columns: Sequence[str], cells: dict[str, list[str]]) -> list[str]:
        head = [corner, *(f"`{column}`" for column in columns)]
        body = [[f"`{name}`", *row] for name, row in cells.items()]
        return ["", *(f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *body))]

    run = "All" if len(results) == len(ALL) else f"{len(results)} of the"
    by_space = {acted: [least(acted=acted, observed=observed) for observed in OBSERVATIONS] for acted in ACTIONS}
    by_core = {core: [least(core=core, algorithm=algorithm) for algorithm in ALGORITHMS] for core in CORES}
    below = ", ".join(f"`{name_of(each.cell)}`" for each in results if each.share < ENOUGH)
    said = f"{run} {len(ALL)} combinations were run, each once." + f" Below {ENOUGH} stayed {below}." * bool(below)
    lines = [said, *rows("actions", list(OBSERVATIONS), by_space)]
    return "\n".join([*lines, *rows("core", list(ALGORITHMS), by_core)]) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize("cell", ALL, ids=name_of)
def test_a_toy_is_solved(cell: Cell, table: list[Result]) -> None:
    share, _ = learned(cell)
    table.append(Result(cell, share))
    assert share >= ENOUGH


def test_the_page_has_every_space_algorithm_and_core() -> None:
    rows = PAGE.read_text().split(BEGIN)[1].split(END)[0].splitlines()
    spaces_of_actions, algorithms = (row for row in rows if row.startswith(("| actions", "| core")))
    assert spaces_of_actions == " | ".join(["| actions", *(f"`{name}`" for name in OBSERVATIONS)]) + " |"
    assert algorithms == " | ".join(["| core", *(f"`{name}`" for name in ALGORITHMS)]) + " |"
    for name in (*ACTIONS, *CORES):
        assert sum(row.startswith(f"| `{name}` |") for row in rows) == 1
