"""A trained policy, ready to act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyactor import checkpoint
from polyactor.build import PLAY, Streams, make_model
from polyactor.compose import from_json
from polyactor.config import Config
from polyactor.envs import make_envs
from polyactor.errors import CheckpointError
from polyactor.models.actor_critic import ActorCritic
from polyactor.optim.flat import State


def load_into(model: ActorCritic, tensors: Mapping[str, Tensor]) -> None:
    """Copy parameters and buffers by name.

    Raises:
        CheckpointError: a name is missing or a shape differs.
    """
    own = dict(model.named_parameters()) | dict(model.named_buffers())
    for name, tensor in own.items():
        if name not in tensors:
            raise CheckpointError(f"the checkpoint has no {name}: it is of another model")
        if tensors[name].shape != tensor.shape:
            found, need = list(tensors[name].shape), list(tensor.shape)
            raise CheckpointError(f"the checkpoint's {name} has shape {found} and this model needs {need}")
        with torch.no_grad():
            tensor.copy_(tensors[name])


def model_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Of a checkpoint's tensors, those of the model."""
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}


class Policy:
    """A trained policy for one environment at a time.

    It sees what polyactor's environments give: for Atari the stack of frames ``[4, 84, 84]``, for everything else
    the environment's own observation.
    """

    def __init__(self, config: Config, tensors: Mapping[str, Tensor], seed: int = 0) -> None:
        self.config = config
        self._envs = make_envs(config.env, 1, atari=config.atari)
        self.model = make_model(config, self._envs)
        load_into(self.model, tensors)
        self._generator = Streams.of(seed, PLAY).act
        self.reset()

    def reset(self) -> None:
        """Forget the episode so far; call it when an episode starts (policies without memory do not mind)."""
        self._state, self._first = self.model.initial_state(1), True

    @torch.inference_mode()
    def act(self, observation: Any, *, deterministic: bool = True) -> Any:
        """The action for one observation, as the environment's own ``step`` takes it.

        Args:
            observation: of one environment.
            deterministic: the most likely action, or a sample.
        """
        x = torch.as_tensor(self._envs.encode(observation)).unsqueeze(0)
        params, self._state = self.model.step(x, self._state, torch.tensor([self._first]))
        self._first = False
        pi = self.model.distribution(params)
        action = pi.mode() if deterministic else pi.sample(self._generator)
        return self._envs.decode(action.numpy())[0]


def load(path: str | Path, *, tag: str | None = None, env: Any = None) -> Policy:
    """The policy of a run directory (its best checkpoint, else its last) or of one checkpoint.

    Args:
        path: a run directory or a checkpoint directory.
        tag: "best" or "last".
        env: needed when the run's environment was a Python callable, which a file cannot hold.

    Raises:
        CheckpointError: there is none, or it is damaged, foreign, or of another model.
    """
    config, tensors = read(Path(path), tag)
    return Policy(config if env is None else replace(config, env=env), tensors)


def read(path: Path, tag: str | None = None) -> tuple[Config, dict[str, Tensor]]:
    """Config and the model's tensors of a run or checkpoint, verified."""
    if tag is None:
        tag = "best" if checkpoint.exists(path, tag="best") else "last"
    found = checkpoint.load(path, tag=tag)
    return from_json(found.meta.get("config", {})), model_tensors(found.tensors)


def start_from(state: State, path: Path) -> None:
    """Copy parameters and running statistics of another run by name.

    Raises:
        CheckpointError: it is of another model.
    """
    _, tensors = read(path)
    for name, view in state.views().items():
        if name not in tensors or tensors[name].shape != view.shape:
            raise CheckpointError(f"--init-from {path} is of another model: {name} is missing or of another shape")
        view.copy_(tensors[name])
