"""Gradients in shared memory are added up and averaged."""

from __future__ import annotations

import pytest
import torch

from polyactor.data import Gradients, Moments
from polyactor.shared.gradient_slots import GradientSlot, mean


def gradients(value: float, *, version: int = 0, steps: int = 3, count: float = 2.0) -> Gradients:
    moments = Moments(torch.tensor([count]), torch.tensor([value]), torch.tensor([1.0]))
    return Gradients(torch.full((4,), value), {"entropy": value}, version, steps, {"x": moments})


def gradient_slot(rows: int) -> GradientSlot:
    zeros = torch.zeros(rows)
    return GradientSlot.blank(4, ("entropy", "kl"), {"x": Moments(zeros, zeros.clone(), zeros.clone())})


@pytest.mark.parametrize(("reduction", "expected"), [("mean", 2.0), ("sum", 4.0)])
def test_a_slot_joins_gradients_and_forgets_the_last_ones(reduction: str, expected: float) -> None:
    slot = gradient_slot(2)
    slot.put(gradients(9.0))
    slot.add(gradients(9.0))
    slot.put(gradients(1.0, version=7))
    slot.add(gradients(3.0, version=5))
    joined = slot.gradients(reduction)  # type: ignore[arg-type]
    assert joined.vector.tolist() == [expected] * 4
    assert joined.metrics == {"entropy": 2.0}
    assert (joined.version, joined.steps) == (5, 6)
    assert joined.moments["x"].mean.tolist() == [1.0, 3.0]
    slot.put(gradients(1.0))
    assert slot.gradients("mean").moments["x"].samples.tolist() == [2.0, 0.0]  # the second row is empty again


def test_the_mean_of_several_workers() -> None:
    joined = mean([gradients(1.0, version=4), gradients(2.0, version=2), gradients(6.0, version=3)])
    assert joined.vector.tolist() == [3.0] * 4
    assert (joined.version, joined.steps, joined.metrics) == (2, 9, {"entropy": 3.0})
    assert joined.moments["x"].samples.tolist() == [2.0] * 3
