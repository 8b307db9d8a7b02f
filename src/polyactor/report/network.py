"""The network that a run would have, in words."""

from __future__ import annotations

import torch

from polyactor.agent.parts import make_model
from polyactor.config import Config
from polyactor.envs import EnvSpec
from polyactor.models.encoders import torso_of


def network(config: Config, spec: EnvSpec) -> dict[str, str]:
    """Return in words the torso, the policy's distribution and the size of the network that a config gets.

    Args:
        config: the config of a run.
        spec: what its environments look like: spaces and limits.

    Raises:
        UsageError: the torso cannot read these observations, or the critic cannot take these actions.
        OutOfResources: the network does not fit the memory.
    """
    model = make_model(config, spec)
    torsos = {
        name: torso_of(box.shape, torch.from_numpy(box.low[:0]).dtype, config.model)
        for name, box in spec.entries.items()
    }
    torso = " and ".join(f"{kind} of {name}" if name else kind for name, kind in torsos.items())
    core = f", {config.model.core}" * (config.model.core != "none")
    pi = type(model.distribution(torch.zeros(1, model.actions.params))).__name__
    size = sum(parameter.numel() for parameter in model.parameters())
    return {
        "torso": f"{torso}{core}, of {size:,} parameters in all",
        "policy": f"{pi} of {model.actions.params} numbers",
    }
