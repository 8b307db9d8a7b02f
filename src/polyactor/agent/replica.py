"""A private copy of the parameters that a model is bound to."""

from __future__ import annotations

import torch
from torch import Tensor

from polyactor.models.actor_critic import ActorCritic
from polyactor.optim.flat import State, bind
from polyactor.shared.counters import SharedCounters
from polyactor.shared.locks import Reading, once
from polyactor.system.failpoints import hit


class Replica:
    """θ', a private copy of the state that a model is bound to.

    Args:
        model: re-pointed at the copy; what computes in bf16 gets a rounded copy of its own beside the exact one.
        state: what `pull` copies.
        counters: tells its version.
        reading: gives a loop in whose body the copy is made.
        device: where the copy lives.
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
        """θ' ← θ, and unless told otherwise the running statistics."""
        size = len(self.vector) if running else self.state.layout.theta
        for _ in self.reading():
            self.version = self.counters.version
            self.vector[:size].copy_(self.state.vector[:size])
            hit("read")
        with torch.no_grad():
            for parameter, place in self.lowered:
                parameter.copy_(place)
        self.model.pulled(statistics=running)
