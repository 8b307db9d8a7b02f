"""Memory: resets, backpropagation through time and its boundaries."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from polyactor.models.core import LSTM, Identity, make_core
from polyactor.models.spec import ModelSpec


def double(x: Any) -> Tensor:
    return torch.tensor(x, dtype=torch.float64)


def make_lstm(features: int = 3, size: int = 4) -> LSTM:
    torch.manual_seed(0)
    core = LSTM(features, size).double()
    with torch.no_grad():
        for parameter in core.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    return core


def flags(t: int, *starts: tuple[int, int], b: int = 1) -> Tensor:
    """``[T, B]``, True at the (t, b) given."""
    is_first = torch.zeros(t, b, dtype=torch.bool)
    for at in starts:
        is_first[at] = True
    return is_first


def test_golden_lstm_with_a_reset(golden: Callable[[str], tuple[dict[str, Any], dict[str, Any]]]) -> None:
    x, outputs = golden("lstm_reset_mask")
    core = LSTM(1, 1).double()
    with torch.no_grad():
        core.cell.weight_ih.copy_(double(x["W_ih"]))
        core.cell.weight_hh.copy_(double(x["W_hh"]))
        core.cell.bias_ih.copy_(double(x["bias"]))
        core.cell.bias_hh.zero_()
    rows, is_first = double(x["x"]).view(3, 1, 1), double(x["episode_start"]).bool().view(3, 1)
    h, (last_h, last_c) = core(rows, core.initial_state(1), is_first)
    np.testing.assert_allclose(h.detach().flatten(), outputs["h"], rtol=0, atol=1e-12)
    assert torch.equal(last_h, h[-1])
    assert last_c.item() == pytest.approx(outputs["c"][-1], abs=1e-12)
    state = core.initial_state(1)
    for t in range(3):
        _, state = core(rows[t : t + 1], state, is_first[t : t + 1])
        assert state[1].item() == pytest.approx(outputs["c"][t], abs=1e-12)


def test_masked_chunk_equals_separate_episodes() -> None:
    core, t = make_lstm(), 9
    x = torch.randn(t, 2, 3, dtype=torch.float64)
    starts = {0: [0, 4], 1: [2, 3, 8]}  # stream 1 begins in the middle of an episode
    is_first = flags(t, *((row, b) for b, rows in starts.items() for row in rows), b=2)
    state = tuple(torch.randn(2, 4, dtype=torch.float64) for _ in range(2))
    whole, after = core(x, state, is_first)
    for b, rows in starts.items():
        edges = sorted({0, *rows, t})
        for start, stop in pairwise(edges):
            first = start in rows
            own = core.initial_state(1) if first else tuple(part[b : b + 1] for part in state)
            alone, end = core(x[start:stop, b : b + 1], own, flags(stop - start))
            torch.testing.assert_close(alone, whole[start:stop, b : b + 1], rtol=0, atol=1e-14)
        for part, expected in zip(end, after, strict=True):
            torch.testing.assert_close(part, expected[b : b + 1], rtol=0, atol=1e-14)


def test_garbage_in_the_state_of_an_ended_episode_does_not_matter() -> None:
    core, x = make_lstm(), torch.randn(2, 1, 3, dtype=torch.float64)
    garbage = tuple(torch.full((1, 4), 50.0, dtype=torch.float64) for _ in range(2))
    fresh, _ = core(x, core.initial_state(1), flags(2, (0, 0)))
    assert torch.equal(core(x, garbage, flags(2, (0, 0)))[0], fresh)
    assert not torch.equal(core(x, garbage, flags(2))[0], fresh)


def test_gradients_flow_through_the_whole_episode_and_stop_exactly_at_its_start() -> None:
    core, t = make_lstm(), 8
    x = torch.randn(t, 2, 3, dtype=torch.float64, requires_grad=True)
    state = tuple(torch.randn(2, 4, dtype=torch.float64, requires_grad=True) for _ in range(2))
    # Stream 0 is one episode, begun before; in stream 1 another begins at row 5.
    outputs, _ = core(x, state, flags(t, (5, 1), b=2))
    outputs[-1].square().sum().backward()
    assert x.grad is not None
    reached = x.grad.abs().sum(-1) > 0
    assert reached[:, 0].all()
    assert reached[:, 1].tolist() == [row >= 5 for row in range(t)]
    for part in state:
        assert part.grad is not None
        assert (part.grad[0] != 0).any()
        assert (part.grad[1] == 0).all()


def test_chunks_with_the_state_carried_equal_one_long_unroll() -> None:
    core, x = make_lstm(), torch.randn(10, 2, 3, dtype=torch.float64)
    is_first = flags(10, (0, 0), (0, 1), (4, 0), (7, 1), b=2)
    whole, end = core(x, core.initial_state(2), is_first)
    state, parts = core.initial_state(2), []
    for rows in (slice(0, 3), slice(3, 4), slice(4, 10)):
        outputs, state = core(x[rows], state, is_first[rows])
        parts.append(outputs)
    torch.testing.assert_close(torch.cat(parts), whole, rtol=0, atol=1e-14)
    torch.testing.assert_close(state, end, rtol=0, atol=1e-14)


def test_the_state_handed_in_is_not_changed() -> None:
    core = make_lstm()
    state = tuple(torch.ones(1, 4, dtype=torch.float64) for _ in range(2))
    core(torch.randn(3, 1, 3, dtype=torch.float64), state, flags(3, (0, 0), (2, 0)))
    assert all((part == 1).all() for part in state)
    h, c = core.initial_state(5)
    assert h.shape == c.shape == (5, 4)
    assert h.data_ptr() != c.data_ptr()
    assert not h.any()
    assert not c.any()


def normed(x: torch.Tensor) -> torch.Tensor:
    """Layer norm with gain 1 and bias 0, in which it starts."""
    return (x - x.mean(-1, keepdim=True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt()


@pytest.mark.parametrize("core", ["lstm", "gru"])
def test_layer_norm_is_inside_the_step(core: Any) -> None:
    """Ba et al. 2016: every sum by itself, the gates' of one source together, and an LSTM's cell where it is read."""
    torch.manual_seed(0)
    module = make_core(3, ModelSpec(core=core, core_size=4, norm="layer")).double()
    cell: Any = module.cell
    x, is_first = torch.randn(2, 5, 3).double(), torch.zeros(2, 5, dtype=torch.bool)
    state = tuple(torch.randn(5, 4).double() for _ in module.initial_state(1))
    output, after = module(x, state, is_first)
    for t in range(2):
        of_x, of_h = x[t] @ cell.weight_ih.T, state[0] @ cell.weight_hh.T
        if core == "lstm":  # torch's own, handed the sums as they are
            plain = torch.nn.LSTMCell(16, 4, bias=False).double()
            plain.weight_ih.data, plain.weight_hh.data = torch.eye(16).double(), torch.zeros(16, 4).double()
            sums = normed(of_x) + normed(of_h)
            _, c = plain(sums, state)
            state = (torch.sigmoid(sums[:, 12:]) * torch.tanh(normed(c)), c)
        else:
            r, z = torch.sigmoid(normed(of_x[:, :8]) + normed(of_h[:, :8])).split(4, 1)
            new = torch.tanh(normed(of_x[:, 8:]) + r * normed(of_h[:, 8:]))
            state = (new + z * (state[0] - new),)
        torch.testing.assert_close(output[t], state[0])
    torch.testing.assert_close(after, state)
    assert len(list(module.parameters())) == {"lstm": 8, "gru": 10}[core]


def test_no_memory_is_the_identity_with_an_empty_state() -> None:
    core, x = Identity(3), torch.randn(2, 4, 3)
    assert core.initial_state(4) == ()
    assert core(x, (), flags(2, b=4)) == (x, ())
