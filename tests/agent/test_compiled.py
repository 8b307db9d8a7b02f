"""Compiled code differentiates as the equations do, also where coefficients anneal and batches change their size."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor.agent.learner import Learner
from polyactor.agent.replica import Replica
from polyactor.algorithms import A2C, PPO, VTrace
from polyactor.algorithms.base import Algorithm
from polyactor.cli.main import main
from polyactor.data import Rollout
from polyactor.errors import UsageError
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.running_stats import merge, moments
from polyactor.models.spec import ModelSpec
from polyactor.optim import SGD
from polyactor.optim.flat import State
from polyactor.shared.counters import Counter, SharedCounters

MakeRollout = Callable[..., Rollout]
T = 4

ALGORITHMS: dict[str, Any] = {
    "a2c": A2C(entropy_coef=0.1, entropy_coef_end=0.0),
    "ppo": PPO(entropy_coef=0.1, entropy_coef_end=0.0, epochs=2, minibatches=2, clip_value=0.1),
    "vtrace": VTrace(entropy_coef=0.1, entropy_coef_end=0.0),
}


def gradients(
    algorithm: Algorithm, rollouts: list[Rollout], *, compile: bool, norm: Literal["none", "layer", "weight"] = "none"
) -> list[Tensor]:
    """Of every batch of every rollout; the run has gone a third further at each."""
    torch.manual_seed(0)
    model = ActorCritic(
        spaces.Box(-1, 1, (3,), np.float32),
        spaces.Discrete(2),
        ModelSpec(hidden=(8,), share_torso=False, norm=norm),
        normalize_observation=True,
    )
    state, counters = State.of(model, SGD(), 1), SharedCounters(1)
    merge(state.views(), "observation_moments", moments(torch.randn(50, 3)))
    learner = Learner(
        algorithm,
        Replica(model, state, counters),
        total_steps=3,
        clip_reward=None,
        generator=torch.Generator().manual_seed(0),
        compile=compile,
    )
    found = []
    for x in rollouts:
        found += [each.vector.clone() for each in learner.gradients(x)]
        counters.table[0, Counter.STEPS] += 1
    return found


def assert_alike(
    algorithm: Algorithm, make_rollout: MakeRollout, sizes: Sequence[int] = (3, 3, 5), norm: Any = "none"
) -> None:
    rollouts = [make_rollout(T, b, seed=b, dtype=torch.float32) for b in sizes]
    plain = gradients(algorithm, rollouts, compile=False, norm=norm)
    for ours, theirs in zip(gradients(algorithm, rollouts, compile=True, norm=norm), plain, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-6)
    frozen = gradients(replace(algorithm, entropy_coef_end=None), rollouts, compile=False, norm=norm)  # type: ignore[call-arg]
    assert not torch.allclose(plain[-1], frozen[-1], rtol=1e-3)  # the coefficient has changed on the way


@pytest.mark.parametrize(
    ("name", "norm"),
    [
        ("ppo", "none"),
        *[pytest.param(name, "none", marks=pytest.mark.slow) for name in ALGORITHMS if name != "ppo"],
        *[pytest.param("a2c", norm, marks=pytest.mark.slow) for norm in ("layer", "weight")],
    ],
)
def test_a_loss_and_its_gradient_are_one_graph(
    name: str, norm: str, make_rollout: MakeRollout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, and run without a compiler: a branch on a tensor would break the graph, and be refused here."""
    torch.compiler.reset()
    whole = torch.compile
    monkeypatch.setattr(torch, "compile", lambda function: whole(function, fullgraph=True, backend="aot_eager"))
    assert_alike(ALGORITHMS[name], make_rollout, sizes=(3, 3), norm=norm)


def test_a_compiler_that_is_wrong_is_found_out(make_rollout: MakeRollout, monkeypatch: pytest.MonkeyPatch) -> None:
    """At the first batch of its size: here the second rollout's."""

    def compile(function: Any) -> Any:
        def run(algorithm: Any, model: Any, batch: Any) -> Any:
            dtheta, metrics = function(algorithm, model, batch)
            size = batch.rollout.reward.shape[1]
            return (dtheta if size == 3 else (*dtheta[:-1], 1.1 * dtheta[-1])), metrics

        return run

    monkeypatch.setattr(torch, "compile", compile)
    rollouts = [make_rollout(T, b, seed=b, dtype=torch.float32) for b in (3, 5)]
    assert len(gradients(A2C(), rollouts[:1], compile=True)) == 1
    with pytest.raises(UsageError, match=r"batches of 4 × 5 .* off by"):
        gradients(A2C(), rollouts, compile=True)


@pytest.mark.slow
@pytest.mark.parametrize("name", ALGORITHMS)
def test_compiled_gradients_are_those_of_the_equations(name: str, make_rollout: MakeRollout) -> None:
    torch.compiler.reset()
    assert_alike(ALGORITHMS[name], make_rollout)


@pytest.mark.slow
@pytest.mark.parametrize("scheme", ["sync", "hogwild", "param-server"])
def test_a_run_learns_by_compiled_code(scheme: str, tmp_path: Path) -> None:
    workers = "1" if scheme == "sync" else "2"
    command = f"train ppo --env CartPole-v1 --compile --steps 4000 --quiet --scheme {scheme} --workers {workers}"
    with pytest.raises(SystemExit) as ended:
        main([*command.split(), "--out", str(tmp_path / "run")])
    assert ended.value.code == 0
