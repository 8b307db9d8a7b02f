"""Returns against golden vectors, against the paper's loop over one episode, and by their properties."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyactor.returns import Estimate, gae, n_step

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


def paper(case: Case, lam: float) -> Tensor:
    """Advantages ``[T, B]`` as a sum over the rest of each episode, Σ_l (γλ)^l δ_{t+l}; 0 at fake rows.

    Episodes are cut out of the streams and done one by one; nothing is masked or multiplied by 0.
    """
    t, b = case.reward.shape
    result = np.zeros((t, b))
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
            rewards, values = reward[start:row, j], value[start : row + 1, j].copy()
            if terminal:
                values[-1] = 0.0
            deltas = [r + GAMMA * after - v for r, after, v in zip(rewards, values[1:], values[:-1], strict=True)]
            for i in range(len(deltas)):
                result[start + i, j] = sum((GAMMA * lam) ** k * d for k, d in enumerate(deltas[i:]))
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


def test_split_at_an_episodes_end_changes_nothing_at_all() -> None:
    case = case_of([[GO, GO], [TRUNCATE, TERMINATE], [GO, GO], [GO, GO]], [False, False], 0)
    for at in (2, 3):  # before and after the fake row
        parts = [case.part(rows).gae(0.95).advantage for rows in (slice(at), slice(at, None))]
        assert torch.equal(torch.cat(parts), case.gae(0.95).advantage)


@quick
@given(cases(), lambdas, st.randoms(use_true_random=False))
def test_streams_do_not_mix(case: Case, lam: float, random: Any) -> None:
    order = list(range(case.reward.shape[1]))
    random.shuffle(order)
    shuffled = Case(*(x[:, order] for x in (case.reward, case.value, case.terminated, case.done, case.mask)))
    assert torch.equal(shuffled.gae(lam).advantage, case.gae(lam).advantage[:, order])
    assert torch.equal(case.stream(0).gae(lam).target, case.gae(lam).target[:, :1])


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
