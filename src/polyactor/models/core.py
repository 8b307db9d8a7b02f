"""Cores of a network, which map features ``[T, B, F]`` and a recurrent state to features and the next state."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from polyactor.data import CoreState
from polyactor.models.spec import ModelSpec


class Identity(nn.Module):
    """The core of a network without memory, which returns the features as they are; its state is ``()``."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.features = features

    def initial_state(self, batch: int) -> CoreState:
        """Return the empty state ``()``."""
        return ()

    def forward(self, x: Tensor, state: CoreState, is_first: Tensor) -> tuple[Tensor, CoreState]:
        """Return features and state unchanged."""
        return x, state


class GRU(nn.Module):
    """A GRU (Cho et al. 2014) whose state ``(h,)`` is set to zero where an episode starts, unrolled as an `LSTM` is."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.cell = nn.GRUCell(features, size)
        self.features = size
        _orthogonal(self.cell)

    def initial_state(self, batch: int) -> CoreState:
        """Return the zero state ``(h [B, H],)``."""
        return (self.cell.weight_hh.new_zeros(batch, self.features),)

    def forward(self, x: Tensor, state: CoreState, is_first: Tensor) -> tuple[Tensor, CoreState]:
        """Unroll the GRU over T steps.

        Args:
            x: features ``[T, B, F]``.
            state: ``(h,)`` before the first step.
            is_first: ``[T, B]`` bool; the state is set to zero before these steps.
        """
        (h,) = state
        keep = (~is_first).to(x.dtype).unsqueeze(-1)
        outputs = []
        for x_t, keep_t in zip(x, keep, strict=True):
            h = self.cell(x_t, h * keep_t)
            outputs.append(h)
        return torch.stack(outputs), (h,)


class LSTM(nn.Module):
    """An LSTM (Hochreiter & Schmidhuber 1997) whose state ``(h, c)`` is set to zero where an episode starts.

    A rollout is unrolled from the state before its first step, and gradients flow through all of its steps (truncated
    backpropagation through time).
    """

    def __init__(self, features: int, size: int) -> None:
        super().__init__()
        self.cell = nn.LSTMCell(features, size)
        self.features = size
        _orthogonal(self.cell)

    def initial_state(self, batch: int) -> CoreState:
        """Return the zero state ``(h [B, H], c [B, H])``."""
        zeros = self.cell.weight_hh.new_zeros(batch, self.features)
        return (zeros, zeros.clone())

    def forward(self, x: Tensor, state: CoreState, is_first: Tensor) -> tuple[Tensor, CoreState]:
        """Unroll the LSTM over T steps.

        Args:
            x: features ``[T, B, F]``.
            state: ``(h, c)`` before the first step.
            is_first: ``[T, B]`` bool; the state is set to zero before these steps.
        """
        h, c = state
        keep = (~is_first).to(x.dtype).unsqueeze(-1)
        outputs = []
        for x_t, keep_t in zip(x, keep, strict=True):
            h, c = self.cell(x_t, (h * keep_t, c * keep_t))
            outputs.append(h)
        return torch.stack(outputs), (h, c)


CORES: dict[str, type[LSTM] | type[GRU]] = {"lstm": LSTM, "gru": GRU}
"""The recurrent cores by their names in `ModelSpec.core`."""


def make_core(features: int, spec: ModelSpec) -> Identity | LSTM | GRU:
    """Make the core that a spec names, for features ``[T, B, F]``."""
    return CORES[spec.core](features, spec.core_size) if spec.core in CORES else Identity(features)


def _orthogonal(cell: nn.RNNCellBase) -> None:
    """Initialise a recurrent cell with orthogonal weights and zero biases."""
    for name, parameter in cell.named_parameters():
        if "weight" in name:
            nn.init.orthogonal_(parameter, 1.0)
        else:
            nn.init.zeros_(parameter)
