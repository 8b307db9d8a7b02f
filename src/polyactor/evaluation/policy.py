"""A trained policy, ready to act."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from polyactor.agent.parts import make_model
from polyactor.agent.streams import EVALUATION_STREAM, Streams
from polyactor.config import Config
from polyactor.envs import EnvSpec, make_envs
from polyactor.errors import CheckpointError, UsageError
from polyactor.models.actor_critic import ActorCritic
from polyactor.optim.flat import State
from polyactor.settings.serialize import from_json
from polyactor.storage import checkpoint


def make_trained(config: Config, spec: EnvSpec, tensors: Mapping[str, Tensor]) -> ActorCritic:
    """The config's model with these parameters and buffers.

    Raises:
        CheckpointError: a name is missing or a shape differs.
    """
    refuse_misfit(config, spec, tensors)
    model = make_model(config, spec)
    load_into(model, tensors)
    return model


def refuse_misfit(config: Config, spec: EnvSpec, tensors: Mapping[str, Tensor]) -> None:
    """Refuse a config whose model is not the one that was saved, before that takes its memory.

    Raises:
        CheckpointError: a name is missing or a shape differs.
    """
    if len(config.model.hidden) > len(tensors):
        raise CheckpointError(f"the config has {len(config.model.hidden)} layers: the checkpoint is of another model")
    try:
        with torch.device("meta"):  # shapes alone
            model = make_model(config, spec)
    except UsageError as error:
        raise CheckpointError(f"the checkpoint is of another model: {error}") from None
    _refuse_misfit(model, tensors)


def load_into(model: ActorCritic, tensors: Mapping[str, Tensor]) -> None:
    """Copy parameters and buffers by name.

    Raises:
        CheckpointError: a name is missing or a shape differs.
    """
    _refuse_misfit(model, tensors)
    with torch.no_grad():
        for name, tensor in _own(model).items():
            tensor.copy_(tensors[name])


def _own(model: ActorCritic) -> dict[str, Tensor]:
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _refuse_misfit(model: ActorCritic, tensors: Mapping[str, Tensor]) -> None:
    for name, tensor in _own(model).items():
        if name not in tensors:
            raise CheckpointError(f"the checkpoint has no {name}: it is of another model")
        if tensors[name].shape != tensor.shape:
            found, need = list(tensors[name].shape), list(tensor.shape)
            raise CheckpointError(f"the checkpoint's {name} has shape {found} and this model needs {need}")
        if not tensors[name].is_floating_point():
            raise CheckpointError(f"the checkpoint's {name} is {tensors[name].dtype}, which no parameter is")


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
        self.model = make_trained(config, EnvSpec.of(self._envs), tensors)
        self._generator = Streams.of(seed, EVALUATION_STREAM).act
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


def load(path: str | Path, *, tag: str | None = None, env: Any = None, trust_env: bool = False) -> Policy:
    """The policy of a run directory (its best checkpoint, else its last) or of one checkpoint.

    Args:
        path: a run directory or a checkpoint directory.
        tag: "best" or "last".
        env: in place of the run's own; needed when that was a Python callable that nobody can import by name.
        trust_env: where the run's environment is ``module:something``, import that module: code, which whoever made
            the checkpoint chose.

    Raises:
        UsageError: the run's environment is code, and nobody said to trust it.
        CheckpointError: there is none, or it is damaged, foreign, or of another model.
    """
    config, tensors = read(Path(path), tag, trust_env=trust_env or env is not None)
    return Policy(config if env is None else replace(config, env=env), tensors)


def read(path: Path, tag: str | None = None, *, trust_env: bool = False) -> tuple[Config, dict[str, Tensor]]:
    """Config and the model's tensors of a run or checkpoint, verified.

    Args:
        path: of either.
        tag: "best" or "last"; by default the best there is.
        trust_env: as `load`.

    Raises:
        UsageError, CheckpointError: as `load`.
    """
    if tag is None:
        tag = "best" if checkpoint.exists(path, tag="best") else "last"
    found = checkpoint.load(path, tag=tag)
    config = from_json(found.meta.get("config", {}), trust_env=trust_env)
    refuse_not_finite(found)
    return config, model_tensors(found.tensors)


def refuse_not_finite(found: checkpoint.Checkpoint) -> None:
    """Refuse parameters and statistics that nobody can play or go on with.

    Raises:
        CheckpointError: naming the first of them.
    """
    bad = checkpoint.not_finite(found.tensors)
    if bad:
        raise CheckpointError(f"{found.path} has numbers that are not finite, in {bad[0]}")


def start_from(state: State, path: Path) -> None:
    """Copy parameters and running statistics of another run by name.

    Raises:
        CheckpointError: it is of another model.
    """
    _, tensors = read(path, trust_env=True)  # only the parameters are used: no environment of it is made
    for name, view in state.views().items():
        if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (view.shape, view.dtype):
            raise CheckpointError(f"--init-from {path} is of another model: {name} is missing or of another shape")
        view.copy_(tensors[name])
