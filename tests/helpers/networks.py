"""Parts of a network as users write them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polyactor.data import map_tree
from polyactor.models.encoders import orthogonal


class Vector(nn.Sequential):
    """The torso that is ours with ``hidden=(32,)``."""

    def __init__(self, space: spaces.Box) -> None:
        super().__init__(nn.Flatten(), orthogonal(nn.Linear(math.prod(space.shape), 32)), nn.Tanh())


class Entries(nn.Module):
    """A torso for several entries, of images and of vectors."""

    def __init__(self, space: spaces.Dict) -> None:
        super().__init__()
        self.spaces = {name: box.shape for name, box in space.spaces.items() if box.shape is not None}
        self.join = nn.Linear(sum(map(math.prod, self.spaces.values())), 16)

    def forward(self, x: Mapping[str, Tensor]) -> Tensor:
        assert {name: tuple(each.shape[1:]) for name, each in x.items()} == self.spaces
        return torch.tanh(self.join(torch.cat([x[name].flatten(1) for name in self.spaces], 1)))


class Memory(nn.Module):
    """A core with torch's own LSTM, whose state starts from zeros."""

    def __init__(self, features: int) -> None:
        super().__init__()
        self.lstm = nn.LSTM(features, 8)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return torch.zeros(batch, 8), torch.zeros(batch, 8)

    def forward(self, x: Tensor, state: Any, is_first: Tensor) -> Any:
        outputs = []
        for x_t, first in zip(x, is_first, strict=True):
            kept = tuple((part * ~first.unsqueeze(1)).unsqueeze(0) for part in state)
            output, state = self.lstm(x_t.unsqueeze(0), kept)
            state = tuple(part[0] for part in state)
            outputs.append(output[0])
        return torch.stack(outputs), state


class Whole(nn.Module):
    """A network like ours with ``hidden=(32,)``, layer by layer."""

    def __init__(self, space: spaces.Box, params: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.torso = Vector(space)
        self.policy = orthogonal(nn.Linear(32, params), 0.01)
        self.value = orthogonal(nn.Linear(32, values), 1.0)

    def forward(self, x: Tensor, state: Any, is_first: Tensor) -> Any:
        t, b = is_first.shape
        features = self.torso(x.flatten(0, 1)).view(t, b, -1)
        value = self.value(features)
        return self.policy(features), value if self.values > 1 else value.squeeze(-1), state


class Recurrent(nn.Module):
    """A network with memory, for a vector or several entries."""

    def __init__(self, space: spaces.Space[Any], params: int, values: int) -> None:
        super().__init__()
        self.values = values
        self.torso = Entries(space) if isinstance(space, spaces.Dict) else Vector(cast("spaces.Box", space))
        self.core = Memory(16 if isinstance(space, spaces.Dict) else 32)
        self.policy, self.value = nn.Linear(8, params), nn.Linear(8, values)

    def initial_state(self, batch: int) -> tuple[Tensor, Tensor]:
        return self.core.initial_state(batch)

    def forward(self, x: Any, state: Any, is_first: Tensor) -> Any:
        seen = self.torso(map_tree(lambda each: each.flatten(0, 1), x))
        features, state = self.core(seen.view(*is_first.shape, -1), state, is_first)
        value = self.value(features)
        return self.policy(features), value if self.values > 1 else value.squeeze(-1), state
