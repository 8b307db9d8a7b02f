"""Scaling and clipping of rewards before learning; scores stay those of the environment."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from polyactor.models.running_stats import RunningMoments

EPSILON = 1e-8
"""Added to the variance, so that a return that never varies divides by no zero."""


@dataclass(frozen=True)
class RewardScaling:
    """Turns the environment's rewards into those that a loss learns from.

    Attributes:
        return_moments: running moments of the discounted return, by whose deviation rewards are divided; None: by 1.
        clip: rewards are clipped to ± this, after they were divided; None: not at all.
    """

    return_moments: RunningMoments | None
    clip: float | None

    def __call__(self, reward: Tensor) -> Tensor:
        """Return the rewards to learn from, of the shape of the rewards given."""
        moments = self.return_moments
        if moments is not None and moments.count > 0:
            reward = reward / (moments.variance + EPSILON).sqrt()
        return reward if self.clip is None else reward.clamp(-self.clip, self.clip)
