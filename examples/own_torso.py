"""A torso of one's own, which encodes observations: python examples/own_torso.py

The command line takes it, too, with any method:
polyactor train a3c --env CartPole-v1 --model.torso examples/own_torso.py:Residual
"""

import torch
from gymnasium import spaces
from torch import Tensor, nn

import polyactor as pa


class Residual(nn.Module):
    """An MLP with a residual connection and layer normalisation, for observations that are vectors."""

    def __init__(self, space: spaces.Box, units: int = 64) -> None:
        super().__init__()
        self.first = nn.Linear(space.shape[0], units)
        self.second = nn.Sequential(nn.LayerNorm(units), nn.ReLU(), nn.Linear(units, units))

    def forward(self, x: Tensor) -> Tensor:
        """Map scaled observations ``[N, D]`` to features ``[N, F]``; F may be any number."""
        h = self.first(x)
        return torch.relu(h + self.second(h))


if __name__ == "__main__":  # worker processes import this file, too
    run = pa.train("a3c", env="CartPole-v1", model={"torso": Residual}, steps=30_000)
    print(f"mean return of 100 episodes: {run.summary['best_score_mean100']:.0f} of at most 500")
