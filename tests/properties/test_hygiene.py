"""No gradient outlives its update, every update counts once, and numbers that are not finite go nowhere."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor.agent.learner import Learner
from polyactor.agent.replica import Replica
from polyactor.agent.updater import SKIPS_ALLOWED, Updater
from polyactor.algorithms import A2C
from polyactor.data import Batch, Gradients, Outputs, Rollout
from polyactor.errors import Diverged
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.running_stats import moments
from polyactor.models.spec import ModelSpec
from polyactor.optim import SGD, Adam, RMSprop, Rule
from polyactor.optim.flat import State
from polyactor.shared.counters import METRICS, Counter, SharedCounters

MakeRollout = Callable[..., Rollout]


def make_model(**options: Any) -> ActorCritic:
    torch.manual_seed(0)
    model = ActorCritic(spaces.Box(-1, 1, (3,), np.float32), spaces.Discrete(2), ModelSpec(hidden=(8,)), **options)
    torch.nn.init.normal_(model.policy.weight)  # type: ignore[arg-type]
    return model


class Setup:
    """A state, its counters, and a learner and an updater for each worker, in one process."""

    def __init__(self, rule: Rule, workers: int = 1, **options: Any) -> None:
        self.state, self.counters = State.of(make_model(**options), rule, workers), SharedCounters(workers)
        self.learners = [
            Learner(
                A2C(),
                Replica(make_model(**options), self.state, self.counters),
                total_steps=10_000,
                clip_reward=None,
                generator=torch.Generator().manual_seed(worker),
            )
            for worker in range(workers)
        ]
        self.updaters = [
            Updater(self.state, rule, self.counters, worker=worker, total_steps=10_000) for worker in range(workers)
        ]
        for learner in self.learners:
            learner.replica.pull()

    def gradient(self, x: Rollout, worker: int = 0) -> Tensor:
        """dθ of a rollout, taken and not applied."""
        (each,) = self.learners[worker].gradients(x)
        return each.vector.clone()

    def poisoned(self, value: float, steps: int = 1) -> Gradients:
        vector = torch.zeros(self.state.layout.theta)
        vector[3] = value
        return Gradients(vector, {}, self.counters.version, steps)


@pytest.fixture
def batch(make_rollout: MakeRollout) -> Callable[[int], Rollout]:
    return lambda seed: make_rollout(5, 3, seed=seed, dtype=torch.float32)


# -- gradients ---------------------------------------------------------------------------------------------------------


def test_identical_batches_give_identical_gradients(batch: Callable[[int], Rollout]) -> None:
    setup = Setup(SGD())
    first = setup.gradient(batch(0))
    assert first.norm() > 0.01
    assert torch.equal(setup.gradient(batch(0)), first)


def test_a_gradient_comes_from_its_own_batch_alone(batch: Callable[[int], Rollout]) -> None:
    used, fresh = Setup(SGD()), Setup(SGD())
    used.gradient(batch(0))
    second = used.gradient(batch(1))
    assert torch.equal(second, fresh.gradient(batch(1)))
    assert not torch.equal(second, fresh.gradient(batch(0)))


def test_after_an_update_nothing_of_its_gradient_is_left(batch: Callable[[int], Rollout]) -> None:
    """Also where the updater clipped the learner's own vector in place."""
    setup = Setup(SGD(lr=0.0, max_grad_norm=1e-3))
    for gradients in setup.learners[0].gradients(batch(0)):
        setup.updaters[0].apply(gradients)
    assert torch.equal(setup.gradient(batch(1)), Setup(SGD()).gradient(batch(1)))


@pytest.mark.parametrize("stale", [99.0, math.nan, math.inf])
def test_a_stale_gradient_has_no_effect(batch: Callable[[int], Rollout], stale: float) -> None:
    setup, clean = Setup(SGD()), Setup(SGD()).gradient(batch(0))
    learner = setup.learners[0]
    for parameter in learner.replica.model.parameters():
        parameter.grad = torch.full_like(parameter, stale)
    for place in learner.places:
        place.fill_(stale)
    assert torch.equal(setup.gradient(batch(0)), clean)


def test_replicas_do_not_alias_each_other_or_the_state(batch: Callable[[int], Rollout]) -> None:
    setup = Setup(SGD(), workers=2)
    first = setup.gradient(batch(0), worker=0)
    theta = setup.state.theta.clone()
    setup.gradient(batch(1), worker=1)
    assert torch.equal(setup.learners[0].gradient, first)
    assert torch.equal(setup.state.theta, theta)
    (gradients,) = setup.learners[0].gradients(batch(0))
    setup.updaters[0].apply(gradients)
    assert not torch.equal(setup.state.theta, theta)
    for learner in setup.learners:  # a snapshot is what it was until its worker pulls
        assert torch.equal(learner.replica.vector[: len(theta)], theta)
        learner.replica.pull()
        assert torch.equal(learner.replica.vector, setup.state.vector)
        assert learner.replica.version == 1


# -- shared statistics, counters ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "rule", [RMSprop(), Adam(amsgrad=True), Adam(eps_hat=True)], ids=["rmsprop", "adam", "tf-adam"]
)
def test_statistics_are_shared_and_stay_where_they_are(rule: Rule, batch: Callable[[int], Rollout]) -> None:
    setup = Setup(rule, workers=2)
    setup.state.share_()
    pointers = {name: tensor.data_ptr() for name, tensor in setup.state.tensors().items()}
    for i in range(6):
        for gradients in setup.learners[i % 2].gradients(batch(i)):
            setup.updaters[i % 2].apply(gradients)
    assert {name: tensor.data_ptr() for name, tensor in setup.state.tensors().items()} == pointers
    first, second = (updater.statistics for updater in setup.updaters)
    for name, tensor in first.items():
        assert tensor.is_shared(), name
        assert tensor.data_ptr() == second[name].data_ptr(), name
    if isinstance(rule, Adam):
        assert first["step"].item() == 6


@pytest.mark.parametrize("shared", [True, False])
def test_two_workers_on_one_state_both_count(batch: Callable[[int], Rollout], shared: bool) -> None:
    setup = Setup(Adam(shared=shared), workers=2)
    schedule, versions = [0, 1, 1, 0, 1], []
    expected = [0, 0]
    for i, worker in enumerate(schedule):
        x = batch(i)
        setup.learners[worker].replica.pull()
        for gradients in setup.learners[worker].gradients(x):
            versions.append(setup.updaters[worker].apply(gradients))
        expected[worker] += x.steps
    counters = setup.counters.table
    assert counters[:, Counter.UPDATES].tolist() == [2, 3]
    assert counters[:, Counter.STEPS].tolist() == expected
    assert setup.counters.steps == sum(expected)
    assert versions == [1, 2, 3, 4, 5]
    assert setup.counters.version == 5
    steps = [statistics["step"].item() for statistics in setup.state.statistics]
    assert steps == ([5] if shared else [2, 3])


def test_two_workers_in_turn_are_one_worker_that_does_all(batch: Callable[[int], Rollout]) -> None:
    """Shared statistics, no lag: bit for bit the sequential run."""
    thetas = []
    for workers in (1, 2):
        setup = Setup(RMSprop(lr=0.01, lr_end=0.0), workers)
        for i in range(10):
            setup.learners[i % workers].replica.pull()
            for gradients in setup.learners[i % workers].gradients(batch(i)):
                setup.updaters[i % workers].apply(gradients)
        thetas.append(setup.state.theta.clone())
    assert torch.equal(*thetas)


def test_staleness_and_lag_are_counted_apart(batch: Callable[[int], Rollout]) -> None:
    """Worker 0 acts and differentiates at version 0; worker 1 applies twice before worker 0 does."""
    setup = Setup(SGD(), workers=2)
    x = batch(0)
    (late,) = setup.learners[0].gradients(x.replace(version=torch.zeros(3, dtype=torch.int64)))
    for _ in range(2):
        setup.learners[1].replica.pull()
        (gradients,) = setup.learners[1].gradients(x.replace(version=torch.zeros(3, dtype=torch.int64)))
        setup.updaters[1].apply(gradients)
    assert setup.updaters[0].apply(late) == 3
    row = setup.counters._metrics[0].numpy()
    assert row[0, METRICS.index("gradient_staleness")] == 2
    assert row[0, METRICS.index("policy_lag")] == 0
    assert row[1, METRICS.index("gradient_staleness")] == 0
    assert row[1, METRICS.index("policy_lag")] == 1  # it pulled version 1 and learned from what version 0 did


# -- numbers that are not finite ---------------------------------------------------------------------------------------


@pytest.mark.fault("D3")
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rule", [RMSprop(), Adam(), SGD(max_grad_norm=None)], ids=["rmsprop", "adam", "sgd"])
def test_a_gradient_that_is_not_finite_is_skipped_and_counted(
    batch: Callable[[int], Rollout], rule: Rule, value: float
) -> None:
    setup = Setup(rule, normalize_observation=True)
    for gradients in setup.learners[0].gradients(batch(0)):
        setup.updaters[0].apply(gradients)
    before = {name: tensor.clone() for name, tensor in setup.state.tensors().items()}
    version, steps = setup.counters.version, setup.counters.steps
    bad = setup.poisoned(value, steps=7)
    bad = Gradients(bad.vector, {}, version, 7, {"observation_moments": moments(torch.full((4, 3), value))})
    assert setup.updaters[0].apply(bad) == version
    for name, tensor in setup.state.tensors().items():
        assert torch.equal(tensor, before[name]), name
    assert setup.counters.table[0, Counter.SKIPPED] == 1
    assert setup.counters.steps == steps + 7  # the experience is spent all the same
    for gradients in setup.learners[0].gradients(batch(1)):
        setup.updaters[0].apply(gradients)
    assert setup.counters.version == version + 1
    assert setup.state.vector.isfinite().all()


@pytest.mark.fault("D3")
@pytest.mark.parametrize("value", [3e38, 1e25, 4e18])
@pytest.mark.parametrize("samples", [1, 4])
def test_statistics_whose_square_does_not_fit_are_not_taken_in(value: float, samples: int) -> None:
    """A reward may be finite and its variance not."""
    setup = Setup(SGD(), normalize_observation=True)
    before = {name: tensor.clone() for name, tensor in setup.state.tensors().items()}
    own = {"observation_moments": moments(torch.full((samples, 3), value))}
    setup.updaters[0].apply(Gradients(setup.poisoned(1.0).vector, {}, 0, 7, own))
    assert setup.counters.table[0, Counter.SKIPPED] == 1
    for name, tensor in setup.state.tensors().items():
        assert torch.equal(tensor, before[name]), name
    large = {"observation_moments": moments(torch.full((samples, 3), 3e18))}
    for _ in range(3):
        setup.updaters[0].apply(Gradients(setup.poisoned(1.0).vector, {}, 0, 7, large))
    assert setup.counters.table[0, Counter.SKIPPED] == 1
    assert setup.state.vector.isfinite().all()


@pytest.mark.fault("D3")
def test_more_than_20_in_a_row_stop_the_run_and_one_good_one_starts_the_count_anew() -> None:
    setup = Setup(SGD())
    assert SKIPS_ALLOWED == 20
    for _ in range(2):
        for _ in range(20):
            setup.updaters[0].apply(setup.poisoned(math.nan))
        setup.updaters[0].apply(setup.poisoned(1.0))
    theta = setup.state.theta.clone()
    for _ in range(20):
        setup.updaters[0].apply(setup.poisoned(math.nan))
    with pytest.raises(Diverged, match="not finite"):
        setup.updaters[0].apply(setup.poisoned(math.nan))
    assert setup.counters.table[0, Counter.SKIPPED] == 61
    assert setup.counters.version == 2
    assert torch.equal(setup.state.theta, theta)


@pytest.mark.fault("D17")
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("observation_moments", "observations of about 1e+20 have squares too large for float32; .*no-observation"),
        ("return_moments", "returns .* of about 1e.20 .*--normalize.no-reward with --normalize.clip-reward 1"),
        ("", "gradients in a row were not finite, so the run stopped: the loss is too large for float32"),
    ],
)
def test_the_run_says_which_numbers_are_too_large(name: str, words: str) -> None:
    setup = Setup(SGD())
    large = {name: moments(torch.full((4, 3), 1e20))} if name else {}
    bad = Gradients(setup.poisoned(1.0 if name else math.inf).vector, {}, 0, 7, large)
    for _ in range(SKIPS_ALLOWED):
        setup.updaters[0].apply(bad)
    with pytest.raises(Diverged, match=words.replace("1e+20", "1e.20")):
        setup.updaters[0].apply(bad)


def test_another_workers_skips_are_not_ones_own() -> None:
    setup = Setup(SGD(), workers=2)
    for i in range(40):
        setup.updaters[i % 2].apply(setup.poisoned(math.nan))
    assert setup.counters.table[:, Counter.SKIPPED_IN_A_ROW].tolist() == [20, 20]


def test_a_nan_reward_reaches_no_parameter(batch: Callable[[int], Rollout]) -> None:
    setup, x = Setup(SGD()), batch(0)
    theta = setup.state.theta.clone()
    x.reward[2, 1] = math.nan
    for gradients in setup.learners[0].gradients(x):
        setup.updaters[0].apply(gradients)
    assert setup.counters.table[0, Counter.SKIPPED] == 1
    assert torch.equal(setup.state.theta, theta)


# -- what is masked ----------------------------------------------------------------------------------------------------


def test_a_lost_life_ends_the_return_and_is_not_masked(make_rollout: MakeRollout) -> None:
    """`terminated` without a reset: the rows around it are learned from, counted, and bootstrap from nothing."""
    x = make_rollout(4, 1, end=0.0, dtype=torch.float32)
    lost = x.terminated.clone()
    lost[1] = True
    life = x.replace(terminated=lost)
    assert (life.mask == 1).all()
    assert life.steps == 4

    class Table:
        def __init__(self) -> None:
            self.policy = torch.zeros(5, 1, 2, requires_grad=True)
            self.value = torch.tensor([[1.0], [2.0], [3.0], [4.0], [5.0]], requires_grad=True)

        def distribution(self, params: Tensor) -> Any:
            return make_model().distribution(params)

        def unroll(self, rollout: Rollout) -> Any:
            return Outputs(self.policy, self.value)

    model = Table()
    A2C(gamma=0.5, value_coef=0.5, reduction="sum").loss(model, Batch(life))[0].backward()
    r = life.reward[:, 0].tolist()
    targets = [r[0] + 0.5 * r[1], r[1], r[2] + 0.5 * (r[3] + 0.5 * 5.0), r[3] + 0.5 * 5.0]
    assert model.value.grad is not None
    assert model.policy.grad is not None
    assert model.value.grad[:4, 0].tolist() == pytest.approx(
        [v - t for v, t in zip((1, 2, 3, 4), targets, strict=True)]
    )
    assert (model.policy.grad[:4] != 0).all()
