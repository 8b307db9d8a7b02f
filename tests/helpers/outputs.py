"""A model that is its own outputs."""

from __future__ import annotations

from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor

from polyactor.data import Distribution, Outputs, Rollout
from polyactor.models.action_space import action_spec


class Table:
    """A model that is its outputs: free logits ``[T+1, B, P]`` and values ``[T+1, B]``, to differentiate by."""

    def __init__(self, rollout: Rollout, actions: spaces.Space[Any], seed: int = 0) -> None:
        self.spec = action_spec(actions)
        generator = torch.Generator().manual_seed(seed)
        shape = rollout.is_first.shape
        self.policy = torch.randn((*shape, self.spec.params), generator=generator, dtype=torch.float64)
        self.value = torch.randn(shape, generator=generator, dtype=torch.float64)
        self.policy.requires_grad_()
        self.value.requires_grad_()

    def distribution(self, params: Tensor) -> Distribution:
        return self.spec.distribution(params)

    def unroll(self, rollout: Rollout) -> Outputs:
        return Outputs(self.policy, self.value)
