"""What tests of problems with known answers share: a whole run, and what the model of it says."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from polyactor import transport
from polyactor.agent.parts import make_model
from polyactor.config import Config
from polyactor.models.actor_critic import ActorCritic
from polyactor.optim.flat import State, bind
from tests.helpers.fresh import fresh


def train(config: Config, start: Callable[[State], None] = lambda state: None) -> ActorCritic:
    """The model after the whole run; `start` may change the state before it."""
    parts = fresh(config)
    state, counters = parts.state, parts.counters
    start(state)
    for _ in transport.run(parts):
        pass
    assert config.steps <= counters.steps < config.steps + config.envs * config.rollout
    model = make_model(config, parts.spec)
    vector = torch.empty_like(state.vector)
    bind(model, vector)
    vector.copy_(state.vector)
    return model


@torch.no_grad()
def outputs(model: ActorCritic, observations: Tensor) -> tuple[Tensor, Tensor]:
    """Policy parameters and what the critic says of each observation ``[N, *O]``."""
    n = len(observations)
    params, value, _ = model(observations.unsqueeze(0), model.initial_state(n), torch.ones(1, n, dtype=torch.bool))
    return params[0], value[0]
