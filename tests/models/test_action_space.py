"""What a network reads of an action."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gymnasium import spaces

from polyactor.models.action_space import action_spec

NUMBERS = spaces.Box(np.array([-1, -1, -np.inf], np.float32), np.array([1, 1, np.inf], np.float32))


def test_numbers_are_read_as_the_environment_is_sent_them() -> None:
    """Beyond a bound all have the same effect; a number without two bounds is sent as it is."""
    spec = action_spec(NUMBERS)
    assert spec.encoded(torch.tensor([[3.0, -0.5, -7.0], [1.0, -4.0, 7.0]])).tolist() == [[1, -0.5, -7], [1, -1, 7]]
    mixed = action_spec(spaces.Tuple((spaces.MultiDiscrete([2, 3]), NUMBERS)))
    assert mixed.encoded(torch.tensor([1.0, 2.0, 3.0, -3.0, 9.0])).tolist() == [0, 1, 0, 0, 1, 1, -1, 9]
    choices = action_spec(spaces.MultiDiscrete([2, 3]))
    assert choices.encoded(torch.tensor([1.0, 0.0])).tolist() == [0, 1, 1, 0, 0]


@pytest.mark.parametrize("kind", ["beta", "squashed"])
def test_bounded_numbers_are_read_as_they_are_sent(kind: str) -> None:
    spec = action_spec(spaces.Box(-1, 1, (2,)), kind=kind)  # type: ignore[arg-type]
    a = torch.tensor([[0.25, -0.9], [-0.125, 0.5]])
    assert torch.equal(spec.encoded(a), spec.sent(a))
