"""The dueling head."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from polyactor.models.heads import Dueling


def tensor(x: Any) -> Tensor:
    return torch.as_tensor(np.asarray(x), dtype=torch.float64)


def test_the_dueling_critic_is_v_in_the_mean() -> None:
    """E_u,a[Q̃(x, a)] = V(x), whatever A is."""
    torch.manual_seed(0)
    duel, pi = Dueling(4, 2).double(), torch.distributions.Normal(tensor([0.1, -0.2]), tensor([0.3, 0.3]))
    torch.nn.init.normal_(duel.out.weight)
    features = torch.randn(1, 1, 4, dtype=torch.float64)
    a = duel(features, pi.sample((20_000, 1, 1)))
    u = duel(features, pi.sample((20_000, 5, 1, 1))).mean(1)
    q_less_v = (a - u).flatten()
    assert q_less_v.mean().abs() < 4 * q_less_v.std() / math.sqrt(20_000)
    assert a.std() > 0.05
