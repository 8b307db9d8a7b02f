"""Names that stand for settings: they say what their sources ran, and every one of them trains."""

from __future__ import annotations

import re
import typing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import polyactor as pa
from polyactor.cli import flags
from polyactor.cli import main as cli
from polyactor.config import Config
from polyactor.errors import UsageError
from polyactor.models.spec import TorsoName
from polyactor.settings.check import check
from polyactor.settings.presets import METHODS, PRESETS, Kind, base_config, kind_of
from polyactor.settings.published import PUBLISHED
from polyactor.settings.registry import name_of

PAGE = Path(__file__).parents[1] / "docs" / "presets.md"
NEGATIVE = {"pong-a3c-server-1", "pong-a3c-server-6", "pong-a3c-server-7"}

ATARI = {"algorithm.gamma": 0.99, "normalize.clip_reward": 1.0, "atari.frame_skip": 4}
ADAM = {"optimizer": "adam", "optimizer.beta1": 0.9, "optimizer.beta2": 0.999, "optimizer.shared": True}
RMSPROP = {"optimizer": "rmsprop", "optimizer.lr": 7e-4, "optimizer.alpha": 0.99, "optimizer.max_grad_norm": 0.5}
TORCH = {"optimizer.eps": 1e-5, "optimizer.eps_inside": False, "optimizer.square_avg_start": 0.0}
TENSORFLOW = {"optimizer.eps": 1e-5, "optimizer.eps_inside": True, "optimizer.square_avg_start": 1.0}
HALF_MEAN = {"algorithm.value_coef": 0.5, "algorithm.reduction": "mean", "algorithm.entropy_coef": 0.01}
QUARTER_SUM = {"algorithm.value_coef": 0.25, "algorithm.reduction": "sum", "algorithm.entropy_coef": 0.01}
N_STEP = {"algorithm.gae_lambda": 1.0, "normalize.observation": False}
SERVER = {
    "algorithm": "a2c", "scheme": "param-server", "scheme.reduction": "sum", "scheme.apply": "each", **ATARI, **ADAM,
    **N_STEP, "algorithm.value_loss": "huber", "algorithm.value_coef": 0.25, "algorithm.reduction": "mean",
    "optimizer.max_grad_norm": 0.1, "model.torso": "nature-conv", "model.head_width": 512,
}  # fmt: skip
APPO = {
    "algorithm": "ppo", "scheme": "actor-learner", "scheme.batch": 1, **ATARI, **ADAM, "envs": 50,
    "algorithm.clip": 0.1, "algorithm.estimator": "gae", "algorithm.normalize_advantage": False,
    "algorithm.entropy_coef": 0.01, "algorithm.target_kl": None, "optimizer.max_grad_norm": 0.1,
    "model.torso": "nature-conv", "model.head_width": 512,
}  # fmt: skip

SOURCES: dict[str, dict[str, Any]] = {
    "paper-a3c-ff": {
        "algorithm": "a2c", "scheme": "hogwild", **ATARI, **N_STEP, "workers": 16, "envs": 1, "rollout": 5,
        "optimizer": "rmsprop", "optimizer.alpha": 0.99, "optimizer.eps": 0.1, "optimizer.eps_inside": True,
        "optimizer.square_avg_start": 0.0, "optimizer.lr_end": 0.0, "algorithm.entropy_coef": 0.01,
    },
    "paper-a3c-lstm": {"model.core": "lstm", "model.core_size": 256, "model.torso": "nature-cnn"},
    "paper-impala-shallow": {
        "algorithm": "vtrace", "scheme": "actor-learner", **ATARI, "rollout": 20, "algorithm.reduction": "sum",
        "algorithm.value_coef": 0.5, "algorithm.entropy_coef": 0.01, "optimizer": "rmsprop", "optimizer.lr": 6e-4,
        "optimizer.lr_end": 0.0, "optimizer.eps": 0.01, "optimizer.max_grad_norm": 40.0, "atari.life_loss": True,
    },
    "pong-a3c-lstm": {
        "scheme": "hogwild", **ATARI, **ADAM, **N_STEP, **HALF_MEAN, "workers": 2, "rollout": 40, "optimizer.lr": 1e-4,
        "optimizer.max_grad_norm": 40.0, "model.torso": "a3c-conv", "model.core_size": 256,
    },
    "pendulum-a3c-episode": {
        "algorithm.gamma": 0.9, "optimizer.lr": 1e-4, "algorithm.entropy_coef": 1e-4, "algorithm.value_coef": 1.0,
        "model.share_torso": False,
    },
    "breakout-a3c-lstm-4w": {
        "scheme": "hogwild", **ATARI, **ADAM, **N_STEP, **HALF_MEAN, "optimizer.beta2": 0.99, "optimizer.lr": 1e-4,
        "optimizer.eps": 1e-8, "optimizer.max_grad_norm": 40.0, "workers": 4, "rollout": 20, "stop_at": 60.0,
        "model.torso": "a3c-cnn", "model.core": "lstm", "atari.resize_height": 110, "atari.crop_top": 18,
        "atari.fire_reset": False, "atari.life_loss": False, "atari.one_life": False,
    },
    "pong-a3c-lstm-8w": {"workers": 8, "stop_at": 18.0},
    "spaceinvaders-a2c-nature": {
        "algorithm": "a2c", "scheme": "sync", **ATARI, **RMSPROP, **TORCH, **N_STEP, **HALF_MEAN, "envs": 16,
        "rollout": 5, "model.torso": "nature-cnn", "atari.one_life": True, "optimizer.lr_end": None,
    },
    "cartpole-a3c-server-0": {
        "optimizer.lr": 1e-3, "optimizer.eps": 1e-3, "rollout": 8, "scheme.accumulate": 4, "scheme.pull_every": 4,
        "scheme.updaters": 2, "model.hidden": (256,), "model.activation": "leaky-relu",
    },
    "pong-a3c-server-1": {
        **SERVER, "optimizer.lr": 1e-3, "optimizer.eps": 5e-4, "rollout": 8, "scheme.accumulate": 2,
        "scheme.pull_every": 2, "scheme.updaters": 2, "algorithm.entropy_coef": 0.01,
    },
    "pong-a3c-server-2": {**SERVER, "optimizer.lr": 1e-4, "optimizer.eps": 5e-4, "envs": 50, "rollout": 5},
    "pong-a3c-server-3": {
        **SERVER, "optimizer.lr": 1e-4, "workers": 4, "envs": 50, "rollout": 5, "scheme.accumulate": 4,
        "scheme.pull_every": 8, "scheme.updaters": 1, "scheme.when_full": "wait",
    },
    "pong-a3c-server-4": {
        **SERVER, "optimizer.lr": 1e-4, "workers": 3, "scheme.accumulate": 2, "scheme.pull_every": 4,
        "scheme.when_full": "drop",
    },
    "pong-a3c-server-5": {**SERVER, "optimizer.lr": 1e-4, "scheme.accumulate": 2, "scheme.pull_every": 2},
    "pong-a3c-server-6": {
        **SERVER, "optimizer.lr": 5e-4, "workers": 3, "scheme.accumulate": 1, "scheme.pull_every": 4,
        "scheme.when_full": "drop",
    },
    "pong-a3c-server-7": {
        **SERVER, "optimizer.lr": 1e-3, "workers": 4, "scheme.accumulate": 4, "scheme.pull_every": 8,
    },
    "pong-a3c-threads-9": {
        "scheme": "hogwild", "scheme.workers_as": "thread", "scheme.lock": "update", **ATARI, **ADAM, "workers": 4,
        "optimizer.lr": 3e-4, "algorithm.value_coef": 0.25, "algorithm.value_loss": "squared", "rollout": 5,
    },
    "breakout-a3c-threads-10": {"workers": 5, "scheme.workers_as": "thread", "atari.life_loss": True},
    "pong-appo-2": {**APPO, "workers": 4, "rollout": 32, "algorithm.gae_lambda": 0.95, "optimizer.lr": 3e-4},
    "breakout-appo-3": {**APPO, "workers": 4, "rollout": 32, "algorithm.gae_lambda": 0.9, "optimizer.lr": 1e-4},
    "qbert-appo-4": {**APPO, "workers": 5, "rollout": 16, "algorithm.gae_lambda": 0.95, "optimizer.lr": 3e-4},
    "pong-a3c-lstm-42px": {
        "scheme": "hogwild", **ATARI, **ADAM, **QUARTER_SUM, "optimizer.lr": 1e-4, "optimizer.max_grad_norm": 50.0,
        "workers": 16, "rollout": 20, "atari.frame_size": 42, "atari.stack": 1, "algorithm.gae_lambda": 1.0,
    },
    "pong-a3c-lstm-80px": {
        "scheme": "hogwild", **ATARI, **ADAM, **QUARTER_SUM, "optimizer.amsgrad": True, "workers": 36,
        "optimizer.max_grad_norm": None, "model.core_size": 512, "algorithm.gae_lambda": 0.92, "atari.frame_size": 80,
    },
    "bipedal-hardcore-a3c-lstm": {
        "scheme": "hogwild", **ADAM, "workers": 18, "algorithm.gamma": 0.98, "algorithm.gae_lambda": 0.8,
        "optimizer.amsgrad": True, "model.hidden": (320, 160), "model.core_size": 160, "algorithm.value_coef": 0.2,
    },
    "bipedal-a3c-lstm": {"workers": 8},
    "seaquest-a2c": {
        "scheme": "sync", **ATARI, **RMSPROP, **TORCH, **N_STEP, **HALF_MEAN, "envs": 16, "rollout": 5,
        "steps": 10_000_000, "optimizer.lr_end": None, "model.torso": "nature-cnn-32",
    },
    "enduro-a2c-baselines": {
        "scheme": "sync", **ATARI, **RMSPROP, **TENSORFLOW, **N_STEP, **HALF_MEAN, "envs": 16, "rollout": 5,
        "steps": 10_000_000, "optimizer.lr_end": 0.0, "model.torso": "nature-cnn",
    },
}  # fmt: skip
"""What the sources ran, whether our defaults say so or the preset does."""


def value_at(config: Config, path: str) -> Any:
    if path in ("algorithm", "scheme", "optimizer"):
        return name_of(path, getattr(config, path))
    found: Any = config
    for part in path.split("."):
        found = getattr(found, part)
    return found


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_exists_and_reaches_the_config(name: str) -> None:
    config, preset = base_config(name), PRESETS[name]
    assert {path: value_at(config, path) for path in preset.values} == dict(preset.values)
    method = METHODS[preset.method]
    assert (value_at(config, "algorithm"), value_at(config, "scheme")) == (method.algorithm, method.scheme)
    assert (config.env, config.preset) == (preset.env, name)
    check(config)


ENVS: dict[Kind, str] = {"atari": "ALE/Pong-v5", "discrete": "CartPole-v1", "continuous": "Pendulum-v1"}


@pytest.mark.parametrize("kind", ENVS)
@pytest.mark.parametrize("name", METHODS)
def test_every_setting_of_a_method_reaches_the_config(name: str, kind: Kind) -> None:
    if kind == "atari":
        pytest.importorskip("ale_py")
    config, values = base_config(name, env=ENVS[kind]), METHODS[name].values[kind]
    assert {path: value_at(config, path) for path in values} == dict(values)


@pytest.mark.parametrize(
    ("path", "near"),
    [
        ("algorithm.gama", "gamma"),
        ("scheme.lok", "lock"),
        ("optimizer.lr_ende", "lr_end"),
        ("model.tors", "torso"),
        ("step", "steps"),
    ],
)
def test_a_typo_in_a_preset_or_a_method_is_an_error(path: str, near: str, monkeypatch: pytest.MonkeyPatch) -> None:
    said = re.escape(f"there is no setting {path} (did you mean '{near}'?)")
    preset = PRESETS["cartpole-a3c"]
    monkeypatch.setitem(PRESETS, "cartpole-a3c", replace(preset, values={**preset.values, path: 1}))
    with pytest.raises(UsageError, match=said):
        base_config("cartpole-a3c")
    method = METHODS["a3c"]
    wrong = {kind: {**values, path: 1} for kind, values in method.values.items()}
    monkeypatch.setitem(METHODS, "a3c", replace(method, values=wrong))
    with pytest.raises(UsageError, match=said):
        base_config("a3c", env="CartPole-v1")


OWN = """
from dataclasses import dataclass
from polyactor.types import Algorithm

@dataclass(frozen=True)
class Own(Algorithm):
    gae_lambda: float = 0.5
"""


def test_an_algorithm_of_ones_own_takes_the_settings_it_has(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text(OWN)
    algorithm: Any = base_config(f"{tmp_path}/own.py:Own", env="CartPole-v1").algorithm
    assert algorithm == type(algorithm)(gae_lambda=0.95)


@pytest.mark.parametrize("name", SOURCES)
def test_a_published_row_is_what_its_source_ran(name: str) -> None:
    config = base_config(name)
    assert {path: value_at(config, path) for path in SOURCES[name]} == SOURCES[name]


def test_a_published_row_does_not_follow_our_own_tuning(monkeypatch: pytest.MonkeyPatch) -> None:
    before = base_config("pong-a2c-nature")
    ours = {kind: {"optimizer": "sgd", "algorithm.gamma": 0.5} for kind in METHODS["a2c"].values}
    monkeypatch.setitem(METHODS, "a2c", replace(METHODS["a2c"], values=ours))
    assert base_config("pong-a2c-nature") == before
    assert base_config("cartpole-a2c").algorithm.gamma == 0.5  # type: ignore[attr-defined]


def test_names_and_claims() -> None:
    assert not set(METHODS) & set(PRESETS)
    assert all(preset.method in METHODS for preset in PRESETS.values())
    assert all(preset.source and preset.claim for preset in PUBLISHED.values())
    assert all(not preset.claim for name, preset in PRESETS.items() if name not in PUBLISHED)
    said = {name for name, preset in PRESETS.items() if "negative control: lr too high, must fail" in preset.about}
    assert said == NEGATIVE


def page_names(section: str) -> list[str]:
    """The names in the first column of a section's table."""
    text = PAGE.read_text().split(f"## {section}\n")[1].split("\n## ")[0]
    rows = [line.split("|")[1] for line in text.splitlines() if line.startswith("| `")]
    return sorted(name.strip(" `") for row in rows for name in row.split(","))


def test_the_page_names_every_preset_and_no_other() -> None:
    assert page_names("Which row is which") == sorted(PUBLISHED)
    assert all(preset.source in PAGE.read_text() for preset in PUBLISHED.values())


def test_the_page_names_every_network() -> None:
    assert page_names("Networks") == sorted({"--model.torso", *typing.get_args(TorsoName)} - {"auto"})


@pytest.mark.parametrize(("scheme", "workers"), [("sync", 1), ("actor-learner", 4)])
def test_a_row_with_values_by_worker_fits_a_scheme_that_has_none(scheme: str, workers: int) -> None:
    config = base_config("pong-a3c-server-3", scheme=scheme)
    assert (config.workers, config.per_worker) == (workers, ())
    check(config)


@pytest.mark.parametrize("columns", [60, 100, 160])
def test_the_listing_fits_the_terminal(
    columns: int, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    assert cli.run(["presets"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= columns
    assert all(line == line.rstrip() for line in lines)
    for name in [*METHODS, *PRESETS]:
        assert any(line.startswith(f"  {name}: ") for line in lines)
    assert sum(line.startswith("      measured:") for line in lines) == len(PRESETS)
    assert sum(line.startswith("      published: ") for line in lines) == len(PUBLISHED)


@pytest.mark.parametrize(
    "name", ["pong-a3c-server-3", "breakout-a3c-lstm-8w", "pendulum-a3c-episode", "tmaze-a3c-lstm"]
)
def test_one_preset_in_full_is_flags_that_train_takes(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    preset = PRESETS[name]
    assert cli.run(["presets", name]) == 0
    said = capsys.readouterr().out
    assert all(text in said for text in (name, preset.env, preset.method, preset.claim, preset.measured, preset.source))
    shown = [word for line in said.splitlines() if line.startswith("  --") for word in line.split()]
    config = flags.read_config([preset.method, "--env", preset.env, *shown])
    assert {path: value_at(config, path) for path in preset.values} == dict(preset.values)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(name: str, tmp_path: Path) -> None:
    config = base_config(name)
    config = replace(config, steps=2_000, workers=min(2, config.workers), stop_at=None, quiet=True)
    run = pa.train(replace(config, max_episode_steps=200, out=str(tmp_path / "run")))  # short games for a short film
    assert run.status == "done"
    assert run.summary["agent_steps"] >= 2_000


@pytest.mark.parametrize("env", ["ALE/Pong-v5", "PongNoFrameskip-v4", "Pong-v4", "Pong-v0"])
def test_atari_has_its_settings_however_its_id_is_written(env: str) -> None:
    pytest.importorskip("ale_py")
    assert kind_of(env) == "atari"
    assert kind_of("CartPole-v1") == "discrete"
    assert kind_of("Pendulum-v1") == "continuous"
