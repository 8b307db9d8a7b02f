"""Heads: from features to the parameters of the policy, to V(x), to Q(x, ·), to A(x, a)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyactor.models.action_space import ActionSpec
from polyactor.models.encoders import orthogonal
from polyactor.models.spec import ModelSpec

DUELING_UNITS = 64
"""Of the layer that joins features and actions."""


class GaussianHead(nn.Module):
    """Mean and log σ, ``[..., 2d]``; log σ free of the observation."""

    def __init__(self, features: int, dims: int, log_std: float) -> None:
        super().__init__()
        self.mean = orthogonal(nn.Linear(features, dims), 0.01)
        self.log_std = nn.Parameter(torch.full((dims,), log_std))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., F]`` to ``[..., 2d]``."""
        mean = self.mean(x)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


def policy_head(features: int, actions: ActionSpec, spec: ModelSpec) -> nn.Module:
    """Features to the parameters of the action distribution; near-uniform, near-zero at the start."""
    if actions.dims and spec.log_std == "free":
        return GaussianHead(features, actions.dims, spec.log_std_start)
    head = orthogonal(nn.Linear(features, actions.params), 0.01)
    if actions.dims:  # a fixed log σ is no parameter: then there are no such rows
        nn.init.constant_(head.bias[actions.dims :], spec.log_std_start)
    return head


def own_layer(features: int, width: int | None) -> nn.Module:
    """What a head has to itself before its output: a ReLU layer of `width` units, or nothing."""
    if width is None:
        return nn.Identity()
    return nn.Sequential(orthogonal(nn.Linear(features, width)), nn.ReLU())


def critic_width(head: str, actions: ActionSpec) -> int:
    """How many numbers the critic says: V(x), or Q(x, a) of each action.

    Raises:
        ValueError: Q is asked for and the actions cannot be listed.
    """
    if head == "value":
        return 1
    if head != "q":
        raise ValueError(f"there is no head {head!r}: an algorithm may ask for value or q")
    if len(actions.sizes) > 1:
        raise ValueError("Q(x, ·) needs one discrete action or a Box, not several parts")
    return 1 if actions.dims else actions.params


class Dueling(nn.Module):
    """A(x, a) of continuous actions, for the stochastic dueling network (Wang et al. 2017, eq. 13)."""

    def __init__(self, features: int, dims: int) -> None:
        super().__init__()
        self.hidden = orthogonal(nn.Linear(features + dims, DUELING_UNITS))
        self.out = orthogonal(nn.Linear(DUELING_UNITS, 1), 0.01)

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """``[T, B, F]`` and ``[..., T, B, d]`` to ``[..., T, B]``."""
        both = torch.cat([features.expand(*action.shape[:-1], -1), action], -1)
        advantage: Tensor = self.out(torch.tanh(self.hidden(both)))
        return advantage.squeeze(-1)
