"""`--exact-resume`: what was stopped and resumed is what was never stopped."""

from __future__ import annotations

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import polyactor as pa
from polyactor.cli import main as cli
from polyactor.errors import UsageError
from polyactor.settings.check import check
from polyactor.settings.presets import base_config
from polyactor.shared.counters import SharedCounters
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import read_rows
from polyactor.training import stats, trainer
from polyactor.training.trainer import _Training
from tests.helpers.toys import Everything

TIMED = {"wall_s", "steps_per_s", "rss_mb"}
RUNS: dict[str, dict[str, Any]] = {
    "a2c, recurrent, everything normalised": {
        "preset": "a2c", "env": "polyactor/TMaze-v0", "envs": 4, "rollout": 7, "steps": 2_400,
        "model": {"core": "lstm", "core_size": 8, "hidden": (8,)}, "normalize": {"observation": True, "reward": True},
    },
    "acktr": {
        "preset": "acktr", "env": "CartPole-v1", "envs": 4, "rollout": 7, "steps": 2_000,
        "model": {"hidden": (8,)}, "optimizer": {"factors_every": 3, "inverse_every": 5},
    },
    "acktr, recurrent, everything": {
        "preset": "acktr", "env": Everything, "scheme": pa.Sync(threads=1), "envs": 2, "rollout": 5, "steps": 1_000,
        "model": {"core": "gru", "core_size": 8, "hidden": (8,)}, "normalize": {"observation": True},
        "optimizer": {"factors_every": 2, "inverse": "eigen", "cold_updates": 3},
    },
    "ppo, continuous": {
        "preset": "ppo", "env": "Pendulum-v1", "envs": 2, "rollout": 16, "steps": 1_600,
        "model": {"hidden": (8,)}, "normalize": {"observation": True, "reward": True},
    },
    "acer": {
        "preset": "acer", "env": "CartPole-v1", "scheme": "sync", "envs": 4, "rollout": 5, "steps": 2_000,
        "model": {"hidden": (8,)}, "algorithm": {"replay_capacity": 600, "replay_start": 200, "replay_ratio": 1.0},
    },
    "acer, continuous": {
        "preset": "acer", "env": "Pendulum-v1", "scheme": "sync", "envs": 2, "rollout": 5, "steps": 1_200,
        "model": {"hidden": (8,)}, "algorithm": {"replay_capacity": 400, "replay_start": 100},
    },
    "acer, beta": {
        "preset": "acer", "env": "Pendulum-v1", "scheme": "sync", "envs": 2, "rollout": 5, "steps": 1_200,
        "model": {"hidden": (8,), "distribution": "beta"}, "algorithm": {"replay_capacity": 400, "replay_start": 100},
    },
    "ppo, squashed": {
        "preset": "ppo", "env": "Pendulum-v1", "envs": 2, "rollout": 16, "steps": 1_600,
        "model": {"hidden": (8,), "distribution": "squashed"}, "normalize": {"observation": True, "reward": True},
    },
    "acer, recurrent": {
        "preset": "acer", "env": "polyactor/TMaze-v0", "scheme": "sync", "envs": 2, "rollout": 5, "steps": 1_200,
        "model": {"core": "lstm", "core_size": 8, "hidden": (8,)},
        "algorithm": {"replay_capacity": 400, "replay_start": 100},
    },
    "acer, from replay alone": {
        "preset": "acer", "env": "CartPole-v1", "scheme": "sync", "envs": 2, "rollout": 5, "steps": 1_500,
        "model": {"hidden": (8,)},
        "algorithm": {"replay_capacity": 400, "replay_start": 100, "replay_ratio": 0.5, "on_policy": False},
    },
    "acer, noisy": {
        "preset": "acer", "env": "CartPole-v1", "scheme": "sync", "envs": 2, "rollout": 5, "steps": 400,
        "model": {"hidden": (8,), "noisy": "dense"}, "algorithm": {"replay_capacity": 100, "replay_start": 40},
    },
    "a2c, independent noise": {
        "preset": "a2c", "env": "polyactor/TMaze-v0", "envs": 4, "rollout": 7, "steps": 2_400,
        "model": {"core": "lstm", "core_size": 8, "hidden": (8,), "noisy": "dense", "noisy_kind": "independent"},
    },
    "ppo, everything": {
        "preset": "ppo", "env": Everything, "scheme": pa.Sync(threads=1), "precision": "fp32",
        "algorithm": {"minibatches": 4}, "envs": 4, "rollout": 8, "steps": 1_600,
        "model": {"core": "gru", "core_size": 8, "hidden": (8,)}, "normalize": {"observation": True, "reward": True},
    },
    "acer, everything": {
        "preset": "acer", "env": Everything, "scheme": pa.Sync(threads=1), "precision": "fp32",
        "envs": 2, "rollout": 5, "steps": 1_200,
        "model": {"core": "gru", "core_size": 8, "hidden": (8,)}, "normalize": {"observation": True},
        "algorithm": {"replay_capacity": 400, "replay_start": 100, "replay_ratio": 1.0},
    },
    "acer, weight norm": {
        "preset": "acer", "env": "CartPole-v1", "scheme": "sync", "envs": 4, "rollout": 5, "steps": 1_600,
        "model": {"hidden": (8,), "norm": "weight"}, "algorithm": {"replay_capacity": 600, "replay_start": 200},
    },
    "a2c, residual CNN with layer norm": {
        "preset": "a2c", "env": "ALE/Breakout-v5", "scheme": pa.Sync(threads=1), "envs": 2, "rollout": 5, "steps": 400,
        "max_episode_steps": 120, "atari": {"frame_size": 24, "noop_max": 3},
        "model": {"torso": "impala-cnn", "norm": "layer"},
    },
    "a2c, Atari": {
        "preset": "a2c", "env": "ALE/Breakout-v5", "envs": 2, "rollout": 5, "steps": 500, "max_episode_steps": 120,
        "model": {"torso": "a3c-cnn", "hidden": (16,)}, "atari": {"frame_size": 44, "noop_max": 3},
    },
}  # fmt: skip
"""ACER's memories are overwritten before, and after, where these runs are stopped."""


def train(out: Path, what: dict[str, Any], **more: Any) -> pa.Run:
    usual = {"seed": 3, "exact_resume": True, "quiet": True, "out": str(out), "workers": 1}
    return pa.train(**usual | {"checkpoint_every": 1e9} | what | more)  # a checkpoint comes with a row, by the clock


@pytest.fixture
def stop_at(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A SIGTERM to this process when so many steps are done, between two rows; or in a turn that counted none."""
    original = _Training._take_in
    monkeypatch.setattr(stats, "ROWS", 40)
    monkeypatch.setattr(trainer, "keepsakes", lambda *_, **__: [])  # pictures take as long as all the rest

    def arm(steps: int, *, idle: bool = False) -> None:
        seen = [-1]

        def look(self: _Training) -> bool:
            over = original(self)
            now, between = self.counters.steps, self.stats.moved
            ready = now == seen[-1] if idle else between
            if ready and steps <= now < self.config.steps and not self.stop.asked:
                os.kill(os.getpid(), signal.SIGTERM)
            seen.append(now)
            return over

        monkeypatch.setattr(_Training, "_take_in", look)

    return arm


def rows(run: Path) -> dict[int, dict[str, Any]]:
    """By step, without their clock."""
    return {
        row["agent_steps"]: {name: value for name, value in row.items() if name not in TIMED}
        for row in read_rows(run / "metrics.jsonl")
    }


def same(ours: Path, theirs: Path) -> None:
    """Every tensor of the last checkpoint, every row of the first run, everything counted."""
    mine, others = checkpoint.load(ours), checkpoint.load(theirs)
    assert mine.tensors.keys() == others.tensors.keys()
    for name, tensor in mine.tensors.items():
        assert tensor.numpy().tobytes() == others.tensors[name].numpy().tobytes(), name
    for name in ("agent_steps", "updates", "games", "scores", "lengths", "best_score_mean100", "games_needed"):
        assert mine.meta[name] == others.meta[name], name
    straight, resumed = rows(ours), rows(theirs)
    assert len(straight) >= 30
    assert {step: resumed.get(step) for step in straight} == straight
    assert len(resumed) == len(straight) + 1


SLOW = (
    *("ppo, continuous", "acer, continuous", "acer, recurrent", "ppo, everything", "acer, everything", "a2c, Atari"),
    "acktr, recurrent, everything",
    *(
        "acer, beta",
        "ppo, squashed",
        "acer, weight norm",
        "a2c, residual CNN with layer norm",
        "a2c, independent noise",
    ),
)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in RUNS])
def test_a_stopped_run_goes_on_to_the_bit(name: str, tmp_path: Path, stop_at: Any, capsys: Any) -> None:
    what = RUNS[name]
    straight = train(tmp_path / "straight", what)
    assert straight.status == "done"
    stop_at(what["steps"] // 2, idle="alone" in name)
    assert train(tmp_path / "stopped", what).status == "stopped"
    stop_at(10**9)
    assert pa.resume(tmp_path / "stopped", trust_code=True).status == "done"
    assert "to the bit" in capsys.readouterr().out
    same(straight.path, tmp_path / "stopped")
    for ours in (straight.path / "replay").rglob("*.bin"):
        theirs = tmp_path / "stopped" / ours.relative_to(straight.path)
        assert ours.read_bytes() == theirs.read_bytes(), ours.name
    assert (straight.path / "replay").exists() == (what["preset"] == "acer")


class Change(pa.Callback):
    """Changes one coefficient before the run is stopped, and another one after it."""

    def on_report(self, run: Any, row: Any) -> None:
        if row["agent_steps"] >= 600:
            run.set("algorithm.entropy_coef", 0.25)
        if row["agent_steps"] >= 1_500:
            run.set("optimizer.lr", 1e-4)


@pytest.mark.slow
def test_what_a_callback_has_changed_goes_on_to_the_bit(tmp_path: Path, stop_at: Any) -> None:
    what = {"preset": "a2c", "env": "CartPole-v1", "envs": 4, "rollout": 5, "steps": 2_000, "model": {"hidden": (8,)}}
    straight = train(tmp_path / "straight", what, callbacks=[Change])
    stop_at(1_000)
    assert train(tmp_path / "stopped", what, callbacks=[Change]).status == "stopped"
    stop_at(10**9)
    shutil.copytree(tmp_path / "stopped", tmp_path / "other")
    assert pa.resume(tmp_path / "stopped", callbacks=[Change], quiet=True).status == "done"
    same(straight.path, tmp_path / "stopped")
    assert checkpoint.load(straight.path).meta["changes"] == checkpoint.load(tmp_path / "stopped").meta["changes"]
    pa.resume(tmp_path / "other", callbacks=[], quiet=True)
    with pytest.raises(AssertionError):  # the second change is missing
        same(straight.path, tmp_path / "other")


@pytest.mark.slow
def test_stopped_again_and_again(tmp_path: Path, stop_at: Any) -> None:
    what = RUNS["acer"]
    straight = train(tmp_path / "straight", what)
    stop_at(301)
    train(tmp_path / "stopped", what)
    for steps in (302, 700, 1_500, 10**9):
        stop_at(steps)
        run = pa.resume(tmp_path / "stopped", quiet=True)
    assert run.status == "done"
    mine, others = checkpoint.load(straight.path), checkpoint.load(run.path)
    for name, tensor in mine.tensors.items():
        assert tensor.numpy().tobytes() == others.tensors[name].numpy().tobytes(), name
    assert mine.meta["scores"] == others.meta["scores"]


def test_without_it_the_run_says_that_environments_begin_anew(tmp_path: Path, stop_at: Any, capsys: Any) -> None:
    what = RUNS["a2c, recurrent, everything normalised"]
    stop_at(1_000)
    train(tmp_path / "run", what, exact_resume=False)
    assert not [name for name in checkpoint.load(tmp_path / "run").tensors if name.startswith("carried")]
    pa.resume(tmp_path / "run")
    assert "environments and random streams begin anew" in capsys.readouterr().out


def crashed(tmp_path: Path, what: dict[str, Any], stop_at: Any) -> None:
    """The checkpoint of step 1,000 with the replay files of step 1,500."""
    run, kept = tmp_path / "run", tmp_path / "kept"
    stop_at(1_000)
    train(run, what)
    shutil.copytree(run / "checkpoints", kept)
    stop_at(1_500)
    pa.resume(run, quiet=True, trust_code=True)
    shutil.rmtree(run / "checkpoints")
    shutil.copytree(kept, run / "checkpoints")
    stop_at(10**9)


def test_replay_that_has_gone_on_since_is_refused_unless_environments_may_restart(
    tmp_path: Path, stop_at: Any, capsys: Any
) -> None:
    what = RUNS["acer"]
    crashed(tmp_path, what, stop_at)
    with pytest.raises(SystemExit) as exit_:
        cli.main(["resume", str(tmp_path / "run"), "--quiet"])
    assert exit_.value.code == 4
    assert "written over some that it needs" in (said := capsys.readouterr().err)
    assert "--restart" in said
    assert pa.resume(tmp_path / "run", restart=True, quiet=True).status == "done"


@pytest.mark.slow
@pytest.mark.parametrize("name", ["acer", "acer, everything"])
def test_replay_that_was_never_full_is_wound_back(name: str, tmp_path: Path, stop_at: Any) -> None:
    what = RUNS[name] | {"steps": 2_000, "algorithm": {"replay_capacity": 100_000, "replay_start": 200}}
    straight = train(tmp_path / "straight", what)
    crashed(tmp_path, what, stop_at)
    pa.resume(tmp_path / "run", quiet=True, trust_code=True)
    mine, others = checkpoint.load(straight.path), checkpoint.load(tmp_path / "run")
    for name, tensor in mine.tensors.items():
        assert tensor.numpy().tobytes() == others.tensors[name].numpy().tobytes(), name


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        ("a3c --env CartPole-v1", "--exact-resume is not allowed with --scheme hogwild"),
        ("a2c --env LunarLander-v3", "--exact-resume is not allowed: LunarLander-v3 cannot be saved"),
    ],
)
def test_what_cannot_be_exact_is_refused_before_there_is_a_file(
    flags: str, why: str, tmp_path: Path, capsys: Any
) -> None:
    out = tmp_path / "run"
    with pytest.raises(SystemExit) as exit_:
        cli.main(["train", *flags.split(), "--exact-resume", "--out", str(out)])
    assert exit_.value.code == 2
    assert why in capsys.readouterr().err
    assert not out.exists()


def test_a_gpu_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    config = replace(base_config("a2c", env="CartPole-v1"), device="cuda", exact_resume=True)
    with pytest.raises(UsageError, match="--exact-resume is not allowed with --device cuda"):
        check(config)


def test_metrics_go_on_where_their_means_were() -> None:
    ours, theirs = SharedCounters(1), SharedCounters(1)
    for value in (0.1, 0.2, 0.7):
        ours.record(0, {"entropy": value, "value_loss": 1 / 3})
    ours.mark()
    ours.record(0, {"entropy": 0.3, "grad_norm": 1.0})
    theirs.restore({name: tensor.clone() for name, tensor in ours.tensors().items()})
    assert theirs.metrics() == ours.metrics()
    for counters in (ours, theirs):
        counters.record(0, {"entropy": 0.1 + 0.2})
        counters.mark()
        counters.record(0, {"entropy": 1e-9})
    assert theirs.metrics() == ours.metrics()
    assert theirs.metrics()["policy_loss"] is None
    assert theirs.metrics()["value_loss"] == pytest.approx(1 / 3)
    two = SharedCounters(2)
    two.restore(ours.tensors())
    assert two.metrics()["entropy"] is None


def test_a_checkpoint_has_what_goes_on(tmp_path: Path, stop_at: Any) -> None:
    what = RUNS["acer"]
    stop_at(500)
    run = train(tmp_path / "run", what)
    saved = checkpoint.load(run.path).tensors
    assert saved["carried.actor.score"].dtype == torch.float64
    assert np.array_equal(saved["carried.actor.observation"].shape, (4, 4))
