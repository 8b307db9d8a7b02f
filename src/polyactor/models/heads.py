"""Heads, which map features to the parameters of the policy, to V(x), to Q(x, ·) or to A(x, a)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from polyactor.models.action_space import ActionSpec
from polyactor.models.encoders import dense, hidden_layer
from polyactor.models.spec import ModelSpec, NoiseKind

MOST_LISTED = 1_024
"""Most joint actions of several discrete parts that Q(x, ·) lists."""
DUELING_UNITS = 64
"""Units of the layer of the dueling head that joins features and actions."""


class GaussianHead(nn.Module):
    """A policy head for numbers, which predicts the mean and learns a log σ independent of the observation.

    For mixed actions it predicts the logits of the choices, too.
    """

    def __init__(self, features: int, choices: int, dims: int, log_std: float, noise: NoiseKind | None) -> None:
        super().__init__()
        self.mean = dense(features, choices + dims, noise, 0.01)
        self.log_std = nn.Parameter(torch.full((dims,), log_std))

    def forward(self, x: Tensor) -> Tensor:
        """Map features ``[..., F]`` to C logits, d means and log σ, ``[..., C + 2d]``."""
        mean = self.mean(x)
        return torch.cat([mean, self.log_std.expand(*mean.shape[:-1], -1)], -1)


def policy_head(features: int, actions: ActionSpec, spec: ModelSpec) -> nn.Module:
    """Make the head from features to policy parameters.

    At the start logits and means are nearly 0; not so those of a noisy head.
    """
    scaled = actions.dims > 0 and actions.kind != "beta"  # whether it has log σ
    if scaled and spec.log_std == "free":
        return GaussianHead(features, actions.choices, actions.dims, spec.log_std_start, spec.head_noise)
    head = dense(features, actions.params, spec.head_noise, 0.01)
    if scaled:  # the rows of log σ, of which there are none if σ is fixed
        nn.init.constant_(head.bias[actions.encoding :], spec.log_std_start)
    return head


def own_layer(features: int, width: int | None, spec: ModelSpec) -> nn.Module:
    """Make the hidden ReLU layer of `width` units that one head has before its output, or the identity for None."""
    if width is None:
        return nn.Identity()
    return nn.Sequential(*hidden_layer(features, width, nn.ReLU, spec, spec.head_noise))


def critic_width(head: str, actions: ActionSpec) -> int:
    """Return the number of outputs of the critic: 1 for V(x) or where actions have numbers, else Q of each action.

    Raises:
        ValueError: there is no such head, or Q is asked for and there are too many actions to list.
    """
    if head == "value":
        return 1
    if head != "q":
        raise ValueError(f"there is no head {head!r}: an algorithm may ask for value or q")
    if actions.dims:
        return 1
    listed = math.prod(actions.sizes)
    if len(actions.sizes) > 1 and listed > MOST_LISTED:
        raise ValueError(f"Q(x, ·) can list {MOST_LISTED:,} joint actions of several parts, and here are more")
    return listed


class Dueling(nn.Module):
    """The head of A(x, a) for actions with numbers in the stochastic dueling network (Wang et al. 2017, eq. 13)."""

    def __init__(self, features: int, dims: int, noise: NoiseKind | None = None) -> None:
        super().__init__()
        self.hidden = dense(features + dims, DUELING_UNITS, noise)
        self.out = dense(DUELING_UNITS, 1, noise, 0.01)

    def forward(self, features: Tensor, action: Tensor) -> Tensor:
        """Map features ``[T, B, F]`` and actions ``[..., T, B, d]`` to A(x, a) ``[..., T, B]``."""
        both = torch.cat([features.expand(*action.shape[:-1], -1), action], -1)
        advantage: Tensor = self.out(torch.tanh(self.hidden(both)))
        return advantage.squeeze(-1)
