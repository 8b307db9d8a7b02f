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


class Recurrent(nn.Module):
    """A core of one recurrent cell, whose state is set to zero where an episode starts.

    A rollout is unrolled from the state before its first step, and gradients flow through all of its steps (truncated
    backpropagation through time).

    Args:
        cell: computes one step; it has orthogonal weights and zero biases from here on.
        parts: the number of tensors ``[B, H]`` in the state; the first is the output.
    """

    def __init__(self, cell: nn.RNNCellBase, parts: int) -> None:
        super().__init__()
        self.cell, self.features, self.parts = cell, cell.hidden_size, parts
        for name, parameter in cell.named_parameters():
            if "weight" in name:
                nn.init.orthogonal_(parameter, 1.0)
            else:
                nn.init.zeros_(parameter)

    def initial_state(self, batch: int) -> CoreState:
        """Return the zero state, tensors ``[B, H]``."""
        return tuple(self.cell.weight_hh.new_zeros(batch, self.features) for _ in range(self.parts))

    def step(self, x_t: Tensor, state: CoreState) -> CoreState:
        """Compute the state after one step from its features ``[B, F]`` and the state before it."""
        after: CoreState = self.cell(x_t, state)
        return after

    def forward(self, x: Tensor, state: CoreState, is_first: Tensor) -> tuple[Tensor, CoreState]:
        """Unroll the cell over T steps.

        Args:
            x: features ``[T, B, F]``.
            state: the state before the first step.
            is_first: ``[T, B]`` bool; the state is set to zero before these steps.
        """
        keep = (~is_first).to(x.dtype).unsqueeze(-1)
        outputs = []
        for x_t, keep_t in zip(x, keep, strict=True):
            state = self.step(x_t, tuple([part * keep_t for part in state]))
            outputs.append(state[0])
        return torch.stack(outputs), state


class LSTM(Recurrent):
    """An LSTM (Hochreiter & Schmidhuber 1997) whose state is ``(h [B, H], c [B, H])``."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__(nn.LSTMCell(features, size), parts=2)


class GRU(Recurrent):
    """A GRU (Cho et al. 2014) whose state is ``(h [B, H],)``."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__(nn.GRUCell(features, size), parts=1)

    def step(self, x_t: Tensor, state: CoreState) -> CoreState:
        """Compute the state after one step from its features ``[B, F]`` and the state before it."""
        return (self.cell(x_t, state[0]),)


CORES: dict[str, type[LSTM] | type[GRU]] = {"lstm": LSTM, "gru": GRU}
"""The recurrent cores by their names in `ModelSpec.core`."""


def make_core(features: int, spec: ModelSpec) -> Identity | Recurrent:
    """Make the core that a spec names, for features ``[T, B, F]``."""
    return CORES[spec.core](features, spec.core_size) if spec.core in CORES else Identity(features)
