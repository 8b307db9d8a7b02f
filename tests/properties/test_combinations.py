"""Every algorithm under every scheme, with and without memory, discrete and continuous: trains, or says why not."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from polyactor import transport
from polyactor.algorithms import A2C, ACER, ALGORITHMS, PPO, VTrace
from polyactor.algorithms.base import Algorithm
from polyactor.cli import main as cli
from polyactor.config import Config, Normalize
from polyactor.errors import UsageError
from polyactor.evaluation.evaluate import evaluate
from polyactor.models.spec import ModelSpec
from polyactor.optim import Adam
from polyactor.schemes import SCHEMES, Sync
from polyactor.settings.check import check
from polyactor.shared.counters import Counter
from tests.helpers.fresh import fresh

PAGE = Path(__file__).parents[2] / "docs" / "combinations.md"
STEPS, GAMES = 20_000, 50
RANDOM = {"CartPole-v1": 22.0, "Pendulum-v1": -1230.0}
"""What actions drawn evenly score (10,000 games each)."""
BEGIN, END = "<!-- begin table -->\n", "<!-- end table -->"


@dataclass(frozen=True)
class Settings:
    """What learns in so few steps."""

    gamma: float
    trace: float
    entropy: float
    lr: float
    activation: Literal["tanh", "relu"]


SETTINGS = {
    ("CartPole-v1", "none"): Settings(0.98, 0.9, 0.01, 1e-3, "tanh"),
    ("CartPole-v1", "lstm"): Settings(0.98, 0.9, 0.01, 1e-3, "tanh"),
    ("Pendulum-v1", "none"): Settings(0.8, 0.5, 0.0, 2e-3, "relu"),  # so short a view is enough to swing up
    ("Pendulum-v1", "lstm"): Settings(0.8, 0.5, 0.0, 1e-3, "tanh"),
}


def config_of(name: str, scheme: str, core: Any, env: str) -> Config:
    own = SETTINGS[env, core]
    gamma, entropy = own.gamma, own.entropy
    known: dict[str, Algorithm] = {
        "a2c": A2C(gamma=gamma, gae_lambda=own.trace, entropy_coef=entropy),
        "ppo": PPO(gamma=gamma, gae_lambda=own.trace, entropy_coef=entropy, minibatches=2),
        "vtrace": VTrace(gamma=gamma, trace_lambda=own.trace, entropy_coef=entropy, value_coef=1.0),
        "acer": ACER(
            gamma=gamma, trace_lambda=own.trace, entropy_coef=entropy, replay_ratio=2.0, replay_capacity=STEPS
        ),
    }
    return Config(
        env=env,
        algorithm=known[name],
        scheme=SCHEMES[scheme](),
        optimizer=Adam(lr=1e-3 if name == "ppo" else own.lr),
        steps=STEPS,
        workers=1 if scheme == "sync" else 2,
        envs=4,
        rollout=32 if name == "ppo" else 5,
        model=ModelSpec(activation=own.activation, core=core, core_size=64),
        normalize=Normalize(observation=env == "Pendulum-v1", reward=True),
    )


@dataclass(frozen=True)
class Cell:
    name: str
    scheme: str
    core: str
    env: str
    score: float


CELLS = list(itertools.product(ALGORITHMS, SCHEMES, ("none", "lstm"), RANDOM))


@pytest.fixture(scope="module")
def table(request: pytest.FixtureRequest) -> Iterator[list[Cell]]:
    """Collects what was measured; ``--write-docs`` puts it into the page, when every cell has been run."""
    cells: list[Cell] = []
    yield cells
    if request.config.getoption("--write-docs"):
        assert len(cells) == len(CELLS), "the page is written from all cells or not at all"
        head, rest = PAGE.read_text().split(BEGIN)
        PAGE.write_text(head + BEGIN + rendered(cells) + END + rest.split(END)[1])


def rendered(cells: list[Cell]) -> str:
    lines = ["| scheme | network | environment | " + " | ".join(f"`{name}`" for name in ALGORITHMS) + " |"]
    lines.append("|" + "---|" * (3 + len(ALGORITHMS)))
    for scheme, core, env in itertools.product(SCHEMES, ("none", "lstm"), RANDOM):
        scores = {cell.name: cell.score for cell in cells if (cell.scheme, cell.core, cell.env) == (scheme, core, env)}
        network = "MLP" if core == "none" else "LSTM"
        numbers = " | ".join(f"{scores[name]:,.0f}" for name in ALGORITHMS)
        lines.append(f"| `{scheme}` | {network} | {env} | {numbers} |")
    return "\n".join(lines) + "\n"


@pytest.mark.slow
@pytest.mark.parametrize(("name", "scheme", "core", "env"), CELLS)
def test_it_trains(name: str, scheme: str, core: str, env: str, table: list[Cell]) -> None:
    config = config_of(name, scheme, core, env)
    check(config)
    parts = fresh(config)
    state, counters = parts.state, parts.counters
    start = state.theta.clone()
    for _ in transport.run(parts):
        pass
    assert counters.steps >= STEPS
    assert int(counters.table[:, Counter.SKIPPED].sum()) == 0
    assert bool(torch.isfinite(state.vector).all())
    assert bool((state.theta != start).any())
    assert all(value is not None for value in counters.metrics().values())
    score = evaluate(config, state.views(), games=GAMES, seed=1).mean
    table.append(Cell(name, scheme, core, env, score))
    assert score > RANDOM[env]


def test_the_page_has_every_cell() -> None:
    rows = PAGE.read_text().split(BEGIN)[1].split(END)[0]
    for scheme, core, env in itertools.product(SCHEMES, ("MLP", "LSTM"), RANDOM):
        assert rows.count(f"| `{scheme}` | {core} | {env} |") == 1
    for name in ALGORITHMS:
        assert rows.count(f"`{name}`") == 1


@pytest.mark.parametrize(("name", "scheme", "core", "env"), CELLS)
def test_it_is_legal(name: str, scheme: str, core: str, env: str) -> None:
    check(config_of(name, scheme, core, env))


def test_a2c_is_in_lockstep_under_a_learner_and_others_are_not() -> None:
    for name, lag in (("a2c", 0), ("ppo", 1), ("vtrace", 1)):
        config = config_of(name, "actor-learner", "none", "CartPole-v1")
        assert config.scheme.lag(config) == lag  # type: ignore[attr-defined]


TRAIN = "--env CartPole-v1 --quiet --out never"
REFUSED = {
    f"a3c {TRAIN} --scheme param-server --workers 3 --max-staleness 1": (
        "--max-staleness 1 is not allowed: of 3 gradients applied one by one the last is 2 behind, "
        "so allow 2, or use --scheme.apply mean"
    ),
    f"ppo {TRAIN} --scheme param-server --scheme.accumulate 2": "--scheme.accumulate 2 is not allowed: the algorithm",
    f"ppo {TRAIN} --scheme param-server --scheme.pull-every 3": "--scheme.pull-every 3 is not allowed: the algorithm",
    f"ppo {TRAIN} --scheme param-server --scheme.queue 2": "--scheme.queue 2 is not allowed: the algorithm",
    f"a3c {TRAIN} --scheme param-server --scheme.queue 2 --max-staleness 4": "--scheme.queue 2 is not allowed with",
    f"a3c {TRAIN} --scheme param-server --scheme.when-full drop": "--scheme.when-full drop is not allowed with",
    f"a3c {TRAIN} --scheme actor-learner --per-worker optimizer.lr=.1,.2": "--per-worker is not allowed with --scheme",
    f"a3c {TRAIN} --scheme actor-learner --max-lag -1": "--scheme.max-lag -1 is not allowed",
    f"a2c {TRAIN} --workers 2": "--workers 2 is not allowed: --scheme sync has one worker",
    f"a2c {TRAIN} --max-lag 3": "there is no flag --scheme.max-lag",
    f"a3c {TRAIN} --device cuda": "--device cuda is not allowed with --scheme hogwild",
    f"a3c {TRAIN} --transport pigeon": "--transport pigeon is not allowed: it must be one of local, inline, ray",
    f"a3c {TRAIN} --transport ray": "--scheme hogwild is not allowed with --transport ray: it has workers that write",
    f"a2c {TRAIN} --transport ray": "--scheme sync is not allowed with --transport ray: it has no workers; use",
    f"impala {TRAIN} --transport ray --ray.address here": "--ray.address here is not allowed: it must be local, auto",
    f"impala {TRAIN} --ray.wire fp8": "--ray.wire fp8 is not allowed: it must be one of fp32, bf16",
    f"impala {TRAIN} --ray.lease 0": "--ray.lease 0.0 is not allowed: it must be a number of at least 1",
    f"a3c {TRAIN} --transport inline --scheme.workers-as thread": "--scheme.workers-as thread is not allowed with",
    f"acktr {TRAIN} --scheme actor-learner": "--optimizer kfac is not allowed with --scheme actor-learner: one process",
    f"acktr {TRAIN} --scheme hogwild": "use --scheme sync, or --optimizer adam",
    f"ppo {TRAIN} --optimizer kfac": "--optimizer kfac is not allowed with the algorithm ppo: the Fisher matrix",
    f"acer {TRAIN} --scheme sync --optimizer kfac": "use a2c or vtrace, or --optimizer adam",
    f"acktr {TRAIN} --model.noisy heads": "--model.noisy heads is not allowed with --optimizer kfac: the Fisher matrix",
    f"acktr {TRAIN} --model.norm weight": "--model.norm weight is not allowed with --optimizer kfac: the Fisher matrix",
    f"acktr {TRAIN} --precision bf16": "--precision bf16 is not allowed with --optimizer kfac, whose factors it would",
    f"ppo {TRAIN} --model.core lstm --envs 2": "--algorithm.minibatches 4 is not allowed: with memory",
}


@pytest.mark.parametrize("flags", REFUSED)
def test_what_cannot_be_right_is_refused_in_one_sentence(
    flags: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stop:
        cli.main(["train", *flags.split()])
    said = capsys.readouterr().err.strip()
    assert stop.value.code == 2
    assert REFUSED[flags] in said
    assert "\n" not in said
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("scheme", ["sync", "actor-learner"])
def test_a_machine_without_a_gpu_says_so(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    config = replace(config_of("vtrace", scheme, "none", "CartPole-v1"), device="cuda")
    with pytest.raises(UsageError, match="this machine has no GPU"):
        check(config)


def test_sync_needs_no_transport() -> None:
    for over in ("local", "inline"):
        check(replace(config_of("a2c", "sync", "none", "CartPole-v1"), scheme=Sync(), transport=over))  # type: ignore[arg-type]
