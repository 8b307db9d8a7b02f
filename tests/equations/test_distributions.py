"""Distributions: their formulas, their extremes and their random numbers."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor.equations.distributions import Categorical, Gaussian, MultiCategorical
from polyactor.models.action_space import ActionSpec, action_spec


def double(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_golden_gaussian(golden: Callable[[str], tuple[dict[str, Any], dict[str, Any]]]) -> None:
    x, outputs = golden("entropy_and_gaussian")
    pi = Gaussian(double(x["mean"]), torch.full((x["d"],), math.log(x["sigma"]), dtype=torch.float64))
    assert pi.log_prob(double(x["a"])).item() == pytest.approx(outputs["gaussian_logprob"], abs=1e-12)
    assert pi.entropy().item() == pytest.approx(outputs["gaussian_entropy"], abs=1e-12)
    assert torch.equal(pi.mode(), double(x["mean"]))


def test_agrees_with_torch_distributions() -> None:
    params = torch.randn(5, 4, 6, generator=generator(), dtype=torch.float64)
    discrete, continuous = action_spec(spaces.Discrete(6)), action_spec(spaces.Box(-1, 1, (3,)))
    pi, reference = discrete.distribution(params), torch.distributions.Categorical(logits=params)
    action = pi.sample(generator())
    torch.testing.assert_close(pi.log_prob(action), reference.log_prob(action))
    torch.testing.assert_close(pi.entropy(), reference.entropy())
    normal = torch.distributions.Normal(params[..., :3], params[..., 3:].exp())
    pi = continuous.distribution(params)
    action = pi.sample(generator())
    torch.testing.assert_close(pi.log_prob(action), normal.log_prob(action).sum(-1))
    torch.testing.assert_close(pi.entropy(), normal.entropy().sum(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_degenerate_logits_are_finite_everywhere(dtype: torch.dtype) -> None:
    logits = torch.tensor([[1e4, -1e4, -1e4], [-1e4, 1e4, 1e4]], dtype=dtype, requires_grad=True)
    pi = Categorical(logits)
    assert pi.sample(generator()).shape == (2,)
    assert all(Categorical(logits).sample(generator(seed))[0] == 0 for seed in range(20))
    torch.testing.assert_close(pi.entropy(), torch.tensor([0.0, math.log(2)], dtype=dtype))
    torch.testing.assert_close(pi.log_prob(torch.tensor([1, 1])), torch.tensor([-2e4, -math.log(2)], dtype=dtype))
    (pi.entropy().sum() + pi.log_prob(torch.tensor([1, 0])).sum()).backward()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("log_std", [-5.0, math.log(1e-3), 2.0])
def test_gaussian_extremes_are_finite(log_std: float) -> None:
    params = torch.tensor([0.5, log_std], requires_grad=True)
    pi = action_spec(spaces.Box(-1, 1, (1,))).distribution(params)
    (pi.log_prob(torch.tensor([-0.5])) + pi.entropy()).backward()
    assert params.grad is not None
    assert params.grad.isfinite().all()


SPACES = [spaces.Discrete(4), spaces.MultiDiscrete([2, 3]), spaces.Box(-1, 1, (3,))]
SPECS = {type(space).__name__: action_spec(space) for space in SPACES} | {
    kind: action_spec(spaces.Box(-1, 1, (3,)), kind=kind) for kind in ("beta", "squashed")
}


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_sampling_takes_its_generator_and_never_the_global_one(spec: ActionSpec) -> None:
    pi = spec.distribution(torch.randn(5, 6, spec.params, generator=generator()))
    before = torch.get_rng_state()
    stream = generator(1)
    first, second = pi.sample(stream), pi.sample(stream)
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(pi.sample(generator(1)), first)
    assert not torch.equal(first, second)
    assert not torch.equal(pi.sample(generator(2)), first)


@pytest.mark.parametrize("spec", SPECS.values(), ids=SPECS)
def test_shapes(spec: ActionSpec) -> None:
    for lead in [(), (7,), (5, 2)]:
        if not lead and not spec.dims:
            continue  # an actor always has a batch
        pi = spec.distribution(torch.zeros(*lead, spec.params))
        action = pi.sample(generator())
        assert action.shape == pi.mode().shape == (*lead, *spec.shape)
        assert action.dtype == (torch.float32 if spec.dims else torch.int64)
        assert pi.log_prob(action).shape == pi.entropy().shape == lead


def within_four_errors(counts: Tensor, p: Tensor) -> None:
    n = int(counts.sum())
    error = (p * (1 - p) / n).sqrt()
    assert ((counts / n - p).abs() < 4 * error).all(), (counts / n, p)


def test_categorical_samples_with_its_probabilities() -> None:
    logits = torch.tensor([[0.2, -0.1, 0.5, -2.0], [1.0, 0.0, 0.0, 0.0]])
    action = Categorical(logits.expand(20_000, 2, 4)).sample(generator())
    for row in range(2):
        within_four_errors(torch.bincount(action[:, row], minlength=4), logits[row].softmax(-1))


def test_multi_categorical_samples_its_parts_independently() -> None:
    spec = action_spec(spaces.MultiDiscrete([2, 3]))
    params = torch.tensor([0.3, -0.3, 0.2, -0.1, 0.5])
    action = spec.distribution(params.expand(20_000, 5)).sample(generator())
    joint = torch.outer(params[:2].softmax(-1), params[2:].softmax(-1)).flatten()
    within_four_errors(torch.bincount(action[:, 0] * 3 + action[:, 1], minlength=6), joint)


def test_multi_categorical_joint_log_prob_is_the_sum_and_entropy_too() -> None:
    spec = action_spec(spaces.MultiDiscrete([2, 3, 4]))
    params = torch.randn(9, generator=generator(), dtype=torch.float64)
    pi = spec.distribution(params)
    assert isinstance(pi, MultiCategorical)
    parts = [params[:2].log_softmax(-1), params[2:5].log_softmax(-1), params[5:].log_softmax(-1)]
    probabilities = []
    for a in itertools.product(range(2), range(3), range(4)):
        log_prob = pi.log_prob(torch.tensor(a)).item()
        assert log_prob == pytest.approx(sum(part[i].item() for part, i in zip(parts, a, strict=True)), abs=1e-12)
        probabilities.append(math.exp(log_prob))
    assert sum(probabilities) == pytest.approx(1)
    assert pi.entropy().item() == pytest.approx(-sum(p * math.log(p) for p in probabilities), abs=1e-12)
    assert pi.mode().tolist() == [int(part.argmax()) for part in parts]


def test_gaussian_samples_with_its_moments() -> None:
    mean, log_std = torch.tensor([1.0, -2.0]), torch.tensor([-1.0, 0.5])
    n = 20_000
    action = Gaussian(mean.expand(n, 2), log_std.expand(n, 2)).sample(generator())
    std = log_std.exp()
    assert ((action.mean(0) - mean).abs() < 4 * std / n**0.5).all()
    assert ((action.std(0) - std).abs() < 4 * std / (2 * n) ** 0.5).all()
    assert np.corrcoef(action.T.numpy())[0, 1] == pytest.approx(0, abs=4 / n**0.5)


def test_gaussian_is_not_clipped_to_the_box_it_acts_in() -> None:
    """A Box of ±0.1 and σ = 1: samples leave it, and their density is the normal's own."""
    pi = action_spec(spaces.Box(-0.1, 0.1, (1,))).distribution(torch.zeros(1000, 2))
    action = pi.sample(generator())
    assert (action.abs() > 0.1).float().mean() > 0.85
    torch.testing.assert_close(pi.log_prob(action), torch.distributions.Normal(0.0, 1.0).log_prob(action[:, 0]))
    grid = torch.linspace(-8, 8, 4001, dtype=torch.float64)
    density = action_spec(spaces.Box(-0.1, 0.1, (1,))).distribution(torch.zeros(4001, 2, dtype=torch.float64))
    assert torch.trapezoid(density.log_prob(grid[:, None]).exp(), grid).item() == pytest.approx(1, abs=1e-9)


def test_log_prob_and_entropy_gradcheck() -> None:
    for space in SPACES:
        spec = action_spec(space)
        params = torch.randn(3, spec.params, generator=generator(), dtype=torch.float64, requires_grad=True)
        action = spec.distribution(params.detach()).sample(generator())
        assert torch.autograd.gradcheck(lambda p, s=spec, a=action: s.distribution(p).log_prob(a), params)
        assert torch.autograd.gradcheck(lambda p, s=spec: s.distribution(p).entropy(), params)


def test_unsupported_space_is_refused() -> None:
    with pytest.raises(TypeError, match="no policy for"):
        action_spec(spaces.MultiBinary(3))
