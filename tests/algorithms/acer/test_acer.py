"""ACER's loss by what it says of free outputs, its memory of rollouts, its average network, and what it learns."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor import transport
from polyactor.algorithms import ACER
from polyactor.config import Config
from polyactor.data import Batch, Distribution, Outputs, Rollout
from polyactor.equations.distributions import Categorical
from polyactor.errors import UsageError
from polyactor.models.action_space import action_spec
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.settings.check import check
from polyactor.settings.presets import base_config
from tests.helpers.fresh import fresh

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]
MakeRollout = Callable[..., Rollout]


def tensor(x: Any) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


class Table:
    """A model that is its outputs: free logits and Q ``[T+1, B, A]``."""

    def __init__(self, policy: Tensor, q: Tensor) -> None:
        self.spec = action_spec(spaces.Discrete(policy.shape[-1]))
        self.policy, self.q = policy.clone().requires_grad_(), q.clone().requires_grad_()

    def distribution(self, params: Tensor) -> Distribution:
        return self.spec.distribution(params)

    def unroll(self, rollout: Rollout) -> Outputs:
        return Outputs(self.policy, self.q)


def golden_batch(x: dict[str, Any]) -> tuple[Rollout, Tensor, Tensor, list[list[int]]]:
    """The batch with a fake row after each truncation; logits and Q; and where its rows are, by stream."""
    r, q, logits, mu = (tensor(x[name]) for name in ("r", "q", "logits", "mu"))
    action, end, cut, v_next = (
        torch.as_tensor(x["actions"]),
        tensor(x["terminated"]),
        tensor(x["truncated"]),
        tensor(x["v_next"]),
    )
    streams: list[list[tuple[Any, ...]]] = []
    where: list[list[int]] = []
    for b in range(r.shape[1]):
        rows: list[tuple[Any, ...]] = []
        where.append([])
        for t in range(len(r)):
            where[b].append(len(rows))
            rows.append((r[t, b], q[t, b], logits[t, b], mu[t, b], action[t, b], end[t, b], 1.0))
            if end[t, b] or cut[t, b]:  # Q of a constant row is its V
                rows.append(
                    (
                        tensor(9.0),
                        v_next[t, b].expand(3),
                        torch.zeros(3).double(),
                        tensor([0.2, 0.3, 0.5]),
                        action[0, 0],
                        tensor(0.0),
                        0.0,
                    )
                )
        rows.append((None, v_next[-1, b].expand(3), torch.zeros(3).double(), None, None, None, 1.0))
        streams.append(rows)
    length = max(len(rows) for rows in streams)
    assert all(len(rows) == length for rows in streams)  # one end in each stream
    t = length - 1

    def column(i: int, rows: int) -> Tensor:
        return torch.stack([torch.stack([torch.as_tensor(row[i]) for row in stream[:rows]]) for stream in streams], 1)

    mask = column(6, t)
    rollout = Rollout(
        observation=torch.zeros(t + 1, len(streams), 1),
        is_first=torch.cat([torch.ones(1, len(streams), dtype=torch.bool), mask == 0]),
        action=column(4, t),
        reward=column(0, t),
        terminated=column(5, t).bool(),
        behavior_log_prob=torch.zeros(t, len(streams)).double(),
        behavior_params=column(3, t).log(),
        core_state=(),
        version=torch.zeros(len(streams), dtype=torch.int64),
    )
    return rollout, column(2, length), column(1, length), where


@pytest.mark.parametrize("statistics", ["none", "probs", "params"])
def test_the_whole_batch_golden(golden: Golden, statistics: Any) -> None:
    x, _ = golden("retrace_discrete")
    options, wanted = golden("acer_discrete_full_batch")
    rollout, logits, q, where = golden_batch(x)
    acer = ACER(
        gamma=x["gamma"], truncation=options["c"], value_coef=options["q_coef"], entropy_coef=options["ent_coef"],
        delta=options["delta"], trust_region=statistics, hold_entropy=True,
    )  # fmt: skip
    model = Table(logits, q)
    average = None
    if statistics != "none":
        average = Table(torch.zeros_like(logits), q)
        for b, rows in enumerate(where):
            average.policy.data[rows, b] = tensor(options["p_avg"])[:, b].log()
    loss, metrics = acer.loss(model, Batch(rollout), average)
    loss.backward()

    def rows(gradient: Tensor | None) -> Tensor:
        assert gradient is not None
        kept = torch.stack([gradient[rows, b] for b, rows in enumerate(where)], 1)
        assert gradient.abs().sum() == pytest.approx(float(kept.abs().sum()))  # nothing at fake rows or the last
        return kept

    ending = {"none": "no_tr", "probs": "tr_probs", "params": "tr_logits"}[statistics]
    torch.testing.assert_close(rows(model.policy.grad), tensor(wanted[f"dloss_dlogits_{ending}"]), rtol=0, atol=1e-9)
    torch.testing.assert_close(rows(model.q.grad), tensor(wanted["dloss_dq"]), rtol=0, atol=1e-9)
    assert metrics["value_loss"].item() == pytest.approx(wanted["q_loss"], abs=1e-9)
    if statistics == "none":
        assert loss.item() - options["q_coef"] * wanted["q_loss"] == pytest.approx(wanted["policy_loss"], abs=1e-9)
    else:
        share = (tensor(wanted[ending.replace("tr", "tr_scale")]) > 0).double().mean()
        assert metrics["projected"].item() == pytest.approx(float(share), abs=1e-9)


def made(make_rollout: MakeRollout, seed: int = 0, actions: int = 3) -> tuple[Rollout, Table, Table]:
    x = make_rollout(6, 3, actions=spaces.Discrete(actions), seed=seed)
    generator = torch.Generator().manual_seed(seed)

    def normal(rows: int) -> Tensor:
        return torch.randn(rows, 3, actions, generator=generator, dtype=torch.float64)

    x = x.replace(behavior_params=normal(6))
    return x, Table(normal(7), normal(7)), Table(normal(7), normal(7))


@pytest.mark.parametrize("statistics", ["none", "probs", "params"])
@pytest.mark.parametrize("seed", range(3))
def test_a_batch_doubled_has_the_same_gradient(make_rollout: MakeRollout, statistics: Any, seed: int) -> None:
    """The projection is row by row, on gradients that are not averaged."""
    x, model, average = made(make_rollout, seed)
    acer = ACER(trust_region=statistics, delta=0.05)

    def both(value: Any) -> Any:
        return torch.cat([value, value], 1) if isinstance(value, Tensor) and value.dim() > 1 else value

    acer.loss(model, Batch(x), average if statistics != "none" else None)[0].backward()
    twice = replace(
        x, **{name: both(getattr(x, name)) for name in vars(x) if name not in ("core_state", "moments", "memo")}
    )
    double = Table(both(model.policy.detach()), both(model.q.detach()))
    double_average = Table(both(average.policy.detach()), both(average.q.detach()))
    acer.loss(double, Batch(twice), double_average if statistics != "none" else None)[0].backward()
    for ours, theirs in ((double.policy.grad, model.policy.grad), (double.q.grad, model.q.grad)):
        assert ours is not None
        assert theirs is not None
        torch.testing.assert_close(2 * ours[:, :3], theirs, rtol=0, atol=1e-12)


def test_each_term_reaches_its_own_head_alone(make_rollout: MakeRollout) -> None:
    x, model, average = made(make_rollout)
    ACER(value_coef=0.0).loss(model, Batch(x), average)[0].backward()
    assert model.q.grad is None or (model.q.grad == 0).all()
    assert average.policy.grad is None
    assert average.q.grad is None
    assert model.policy.grad is not None
    x, model, average = made(make_rollout)
    loss, _ = ACER(value_coef=1.0, entropy_coef=0.0, truncation=0.0, trace=0.0).loss(model, Batch(x), None)
    (of_q,) = torch.autograd.grad(loss, model.q)
    taken = torch.zeros_like(of_q[:-1]).scatter(-1, x.action.unsqueeze(-1), 1.0) * x.mask.unsqueeze(-1)
    assert ((of_q[:-1] != 0) == (taken == 1)).all()  # of the action taken, at real rows
    assert (of_q[-1] == 0).all()


def test_with_no_advantage_what_is_left_is_the_entropy(make_rollout: MakeRollout) -> None:
    """Also with a trust region: the bonus is no part of what is projected away."""
    x, model, _ = made(make_rollout)
    x = x.replace(reward=torch.zeros_like(x.reward))
    model.q.data.zero_()
    loss, _ = ACER(entropy_coef=0.3).loss(model, Batch(x), Table(model.policy.detach(), model.q.detach()))
    (ours,) = torch.autograd.grad(loss, model.policy)
    entropy = (Categorical(model.policy[:-1]).entropy() * x.mask).sum() / x.mask.sum()
    (theirs,) = torch.autograd.grad(-0.3 * entropy, model.policy)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
    assert theirs.abs().max() > 1e-3


def test_the_truncation_of_weights_does_not_reach_the_critic(make_rollout: MakeRollout) -> None:
    """Traces are min(1, ρ) whatever c is."""
    x, model, _ = made(make_rollout)
    found = [torch.autograd.grad(ACER(truncation=c).loss(model, Batch(x))[0], model.q)[0] for c in (0.1, 1.0, 10.0)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[1], found[2])


@pytest.mark.parametrize("statistics", ["none", "probs", "params"])
@pytest.mark.parametrize("scale", [1e4, -1e4])
def test_extreme_outputs_stay_finite(make_rollout: MakeRollout, statistics: Any, scale: float) -> None:
    x, model, average = made(make_rollout)
    x = x.replace(behavior_params=torch.tensor([1e-12, 0.5, 0.5]).log().expand(6, 3, 3))
    x = x.replace(**{name: getattr(x, name).float() for name in ("reward", "behavior_params")})
    signs = torch.tensor([1.0, 0.0, -1.0])
    model = Table((scale * signs).expand(7, 3, 3).float(), model.q.detach().float())
    average = Table((-scale * signs).expand(7, 3, 3).float(), average.q.detach().float())
    loss, metrics = ACER(trust_region=statistics).loss(model, Batch(x), average if statistics != "none" else None)
    loss.backward()
    assert loss.isfinite()
    assert all(value.isfinite() for value in metrics.values())
    assert model.policy.grad is not None
    assert model.policy.grad.isfinite().all()


def test_a_batch_of_fake_rows_alone_is_zero(make_rollout: MakeRollout) -> None:
    x, model, average = made(make_rollout)
    loss, _ = ACER().loss(model, Batch(x.replace(is_first=torch.ones_like(x.is_first))), average)
    loss.backward()
    assert loss == 0
    assert model.policy.grad is not None
    assert (model.policy.grad == 0).all()


class Memory:
    """Replay that only counts."""

    def __init__(self, steps: int, rollout: Rollout, *, full: bool = False) -> None:
        self.steps, self.rollout, self.full, self.asked = steps, rollout, full, count()

    def sample(self, n: int, generator: torch.Generator, length: int | None = None) -> Rollout:
        next(self.asked)
        return self.rollout


def lengths(acer: ACER, memory: Memory, rollout: Rollout, repeats: int) -> Iterator[int]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(repeats):
        yield sum(1 for _ in acer.batches(None, rollout, memory, generator))  # type: ignore[arg-type]


def test_replays_are_poisson_and_wait_for_the_start(make_rollout: MakeRollout) -> None:
    x = make_rollout(4, 2)
    counts = np.array(list(lengths(ACER(replay_ratio=4.0), Memory(10_000, x), x, 5_000))) - 1
    assert counts.mean() == pytest.approx(4.0, abs=0.1)
    assert counts.var() == pytest.approx(4.0, abs=0.3)
    assert set(lengths(ACER(replay_ratio=4.0, replay_start=500), Memory(499, x), x, 50)) == {1}
    assert max(lengths(ACER(replay_ratio=4.0, replay_start=500), Memory(499, x, full=True), x, 50)) > 1  # it never will
    assert set(lengths(ACER(replay_ratio=0.0), Memory(10_000, x), x, 50)) == {1}
    assert set(lengths(ACER(replay_start=0), Memory(0, x), x, 50)) == {1}  # nothing is not sampled
    assert set(lengths(ACER(replay_start=0, replay_window=9), Memory(17, x), x, 50)) == {1}  # nor a window from less
    assert max(lengths(ACER(replay_start=0, replay_window=9), Memory(18, x), x, 50)) > 1


def config(**changes: Any) -> Config:
    return replace(base_config("acer", env="CartPole-v1", scheme="sync"), envs=4, rollout=5, workers=1, **changes)


def test_the_average_follows_every_update() -> None:
    c = config()
    parts = fresh(c)
    state = parts.state
    replica, actor = parts.actor(0)
    learner, updater = parts.learner(0, replica), parts.updater(0)
    assert state.average is not None
    assert torch.equal(state.average, state.theta)
    for gradients in learner.gradients(actor.collect(replica.version)):
        before = state.average.clone()
        updater.apply(gradients)
        torch.testing.assert_close(state.average, 0.99 * before + 0.01 * state.theta, rtol=0, atol=1e-7)
        assert not torch.equal(state.average, state.theta)
    replica.pull()
    average = replica.model.average
    assert average is not None
    assert not list(average.parameters())
    own = dict(average.named_buffers())["policy.weight"]
    assert torch.equal(own, state.views()["average.policy.weight"])


def test_fresh_rollouts_have_ratio_one() -> None:
    """Drawn from the memory, too, with the state that acted."""
    c = config(model=replace(config().model, core="lstm", core_size=8))
    parts = fresh(c)
    replica, actor = parts.actor(0)
    memory = parts.replay(0, replica.model)
    for number in range(3):
        memory.add(latest := actor.collect(replica.version))
        drawn = memory.take(np.full(c.envs, number * c.rollout), np.arange(c.envs), c.rollout)
        for x in (latest, drawn):
            assert x.behavior_params is not None
            pi = Categorical(replica.model.unroll(x).policy[:-1])
            rho = (pi.log_p - Categorical(x.behavior_params).log_p).exp()
            assert (rho - 1).abs().max() <= 1e-5


@pytest.mark.parametrize("region", ["params", "linear"])
def test_what_acting_computed_is_no_other_networks(region: Any) -> None:
    """The memo of a fresh rollout holds for the parameters that acted, not for the average ones."""
    c = replace(base_config("acer", env="polyactor/Catch-v0", scheme="sync"), envs=8, rollout=4, workers=1)
    acer = replace(c.algorithm, trust_region=region, delta=1e-6)  # type: ignore[call-arg]
    c = replace(c, algorithm=acer, precision="fp32")
    parts = fresh(c)
    state = parts.state
    state.theta.add_(0.05 * torch.randn(state.theta.shape, generator=torch.Generator().manual_seed(0)))
    replica, actor = parts.actor(0)
    learner, _model = parts.learner(0, replica), replica.model
    x = actor.collect(replica.version)
    assert x.memo is not None
    assert x.memo.outputs
    forgotten = x.replace(memo=None)
    with_memo, without = (learner._direction(acer, Batch(each)) for each in (x, forgotten))
    assert with_memo.metrics["kl"] > 1e-4
    torch.testing.assert_close(with_memo.metrics["kl"], without.metrics["kl"], rtol=1e-4, atol=0)
    for ours, theirs in zip(with_memo.gradient, without.gradient, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(("precision", "most"), [("fp64", 1e-12), ("fp32", 1e-5), ("bf16", 0.01)])
def test_learning_says_of_actions_what_acting_said(precision: str, most: float) -> None:
    """One row at a time with a state that is carried, and all rows at once from the state before the first."""
    torch.manual_seed(0)
    image = spaces.Box(0, 255, (4, 84, 84), np.uint8)
    spec = ModelSpec(torso="a3c-cnn", core="lstm", core_size=32)
    model = ActorCritic(
        image, spaces.Discrete(6), spec, precision="bf16" if precision == "bf16" else "fp32", value_head="q"
    )
    model.policy.weight.data.normal_(0, 2.0)
    if precision == "fp64":
        model = model.double()
    t, b = 20, 4
    observation = torch.randint(0, 256, (t + 1, b, 4, 84, 84), dtype=torch.uint8)
    is_first = torch.rand(t + 1, b) < 0.15
    params, states = [], [model.initial_state(b)]
    with torch.no_grad():
        for i in range(t):
            params_t, state = model.step(observation[i], states[-1], is_first[i])
            params.append(params_t)
            states.append(state)
    half = t // 2
    x = Rollout(
        observation=observation[half:], is_first=is_first[half:], action=torch.zeros(half, b, dtype=torch.int64),
        reward=torch.zeros(half, b), terminated=torch.zeros(half, b, dtype=torch.bool),
        behavior_log_prob=torch.zeros(half, b), core_state=states[half], version=torch.zeros(b, dtype=torch.int64),
    )  # fmt: skip
    pi, mu = Categorical(model.unroll(x).policy[:-1]), Categorical(torch.stack(params[half:]))
    furthest = float(((pi.log_p - mu.log_p).exp() - 1).abs().max().detach())
    print(f"{precision}: |ρ − 1| is at most {furthest:.1e}")
    assert furthest <= most
    assert mu.log_p.exp().std() > 0.05


def test_replayed_rewards_are_scaled_as_fresh_ones() -> None:
    c = replace(config(), normalize=replace(config().normalize, reward=False, clip_reward=0.25))
    parts = fresh(c)
    replica, actor = parts.actor(0)
    learner = parts.learner(0, replica)
    for _ in range(3):
        for _ in learner.gradients(actor.collect(replica.version)):
            pass
    assert learner.sample(8, torch.Generator().manual_seed(0)).reward.max() == 0.25


@pytest.mark.parametrize("scheme", ["sync", "actor-learner"])
def test_it_learns_from_windows(scheme: str) -> None:
    c = replace(base_config("acer", env="CartPole-v1", scheme=scheme), workers=1, transport="inline", steps=1_000)
    c = replace(c, algorithm=replace(c.algorithm, replay_start=200, replay_window=7, replay_batch=3))
    check(c)
    parts = fresh(c)
    counters = parts.counters
    for _ in transport.run(parts):
        pass
    assert counters.version > 2 * counters.steps / (c.envs * c.rollout)
    with pytest.raises(UsageError, match=r"--algorithm\.replay-window 7 is not allowed with memory"):
        check(replace(c, model=replace(c.model, core="lstm")))


@pytest.mark.parametrize("capacity", [50_000, 80])
def test_off_policy_alone_every_step_is_counted(capacity: int) -> None:
    """Rollouts before the replay starts, and those of which chance makes no batch, are counted with the next.

    Of 80 steps fewer can be sampled: where the start is above that, replaying begins when no more fit.
    """
    c = config()
    acer = replace(c.algorithm, on_policy=False, replay_ratio=0.5, replay_start=80, replay_capacity=capacity)  # type: ignore[call-arg]
    c = replace(c, algorithm=acer)
    parts = fresh(c)
    counters = parts.counters
    replica, actor = parts.actor(0)
    learner, updater = parts.learner(0, replica), parts.updater(0)
    collected = 0
    for _ in range(40):
        replica.pull()
        rollout = actor.collect(replica.version)
        collected += rollout.steps
        for gradients in learner.gradients(rollout):
            updater.apply(gradients)
        assert counters.steps + learner.uncounted == collected
    assert 0 < counters.version < 40
    assert counters.steps > 0.5 * collected


def test_what_would_never_learn_is_refused() -> None:
    acer = config().algorithm
    with pytest.raises(UsageError, match="no-on-policy is not allowed with"):
        replace(acer, on_policy=False, replay_ratio=0.0).fits(4, memory=False, alone=True)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="replay-start 50 is not allowed"):
        replace(acer, replay_start=50, replay_capacity=40).fits(4, memory=False, alone=True)  # type: ignore[call-arg]


@pytest.mark.parametrize("scheme", ["sync", "hogwild", "param-server", "actor-learner"])
def test_it_runs_under_every_scheme(scheme: str) -> None:
    c = replace(base_config("acer", env="CartPole-v1", scheme=scheme), workers=1, transport="inline", steps=3_000)
    c = replace(c, algorithm=replace(c.algorithm, replay_start=200))
    check(c)
    parts = fresh(c)
    state, counters = parts.state, parts.counters
    for _ in transport.run(parts):
        pass
    rollouts = counters.steps / (c.envs * c.rollout)
    assert counters.version > 3 * rollouts  # about five updates of each
    assert state.vector.isfinite().all()


@pytest.mark.parametrize("scheme", ["sync", "hogwild"])
def test_it_runs_with_continuous_actions(scheme: str) -> None:
    c = replace(base_config("acer", env="Pendulum-v1", scheme=scheme), workers=1, transport="inline", steps=3_000)
    c = replace(c, algorithm=replace(c.algorithm, replay_start=400))
    parts = fresh(c)
    state, counters = parts.state, parts.counters
    for _ in transport.run(parts):
        pass
    assert counters.version > 2 * counters.steps / (c.envs * c.rollout)
    assert state.vector.isfinite().all()
