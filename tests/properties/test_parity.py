"""Agreement with rlax, torchrl and curvlinops on random inputs, where their conventions and ours can be made the same.

* Neither knows a fake row. rlax is given ρ = 0 there, torchrl `done` at every end; what torchrl then makes of the fake
  row itself is meaningless and not compared.
* rlax has c̄ = 1 and torchrl ρ̄_π = ρ̄ and λ = 1, so those are the settings compared.
* torchrl's V-trace advantage at an episode's end inside the batch was wrong before 0.14 (pytorch/rl #4209, #4210).
* curvlinops knows one loss at a time, so policy and value have a torso each. Its squared error has no ½: it is given
  targets half as far away.

The packages are in the `oracles` extra; without them these tests fail, they are not skipped.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor.agent.fisher import estimate, layers_of
from polyactor.data import Rollout
from polyactor.envs import EnvSpec
from polyactor.equations.losses import clipped_surrogate
from polyactor.equations.returns import Estimate, gae, vtrace
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from tests.helpers.curvature_oracle import Small

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
    cases = random_case(20, 64, seed=0)
    return cases, answered("oracles.py", cases, tmp_path_factory.mktemp("parity"))


def answered(program: str, cases: Cases, place: Path) -> Cases:
    """What a program of tests/helpers makes of the inputs."""
    np.savez(place / "cases.npz", **cases)
    path = Path(__file__).parents[1] / "helpers" / program
    subprocess.run(
        [sys.executable, path, place / "cases.npz", place / "answers.npz"],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        check=True,
        timeout=300,
    )
    return dict(np.load(place / "answers.npz"))


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


@pytest.mark.parametrize("seed", range(3))
def test_k_fac_of_curvlinops(seed: int, make_rollout: Callable[..., Rollout], tmp_path: Path) -> None:
    torch.manual_seed(seed)
    seen, actions = spaces.Box(0, 255, (2, 6, 6), np.uint8), spaces.Discrete(4)
    model = ActorCritic(seen, actions, ModelSpec(torso=Small, share_torso=False))
    layers = layers_of(model, EnvSpec(seen, actions))
    model.double()
    for parameter in model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    rollout = make_rollout(4, 3, observation=(2, 6, 6), actions=actions, seed=seed)
    rollout = rollout.replace(observation=(60 * rollout.observation.abs()).to(torch.uint8))
    found = estimate(model, layers, rollout, torch.Generator().manual_seed(seed))

    generator, real = torch.Generator().manual_seed(seed), ~rollout.is_first[1:]
    out = model.unroll(rollout.acted)
    action = model.distribution(out.policy).sample(generator)
    noise = torch.empty(4, 3, dtype=torch.float64).normal_(generator=generator)
    cases: dict[str, Any] = {
        "x": rollout.observation[:-1][real] / torch.tensor(255.0).double(),
        "policy.target": action[real],
        "value.target": (out.value + noise / 2).detach()[real].unsqueeze(1),
    }
    trunks = {"policy": "trunk", "value": "critic"}
    networks = {name: [f"{trunk}.torso.0", f"{trunk}.torso.3", name] for name, trunk in trunks.items()}
    for name, modules in networks.items():
        own = [parameter for module in modules for parameter in model.get_submodule(module).parameters()]
        cases |= {f"{name}.{i}": parameter.detach() for i, parameter in enumerate(own)}
    answers = answered("curvature_oracle.py", {name: each.numpy() for name, each in cases.items()}, tmp_path)
    assert 0 < rollout.steps < 12
    for name, modules in networks.items():
        blocks = [block(found[f"inputs.{module}"], found[f"outputs.{module}"]) for module in modules]
        np.testing.assert_allclose(torch.block_diag(*blocks), answers[name], rtol=0, atol=1e-9)


def block(a: Tensor, g: Tensor) -> Tensor:
    """A ⊗ G by the weights row by row, and then the biases."""
    (o, i), whole = (len(g), len(a)), torch.kron(g, a)
    order = torch.arange(o * i).view(o, i)
    places = torch.cat([order[:, :-1].flatten(), order[:, -1]])
    return whole[places][:, places]
