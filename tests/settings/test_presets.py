"""Names that stand for settings: they say what their sources ran, and every one of them trains."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import polyactor as pa
from polyactor.api import Specs, configured
from polyactor.cli.flags import read_config
from polyactor.errors import UsageError
from polyactor.models.spec import TORSOS
from polyactor.settings.check import check
from polyactor.settings.presets import METHODS, PRESETS, Kind, base_config, kind_of
from polyactor.settings.published import PUBLISHED
from tests.helpers.settings import value_at

PAGE = Path(__file__).parents[2] / "docs" / "presets.md"
NEGATIVE = {"pong-a3c-server-1", "pong-a3c-server-6", "pong-a3c-server-7"}


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
    assert page_names("Networks") == sorted({"--model.torso", *TORSOS} - {"auto"})


@pytest.mark.parametrize(("scheme", "workers"), [("sync", 1), ("actor-learner", 4)])
def test_a_row_with_values_by_worker_fits_a_scheme_that_has_none(scheme: str, workers: int) -> None:
    config = base_config("pong-a3c-server-3", scheme=scheme)
    assert (config.workers, config.per_worker) == (workers, ())
    check(config)


@pytest.mark.slow
@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains(name: str, tmp_path: Path) -> None:
    if name == "paper-acer-continuous":
        pytest.importorskip("mujoco", reason="HalfCheetah needs the mujoco extra")
    config = base_config(name)
    config = replace(config, steps=2_000, workers=min(2, config.workers), stop_at=None, quiet=True)
    run = pa.train(replace(config, max_episode_steps=200, out=str(tmp_path / "run")))  # short games for a short film
    assert run.status == "done"
    assert run.summary["agent_steps"] >= 2_000


def test_noise_explores_in_place_of_an_entropy_bonus() -> None:
    def entropy(args: str) -> float:
        return float(read_config([*args.split(), "--env", "polyactor/Bandit-v0"]).algorithm.entropy_coef)  # type: ignore[attr-defined]

    catch = "catch-a3c"  # which has a bonus of its own
    assert entropy(catch) == entropy(f"{catch} --model.noisy none") == 0.01
    assert entropy(f"{catch} --model.noisy heads") == entropy(f"{catch} --model.noisy=dense") == 0.0
    assert entropy(f"{catch} --model.noisy heads --algorithm.entropy-coef 0.02") == 0.02
    published = base_config("pong-a3c-server-3", noisy="heads")
    assert [published.for_worker(each).algorithm.entropy_coef for each in range(4)] == [0.0] * 4  # type: ignore[attr-defined]

    def configured_with(**sections: Any) -> float:
        return float(configured("a3c", "polyactor/Bandit-v0", sections, {}, Specs()).algorithm.entropy_coef)  # type: ignore[attr-defined]

    assert configured_with(algorithm="ppo") == 0.01
    assert configured_with(algorithm="ppo", model={"noisy": "heads"}) == 0.0
    assert configured_with(algorithm="ppo", model=pa.ModelSpec(noisy="dense")) == 0.0
    assert configured_with(algorithm=pa.A2C(entropy_coef=0.3), model={"noisy": "heads"}) == 0.3


@pytest.mark.parametrize("env", ["ALE/Pong-v5", "PongNoFrameskip-v4", "Pong-v4", "Pong-v0"])
def test_atari_has_its_settings_however_its_id_is_written(env: str) -> None:
    pytest.importorskip("ale_py")
    assert kind_of(env) == "atari"
    assert kind_of("CartPole-v1") == "discrete"
    assert kind_of("Pendulum-v1") == "continuous"
