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
            if parameter.dim() == 2:
                nn.init.orthogonal_(parameter, 1.0)
            elif "norm" not in name:  # layer norms begin as the identity
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

    def __init__(self, features: int, size: int, cell: type[nn.LSTMCell] = nn.LSTMCell) -> None:
        super().__init__(cell(features, size), parts=2)


class GRU(Recurrent):
    """A GRU (Cho et al. 2014) whose state is ``(h [B, H],)``."""

    def __init__(self, features: int, size: int, cell: type[nn.GRUCell] = nn.GRUCell) -> None:
        super().__init__(cell(features, size), parts=1)

    def step(self, x_t: Tensor, state: CoreState) -> CoreState:
        """Compute the state after one step from its features ``[B, F]`` and the state before it."""
        return (self.cell(x_t, state[0]),)


class LayerNormLSTMCell(nn.LSTMCell):
    """An LSTM's step with layer norm of all sums and of the cell (Ba et al. 2016, eq. 20 to 22)."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__(features, size, bias=False)
        self.norm_x, self.norm_h, self.norm_c = (nn.LayerNorm(width) for width in (4 * size, 4 * size, size))

    def forward(self, x: Tensor, state: tuple[Tensor, Tensor] | None = None) -> tuple[Tensor, Tensor]:
        """Compute ``(h_tp1, c_tp1)`` of ``x_t [B, F]`` and ``(h_t, c_t)``."""
        assert state is not None, "a core hands over its state"
        h_t, c_t = state
        sums = self.norm_x(x @ self.weight_ih.T) + self.norm_h(h_t @ self.weight_hh.T)
        i, f, g, o = sums.chunk(4, -1)
        c_tp1 = torch.sigmoid(f) * c_t + torch.sigmoid(i) * torch.tanh(g)
        return torch.sigmoid(o) * torch.tanh(self.norm_c(c_tp1)), c_tp1


class LayerNormGRUCell(nn.GRUCell):
    """A GRU's step with layer norm of the sums of both gates, and of both sums of the candidate (Ba et al. 2016)."""

    def __init__(self, features: int, size: int) -> None:
        super().__init__(features, size, bias=False)
        self.norm_x, self.norm_h = nn.LayerNorm(2 * size), nn.LayerNorm(2 * size)
        self.norm_nx, self.norm_nh = nn.LayerNorm(size), nn.LayerNorm(size)

    def forward(self, x: Tensor, state: Tensor | None = None) -> Tensor:
        """Compute ``h_tp1 [B, H]`` of ``x_t [B, F]`` and ``h_t``."""
        assert state is not None, "a core hands over its state"
        sizes = [2 * self.hidden_size, self.hidden_size]
        gates_x, new_x = torch.split(x @ self.weight_ih.T, sizes, -1)
        gates_h, new_h = torch.split(state @ self.weight_hh.T, sizes, -1)
        r, z = torch.sigmoid(self.norm_x(gates_x) + self.norm_h(gates_h)).chunk(2, -1)
        n = torch.tanh(self.norm_nx(new_x) + r * self.norm_nh(new_h))
        return (1 - z) * n + z * state


def make_core(features: int, spec: ModelSpec) -> Identity | Recurrent:
    """Make the core that a spec names, for features ``[T, B, F]``."""
    layer_norm = spec.norm == "layer"
    if spec.core == "lstm":
        return LSTM(features, spec.core_size, LayerNormLSTMCell if layer_norm else nn.LSTMCell)
    if spec.core == "gru":
        return GRU(features, spec.core_size, LayerNormGRUCell if layer_norm else nn.GRUCell)
    return Identity(features)
