"""Returns against golden vectors, against the paper's loop over one episode, and by their properties."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyactor.equations.returns import Estimate, gae, n_step, vtrace

Golden = Callable[[str], tuple[dict[str, Any], dict[str, Any]]]

GAMMA = 0.9


def tensor(x: Any) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    """B streams in the NEXT_STEP convention; `done` is there only for the tests, no function is given it."""

    reward: Tensor
    value: Tensor
    terminated: Tensor
    done: Tensor
    mask: Tensor

    @property
    def discount(self) -> Tensor:
        return GAMMA * (1 - self.terminated)

    def gae(self, lam: float, **changes: Tensor) -> Estimate:
        x = {"reward": self.reward, "value": self.value, "discount": self.discount, "mask": self.mask} | changes
        return gae(**x, gae_lambda=lam)

    def stream(self, b: int) -> Case:
        return self.part(slice(None), b)

    def part(self, rows: slice, b: int | None = None) -> Case:
        columns = slice(None) if b is None else slice(b, b + 1)
        start, stop, _ = rows.indices(len(self.reward))
        cut = [x[start:stop, columns] for x in (self.reward, self.terminated, self.done, self.mask)]
        return Case(cut[0], self.value[start : stop + 1, columns], *cut[1:])


# -- golden vectors ----------------------------------------------------------------------------------------------------


def with_fake_rows(x: dict[str, Any], b: int) -> tuple[Case, list[int]]:
    """Stream b of a vector written with `v_next`, a fake row inserted after each `done` but the last row's.

    The fake row holds V(final observation), which the vector gives as `v_next` of the row before. Also returns where
    the real rows went. The poison 99 in `v_next` of a terminal row lands in a fake row.
    """
    columns = {name: np.asarray(x[name])[:, b] for name in ("r", "v", "v_next", "terminated", "truncated")}
    reward, value, terminated, done, mask, real = [], [], [], [], [], []
    for r, v, v_next, term, trunc in zip(*columns.values(), strict=True):
        real.append(len(reward))
        ends = term or trunc
        step, fake = (r, v, term, ends, 1.0), (0.0, v_next, 0.0, 0.0, 0.0)
        for row in (step, fake) if ends else (step,):
            for column, entry in zip((reward, value, terminated, done, mask), row, strict=True):
                column.append(entry)
    value.append(columns["v_next"][-1])  # the bootstrap
    case = Case(*(tensor(column)[:, None] for column in (reward, value, terminated, done, mask)))
    return case, real


def on_real_rows(x: dict[str, Any], estimate: Callable[[Case], Estimate]) -> Estimate:
    """`estimate` of every stream of a vector, fake rows dropped again: ``[T, B]``."""
    columns = []
    for b in range(len(x["r"][0])):
        case, real = with_fake_rows(x, b)
        columns.append([part[real, 0] for part in estimate(case)])
    return Estimate(*(torch.stack(parts, 1) for parts in zip(*columns, strict=True)))


def close(a: Tensor, b: Any, atol: float = 1e-9) -> None:
    torch.testing.assert_close(a, tensor(b), rtol=0, atol=atol)


def test_golden_n_step_returns_and_advantages(golden: Golden) -> None:
    inputs, outputs = golden("nstep_returns")
    assert inputs["gamma"] == GAMMA
    result = on_real_rows(inputs, lambda case: n_step(case.reward, case.value, case.discount, case.mask))
    close(result.target, outputs["returns"])
    close(result.advantage, outputs["advantages"])


@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
def test_golden_gae(golden: Golden, lam: float) -> None:
    inputs, outputs = golden(f"gae_lambda_{lam}")
    assert (inputs["gamma"], inputs["lam"]) == (GAMMA, lam)
    result = on_real_rows(inputs, lambda case: case.gae(lam))
    close(result.target, outputs["returns"])
    close(result.advantage, outputs["advantages"])


def test_golden_next_step_autoreset_needs_no_insertion(golden: Golden) -> None:
    x, outputs = golden("gae_next_step_autoreset")
    terminated, mask = tensor(x["terminated"]), tensor(outputs["valid_mask"])
    value = tensor([*x["v"], x["bootstrap"]])
    result = gae(tensor(x["r"]), value, GAMMA * (1 - terminated), mask, x["lam"])
    close(result.advantage, outputs["advantages"])
    close(result.target - value[:-1], outputs["advantages"])


# -- the paper's loop, one episode at a time ---------------------------------------------------------------------------


class Episode(NamedTuple):
    """What a rollout holds of one episode; V after a terminal row is 0."""

    rows: slice
    stream: int
    reward: list[float]
    value: list[float]


def episodes(case: Case) -> Iterator[Episode]:
    """Episodes cut out of the streams one by one; nothing is masked or multiplied by 0."""
    t, b = case.reward.shape
    reward, value = case.reward.numpy(), case.value.numpy()
    for j in range(b):
        row = 0
        while row < t:
            if not case.mask[row, j]:
                row += 1
                continue
            start, terminal = row, False
            while row < t and case.mask[row, j]:
                row += 1
                if case.terminated[row - 1, j]:
                    terminal = True
                    break
            values = value[start : row + 1, j].tolist()
            if terminal:
                values[-1] = 0.0
            yield Episode(slice(start, row), j, reward[start:row, j].tolist(), values)


def paper(case: Case, lam: float) -> Tensor:
    """Advantages ``[T, B]`` as a sum over the rest of each episode, Σ_l (γλ)^l δ_{t+l}; 0 at fake rows."""
    result = np.zeros(case.reward.shape)
    for rows, j, r, v in episodes(case):
        deltas = [r_t + GAMMA * after - v_t for r_t, after, v_t in zip(r, v[1:], v[:-1], strict=True)]
        result[rows, j] = [sum((GAMMA * lam) ** k * d for k, d in enumerate(deltas[i:])) for i in range(len(r))]
    return tensor(result)


GO, TERMINATE, TRUNCATE, LIFE = range(4)


def case_of(codes: Any, starts_ended: Any, seed: int) -> Case:
    """Codes ``[T][B]``: go on, terminate, truncate, or lose a life (terminated without a reset).

    `starts_ended[b]`: row 0 is the fake row of an episode that ended in the rollout before.
    """
    codes = np.asarray(codes)
    t, b = codes.shape
    rng = np.random.default_rng(seed)
    ended = np.asarray(starts_ended, bool)
    terminated, done, mask = np.zeros((t, b)), np.zeros((t, b)), np.zeros((t, b))
    for row in range(t):
        real = ~ended
        mask[row] = real
        terminated[row] = real & np.isin(codes[row], (TERMINATE, LIFE))
        done[row] = real & np.isin(codes[row], (TERMINATE, TRUNCATE))
        ended = done[row].astype(bool)
    reward, value = rng.normal(size=(t, b)) * mask, rng.normal(size=(t + 1, b)) * 3
    return Case(*(tensor(x) for x in (reward, value, terminated, done, mask)))


@st.composite
def cases(draw: st.DrawFn) -> Case:
    t, b = draw(st.integers(1, 10)), draw(st.integers(1, 3))
    row = st.lists(st.integers(0, 3), min_size=b, max_size=b)
    codes = draw(st.lists(row, min_size=t, max_size=t))
    starts_ended = draw(st.lists(st.booleans(), min_size=b, max_size=b))
    return case_of(codes, starts_ended, draw(st.integers(0, 2**16)))


lambdas = st.sampled_from([0.0, 0.5, 0.95, 1.0])
quick = settings(max_examples=60, deadline=None)


@quick
@given(cases(), lambdas)
def test_equals_the_papers_loop_over_episodes(case: Case, lam: float) -> None:
    close(case.gae(lam).advantage, paper(case, lam), 1e-10)


@pytest.mark.parametrize(
    "codes",
    [
        pytest.param([TERMINATE, GO, GO, GO], id="done at t=0"),
        pytest.param([TRUNCATE, GO, GO, GO], id="truncated at t=0"),
        pytest.param([GO, GO, GO, TERMINATE], id="done at t=T-1"),
        pytest.param([GO, GO, GO, TRUNCATE], id="truncated at t=T-1"),
        pytest.param([TERMINATE, GO] * 3, id="length-1 episodes that terminate"),
        pytest.param([TRUNCATE, GO, TERMINATE, GO, TRUNCATE], id="length-1 episodes of both kinds"),
        pytest.param([TERMINATE], id="T=1"),
        pytest.param([GO, LIFE, GO, LIFE, TERMINATE, GO, GO], id="lives"),
    ],
)
@pytest.mark.parametrize("lam", [0.0, 0.95, 1.0])
@pytest.mark.parametrize("starts_ended", [False, True])
def test_equals_the_papers_loop_at_the_edges(codes: list[int], lam: float, starts_ended: bool) -> None:
    case = case_of(np.asarray(codes)[:, None], [starts_ended], 1)
    close(case.gae(lam).advantage, paper(case, lam), 1e-12)


# -- properties --------------------------------------------------------------------------------------------------------


@quick
@given(cases())
def test_lambda_0_is_the_td_error_and_lambda_1_the_n_step_return(case: Case) -> None:
    td = case.mask * (case.reward + case.discount * case.value[1:] - case.value[:-1])
    close(case.gae(0.0).advantage, td, 1e-12)
    returns = n_step(case.reward, case.value, case.discount, case.mask)
    close(case.gae(1.0).advantage, returns.target - case.value[:-1], 1e-12)


@quick
@given(cases(), lambdas, st.floats(-3, 3), st.integers(0, 2**16))
def test_linear_in_reward_and_value(case: Case, lam: float, scale: float, seed: int) -> None:
    rng = np.random.default_rng(seed)
    reward, value = tensor(rng.normal(size=case.reward.shape)), tensor(rng.normal(size=case.value.shape))
    both = case.gae(lam, reward=case.reward + scale * reward, value=case.value + scale * value)
    one, other = case.gae(lam), case.gae(lam, reward=reward, value=value)
    close(both.advantage, one.advantage + scale * other.advantage, 1e-9)
    # In the reward alone too: with V = 0 the advantage is what rewards alone add.
    added = case.gae(lam, reward=scale * reward, value=torch.zeros_like(value)).advantage
    close(case.gae(lam, reward=case.reward + scale * reward).advantage, one.advantage + added, 1e-9)


@quick
@given(cases(), st.integers(1, 9))
def test_split_with_the_carried_return_as_bootstrap_changes_nothing(case: Case, at: int) -> None:
    assume(at < len(case.reward))
    whole, late, early = case.gae(1.0), case.part(slice(at, None)).gae(1.0), case.part(slice(at))
    close(late.advantage, whole.advantage[at:], 1e-12)
    carried = early.gae(1.0, value=torch.cat([early.value[:-1], late.target[:1]]))
    close(carried.target, whole.target[:at], 1e-12)


@quick
@given(cases(), lambdas, st.integers(1, 9))
def test_split_bootstrapped_from_v_changes_only_the_episode_it_cuts(case: Case, lam: float, at: int) -> None:
    assume(at < len(case.reward))
    whole, early = case.gae(lam).advantage, case.part(slice(at)).gae(lam).advantage
    later = whole[at]
    for b in range(case.reward.shape[1]):
        factor = 1.0
        for t in reversed(range(at)):
            factor *= float(case.mask[t, b] * lam * case.discount[t, b])
            assert float(whole[t, b] - early[t, b]) == pytest.approx(factor * float(later[b]), abs=1e-12)


def test_split_at_an_episodes_end_changes_nothing() -> None:
    case = case_of([[GO, GO], [TRUNCATE, TERMINATE], [GO, GO], [GO, GO]], [False, False], 0)
    for at in (2, 3):  # before and after the fake row
        parts = [case.part(rows).gae(0.95).advantage for rows in (slice(at), slice(at, None))]
        close(torch.cat(parts), case.gae(0.95).advantage)


@quick
@given(cases(), lambdas, st.randoms(use_true_random=False))
def test_streams_do_not_mix(case: Case, lam: float, random: Any) -> None:
    order = list(range(case.reward.shape[1]))
    random.shuffle(order)
    shuffled = Case(*(x[:, order] for x in (case.reward, case.value, case.terminated, case.done, case.mask)))
    # Not to the bit: where a number lies in a tensor decides whether x + γλ·y is rounded once or twice.
    close(shuffled.gae(lam).advantage, case.gae(lam).advantage[:, order])
    close(case.stream(0).gae(lam).target, case.gae(lam).target[:, :1])


@quick
@given(cases(), lambdas, st.floats(-99, 99))
def test_what_a_fake_row_holds_beside_its_value_is_ignored(case: Case, lam: float, poison: float) -> None:
    fake = 1 - case.mask
    changed = Case(case.reward + poison * fake, case.value, torch.maximum(case.terminated, fake), case.done, case.mask)
    assert torch.equal(changed.gae(lam).advantage, case.gae(lam).advantage)
    assert (case.gae(lam).advantage[fake.bool()] == 0).all()
    assert torch.equal(case.gae(lam).target[fake.bool()], case.value[:-1][fake.bool()])


@quick
@given(cases(), lambdas, st.data())
def test_nothing_after_a_terminal_row_affects_it(case: Case, lam: float, data: st.DataObject) -> None:
    ends = case.terminated.nonzero().tolist()
    assume(ends)
    t, b = data.draw(st.sampled_from(ends))
    value, reward = case.value.clone(), case.reward.clone()
    value[t + 1 :, b] = 99.0
    reward[t + 1 :, b] = 99.0
    changed = case.gae(lam, value=value, reward=reward)
    assert torch.equal(changed.advantage[: t + 1, b], case.gae(lam).advantage[: t + 1, b])
    assert torch.equal(changed.target[: t + 1, b], case.gae(lam).target[: t + 1, b])


@quick
@given(cases(), lambdas, st.data())
def test_truncation_is_worth_exactly_the_discounted_final_value(case: Case, lam: float, data: st.DataObject) -> None:
    ends = (case.done * (1 - case.terminated)).nonzero().tolist()
    assume(ends)
    t, b = data.draw(st.sampled_from(ends))
    terminated = case.terminated.clone()
    terminated[t, b] = 1
    as_if_terminal = case.gae(lam, discount=GAMMA * (1 - terminated))
    difference = case.gae(lam).target - as_if_terminal.target
    assert float(difference[t, b]) == pytest.approx(GAMMA * float(case.value[t + 1, b]), abs=1e-12)
    assert (difference[t + 1 :] == 0).all()


def test_wrong_shapes_are_refused() -> None:
    case = case_of([[GO, GO]], [False, False], 0)
    with pytest.raises(ValueError, match=r"value \[T\+1, B\]"):
        case.gae(1.0, value=case.value[:-1])


# -- V-trace -----------------------------------------------------------------------------------------------------------


def v_trace(case: Case, rho: Tensor, **bars: Any) -> Estimate:
    return vtrace(case.reward, case.value, case.discount, case.mask, rho, **bars)


@pytest.mark.parametrize("name", ["vtrace_default", "vtrace_lam0.9_rhobar2"])
def test_golden_v_trace(golden: Golden, name: str) -> None:
    x, outputs = golden(name)
    assert x["gamma"] == GAMMA
    targets, advantages = [], []
    for b in range(2):
        case, real = with_fake_rows(x, b)
        rho = torch.full_like(case.reward, 7.0)  # poison at fake rows
        rho[real, 0] = tensor(x["rho"])[:, b]
        bars = {"trace_lambda": x["lam"], "rho_bar": x["rho_bar"], "c_bar": x["c_bar"]}
        advantage, target = v_trace(case, rho, **bars, policy_rho_bar=x["pg_rho_bar"])
        advantages.append(advantage[real, 0])
        targets.append(target[real, 0])
    close(torch.stack(targets, 1), outputs["vs"])
    close(torch.stack(advantages, 1), outputs["pg_advantages"])


def paper_v_trace(
    case: Case, rho: Tensor, trace_lambda: float, rho_bar: float, c_bar: float, policy_rho_bar: float | None
) -> Estimate:
    """Eq. 1 as printed, Σ_t γ^{t−s} (Π_{i=s}^{t−1} c_i) δ_t V for every s of every episode."""
    advantage, target = np.zeros(case.reward.shape), case.value[:-1].clone().numpy()
    for rows, j, r, v in episodes(case):
        n, w = len(r), rho[rows, j].tolist()
        c = [trace_lambda * min(c_bar, w_t) for w_t in w]
        delta = [min(rho_bar, w[t]) * (r[t] + GAMMA * v[t + 1] - v[t]) for t in range(n)]
        vs = [v[s] + sum(GAMMA ** (t - s) * math.prod(c[s:t]) * delta[t] for t in range(s, n)) for s in range(n)]
        vs.append(v[n])
        for s in range(n):
            q = r[s] + GAMMA * (trace_lambda * vs[s + 1] + (1 - trace_lambda) * v[s + 1])
            advantage[rows.start + s, j] = (1.0 if policy_rho_bar is None else min(policy_rho_bar, w[s])) * (q - v[s])
        target[rows, j] = vs[:-1]
    return Estimate(tensor(advantage), tensor(target))


@st.composite
def ratios(draw: st.DrawFn, case: Case) -> Tensor:
    """ρ ``[T, B]`` from hundredths to tens, some 0."""
    rng = np.random.default_rng(draw(st.integers(0, 2**16)))
    return tensor(np.exp(rng.normal(size=case.reward.shape)) * (rng.random(case.reward.shape) > 0.1))


@st.composite
def weighted(draw: st.DrawFn) -> tuple[Case, Tensor]:
    case = draw(cases())
    return case, draw(ratios(case))


@st.composite
def some_bars(draw: st.DrawFn) -> dict[str, Any]:
    c_bar = draw(st.sampled_from([0.3, 1.0, 1.7, math.inf]))
    return {
        "trace_lambda": draw(lambdas),
        "rho_bar": max(c_bar, draw(st.sampled_from([0.5, 1.0, 2.0, math.inf]))),
        "c_bar": c_bar,
        "policy_rho_bar": draw(st.sampled_from([0.5, 1.0, 3.0, math.inf, None])),
    }


@quick
@given(weighted(), some_bars())
def test_v_trace_equals_the_papers_sum_of_products(drawn: tuple[Case, Tensor], bars: dict[str, Any]) -> None:
    case, rho = drawn
    fast, slow = v_trace(case, rho, **bars), paper_v_trace(case, rho, **bars)
    torch.testing.assert_close(fast.advantage, slow.advantage, rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(fast.target, slow.target, rtol=1e-10, atol=1e-10)


@quick
@given(cases(), lambdas, st.sampled_from([1.0, 2.0, math.inf]))
def test_v_trace_on_policy_is_gae_and_with_lambda_1_the_n_step_return(case: Case, lam: float, bar: float) -> None:
    ones = torch.ones_like(case.reward)
    ours, theirs = v_trace(case, ones, trace_lambda=lam, rho_bar=bar, policy_rho_bar=bar), case.gae(lam)
    close(ours.target, theirs.target, 1e-12)
    close(ours.advantage, theirs.advantage, 1e-12)
    returns = n_step(case.reward, case.value, case.discount, case.mask)
    close(v_trace(case, ones).target, returns.target, 1e-12)
    close(v_trace(case, ones).advantage, returns.advantage, 1e-12)


@quick
@given(cases(), some_bars())
def test_v_trace_of_actions_the_policy_never_takes_is_v(case: Case, bars: dict[str, Any]) -> None:
    advantage, target = v_trace(case, torch.zeros_like(case.reward), **bars | {"policy_rho_bar": 1.0})
    assert (advantage == 0).all()
    assert torch.equal(target, case.value[:-1])


@quick
@given(weighted())
def test_v_trace_without_bars_is_the_importance_sampled_return(drawn: tuple[Case, Tensor]) -> None:
    """Per decision: G_t = ρ_t (r_t + γ G_{t+1}) + (1 − ρ_t) V(x_t)."""
    case, rho = drawn
    g = case.value[-1]
    for t in reversed(range(len(rho))):
        sampled = rho[t] * (case.reward[t] + case.discount[t] * g) + (1 - rho[t]) * case.value[t]
        g = torch.where(case.mask[t] == 1, sampled, case.value[t])
        target = v_trace(case, rho, rho_bar=math.inf, c_bar=math.inf).target[t]
        torch.testing.assert_close(target, g, rtol=1e-9, atol=1e-9)


@quick
@given(weighted(), some_bars(), st.data())
def test_v_trace_split_at_a_fake_row_is_two_rollouts(
    drawn: tuple[Case, Tensor], bars: dict[str, Any], data: st.DataObject
) -> None:
    """Streams whose fake row is at the cut, which therefore falls right before or right after it."""
    case, rho = drawn
    fakes = (case.mask[1:] == 0).any(-1).nonzero().flatten().tolist()
    assume(fakes)
    at = 1 + data.draw(st.sampled_from(fakes))
    ends = case.mask[at] == 0
    whole = v_trace(case, rho, **bars)
    for cut in {at, min(at + 1, len(rho) - 1)}:
        parts = [v_trace(case.part(rows), rho[rows], **bars) for rows in (slice(cut), slice(cut, None))]
        for ours, halves in zip(whole, zip(*parts, strict=True), strict=True):
            close(ours[:, ends], torch.cat(halves)[:, ends])


@quick
@given(weighted(), some_bars(), st.data())
def test_v_trace_does_not_leak_across_an_episodes_end(
    drawn: tuple[Case, Tensor], bars: dict[str, Any], data: st.DataObject
) -> None:
    """Whatever comes after the final observation, and the ratio at it, is nothing to the rows before."""
    case, rho = drawn
    fakes = (case.mask == 0).nonzero().tolist()
    assume(fakes)
    t, b = data.draw(st.sampled_from(fakes))
    value, reward, other = case.value.clone(), case.reward.clone(), rho.clone()
    value[t + 1 :, b] = reward[t:, b] = other[t:, b] = 99.0
    changed = vtrace(reward, value, case.discount, case.mask, other, **bars)
    for ours, theirs in zip(v_trace(case, rho, **bars), changed, strict=True):
        assert torch.equal(ours[:t], theirs[:t])
        assert torch.equal(ours[t, b], theirs[t, b])
    assert changed.advantage[t, b] == 0
    assert changed.target[t, b] == case.value[t, b]


@quick
@given(weighted(), some_bars(), st.data())
def test_v_trace_bootstraps_from_a_truncated_episodes_final_value_and_not_from_a_terminal_ones(
    drawn: tuple[Case, Tensor], bars: dict[str, Any], data: st.DataObject
) -> None:
    case, rho = drawn
    ends = (case.done * (1 - case.terminated)).nonzero().tolist()
    assume(ends)
    t, b = data.draw(st.sampled_from(ends))
    terminated = case.terminated.clone()
    terminated[t, b] = 1
    before = v_trace(case, rho, **bars)
    after = vtrace(case.reward, case.value, GAMMA * (1 - terminated), case.mask, rho, **bars)
    worth = GAMMA * float(case.value[t + 1, b])
    weight = min(bars["rho_bar"], float(rho[t, b]))
    assert float((before.target - after.target)[t, b]) == pytest.approx(weight * worth, abs=1e-10)
    weight = 1.0 if bars["policy_rho_bar"] is None else min(bars["policy_rho_bar"], float(rho[t, b]))
    assert float((before.advantage - after.advantage)[t, b]) == pytest.approx(weight * worth, abs=1e-10)
    assert torch.equal(before.target[t + 1 :], after.target[t + 1 :])


@quick
@given(weighted(), some_bars())
def test_a_ratio_above_every_bar_counts_as_the_bar(drawn: tuple[Case, Tensor], bars: dict[str, Any]) -> None:
    case, rho = drawn
    highest = max(bar for name, bar in bars.items() if name != "trace_lambda" and bar is not None)
    assume(math.isfinite(highest))
    # An overflown ratio too: min(ρ̄, ∞) = ρ̄.
    overflown = torch.where(rho >= highest, math.inf, rho)
    for ours, theirs in zip(v_trace(case, overflown, **bars), v_trace(case, rho, **bars), strict=True):
        assert torch.equal(ours, theirs)


@quick
@given(weighted(), some_bars(), st.sampled_from([1.0, 1.5, 10.0]), st.sampled_from(["rho_bar", "both", "rho"]))
def test_where_no_td_error_is_negative_a_higher_bar_or_ratio_never_lowers_the_target(
    drawn: tuple[Case, Tensor], bars: dict[str, Any], factor: float, what: str
) -> None:
    case, rho = drawn
    case = replace(case, reward=case.reward.abs(), value=torch.zeros_like(case.value))  # δ_t = r_t
    more, higher = dict(bars), rho
    if what == "rho":
        higher = rho * factor
    else:
        more["rho_bar"] *= factor
        more["c_bar"] *= factor if what == "both" else 1.0
    low, high = v_trace(case, rho, **bars), v_trace(case, higher, **more)
    assert (high.target >= low.target).all()
    if factor == 1:
        assert torch.equal(high.target, low.target)


def test_c_bar_above_rho_bar_is_refused() -> None:
    case = case_of([[GO, GO]], [False, False], 0)
    with pytest.raises(ValueError, match=r"rho_bar 1\.0 must be at least c_bar 2\.0"):
        v_trace(case, torch.ones(1, 2), c_bar=2.0)


# -- V-trace's fixed point ---------------------------------------------------------------------------------------------


def expected_targets(
    value: Tensor, p: np.ndarray, r: np.ndarray, pi: np.ndarray, mu: np.ndarray, steps: int, **bars: Any
) -> Tensor:
    """E_μ[v_t | x_t = s] for every s, exactly: each path of `steps` transitions is a stream, weighed by its chance."""
    n, actions = r.shape
    paths = np.array(list(product(range(n), *[range(actions), range(n)] * steps)))
    state, action = paths[:, ::2].T, paths[:, 1::2].T
    chance = np.prod(mu[state[:-1], action] * p[state[:-1], action, state[1:]], axis=0)
    ones = torch.ones(action.shape, dtype=torch.float64)
    rho = tensor((pi / mu)[state[:-1], action])
    target = vtrace(tensor(r[state[:-1], action]), value[torch.as_tensor(state)], GAMMA * ones, ones, rho, **bars)[1]
    start = torch.as_tensor(state[0])
    return torch.zeros(n, dtype=torch.float64).index_add_(0, start, tensor(chance) * target[0])


def fixed_point(*mdp: np.ndarray, steps: int, **bars: Any) -> Tensor:
    value = torch.zeros(len(mdp[1]), dtype=torch.float64)
    for _ in range(2000):
        before, value = value, expected_targets(value, *mdp, steps=steps, **bars)
        if (value - before).abs().max() < 1e-13:
            break
    return value


@pytest.mark.parametrize("rho_bar", [0.5, 1.0, 2.0, 1e9])
@pytest.mark.parametrize("steps", [1, 3])
def test_golden_v_trace_fixed_point(golden: Golden, rho_bar: float, steps: int) -> None:
    x, outputs = golden("random_mdp_off_policy")
    assert x["gamma"] == GAMMA
    mdp = [np.asarray(x[name]) for name in ("P", "R", "pi", "mu")]
    value = fixed_point(*mdp, steps=steps, rho_bar=rho_bar, c_bar=min(1.0, rho_bar))
    close(value, outputs[f"V_vtrace_rhobar_{rho_bar:g}"], 1e-9)


@settings(max_examples=8, deadline=None)
@given(st.integers(0, 2**16), st.sampled_from([0.4, 1.0, 3.0]), st.sampled_from([0.2, 1.0]), lambdas)
def test_v_trace_fixed_point_is_the_value_of_the_papers_policy_whatever_c_bar_and_lambda(
    seed: int, rho_bar: float, c_share: float, lam: float
) -> None:
    """π_ρ̄(a|x) ∝ min(ρ̄ μ(a|x), π(a|x)) (Theorem 1), solved for exactly."""
    rng = np.random.default_rng(seed)
    n, actions = 3, 2
    p = rng.dirichlet(np.ones(n), (n, actions))
    r = rng.normal(size=(n, actions))
    pi, mu = (rng.dirichlet(np.ones(actions), n) * 0.9 + 0.1 / actions for _ in range(2))
    between = np.minimum(rho_bar * mu, pi)
    between /= between.sum(-1, keepdims=True)
    exact = np.linalg.solve(np.eye(n) - GAMMA * np.einsum("sa,sax->sx", between, p), (between * r).sum(-1))
    value = fixed_point(p, r, pi, mu, steps=2, rho_bar=rho_bar, c_bar=c_share * rho_bar, trace_lambda=lam)
    close(value, exact, 1e-9)
