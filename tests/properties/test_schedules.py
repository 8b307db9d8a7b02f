"""Forced orders of events, inline: what is delayed, by how much, and that bounds hold."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from polyactor.agent.learner import Learner
from polyactor.agent.parts import Parts
from polyactor.agent.sharing import Sharing
from polyactor.algorithms import A2C, VTrace
from polyactor.algorithms.base import Algorithm
from polyactor.config import Config, Roles, Scheme
from polyactor.data import Batch, Metrics
from polyactor.models.spec import ModelSpec
from polyactor.optim import SGD
from polyactor.schemes import ActorLearner, Hogwild, ParamServer
from polyactor.schemes.param_server import choose
from polyactor.shared.counters import METRICS, Counter
from polyactor.shared.slot_queue import WakeUp
from polyactor.transport import inline
from tests.helpers.fresh import fresh

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]
T, B = 2, 1


@dataclass(frozen=True)
class Parabola(Algorithm):
    """½ θ², summed over all parameters: the gradient is θ itself, at whatever version it is taken."""

    metrics = ()

    def loss(self, model: Any, batch: Batch, average: Any = None) -> tuple[Any, Metrics]:
        return sum((p**2).sum() / 2 for p in model.parameters()), {}


def config_of(scheme: Any, *, workers: int = 2, updates: int = 8, lr: float = 0.3, **values: Any) -> Config:
    standard = Config(
        env="polyactor/Bandit-v0",
        algorithm=Parabola(),
        scheme=scheme,
        optimizer=SGD(lr=lr, max_grad_norm=None),
        steps=updates,  # a Bandit's rollout of T rows has one step and one fake one
        workers=workers,
        envs=B,
        rollout=T,
        model=ModelSpec(hidden=(4,)),
        transport="inline",
    )
    return replace(standard, **values)


@dataclass
class Seen:
    """θ after every update, as a share of the first, and the staleness of each update."""

    theta: list[float]
    staleness: list[float]
    lag: list[float]


def play(config: Config, order: Iterable[int] | None = None, updates: int = 8) -> Seen:
    parts = fresh(config)
    state, counters = parts.state, parts.counters
    state.theta.fill_(1.0)
    parameters = [slot.view(state.theta) for slot in state.layout.slots if slot.start < state.layout.theta]
    seen = Seen([1.0], [], [])
    totals = dict.fromkeys(("gradient_staleness", "policy_lag"), 0.0)
    for _ in inline.run_roles(parts, order=order):
        if counters.version > len(seen.theta) - 1:
            assert counters.version == len(seen.theta), "one update a turn"
            assert all(bool((p == state.theta[0]).all()) for p in parameters)
            seen.theta.append(state.theta[0].item())
            for name, into in (("gradient_staleness", seen.staleness), ("policy_lag", seen.lag)):
                total = float(counters._metrics[0, :, METRICS.index(name)].sum())
                into.append(total - totals[name])
                totals[name] = total
        if counters.version >= updates:
            break
    return seen


@pytest.mark.parametrize("delay", [0, 1, 3])
@pytest.mark.parametrize("scheme", [Hogwild(), Hogwild(lock="both"), ParamServer()], ids=["none", "both", "server"])
def test_workers_in_turn_are_delayed_gradient_descent(golden: Golden, scheme: Any, delay: int) -> None:
    """W workers taking turns: the gradient applied at t was taken W − 1 updates before."""
    x, outputs = golden("stale_sgd_quadratic")
    config = config_of(scheme, workers=delay + 1, lr=x["eta"], steps=10**6)
    seen = play(config, updates=x["steps"])
    assert seen.theta[: x["steps"] + 1] == pytest.approx(outputs[str(delay)], rel=0, abs=1e-6)  # float32
    assert seen.staleness == [min(t, delay) for t in range(x["steps"])]
    assert set(seen.lag) == {0.0}


def exactly(history: list[float], versions: list[int], eta: float) -> list[float]:
    """θ_{t+1} = θ_t − η θ_{v_t}, in float32, by the same kernel (a vector, multiplied and added in one)."""
    theta = [torch.full((64,), history[0])]
    for version in versions:
        theta.append(theta[-1].add(theta[version], alpha=-eta))
    return [value[0].item() for value in theta]


@pytest.mark.parametrize("scheme", [Hogwild(), ParamServer()], ids=["hogwild", "server"])
def test_two_workers_are_bit_for_bit_the_recursion(scheme: Any) -> None:
    seen = play(config_of(scheme, steps=10**6))
    assert seen.theta == exactly([1.0], [max(0, t - 1) for t in range(8)], 0.3)


def test_any_order_of_turns_is_the_recursion_it_says() -> None:
    """Hogwild: a turn of worker i applies what it took in its turn before, then takes the next."""
    for order in itertools.product((0, 1), repeat=6):
        taken: dict[int, int] = {}
        versions: list[int] = []
        for worker in order:
            if worker in taken:
                versions.append(taken[worker])
            taken[worker] = len(versions)
        seen = play(config_of(Hogwild(), steps=10**6), order=order)
        assert seen.theta == exactly([1.0], versions, 0.3)
        assert seen.staleness == [t - version for t, version in enumerate(versions)]


def test_a_server_that_lets_gradients_wait_applies_the_oldest_first() -> None:
    """Three workers send, then the server applies three times: 0, 1 and 2 updates late."""
    seen = play(config_of(ParamServer(), workers=3, steps=10**6), order=[0, 1, 2, 3, 3, 3, 0, 1, 2, 3, 3, 3], updates=6)
    assert seen.staleness == [0, 1, 2, 0, 1, 2]
    assert seen.theta == exactly([1.0], [0, 0, 0, 3, 3, 3], 0.3)


def test_the_mean_of_what_has_arrived_is_one_update() -> None:
    seen = play(config_of(ParamServer(apply="mean"), workers=3, steps=10**6), order=[0, 1, 2, 3] * 4, updates=4)
    assert seen.staleness == [0, 0, 0, 0]
    assert seen.theta == pytest.approx([0.7**t for t in range(5)], abs=1e-6)


@pytest.mark.parametrize(("reduction", "factor"), [("mean", 1.0), ("sum", 3.0)])
def test_accumulated_gradients_are_one_update(reduction: Any, factor: float) -> None:
    scheme = ParamServer(accumulate=3, reduction=reduction)
    seen = play(config_of(scheme, workers=1, lr=0.1, steps=10**6), updates=4)
    assert seen.theta == pytest.approx([(1 - 0.1 * factor) ** t for t in range(5)], abs=1e-6)


def test_accumulated_gradients_are_as_old_as_the_oldest() -> None:
    """Worker 1 updates between the first and the second rollout of worker 0."""
    scheme = ParamServer(accumulate=2)
    seen = play(config_of(scheme, steps=10**6), order=[0, 1, 1, 2, 0, 2], updates=2)
    assert seen.staleness == [0, 1]


def test_pulling_less_often_is_a_delay() -> None:
    """pull_every 3: three gradients in a row at the same version."""
    seen = play(config_of(ParamServer(pull_every=3), workers=1, steps=10**6), updates=6)
    assert seen.theta == exactly([1.0], [0, 0, 0, 3, 3, 3], 0.3)
    assert seen.staleness == [0, 1, 2, 0, 1, 2]


def test_a_longer_queue_lets_a_worker_go_on_and_drop_throws_the_older_half_away() -> None:
    waiting = [0] * 4 + [1] * 4
    seen = play(config_of(ParamServer(queue=4), workers=1, steps=10**6), order=waiting, updates=4)
    assert seen.theta == exactly([1.0], [0, 0, 0, 0], 0.3)
    config = config_of(ParamServer(queue=4, when_full="drop"), workers=1, steps=10**6)
    parts = fresh(config)
    counters = parts.counters
    for _ in inline.run_roles(parts, order=[0, 0, 0, 0, 1, 1]):
        pass
    assert (counters.version, int(counters.table[0, Counter.DROPPED])) == (2, 2)
    assert counters.steps == 2, "what was dropped was not learned from"


@pytest.mark.parametrize("lag", [0, 1, 5])
def test_an_actor_that_runs_ahead_is_so_many_updates_behind_and_no_more(lag: int) -> None:
    """The actor fills every slot it may; then each round frees one."""
    config = config_of(ActorLearner(max_lag=lag), workers=1, steps=10**6)
    ahead = [0] * (lag + 4)
    seen = play(config, order=ahead + [1, 0, 0] * 20, updates=12)
    assert seen.lag == [min(t, lag) for t in range(12)]
    assert set(seen.staleness) == {0.0}


def test_actors_share_rounds_and_the_slowest_sets_the_pace() -> None:
    config = config_of(ActorLearner(max_lag=2), workers=2, steps=10**6)
    seen = play(config, order=[0, 0, 0, 0, 2, 1, 2, 0, 2, 1, 2, 1, 2, 0, 1, 2], updates=4)
    # Actor 0 acted for three rounds at version 0, for the fourth at 1; actor 1 anew for each: the mean over both.
    assert seen.lag == [0.0, 0.5, 1.0, 1.0]


@settings(deadline=None, max_examples=25)
@given(st.lists(st.integers(0, 2), min_size=20, max_size=60), st.integers(2, 4), st.sampled_from(["each", "mean"]))
def test_a_bound_on_staleness_is_kept_in_any_order(turns: list[int], bound: int, how: Any) -> None:
    config = config_of(ParamServer(apply=how, max_staleness=bound), workers=2, steps=10**6, rollout=1)
    seen = play(config, order=[*turns, *[0, 1, 2] * 4], updates=100)
    assert max(seen.staleness, default=0) <= bound


@settings(deadline=None)
@given(
    arrived=st.dictionaries(st.integers(0, 5), st.integers(0, 9)),
    absent=st.lists(st.integers(0, 9), max_size=3),
    bound=st.integers(0, 9),
)
def test_what_is_chosen_leaves_everybody_time(arrived: dict[int, int], absent: list[int], bound: int) -> None:
    """Simulated to the end: after the chosen one, the others can all be applied, oldest first, within the bound."""
    version = max([*arrived.values(), *absent, 0])
    chosen = choose(arrived, absent, version, ParamServer(max_staleness=bound))
    left = sorted([pulled for i, pulled in arrived.items() if i not in chosen] + absent)
    on_time = all(version + 1 + k - pulled <= bound for k, pulled in enumerate(left))
    assert len(chosen) == (1 if arrived and on_time else 0)
    if chosen:
        assert arrived[chosen[0]] == min(arrived.values())


def test_everybody_waiting_for_everybody_is_an_error_and_not_a_hang() -> None:
    wake_up = WakeUp()

    class Deadlock(Scheme):
        def roles(self, parts: Parts, sharing: Sharing) -> AbstractContextManager[Roles]:
            return nullcontext(Roles(workers=2, work=lambda worker, parts: (wake_up for _ in itertools.count())))

    with pytest.raises(RuntimeError, match="every role waits for another"):
        list(inline.run_roles(fresh(config_of(Deadlock()))))


def test_a_real_loss_taken_late_has_a_ratio_and_fresh_has_none() -> None:
    """V-trace under a learner: ρ is 1 exactly when the lag is 0 (one update of A2C moves it)."""
    ratios: dict[int, list[float]] = {0: [], 2: []}
    original = Learner.gradients
    for lag, found in ratios.items():
        config = config_of(ActorLearner(max_lag=lag), workers=1, steps=10**6, lr=0.5, algorithm=VTrace())
        parts = fresh(config)

        def watched(self: Learner, rollout: Any, found: list[float] = found) -> Any:
            with torch.no_grad():
                pi = self.replica.model.distribution(self.replica.model.unroll(rollout).policy[:-1])
                found.append(float((pi.log_prob(rollout.action) - rollout.behavior_log_prob).abs().max()))
            return original(self, rollout)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Learner, "gradients", watched)
            for _ in inline.run_roles(parts, order=[0, 0, 0] + [1, 0] * 10):
                pass
    assert max(ratios[0]) < 1e-6
    assert max(ratios[2]) > 1e-3
    assert A2C.corrects_lag is False
