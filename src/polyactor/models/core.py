"""Memory: features ``[T, B, F]`` and a state to features and the next state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyactor.data import CoreState


class Identity(nn.Module):
    """No memory; its state is ``()``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def initial_state(self, batch: int) -> CoreState:
        """``()``."""
        return ()

    def forward(self, x: Tensor, state: CoreState, is_first: Tensor) -> tuple[Tensor, CoreState]:
        """The features themselves."""
        return x, state


class LSTM(nn.Module):
    """Hochreiter & Schmidhuber 1997; its state ``(h, c)`` is zeroed wherever an episode starts.

    The whole rollout is unrolled from the state stored at its start, so gradients flow through every step of it
    (truncated backpropagation through time).
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(features, size)
        self.features = size
        for name, parameter in self.cell.named_parameters():
            if "weight" in name:
                nn.init.orthogonal_(parameter, 1.0)
            else:
                nn.init.zeros_(parameter)

    def initial_state(self, batch: int) -> CoreState:
        """``(h [B, H], c [B, H])`` of zeros."""
        zeros = self.cell.weight_hh.new_zeros(batch, self.features)
        return (zeros, zeros.clone())

    def forward(self, x: Tensor, state: CoreState, is_first: Tensor) -> tuple[Tensor, CoreState]:
        """One step per row of ``x [T, B, F]``; ``is_first [T, B]``."""
        h, c = state
        keep = (~is_first).to(x.dtype).unsqueeze(-1)
        outputs = []
        for x_t, keep_t in zip(x, keep, strict=True):
            h, c = self.cell(x_t, (h * keep_t, c * keep_t))
            outputs.append(h)
        return torch.stack(outputs), (h, c)
