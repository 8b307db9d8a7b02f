"""The shapes and dtypes of one row of a rollout, which the memory of every rollout is made by."""

from __future__ import annotations

from collections.abc import Collection
from typing import TYPE_CHECKING

import numpy as np
import torch

from polyactor.data import Tree
from polyactor.envs.spec import EnvSpec
from polyactor.models.running_stats import blank_row

if TYPE_CHECKING:
    from polyactor.models.actor_critic import ActorCritic


def row_of(spec: EnvSpec, model: ActorCritic, needs: Collection[str] = ()) -> dict[str, Tree]:
    """Return zeros of the shape and dtype of one row of each rollout field, for `Rollout.blank`.

    Args:
        spec: the spaces of one environment.
        model: the model that acts in it.
        needs: names of the optional fields to include.
    """
    actions, flag, number = model.actions, torch.zeros((), dtype=torch.bool), torch.zeros(())
    optional = {"behavior_params": torch.zeros(actions.params), "action_mask": flag.new_ones(actions.choices)}
    entries = {name: torch.from_numpy(np.zeros(box.shape, box.dtype)) for name, box in spec.entries.items()}
    return {
        "observation": entries if model.several else entries[""],
        "is_first": flag,
        "action": torch.zeros(actions.shape, dtype=torch.float32 if actions.dims else torch.int64),
        "reward": number,
        "terminated": flag,
        "behavior_log_prob": number,
        "core_state": tuple(part[0] for part in model.initial_state(1)),
        "version": torch.zeros((), dtype=torch.int64),
        "moments": {name: blank_row(tuple(part.mean.shape)) for name, part in model.running.items()},
        **({} if model.noise is None else {model.noise.field: torch.zeros(model.noise.width)}),
        **{name: optional[name] for name in [*needs, *["action_mask"] * spec.masked]},
    }
