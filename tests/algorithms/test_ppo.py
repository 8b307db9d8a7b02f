"""PPO: what its minibatches hold, what its loss does to each row, and when it leaves a rollout."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from gymnasium import spaces
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyactor.algorithms import A2C, PPO
from polyactor.algorithms.base import Algorithm
from polyactor.data import Batch, Distribution, Metrics, Outputs, Rollout
from polyactor.equations import losses, returns
from polyactor.errors import UsageError
from polyactor.models.action_space import action_spec
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.settings.presets import base_config
from tests.helpers.fresh import fresh

MakeRollout = Callable[..., Rollout]
ACTIONS = 3


class Lookup:
    """Free logits and values of every row of a rollout, found again in any batch by the number each row observes."""

    def __init__(self, t: int, b: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.spec = action_spec(spaces.Discrete(ACTIONS))
        self.policy = torch.randn((t + 1) * b, ACTIONS, generator=generator, dtype=torch.float64, requires_grad=True)
        self.value = torch.randn((t + 1) * b, generator=generator, dtype=torch.float64, requires_grad=True)

    def distribution(self, params: Tensor) -> Distribution:
        return self.spec.distribution(params)

    def unroll(self, rollout: Rollout) -> Outputs:
        rows = numbers(rollout)
        return Outputs(self.policy[rows], self.value[rows])

    def gradients(self, algorithm: Algorithm, rollout: Rollout) -> tuple[Tensor, Tensor, Metrics]:
        """∂L/∂logits and ∂L/∂V of the first batch, by row, and its metrics."""
        loss, metrics = algorithm.loss(self, first(algorithm, self, rollout))
        policy, value = torch.autograd.grad(loss, (self.policy, self.value))
        return policy, value, metrics


def test_all_batches_of_a_rollout_see_it_scaled_alike() -> None:
    """Though the state's running statistics take it in with the first."""
    config = replace(base_config("ppo", env="Pendulum-v1"), envs=4, rollout=16, steps=1_000, seed=1)
    assert config.normalize.observation
    parts = fresh(config)
    state = parts.state
    replica, actor = parts.actor(0)
    learner, updater = parts.learner(0, replica), parts.updater(0)
    for taken in (0, 64):
        replica.pull()
        before = state.theta.clone()
        for gradients in learner.gradients(actor.collect(replica.version)):
            assert replica.model.observation_moments.count == taken
            updater.apply(gradients)
            assert state.views()["observation_moments.count"] == taken + 64
        assert not torch.equal(state.theta, before)
    actor.envs.close()


def first(algorithm: Algorithm, model: Any, rollout: Rollout) -> Batch:
    return next(algorithm.batches(model, rollout, None, generator()))


def numbers(x: Rollout) -> Tensor:
    """Which row of the whole rollout each row is."""
    return x.observation[..., 0].long()


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def rollout_of(
    make_rollout: MakeRollout, t: int, b: int, *, lag: float = 0.0, **options: Any
) -> tuple[Rollout, Lookup]:
    """A numbered rollout and its model; the policy that acted is e^±lag away from the model's."""
    x, model = make_rollout(t, b, actions=spaces.Discrete(ACTIONS), observation=(1,), **options), Lookup(t, b)
    x = x.replace(observation=torch.arange((t + 1) * b, dtype=torch.float64).view(t + 1, b, 1))
    log_pi = model.distribution(model.unroll(x).policy[:-1]).log_prob(x.action).detach()
    noise = torch.randn(t, b, generator=generator(9), dtype=torch.float64)
    return x.replace(behavior_log_prob=log_pi - lag * noise), model


def all_batches(ppo: PPO, model: Any, x: Rollout, seed: int = 0, kl: float = 0.0) -> list[Batch]:
    """Every batch, each answered with the same KL."""
    stream = ppo.batches(model, x, None, generator(seed))
    found = [next(stream)]
    while True:
        try:
            found.append(stream.send({"kl": torch.tensor(kl)}))
        except StopIteration:
            return found


# -- the loss ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
def test_one_pass_over_a_fresh_rollout_is_a2c(
    make_rollout: MakeRollout, estimator: Literal["gae", "vtrace"], normalize: bool
) -> None:
    """At ρ = 1 nothing is clipped; PPO's value term has a ½ that A2C's has not."""
    x, model = rollout_of(make_rollout, 9, 4, seed=3)
    assert 0 < x.mask.mean() < 1
    both: Any = {"gamma": 0.9, "gae_lambda": 0.8, "entropy_coef": 0.03, "normalize_advantage": normalize}
    ppo = PPO(epochs=1, minibatches=1, value_coef=1.4, clip_value=0.1, estimator=estimator, **both)
    assert len(all_batches(ppo, model, x)) == 1
    ours, theirs = model.gradients(ppo, x), model.gradients(A2C(value_coef=0.7, **both), x)
    for mine, a2cs in zip(ours[:2], theirs[:2], strict=True):
        assert mine.abs().max() > 0.01
        torch.testing.assert_close(mine, a2cs, rtol=0, atol=1e-14)
    assert ours[2]["kl"].item() == pytest.approx(0, abs=1e-14)
    assert ours[2]["clip_fraction"].item() == 0


@pytest.mark.parametrize("normalize", [False, True])
def test_loss_and_gradient_by_formula(make_rollout: MakeRollout, normalize: bool) -> None:
    """dL/dz = [(π − 1_a) ρ A 1{not flat} + β π (log π + H)]/N, dL/dV = c (V − R)/N where V has not gone too far."""
    x, model = rollout_of(make_rollout, 12, 5, seed=3, lag=0.3)
    clip, clip_value = 0.2, 0.4
    ppo = PPO(
        minibatches=1, clip=clip, clip_value=clip_value, value_coef=0.7, entropy_coef=0.3, normalize_advantage=normalize
    )
    batch = first(ppo, model, x)
    with torch.no_grad():  # earlier batches moved V
        model.value += torch.randn(model.value.shape, generator=generator(5), dtype=torch.float64)
    loss, metrics = ppo.loss(model, batch)
    dz, dv = torch.autograd.grad(loss, (model.policy, model.value))

    rows, mask = numbers(batch.rollout)[0], batch.targets["mask"][0].numpy()
    z, v = model.policy.detach()[rows].numpy(), model.value.detach()[rows].numpy()
    n = mask.sum()
    assert 0 < n < len(rows)
    p = np.exp(z) / np.exp(z).sum(-1, keepdims=True)
    taken = np.eye(ACTIONS)[batch.rollout.action[0].numpy()]
    rho = (p * taken).sum(-1) / batch.rollout.behavior_log_prob[0].exp().numpy()
    a, target, old = (batch.targets[name][0].numpy() for name in ("advantage", "return", "value"))
    if normalize:
        real = a[mask == 1]
        a = (a - real.mean()) / (real.std() + 1e-8)
    flat = np.where(a > 0, rho > 1 + clip, rho < 1 - clip)
    near = old + np.clip(v - old, -clip_value, clip_value)
    too_far = (target - near) ** 2 > (target - v) ** 2
    for zone in (flat, too_far):
        assert 0 < (zone * mask).sum() < n
    entropy = -(p * np.log(p)).sum(-1)

    expected = (p - taken) * (rho * a * ~flat)[:, None] + 0.3 * p * (np.log(p) + entropy[:, None])
    np.testing.assert_allclose(dz[rows], expected * mask[:, None] / n, rtol=0, atol=1e-12)
    np.testing.assert_allclose(dv[rows], 0.7 * (v - target) * ~too_far * mask / n, rtol=0, atol=1e-12)

    terms = {
        "policy_loss": -np.minimum(rho * a, np.clip(rho, 1 - clip, 1 + clip) * a),
        "value_loss": 0.5 * np.maximum((target - v) ** 2, (target - near) ** 2),
        "entropy": entropy,
        "kl": rho - 1 - np.log(rho),
        "clip_fraction": abs(rho - 1) > clip,
    }
    means = {name: (term * mask).sum() / n for name, term in terms.items()}
    assert {name: value.item() for name, value in metrics.items()} == pytest.approx(means, abs=1e-12)
    total = means["policy_loss"] + 0.7 * means["value_loss"] - 0.3 * means["entropy"]
    assert loss.item() == pytest.approx(total, abs=1e-12)


@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
@pytest.mark.parametrize("drift", [3.0, -1e4, 1e4], ids=["finite", "vanishing", "overflown"])
def test_what_fake_rows_hold_changes_nothing(
    make_rollout: MakeRollout, estimator: Literal["gae", "vtrace"], drift: float
) -> None:
    x, model = rollout_of(make_rollout, 8, 3, seed=3, lag=0.3)
    fake = x.mask == 0
    assert fake.any()
    poisoned = x.replace(
        reward=x.reward + 50.0 * fake,
        action=torch.where(fake, (x.action + 1) % ACTIONS, x.action),
        behavior_log_prob=x.behavior_log_prob - drift * fake,
    )
    ppo = PPO(minibatches=2, estimator=estimator, clip_value=0.1)
    (*clean, kept), (*dirty, also) = model.gradients(ppo, x), model.gradients(ppo, poisoned)
    for ours, theirs in zip(clean, dirty, strict=True):
        assert torch.equal(ours, theirs)
    assert kept == also
    assert (clean[0][numbers(x)[:-1][fake]] == 0).all()
    assert (clean[1][numbers(x)[:-1][fake]] == 0).all()


def test_a_minibatch_of_one_row_or_of_nothing_real_is_finite(make_rollout: MakeRollout) -> None:
    x, model = rollout_of(make_rollout, 8, 2, seed=3, end=0.6)
    kinds = set()
    for batch in all_batches(PPO(epochs=1, minibatches=16), model, x):
        assert batch.targets["mask"].shape == (1, 1)
        loss, metrics = PPO().loss(model, batch)
        dz, dv = torch.autograd.grad(loss, (model.policy, model.value))
        real = bool(batch.targets["mask"].item())
        kinds.add(real)
        assert (dz.abs().sum() > 0) == (dv.abs().sum() > 0) == real
        assert all(value.isfinite() for value in (loss, *metrics.values()))
    assert kinds == {True, False}


# -- targets -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("estimator", ["gae", "vtrace"])
def test_targets_are_constants_taken_once_when_the_rollout_arrives(
    make_rollout: MakeRollout, estimator: Literal["gae", "vtrace"]
) -> None:
    x, model = rollout_of(make_rollout, 7, 3, seed=3, lag=0.4)
    ppo = PPO(gamma=0.9, gae_lambda=0.8, epochs=3, minibatches=2, estimator=estimator)
    value, discount = model.unroll(x).value.detach(), 0.9 * (~x.terminated).double()
    if estimator == "gae":
        expected = returns.gae(x.reward, value, discount, x.mask, 0.8)
    else:
        rho = (model.distribution(model.unroll(x).policy[:-1]).log_prob(x.action) - x.behavior_log_prob).exp().detach()
        assert (rho > 1.2).any()
        expected = returns.vtrace(x.reward, value, discount, x.mask, rho, trace_lambda=0.8, policy_rho_bar=None)
    whole = {"advantage": expected.advantage, "return": expected.target, "value": value[:-1], "mask": x.mask}

    stream = ppo.batches(model, x, None, generator())
    batch, count = next(stream), 1
    while True:
        rows = numbers(batch.rollout)
        assert set(batch.targets) == set(whole)
        for name, target in batch.targets.items():
            assert torch.equal(target, whole[name].flatten()[rows]), name
            assert not target.requires_grad
        with torch.no_grad():
            model.policy += 1.0
            model.value += 1.0
        try:
            batch = stream.send({"kl": torch.tensor(0.0)})
        except StopIteration:
            break
        count += 1
    assert count == 6


# -- minibatches -------------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 4), st.integers(1, 12), st.integers(1, 3), st.integers(0, 99))
def test_each_row_is_in_one_minibatch_of_every_epoch_with_its_own_fields(
    make_rollout: MakeRollout, t: int, b: int, minibatches: int, epochs: int, seed: int
) -> None:
    x, model = rollout_of(make_rollout, t, b, seed=seed, lag=0.3)
    batches = all_batches(PPO(epochs=epochs, minibatches=minibatches), model, x, seed)
    parts = min(minibatches, t * b)
    assert len(batches) == epochs * parts
    for epoch in range(epochs):
        own = batches[epoch * parts : (epoch + 1) * parts]
        sizes = [numbers(batch.rollout).numel() for batch in own]
        assert max(sizes) - min(sizes) <= 1
        rows = torch.cat([numbers(batch.rollout)[0] for batch in own])
        assert rows.sort().values.tolist() == list(range(t * b))
        for name in ("is_first", "action", "reward", "terminated", "behavior_log_prob"):
            cut = torch.cat([getattr(batch.rollout, name)[0] for batch in own])
            assert torch.equal(cut, getattr(x, name)[:t].flatten(0, 1)[rows]), name
        mask = torch.cat([batch.targets["mask"][0] for batch in own])
        assert int(mask.sum()) == x.steps


def test_order_is_drawn_anew_each_epoch_from_the_generator_given(make_rollout: MakeRollout) -> None:
    x, model = rollout_of(make_rollout, 10, 4)
    ppo = PPO(epochs=2, minibatches=2)
    order = [[numbers(part.rollout).tolist() for part in all_batches(ppo, model, x, seed)] for seed in (0, 0, 1)]
    assert order[0] == order[1] != order[2]
    assert order[0][:2] != order[0][2:]


@pytest.mark.parametrize("spec", [{}, {"share_torso": False}], ids=["shared", "separate"])
@pytest.mark.parametrize("minibatches", [1, 2, 5, 9])
def test_with_memory_a_minibatch_is_whole_environments_unrolled_as_in_the_rollout(
    make_rollout: MakeRollout, spec: dict[str, Any], minibatches: int
) -> None:
    t, b = 7, 5
    torch.manual_seed(0)
    box, discrete = spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2)
    model = ActorCritic(box, discrete, ModelSpec(hidden=(4,), core="lstm", core_size=3, **spec)).double()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    state = tuple(torch.randn_like(part) for part in model.initial_state(b))
    x = make_rollout(t, b, core_state=state, seed=3)
    first_row = x.is_first.clone()
    first_row[0] = torch.tensor([False, True, False, False, True])  # most streams go on from the rollout before
    x = x.replace(is_first=first_row, version=torch.arange(b))
    assert (x.mask == 0).any()
    whole = model.unroll(x)
    ppo = PPO(epochs=2, minibatches=minibatches)
    batches = all_batches(ppo, model, x)
    parts = min(minibatches, b)
    assert len(batches) == 2 * parts
    for epoch in range(2):
        seen: list[int] = []
        for batch in batches[epoch * parts : (epoch + 1) * parts]:
            part = batch.rollout
            columns = [next(j for j in range(b) if torch.equal(c, x.reward[:, j])) for c in part.reward.unbind(1)]
            seen += columns
            for ours, theirs in zip(part.core_state, x.core_state, strict=True):
                assert torch.equal(ours, theirs[columns])
            out = model.unroll(part)
            torch.testing.assert_close(out.policy, whole.policy[:t, columns], rtol=0, atol=1e-12)
            torch.testing.assert_close(out.value, whole.value[:t, columns], rtol=0, atol=1e-12)
            for name in ("is_first", "action", "terminated", "behavior_log_prob"):
                assert torch.equal(getattr(part, name), getattr(x, name)[:t, columns]), name
            assert torch.equal(batch.targets["mask"], x.mask[:, columns])
            assert torch.equal(batch.targets["value"], whole.value[:t, columns])
        assert sorted(seen) == list(range(b))


def test_with_memory_more_minibatches_than_environments_are_refused() -> None:
    PPO(minibatches=5).fits(5, memory=True, alone=True)
    PPO(minibatches=6).fits(5, memory=False, alone=True)
    with pytest.raises(UsageError, match=r"--algorithm\.minibatches 6 .* at most 5"):
        PPO(minibatches=6).fits(5, memory=True, alone=True)


def test_the_mean_over_equal_minibatches_is_the_whole_gradient(make_rollout: MakeRollout) -> None:
    """Nothing is weighed twice: without normalisation four quarters average to one whole."""
    x, model = rollout_of(make_rollout, 8, 3, lag=0.3, end=0.0)
    quarters = PPO(epochs=1, minibatches=4, normalize_advantage=False)
    gradients = [
        torch.autograd.grad(quarters.loss(model, batch)[0], (model.policy, model.value))
        for batch in all_batches(quarters, model, x)
    ]
    whole = model.gradients(PPO(minibatches=1, normalize_advantage=False), x)
    for mine, others in zip(zip(*gradients, strict=True), whole[:2], strict=True):
        torch.testing.assert_close(torch.stack(mine).mean(0), others, rtol=0, atol=1e-14)


def test_advantages_are_normalised_within_the_minibatch(make_rollout: MakeRollout) -> None:
    x, model = rollout_of(make_rollout, 8, 3, seed=3)
    for batch in all_batches(PPO(epochs=1, minibatches=3), model, x):
        mask, rows = batch.targets["mask"], numbers(batch.rollout)
        a = losses.normalized(batch.targets["advantage"], mask)
        real = a[mask == 1]
        assert real.mean().item() == pytest.approx(0, abs=1e-12)
        assert real.std(correction=0).item() == pytest.approx(1, abs=1e-6)
        loss = PPO(value_coef=0.0, entropy_coef=0.0).loss(model, batch)[0]
        (dz,) = torch.autograd.grad(loss, model.policy)
        taken = dz[rows].gather(-1, batch.rollout.action[..., None])[..., 0]
        p = model.policy.detach()[rows].softmax(-1).gather(-1, batch.rollout.action[..., None])[..., 0]
        torch.testing.assert_close(taken, (p - 1) * a * mask / mask.sum(), rtol=0, atol=1e-12)


# -- leaving a rollout -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stop_after", [1, 3, 6])
def test_a_kl_above_target_ends_the_stream(make_rollout: MakeRollout, stop_after: int) -> None:
    x, model = rollout_of(make_rollout, 8, 3)
    stream = PPO(epochs=2, minibatches=4, target_kl=0.01).batches(model, x, None, generator())
    next(stream)
    for _ in range(stop_after - 1):
        stream.send({"kl": torch.tensor(0.01, dtype=torch.float64)})  # not above it
    with pytest.raises(StopIteration):
        stream.send({"kl": torch.tensor(0.0101)})
    with pytest.raises(StopIteration):
        next(stream)


def test_without_a_target_no_kl_ends_the_stream(make_rollout: MakeRollout) -> None:
    x, model = rollout_of(make_rollout, 8, 3)
    assert len(all_batches(PPO(epochs=2, minibatches=4), model, x, kl=1e9)) == 8


def test_the_losss_own_kl_ends_the_stream_once_the_policy_has_moved(make_rollout: MakeRollout) -> None:
    x, model = rollout_of(make_rollout, 8, 3)
    ppo = PPO(epochs=4, minibatches=1, target_kl=0.02)
    stream = ppo.batches(model, x, None, generator())
    batch, seen = next(stream), []
    while True:
        loss, metrics = ppo.loss(model, batch)
        seen.append(metrics["kl"].item())
        (dz,) = torch.autograd.grad(loss, model.policy)
        with torch.no_grad():
            model.policy -= 10.0 * dz
        try:
            batch = stream.send(metrics)
        except StopIteration:
            break
    assert seen[0] == pytest.approx(0, abs=1e-12)
    assert all(kl <= 0.02 for kl in seen[:-1])
    assert seen[-1] > 0.02
    assert 1 < len(seen) < 4
