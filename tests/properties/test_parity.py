"""Agreement with rlax and torchrl on random inputs, where their conventions and ours can be made the same.

* Neither knows a fake row. rlax is given ρ = 0 there, torchrl `done` at every end; what torchrl then makes of the fake
  row itself is meaningless and not compared.
* rlax has c̄ = 1 and torchrl ρ̄_π = ρ̄ and λ = 1, so those are the settings compared.
* torchrl's V-trace advantage at an episode's end inside the batch was wrong before 0.14 (pytorch/rl #4209, #4210).

Both packages are in the `dev` extra; without them these tests fail, they are not skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from polyactor.equations.losses import clipped_surrogate
from polyactor.equations.returns import Estimate, gae, vtrace

GAMMA = 0.93
pytestmark = pytest.mark.slow  # importing jax and torchrl takes longer than all that they are compared with

RLAX = [(1.0, 1.0, 1.0), (0.9, 2.0, 3.0), (0.0, 1.0, 0.5), (0.95, 1.5, 1.0)]  # λ, ρ̄, ρ̄_π
TORCHRL = [(1.0, 1.0), (2.0, 1.0), (3.0, 1.7), (0.8, 0.2)]  # ρ̄, c̄
LAMBDAS = [0.0, 0.8, 0.95, 1.0]
CLIPS = [0.05, 0.2, 0.6]

Cases = dict[str, np.ndarray]


def random_case(t: int, b: int, seed: int) -> Cases:
    """B streams in the NEXT_STEP convention, ends of every kind among them: terminal, truncated, a lost life."""
    rng = np.random.default_rng(seed)
    terminated, ends, mask = np.zeros((t, b), bool), np.zeros((t, b), bool), np.ones((t, b))
    ended = rng.random(b) < 0.2
    for row in range(t):
        mask[row] = ~ended
        ends[row] = ~ended & (rng.random(b) < 0.2)
        terminated[row] = ~ended & (rng.random(b) < np.where(ends[row], 0.5, 0.1))
        ended = ends[row]
    return {
        "gamma": np.array(GAMMA),
        "reward": rng.normal(size=(t, b)) * mask,
        "value": rng.normal(size=(t + 1, b)) * 2,
        "mask": mask,
        "terminated": terminated,
        "done": ends | terminated,
        "discount": GAMMA * ~terminated,
        "rho": np.exp(0.7 * rng.normal(size=(t, b))),
        "advantage": rng.normal(size=(t, b)),
        "rlax_bars": np.array(RLAX),
        "torchrl_bars": np.array(TORCHRL),
        "lambdas": np.array(LAMBDAS),
        "clips": np.array(CLIPS),
    }


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> tuple[Cases, Cases]:
    """The inputs, and what the others make of them."""
    cases, place = random_case(20, 64, seed=0), tmp_path_factory.mktemp("parity")
    np.savez(place / "cases.npz", **cases)
    subprocess.run(
        [
            sys.executable,
            Path(__file__).parents[1] / "helpers" / "oracles.py",
            place / "cases.npz",
            place / "answers.npz",
        ],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return cases, dict(np.load(place / "answers.npz"))


def same(ours: Estimate, theirs: np.ndarray, where: np.ndarray) -> None:
    assert where.any()
    for mine, other in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(mine.numpy()[where], other[where], rtol=1e-12, atol=1e-12)


def tensors(cases: Cases, *names: str) -> list[Tensor]:
    return [torch.from_numpy(cases[name]) for name in names]


RETURNS = ("reward", "value", "discount", "mask")


@pytest.mark.parametrize("i", range(len(RLAX)))
def test_v_trace_of_rlax(both: tuple[Cases, Cases], i: int) -> None:
    cases, answers = both
    trace_lambda, rho_bar, policy_rho_bar = RLAX[i]
    bars = {"trace_lambda": trace_lambda, "rho_bar": rho_bar, "policy_rho_bar": policy_rho_bar}
    ours = vtrace(*tensors(cases, *RETURNS, "rho"), **bars, c_bar=1.0)
    same(ours, answers[f"rlax_{i}"], np.ones_like(cases["mask"], bool))


@pytest.mark.parametrize("i", range(len(TORCHRL)))
def test_v_trace_of_torchrl(both: tuple[Cases, Cases], i: int) -> None:
    cases, answers = both
    rho_bar, c_bar = TORCHRL[i]
    ours = vtrace(*tensors(cases, *RETURNS, "rho"), rho_bar=rho_bar, c_bar=c_bar, policy_rho_bar=rho_bar)
    same(ours, answers[f"torchrl_{i}"], cases["mask"] == 1)


@pytest.mark.parametrize("i", range(len(LAMBDAS)))
def test_gae_of_torchrl(both: tuple[Cases, Cases], i: int) -> None:
    cases, answers = both
    same(gae(*tensors(cases, *RETURNS), LAMBDAS[i]), answers[f"gae_{i}"], cases["mask"] == 1)


@pytest.mark.parametrize("i", range(len(CLIPS)))
def test_clipped_surrogate_of_rlax(both: tuple[Cases, Cases], i: int) -> None:
    cases, answers = both
    rho, advantage = tensors(cases, "rho", "advantage")
    loss = clipped_surrogate(rho.requires_grad_(), advantage, CLIPS[i]).mean()
    (gradient,) = torch.autograd.grad(loss, rho)
    assert 0 < (gradient == 0).sum() < gradient.numel()  # both sides of the clip are there
    np.testing.assert_allclose(loss.item(), answers[f"clip_{i}_loss"], rtol=1e-12)
    theirs = answers[f"clip_{i}_gradient"].reshape(gradient.shape)
    np.testing.assert_allclose(gradient, theirs, rtol=1e-12, atol=1e-15)
