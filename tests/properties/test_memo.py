"""What acting computed is what learning would compute, up to the order of sums."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polyactor.algorithms.a2c import A2C
from polyactor.algorithms.base import Algorithm
from polyactor.algorithms.ppo import PPO
from polyactor.algorithms.vtrace import VTrace
from polyactor.config import Config, Normalize
from polyactor.data import Batch, Rollout
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.optim.rules import SGD
from polyactor.schemes import Hogwild
from tests.helpers.fresh import fresh

T, B = 3, 8
IMAGE = spaces.Box(0, 255, (4, 42, 42), np.uint8)


def acted(spec: ModelSpec, precision: Any, *, differentiated: bool = True) -> tuple[ActorCritic, Rollout]:
    """A model, and a rollout it acted in, with the memo."""
    torch.manual_seed(0)
    model = ActorCritic(IMAGE, spaces.Discrete(5), spec, precision=precision)
    model.lower()
    rollout = Rollout(
        observation=torch.randint(256, (T + 1, B, *IMAGE.shape), dtype=torch.uint8),
        is_first=torch.tensor([[True] * B, [False] * B, [False, True] * (B // 2), [False] * B]),
        action=torch.randint(5, (T, B)),
        reward=torch.randn(T, B),
        terminated=torch.zeros(T, B, dtype=torch.bool),
        behavior_log_prob=torch.full((T, B), -1.6),
        core_state=model.initial_state(B),
        version=torch.zeros(B, dtype=torch.int64),
        memo=model.blank_memo(T * B, differentiated=differentiated),
    )
    assert rollout.memo is not None
    with torch.inference_mode():
        state = rollout.core_state
        for t in range(T):
            own = rollout.memo[t * B : (t + 1) * B]
            params, state = model.step(rollout.observation[t], state, rollout.is_first[t], own)
            assert params.shape == (B, 5)
    return model, rollout


def gradients(algorithm: Algorithm, model: ActorCritic, rollout: Rollout) -> dict[str, torch.Tensor]:
    return gradients_of(algorithm, model, Batch(rollout))


def gradients_of(algorithm: Algorithm, model: ActorCritic, batch: Batch) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss, _ = algorithm.loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


# Acting passes B images at once, learning T·B, and a library may add those up in another order: then the last bits of
# outputs differ. In bf16 the last of 8 bits also decides which pixel a maximum is taken of, and whose gradient it gets.
ROUNDING = {"fp32": 1e-5, "bf16": 0.2}
"""How far apart gradients may then be, as a share of their norm; of images in another order it is 0.5 and more."""


def distance(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """Of two gradients, as a share of the second's norm."""
    return float((ours.float() - theirs.float()).norm() / theirs.float().norm())


def assert_close(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor], precision: str) -> None:
    for name, gradient in theirs.items():
        assert distance(ours[name], gradient) < ROUNDING[precision], name


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("algorithm", [A2C(), VTrace()], ids=["a2c", "vtrace"])
@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(torso="a3c-cnn"),
        ModelSpec(torso="nature-conv", head_width=32, share_torso=False),
        ModelSpec(torso="elu-conv", core="lstm", core_size=16),
        ModelSpec(torso="pool-conv"),
        ModelSpec(torso="impala-cnn"),
        ModelSpec(torso="a3c-cnn", norm="layer"),
        ModelSpec(torso="nature-cnn", norm="weight"),
    ],
    ids=lambda spec: spec.torso if spec.norm == "none" else f"{spec.torso}-{spec.norm}",
)
def test_gradients_are_those_without_a_memo(spec: ModelSpec, algorithm: Algorithm, precision: Any) -> None:
    model, rollout = acted(spec, precision)
    with_memo, without = (gradients(algorithm, model, x) for x in (rollout, rollout.replace(memo=None)))
    assert with_memo.keys() == without.keys() == dict(model.named_parameters()).keys()
    for name, gradient in without.items():
        assert gradient.any(), name
    assert_close(with_memo, without, precision)


def test_the_torso_is_not_run_again() -> None:
    model, rollout = acted(ModelSpec(torso="a3c-cnn"), "fp32")
    rows: list[int] = []
    for layer in model.trunk.torso:
        if list(layer.parameters()):
            layer.register_forward_hook(lambda _, x, __: rows.append(len(x[0])))
    model.unroll(rollout)
    assert rows == [B, B, B]  # the row to bootstrap from


def test_other_observations_have_no_memo() -> None:
    _, rollout = acted(ModelSpec(torso="a3c-cnn"), "fp32")
    assert rollout.replace(reward=rollout.reward + 1).memo is rollout.memo
    assert rollout.replace(observation=rollout.observation + 1).memo is None


def test_without_gradients_the_features_are_enough() -> None:
    spec = ModelSpec(torso="a3c-cnn", share_torso=False, core="lstm", core_size=8)
    model, rollout = acted(spec, "fp32", differentiated=False)
    assert rollout.memo is not None
    assert not rollout.memo.outputs
    assert len(rollout.memo.features) == len(model.trunks)
    with torch.no_grad():
        with_memo, without = model.unroll(rollout), model.unroll(rollout.replace(memo=None))
        torch.testing.assert_close(with_memo.policy, without.policy, rtol=0, atol=1e-6)  # of outputs near 0.1
        torch.testing.assert_close(with_memo.value, without.value, rtol=0, atol=1e-6)
        rollout.memo.features[0].add_(1)
        assert not torch.allclose(model.unroll(rollout).policy, without.policy, rtol=0, atol=1e-4)
    assert gradients(A2C(), model, rollout).keys() == dict(model.named_parameters()).keys()


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("core", ["none", "lstm"])
def test_epochs_share_the_images_of_a_rollout(core: Any, precision: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Prepared once, and every minibatch's gradient is what it would be with its own."""
    model, rollout = acted(ModelSpec(torso="a3c-cnn", core=core, core_size=16), precision, differentiated=False)
    ppo, acting = PPO(epochs=2, minibatches=3), rollout.memo
    assert acting is not None
    rollout = rollout.replace(memo=replace(acting, images=None))
    looked = model.with_images(rollout)
    assert looked.memo is not None
    assert looked.memo.images is not None
    assert acting.images is not None
    assert torch.equal(looked.memo.images, acting.images)  # what acting prepared
    assert model.with_images(looked) is looked

    def each(x: Rollout) -> list[dict[str, torch.Tensor]]:
        with torch.no_grad():
            batches = list(ppo.batches(model, x, None, torch.Generator().manual_seed(0)))
        return [gradients_of(ppo, model, batch) for batch in batches]

    without = each(rollout)
    prepared: list[int] = []
    original = model.prepared
    monkeypatch.setattr(model, "prepared", lambda x, *more: prepared.append(len(x)) or original(x, *more))
    with_images = each(looked)
    assert prepared == [B]  # the row to bootstrap from, for the targets
    assert len(without) == len(with_images) == 6
    for ours, theirs in zip(with_images, without, strict=True):
        for name, gradient in theirs.items():
            assert torch.equal(ours[name], gradient), name


def test_too_many_images_are_not_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    model, rollout = acted(ModelSpec(torso="a3c-cnn"), "fp32", differentiated=False)
    assert rollout.memo is not None
    rollout = rollout.replace(memo=replace(rollout.memo, images=None))
    pixels = rollout.observation[:T].numel()
    monkeypatch.setattr("polyactor.models.actor_critic.MOST_PIXELS_KEPT", pixels - 1)
    assert model.with_images(rollout) is rollout
    memo = model.blank_memo(T * B, differentiated=False)
    assert memo is not None
    assert memo.images is None
    monkeypatch.setattr("polyactor.models.actor_critic.MOST_PIXELS_KEPT", pixels)
    assert model.with_images(rollout) is not rollout


def test_without_convolutions_there_is_none() -> None:
    model = ActorCritic(IMAGE, spaces.Discrete(5), ModelSpec(torso="mlp"))
    assert model.blank_memo(4, differentiated=True) is None


def config_of(algorithm: Algorithm) -> Config:
    return Config(
        env="polyactor/Catch-v0",
        algorithm=algorithm,
        scheme=Hogwild(),
        optimizer=SGD(),
        steps=1000,
        workers=1,
        envs=B,
        rollout=T,
        precision="fp32",
        model=ModelSpec(torso="a3c-cnn"),
    )


@pytest.mark.parametrize("older", [False, True])
@pytest.mark.parametrize("normalized", [False, True])
def test_a_learner_of_several_epochs_prepares_images_once(
    normalized: bool, older: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not even that where acting prepared them, at the same running statistics."""
    config = replace(config_of(PPO(epochs=3, minibatches=2)), normalize=Normalize(observation=normalized))
    parts = fresh(config)
    replica, actor = parts.actor(0)
    rollout = actor.collect(replica.version)
    actor.envs.close()
    if older:
        replica.pull()
    prepared: list[int] = []
    original = replica.model.prepared
    monkeypatch.setattr(replica.model, "prepared", lambda x, *more: prepared.append(len(x)) or original(x, *more))
    assert len(list(parts.learner(0, replica).gradients(rollout))) == 6
    assert prepared == [*[T * B] * (older and normalized), B]  # the row to bootstrap from is for the targets


def test_a_memo_of_other_parameters_is_not_used() -> None:
    config = config_of(A2C())
    parts = fresh(config)
    first = parts.state.vector.clone()

    def learned(*, memo: bool, older: bool) -> torch.Tensor:
        parts.state.vector.copy_(first)
        replica, actor = parts.actor(0)
        learner = parts.learner(0, replica)
        rollout = actor.collect(replica.version)
        assert rollout.memo is not None
        if older:
            parts.state.vector.copy_(first * 1.1)
            replica.pull()
        gradient = next(learner.gradients(rollout if memo else rollout.replace(memo=None))).vector.clone()
        actor.envs.close()
        return gradient

    found = {(memo, older): learned(memo=memo, older=older) for memo in (False, True) for older in (False, True)}
    assert distance(found[True, False], found[False, False]) < ROUNDING["fp32"]
    assert distance(found[True, True], found[False, True]) < ROUNDING["fp32"]
    assert distance(found[False, True], found[False, False]) > 1e-2


class Seen(NamedTuple):
    """What a loss was given, and what came of it."""

    gradients: list[torch.Tensor]
    values: list[torch.Tensor]


class Twice(A2C):
    """Yields its rollout twice and does not say so."""

    def batches(self, model: Any, rollout: Rollout, replay: Any, generator: Any) -> Generator[Batch, Any, None]:
        yield Batch(rollout)
        yield Batch(rollout)


class Recomputed(A2C):
    """Looks at V of its rollout before each of two updates, as one that recomputes its advantages does."""

    reuses = True

    def batches(self, model: Any, rollout: Rollout, replay: Any, generator: Any) -> Generator[Batch, Any, None]:
        for _ in range(2):
            VALUES.append(model.unroll(rollout).value.clone())
            yield Batch(rollout)
        VALUES.append(model.unroll(rollout).value.clone())


class Average(A2C):
    """Looks at V of the average network, which acted nowhere."""

    averaging = 0.5

    def batches(self, model: Any, rollout: Rollout, replay: Any, generator: Any) -> Generator[Batch, Any, None]:
        VALUES.append(model.average.unroll(rollout).value.clone())
        yield Batch(rollout)
        VALUES.append(model.average.unroll(rollout).value.clone())


VALUES: list[torch.Tensor] = []


def learned_with(algorithm: Algorithm, *, memo: bool, normalized: bool, foreign: bool) -> Seen:
    """Three rollouts learned from, with a step of another worker in between where `foreign`."""
    config = replace(config_of(algorithm), optimizer=SGD(lr=1.0), normalize=Normalize(observation=normalized))
    parts = fresh(config)
    replica, actor = parts.actor(0)
    learner, updater = parts.learner(0, replica), parts.updater(0)
    VALUES.clear()
    found = []
    for n in range(3):
        replica.pull()
        rollout = actor.collect(replica.version)
        assert rollout.memo is not None
        if foreign:  # without a lock nobody counts what another worker is just writing
            parts.state.theta.mul_(1.1 + 0.1 * n)
            replica.pull()
        for gradients in learner.gradients(rollout if memo else rollout.replace(memo=None)):
            found.append(gradients.vector.clone())
            updater.apply(gradients)
    actor.envs.close()
    return Seen(found, list(VALUES))


@pytest.mark.parametrize("foreign", [False, True], ids=["alone", "foreign update"])
@pytest.mark.parametrize("normalized", [False, True], ids=["bytes", "normalized"])
@pytest.mark.parametrize("algorithm", [Twice, Recomputed, Average])
def test_a_loss_of_ones_own_need_not_know_of_the_memo(
    algorithm: type[Algorithm], normalized: bool, foreign: bool
) -> None:
    with_memo, without = (
        learned_with(algorithm(), memo=memo, normalized=normalized, foreign=foreign) for memo in (True, False)
    )
    assert len(with_memo.gradients) == len(without.gradients) >= 3
    for ours, theirs in zip(with_memo.gradients, without.gradients, strict=True):
        assert (ours - theirs).norm() <= 1e-5 * theirs.norm()
    assert len(with_memo.values) == len(without.values)
    for ours, theirs in zip(with_memo.values, without.values, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-6 * max(1.0, float(theirs.abs().max())))
