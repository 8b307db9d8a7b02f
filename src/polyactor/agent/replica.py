"""A private copy θ' of the shared parameters, and the model that computes with it."""

from __future__ import annotations

import torch
from torch import Tensor

from polyactor.models.actor_critic import ActorCritic
from polyactor.optim.flat import State, bind
from polyactor.shared.counters import SharedCounters
from polyactor.shared.locks import Reading, once
from polyactor.system.failpoints import hit


class Replica:
    """Holds θ', a private copy of θ and the running statistics, and the model whose tensors are views of it.

    Args:
        model: the model; its tensors become views of the copy. Layers that compute in bf16 hold a rounded copy besides.
        state: the shared state that `pull` copies.
        counters: the counters that give the version of the shared state.
        reading: the lock under which the copy is made: a function whose loop's body reads the shared state.
        device: the device of the copy.
    """

    def __init__(
        self,
        model: ActorCritic,
        state: State,
        counters: SharedCounters,
        *,
        reading: Reading = once,
        device: str = "cpu",
    ) -> None:
        self.model, self.state, self.counters = model, state, counters
        self.reading = reading
        self.device = device
        self.vector = torch.empty_like(state.vector, device=device)
        layout = bind(model, self.vector)
        model.lower()
        own: dict[str, Tensor] = {**dict(model.named_parameters()), **dict(model.named_buffers())}
        places = [(own[slot.name], slot.view(self.vector)) for slot in layout.slots if slot.name in own]
        self.lowered = [(parameter, place) for parameter, place in places if parameter.dtype != place.dtype]
        self.pull()

    def pull(self, *, running: bool = True) -> None:
        """Copy the newest parameters: θ' ← θ.

        Args:
            running: whether the running statistics are copied as well.
        """
        size = len(self.vector) if running else self.state.layout.theta
        for _ in self.reading():
            self.version = self.counters.version
            self.vector[:size].copy_(self.state.vector[:size])
            hit("read")
        with torch.no_grad():
            for parameter, place in self.lowered:
                parameter.copy_(place)
        self.model.pulled(statistics=running)
