"""ACER's steps in a trust region of all parameters."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor import transport
from polyactor.algorithms import ACER
from polyactor.algorithms.acer.critics import with_noise
from polyactor.config import Config
from polyactor.data import Batch, Rollout
from polyactor.equations import trust_region
from polyactor.errors import UsageError
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.settings.check import check
from polyactor.settings.presets import base_config
from polyactor.shared.counters import Counter
from tests.helpers.fresh import fresh

MakeRollout = Callable[..., Rollout]
BY_THETA: tuple[Any, ...] = ("linear", "natural", "average")


def tensor(x: Any) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def close(ours: Tensor, theirs: Any, atol: float = 1e-9) -> None:
    torch.testing.assert_close(ours.detach(), tensor(theirs), rtol=0, atol=atol)


def made(make_rollout: MakeRollout, action_space: Any = None, **spec: Any) -> tuple[Rollout, ActorCritic]:
    action_space = spaces.Discrete(3) if action_space is None else action_space
    x = make_rollout(6, 4, actions=action_space, seed=0)
    space = spaces.Box(-1, 1, x.observation.shape[2:], np.float32)
    torch.manual_seed(0)
    how = ModelSpec(hidden=(8,), **spec)
    model = ActorCritic(space, action_space, how, value_head="q", averaged=True)
    head = model.policy.mean if action_space.dtype == np.float32 else model.policy
    head.weight.data.normal_(0, 0.5)
    model = model.double()
    params = torch.randn(6, 4, model.actions.params, dtype=torch.float64)
    state = tuple(torch.zeros(4, *part.shape[1:]).double() for part in model.initial_state(1))
    observation = torch.randn(x.observation.shape, dtype=torch.float64)
    x = x.replace(observation=observation, behavior_params=params, core_state=state, reward=x.reward.double())
    assert model.average is not None
    for buffer in model.average.buffers():
        buffer.add_(0.05 * torch.randn_like(buffer))
    return x, model


def distance(model: ActorCritic, x: Rollout, near: Any) -> float:
    with torch.no_grad():
        pi = model.distribution(model.unroll(x).policy[:-1])
        return float((pi.kl_from(near) * x.mask).sum() / x.mask.sum())


@pytest.mark.parametrize("region", BY_THETA)
@pytest.mark.parametrize("kind", ["listed", "box", "lstm"])
def test_a_step_stays_in_its_region_and_the_rest_is_the_critics(
    make_rollout: MakeRollout, region: Any, kind: str
) -> None:
    space = spaces.Box(-1, 1, (2,)) if kind == "box" else spaces.Discrete(3)
    x, model = made(make_rollout, space, **({"core": "lstm", "core_size": 8} if kind == "lstm" else {}))
    acer = ACER(trust_region=region, delta=0.02, entropy_coef=0.01)
    theta, generator = tuple(model.parameters()), torch.Generator().manual_seed(0)
    batch, average = with_noise(model, x, acer.dueling_samples, generator), model.average
    assert average is not None
    old = model.distribution(model.unroll(x).policy[:-1].detach())
    near = old if region == "natural" else average.distribution(average.unroll(x).policy[:-1].detach())
    before = distance(model, x, near)
    direction = acer.by_theta(model, batch, average if region != "natural" else None, theta)
    plain, metrics = replace(acer, trust_region="none").loss(model, batch)
    assert set(direction.metrics) - {"kl", "projected"} == set(metrics)
    for name, value in metrics.items():
        assert direction.metrics[name].item() == pytest.approx(value.item(), abs=1e-9)
    if region == "linear":
        assert direction.step is None
        whole = trust_region.flat(torch.autograd.grad(plain, theta, materialize_grads=True))
        assert direction.metrics["kl"].item() == pytest.approx(before, abs=1e-9)
        assert not torch.equal(trust_region.flat(direction.gradient), whole)
        free = replace(acer, delta=1e9).by_theta(model, batch, average, theta)
        close(trust_region.flat(free.gradient), whole.numpy(), 1e-12)  # a region as wide as that holds nothing
        return
    assert direction.step is not None
    step = trust_region.flat(direction.step)
    assert step.norm() > 0
    names = [name for name, _ in model.named_parameters()]
    head = "policy.mean.weight" if kind == "box" else "policy.weight"
    assert (direction.gradient[names.index(head)] == 0).all()  # the critic's loss does not reach it
    with trust_region.displaced(theta, step):
        after = distance(model, x, near)
    assert after == pytest.approx(direction.metrics["kl"].item(), abs=1e-9)
    assert after <= 1.5 * 0.02 or after < before


@pytest.mark.parametrize("region", ["natural", "average"])
def test_it_climbs(make_rollout: MakeRollout, region: Any) -> None:
    x, model = made(make_rollout)
    acer = ACER(trust_region=region, delta=0.05, entropy_coef=0.0)
    theta, average = tuple(model.parameters()), model.average if region == "average" else None
    out = model.unroll(x)
    estimate = acer.critic(out).estimate(model, Batch(x), out)
    old = model.distribution(model.unroll(x).policy[:-1].detach())

    def objective() -> float:
        with torch.no_grad():
            pi = model.distribution(model.unroll(x).policy[:-1])
            return -float((estimate.surrogate(pi, old) * x.mask).sum() / x.mask.sum())

    start = objective()
    direction = acer.by_theta(model, Batch(x), average, theta)
    assert direction.step is not None
    with trust_region.displaced(theta, trust_region.flat(direction.step)):
        assert objective() > start + 1e-4


def config(region: Any, **changes: Any) -> Config:
    c = replace(base_config("acer", env="CartPole-v1", scheme="sync"), envs=4, rollout=5, workers=1)
    return replace(c, algorithm=replace(c.algorithm, trust_region=region, replay_start=40), **changes)  # type: ignore[call-arg]


@pytest.mark.parametrize("region", BY_THETA)
def test_a_learner_moves_by_them(region: Any) -> None:
    c = config(region)
    parts = fresh(c)
    state, counters = parts.state, parts.counters
    replica, actor = parts.actor(0)
    learner, updater = parts.learner(0, replica), parts.updater(0)
    for _ in range(5):
        replica.pull()
        for gradients in learner.gradients(actor.collect(replica.version)):
            before = state.theta.clone()
            assert (gradients.step is None) == (region == "linear")
            updater.apply(gradients)
            if gradients.step is not None:
                policy = next(slot for slot in state.layout.slots if slot.name == "policy.weight")
                moved = policy.view(state.theta - before)
                torch.testing.assert_close(moved, policy.view(gradients.step), rtol=1e-4, atol=1e-6)
    assert counters.metrics()["kl"] is not None
    assert (state.average is None) == (region == "natural")


@pytest.mark.parametrize("region", BY_THETA)
def test_they_run_under_what_can_be_right(region: Any) -> None:
    for scheme in ("sync", "hogwild", "actor-learner"):
        c = replace(base_config("acer", env="CartPole-v1", scheme=scheme), workers=1, transport="inline", steps=600)
        c = replace(c, algorithm=replace(c.algorithm, trust_region=region, replay_start=100))  # type: ignore[call-arg]
        check(c)
        parts = fresh(c)
        state, counters = parts.state, parts.counters
        for _ in transport.run(parts):
            pass
        assert state.vector.isfinite().all()
        assert int(counters.table[:, Counter.SKIPPED].sum()) == 0


@pytest.mark.parametrize("region", ["natural", "average"])
def test_where_others_move_the_parameters_they_are_refused(region: Any) -> None:
    for scheme, workers in (("hogwild", 2), ("param-server", 1)):
        c = replace(base_config("acer", env="CartPole-v1", scheme=scheme), workers=workers)
        with pytest.raises(UsageError, match=f"--algorithm.trust-region {region} is not allowed where others move"):
            check(replace(c, algorithm=replace(c.algorithm, trust_region=region)))  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="--precision bf16 is not allowed"):
        check(config(region, precision="bf16"))
    with pytest.raises(UsageError, match="--compile is not allowed"):
        check(config(region, compile=True))
    check(config("linear", precision="bf16"))
