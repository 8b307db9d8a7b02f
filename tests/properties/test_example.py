"""The examples: algorithms, environments and a callback of one's own."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

import polyactor as pa
from polyactor.cli.flags import read_config
from polyactor.schemes import SCHEMES
from polyactor.settings.serialize import to_json
from polyactor.training import trainer
from tests.helpers.fresh import fresh
from tests.helpers.runs import events

EXAMPLE = Path(__file__).parents[2] / "examples" / "self_imitation.py"


@pytest.mark.parametrize("scheme", ["sync", pytest.param("hogwild", marks=pytest.mark.slow)])
def test_the_example_learns(scheme: str, tmp_path: Path) -> None:
    run = pa.train(
        f"{EXAMPLE}:SelfImitation", env="CartPole-v1", scheme=scheme, steps=20_000, quiet=True, out=tmp_path / "run"
    )
    assert run.status == "done"
    assert run.summary["best_score_mean100"] > 40  # 22 by chance


def test_the_example_runs_in_worker_processes_with_values_of_their_own(tmp_path: Path) -> None:
    """A worker has the class, but not the module that its annotations name."""
    run = pa.train(
        f"{EXAMPLE}:SelfImitation", env="CartPole-v1", scheme="hogwild", workers=2, steps=500, quiet=True,
        per_worker=("algorithm.imitation=0,1",), out=tmp_path / "run",
    )  # fmt: skip
    assert run.status == "done"


DISCOUNT = """
from dataclasses import dataclass
from polyactor.types import Algorithm

@dataclass(frozen=True)
class Mine(Algorithm):
    discount: float = 0.5
"""


def test_an_algorithm_with_a_discount_of_its_own_shows_the_gamma_that_scales_rewards(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "mine.py").write_text(DISCOUNT)
    name = f"{tmp_path / 'mine.py'}:Mine"
    with pytest.raises(SystemExit):
        read_config([name, "--env", "CartPole-v1", "--help"])
    assert "--algorithm.gamma" in capsys.readouterr().out
    config = read_config([name, "--env", "CartPole-v1", "--scheme", "sync", "--algorithm.gamma", "0.7"])
    _, actor = fresh(config).actor(0)
    actor.close()
    assert actor.gamma == 0.7
    assert to_json(config)["algorithm"]["gamma"] == 0.7


def test_the_example_of_an_environment_of_ones_own_runs_as_a_script(tmp_path: Path) -> None:
    script = EXAMPLE.with_name("own_environment.py")
    done = subprocess.run([sys.executable, str(script)], cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    score = re.search(r"mean return of 100 episodes: (\S+) of at most", done.stdout)
    assert score is not None, done.stdout
    assert float(score[1]) > 0.5


@pytest.mark.parametrize(("example", "better_than"), [("masked_game.py:Nim", 0.6), ("mixed_actions.py:Golf", -21)])
def test_an_environment_with_a_mask_and_one_with_mixed_actions_train(
    example: str, better_than: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By chance a quarter of the games is won, and a hole takes 24 strokes of at most 30."""
    monkeypatch.setattr(trainer, "keepsakes", lambda *_, **__: [])
    run = pa.train(
        "ppo", env=f"{EXAMPLE.parent / example}", max_episode_steps=30, steps=5_000, seed=1, quiet=True,
        out=tmp_path / "run",
    )  # fmt: skip
    assert run.status == "done"
    assert run.summary["best_score_mean100"] > better_than


@pytest.mark.parametrize("scheme", SCHEMES)
def test_an_algorithm_in_few_lines_runs_under_every_scheme(
    scheme: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "keepsakes", lambda *_, **__: [])
    algorithm = EXAMPLE.with_name("own_algorithm.py")
    assert len(algorithm.read_text().splitlines()) <= 40
    run = pa.train(
        f"{algorithm}:Truncated", env="CartPole-v1", scheme=scheme, workers=1, steps=3_000, seed=1, quiet=True,
        transport="inline" if scheme != "sync" else "local", algorithm={"most": 2.0}, out=tmp_path / "run",
    )  # fmt: skip
    assert run.status == "done"
    assert run.summary["best_score_mean100"] > 24  # 22 by chance


def test_the_example_of_a_callback_lowers_the_entropy_bonus_as_the_score_rises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trainer, "keepsakes", lambda *_, **__: [])  # pictures take as long as all the rest
    run = pa.train(
        "a2c", env="CartPole-v1", steps=6_000, seed=1, quiet=True, out=tmp_path / "run",
        algorithm={"entropy_coef": 0.02}, callbacks=[f"{EXAMPLE.with_name('lower_entropy.py')}:LowerEntropy"],
    )  # fmt: skip
    assert run.status == "done"
    lines = [line.split(",") for line in (run.path / "scores.csv").read_text().splitlines()]
    assert len(lines) >= 30  # one for each row
    lowered = [event["value"] for event in events(run.path, "setting_changed")]
    assert lowered == [0.02 / 2**n for n in range(1, len(lowered) + 1)]
    assert lowered
    assert float(lines[-1][2]) in (0.02, *lowered)
    assert not events(run.path, "callback_failed")


@pytest.mark.parametrize(("steps", "least"), [(500, 0.0), pytest.param(20_000, 60.0, marks=pytest.mark.slow)])
def test_the_example_of_a_torso_of_ones_own_runs_and_learns(steps: int, least: float, tmp_path: Path) -> None:
    model = {"torso": f"{EXAMPLE.with_name('own_torso.py')}:Residual"}
    run = pa.train("a2c", env="CartPole-v1", model=model, steps=steps, seed=1, quiet=True, out=tmp_path / "run")
    assert run.status == "done"
    assert (run.summary["best_score_mean100"] or 0.0) >= least  # 22 by chance
