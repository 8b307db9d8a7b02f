"""``--workers auto`` and ``--envs auto``: what is chosen, that it is said, and that a run keeps it."""

from __future__ import annotations

import json
import os
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from polyactor.cli import main as cli
from polyactor.cli.flags import read_config
from polyactor.config import Config
from polyactor.envs import EnvSpec
from polyactor.errors import UsageError
from polyactor.settings import autotune
from polyactor.storage import checkpoint

CORES = 3


@pytest.fixture(autouse=True)
def _cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(CORES)))


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """Configs that are measured; 16 environments are best."""
    seen = []

    class Fake:
        def __init__(self, config: Config) -> None:
            seen.append(config)

        def __call__(self, size: int) -> float:
            return 100 + abs(size - 16)

        def close(self) -> None:
            pass

    monkeypatch.setattr(autotune, "Stopwatch", Fake)
    return seen


# ---- the rule ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("costs", "tried", "reason"),
    [
        ((700, 560, 473, 419, 411), 5, "32 environments per worker: 419 µs a step, 16 took 473 and 64 would gain"),
        ((700, 560, 473, 419, 390), 5, "64 environments per worker: 390 µs a step, 32 took 419 and more were not"),
        ((80, 40, 39.5, 39, 60), 5, "8 environments per worker: 40 µs a step, 4 took 80 and 16 would gain under 5 %"),
        ((80, 40, 44, 41, 39), 5, "8 environments per worker: 40 µs a step, 4 took 80 and 16 would gain under 5 %"),
        ((80, 77.2, 77.1, 90, 80), 5, "4 environments per worker: 80 µs a step and 8 would gain under 5 %"),
        ((9.876, 9.9, 1, 1, 1), 5, "16 environments per worker: 1 µs a step, 8 took 9.9 and 32 would gain under 5 %"),
        ((9.876, 9.8, 10, 10, 10), 5, "4 environments per worker: 9.88 µs a step and 8 would gain under 5 %"),
        (
            (12_000, 11_000, 10_000, 7, 7),
            3,
            "16 environments per worker: 10,000 µs a step, 8 took 11,000 and more were",
        ),
        ((98_765, 1, 1, 1, 1), 1, "4 environments per worker: 98,765 µs a step and more were not tried"),
    ],
)
def test_the_smallest_size_that_is_near_the_best(costs: tuple[float, ...], tried: int, reason: str) -> None:
    asked = []

    def microseconds(size: int) -> float:
        asked.append(size)
        return costs[autotune.SIZES.index(size)]

    size, said = autotune.cheapest(microseconds, autotune.SIZES)
    assert asked == list(autotune.SIZES[:tried])
    assert said.startswith(reason)
    assert size == int(said.split()[0])


def test_a_worker_per_core_and_one_where_the_scheme_has_one() -> None:
    for scheme, count, why in (("hogwild", CORES, "one per core"), ("sync", 1, "--scheme sync has one")):
        config = read_config(["a3c", "--env", "CartPole-v1", "--scheme", scheme])
        (found,), (reason,) = autotune.chosen([replace(config, workers=7)], ["workers"])
        assert found == replace(config, workers=count)
        assert reason.startswith(f"{count} worker")
        assert why in reason


def test_only_sizes_that_the_run_can_have(measured: list[Config]) -> None:
    """With memory a minibatch is whole environments; what is wrong at every size is refused before measuring."""
    flags = ["ppo", "--env", "CartPole-v1", "--model.core", "lstm"]
    config = read_config([*flags, "--algorithm.minibatches", "20"])
    assert autotune.allowed([config]) == [32, 64]
    (found,), _ = autotune.chosen([config], ["envs"])
    assert found.envs == 32
    measured.clear()
    for wrong, said in (("--algorithm.minibatches=65", "at most 64"), ("--algorithm.gamma=2", "--algorithm.gamma 2.0")):
        config = read_config([*flags, wrong])
        with pytest.raises(UsageError, match=said):
            autotune.chosen([config], ["envs"])
    assert measured == []


# ---- the measurement -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("flags", "making"),
    [
        ("a3c --env CartPole-v1", 60.0),
        ("a3c --env CartPole-v1", 0.0),
        ("a2c --env Pendulum-v1 --model.core lstm", 60.0),
        ("ppo --env polyactor/TMaze-v0 --model.no-share-torso", 0.0),
        ("pong-a3c", 0.0),
        ("pong-appo --precision bf16", 0.0),
    ],
)
def test_every_environment_steps_once_in_a_pass(flags: str, making: float, monkeypatch: pytest.MonkeyPatch) -> None:
    if flags.startswith("pong"):
        pytest.importorskip("ale_py.vector_env")
    made: list[int] = []
    stepped: list[int] = []
    original = autotune.make_envs

    def make_envs(env: str, size: int, **options: Any) -> Any:
        envs = original(env, size, **options)
        step = envs.step
        envs.step = lambda action: stepped.append(len(action)) or step(action)
        made.append(size)
        return envs

    monkeypatch.setattr(autotune, "make_envs", make_envs)
    monkeypatch.setattr(autotune, "TIMED", 0.0)
    monkeypatch.setattr(autotune, "MAKING", making)
    with closing(autotune.Stopwatch(read_config(flags.split()))) as microseconds:
        for size in (4, 8, 16):
            stepped.clear()
            assert microseconds(size) > 0
            assert sum(stepped) == (autotune.WARM_UP + 1) * size
            assert set(stepped) == {size if making else 4}
    assert made == ([4, 8, 16] if making else [4])


# ---- the command line ------------------------------------------------------------------------------------------------


def test_a_run_says_why_and_keeps_the_numbers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(autotune, "TIMED", 0.01)
    run = tmp_path / "run"
    flags = f"--env CartPole-v1 --workers auto --envs=auto --steps 2000 --transport inline --out {run}"
    assert cli.run(["train", "a3c", *flags.split()]) == 0
    config = json.loads((run / "config.json").read_text())
    assert config["workers"] == CORES
    assert config["envs"] in autotune.SIZES
    shown = " ".join(capsys.readouterr().out.split())
    assert f"{CORES} workers × {config['envs']} environments, rollout" in shown
    reasons = [f"{CORES} workers: one per core", f"{config['envs']} environments per worker: "]
    assert all(reason in shown for reason in reasons)
    started = json.loads((run / "events.jsonl").read_text().splitlines()[0])
    assert all(reason in started["reason"] for reason in reasons)

    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0})
    total = checkpoint.load(run).meta["agent_steps"] + 1  # a busy machine chooses many environments
    assert cli.run(["resume", str(run), "--steps", str(total)]) == 0
    resumed = checkpoint.load(run).meta["config"]
    assert (resumed["workers"], resumed["envs"], resumed["steps"]) == (CORES, config["envs"], total)
    assert "per core" not in capsys.readouterr().out


def test_each_flag_alone_and_neither(measured: list[Config], monkeypatch: pytest.MonkeyPatch) -> None:
    found: list[tuple[Config, EnvSpec, list[str], tuple[object, ...]]] = []
    monkeypatch.setattr(
        "polyactor.training.trainer.train", lambda *given: found.append(given) or type("Run", (), {"status": ""})
    )
    for flags, workers, envs in (("--workers auto", CORES, 8), ("--envs auto", 2, 16), ("", 2, 8)):
        cli.run(["train", "cartpole-a3c", *flags.split()])
        config, _, reasons, _ = found[-1]
        assert (config.workers, config.envs) == (workers, envs)
        assert len(reasons) == bool(flags)
    assert len(measured) == 1


def test_bench_measures_once_for_all_schemes(
    measured: list[Config], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found: list[Config] = []
    monkeypatch.setattr("polyactor.report.speed.bench", lambda configs, seconds: found.extend(configs))
    flags = "--env CartPole-v1 --schemes sync,hogwild,param-server --workers auto --envs auto"
    assert cli.run(["bench", "a3c", *flags.split()]) == 0
    assert [(config.workers, config.envs) for config in found] == [(1, 16), (CORES, 16), (CORES, 16)]
    assert len(measured) == 1
    assert [line.split(":")[0] for line in capsys.readouterr().out.splitlines()] == [
        "1 worker",
        f"{CORES} workers",
        "16 environments per worker",
    ]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ("--workers many", "many"),
        ("--envs=automatic", "automatic"),
        ("--workers 2.5", "2.5"),
        ("--workers", "--workers needs a value"),
        ("--rollout auto", "auto"),
        ("--steps=auto", "auto"),
        ("--workers auto --envs 0", "--envs 0 is not allowed"),
        ("--envs auto --workers 0", "--workers 0 is not allowed"),
        ("--envs auto --rollout 0", "--rollout 0 is not allowed"),
    ],
)
@pytest.mark.parametrize("verb", ["train", "bench"])
def test_what_is_neither_a_number_nor_auto_is_refused(
    measured: list[Config],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    verb: str,
    flags: str,
    said: str,
) -> None:
    monkeypatch.setattr("polyactor.training.trainer.train", None)
    monkeypatch.setattr("polyactor.report.speed.bench", None)
    with pytest.raises(SystemExit) as stop:
        cli.main([verb, "a3c", "--env", "CartPole-v1", *flags.split()])
    captured = capsys.readouterr()
    assert stop.value.code == UsageError.exit_code
    assert captured.err.startswith("polyactor: ")
    assert captured.err.count("\n") == 1
    assert said in captured.err
    assert (captured.out, measured) == ("", [])


def test_the_help_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["train", "a3c", "--env", "CartPole-v1", "--workers", "auto", "--help"])
    shown = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "auto: one per core" in shown
    assert "auto: the fewest with which" in shown
