"""Running moments equal the moments of everything seen, however it came in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from polyactor.models.running_stats import RunningMoments, merge, moments


def buffers(shape: tuple[int, ...], dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    return {f"x.{name}": tensor for name, tensor in RunningMoments(shape).to(dtype).named_buffers()}


@settings(max_examples=40, deadline=None)
@given(
    sizes=st.lists(st.integers(0, 7), min_size=1, max_size=8),
    shape=st.sampled_from([(), (3,), (2, 2)]),
    offset=st.sampled_from([0.0, 1e3]),
    seed=st.integers(0, 2**16),
)
def test_merge_equals_numpy_over_everything_seen(
    sizes: list[int], shape: tuple[int, ...], offset: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    parts = [rng.normal(size=(n, *shape)) * 2 + offset + rng.normal() for n in sizes]
    running = buffers(shape)
    for part in parts:
        merge(running, "x", moments(torch.from_numpy(part)))
    seen = np.concatenate(parts)
    assert running["x.count"] == len(seen)
    if len(seen):
        np.testing.assert_allclose(running["x.mean"], seen.mean(0), rtol=1e-12, atol=1e-12)
        np.testing.assert_allclose(running["x.variance"], seen.var(0), rtol=1e-8, atol=1e-9)
    else:
        assert (running["x.variance"] == 1).all()


def test_order_does_not_matter_and_float32_buffers_are_precise_enough() -> None:
    rng = np.random.default_rng(0)
    parts = [torch.from_numpy(rng.normal(size=(50, 3)) + i) for i in range(40)]
    forward, backward = buffers((3,), torch.float32), buffers((3,), torch.float32)
    for part in parts:
        merge(forward, "x", moments(part))
    for part in reversed(parts):
        merge(backward, "x", moments(part))
    for name in ("x.mean", "x.variance"):
        torch.testing.assert_close(forward[name], backward[name], rtol=1e-4, atol=1e-4)
    seen = torch.cat(parts)
    torch.testing.assert_close(forward["x.mean"].double(), seen.mean(0), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(forward["x.variance"].double(), seen.var(0, correction=0), rtol=1e-5, atol=1e-5)


def test_rows_of_weight_0_are_not_seen() -> None:
    samples = torch.tensor([[1.0], [1e9], [3.0]])
    new = moments(samples, torch.tensor([1.0, 0.0, 1.0]))
    assert (new.samples.item(), new.mean.item(), new.m2.item()) == (2.0, 2.0, 2.0)
    nothing = moments(samples, torch.zeros(3))
    assert (nothing.samples.item(), nothing.m2.item()) == (0.0, 0.0)
    running = buffers((1,))
    merge(running, "x", new)
    merge(running, "x", nothing)
    assert (running["x.count"].item(), running["x.mean"].item(), running["x.variance"].item()) == (2.0, 2.0, 1.0)


@pytest.mark.parametrize("start", [2**24, 2**24 + 2, 2**28])
def test_counting_goes_on_past_the_integers_float32_can_hold(start: int) -> None:
    """A running count in float32 stands still at 2**24 when ones are added; a rollout's worth still counts."""
    running = buffers((), torch.float32)
    running["x.count"].fill_(start)
    running["x.mean"].fill_(1.0)
    batch = moments(torch.full((1024,), 1.0))
    for _ in range(64):
        merge(running, "x", batch)
    assert running["x.count"].item() == start + 64 * 1024
    assert running["x.mean"].item() == 1.0
    # One value far away moves the mean by its share and the variance by what Chan et al. say.
    variance = running["x.variance"].double().item()
    total = running["x.count"].double().item() + 1024
    merge(running, "x", moments(torch.full((1024,), 101.0)))
    share = 1024 / total
    assert running["x.mean"].item() == pytest.approx(1 + 100 * share, rel=1e-6)
    expected = variance * (1 - share) + 100**2 * share * (1 - share)
    assert running["x.variance"].item() == pytest.approx(expected, rel=1e-6)


def test_bytes_are_summed_without_overflow() -> None:
    pixels = torch.full((1000, 2), 250, dtype=torch.uint8)
    pixels[::2] = 240
    new = moments(pixels)
    assert new.mean[0].tolist() == [245.0, 245.0]
    assert (new.m2[0] / new.samples[0]).tolist() == [25.0, 25.0]


def test_merge_changes_the_tensors_it_was_given_in_place() -> None:
    running = buffers((2,))
    pointers = {name: tensor.data_ptr() for name, tensor in running.items()}
    merge(running, "x", moments(torch.ones(3, 2)))
    assert {name: tensor.data_ptr() for name, tensor in running.items()} == pointers
