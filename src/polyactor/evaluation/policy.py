"""Trained policies: loading the parameters of a run or checkpoint, and acting with them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from polyactor.agent.parts import make_model
from polyactor.agent.streams import EVALUATION_STREAM, Streams
from polyactor.config import Config
from polyactor.envs import EnvSpec, looked_at
from polyactor.envs.conversion import Conversion
from polyactor.errors import CheckpointError, UsageError, one_line
from polyactor.fields import expect
from polyactor.models.actor_critic import ActorCritic
from polyactor.optim.flat import State
from polyactor.settings.serialize import from_json
from polyactor.storage import checkpoint
from polyactor.system.machine import torch_threads, usual_tensors


def make_trained(config: Config, spec: EnvSpec, tensors: Mapping[str, Tensor]) -> ActorCritic:
    """Return the model of a config, with the given parameters and buffers.

    Raises:
        CheckpointError: a tensor is missing, or its shape or dtype does not fit.
    """
    refuse_misfit(config, spec, tensors)
    model = make_model(config, spec)
    load_into(model, tensors)
    return model


def refuse_misfit(config: Config, spec: EnvSpec, tensors: Mapping[str, Tensor]) -> None:
    """Refuse tensors that do not fit a config's model, without the memory that the model would take.

    Raises:
        CheckpointError: a tensor is missing, or its shape or dtype does not fit.
    """
    if len(config.model.hidden) > len(tensors):
        raise CheckpointError(f"the config has {len(config.model.hidden)} layers: the checkpoint is of another model")
    try:
        with torch.device("meta"):  # shapes without memory
            model = make_model(config, spec)
    except UsageError as error:
        raise CheckpointError(f"the checkpoint is of another model: {error}") from None
    _refuse_misfit(model, tensors)


def load_into(model: ActorCritic, tensors: Mapping[str, Tensor]) -> None:
    """Copy parameters and buffers into a model, by name.

    Raises:
        CheckpointError: a tensor is missing, or its shape or dtype does not fit.
    """
    _refuse_misfit(model, tensors)
    with torch.no_grad():
        for name, tensor in _tensors_of(model).items():
            tensor.copy_(tensors[name])


def _tensors_of(model: ActorCritic) -> dict[str, Tensor]:
    """Return a model's parameters and buffers by name."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def _refuse_misfit(model: ActorCritic, tensors: Mapping[str, Tensor]) -> None:
    """Raise `CheckpointError` where a parameter or buffer of a model is missing or does not fit."""
    for name, tensor in _tensors_of(model).items():
        if name not in tensors:
            raise CheckpointError(f"the checkpoint has no {name}: it is of another model")
        if tensors[name].shape != tensor.shape:
            found, need = list(tensors[name].shape), list(tensor.shape)
            raise CheckpointError(f"the checkpoint's {name} has shape {found} and this model needs {need}")
        if not tensors[name].is_floating_point():
            raise CheckpointError(f"the checkpoint's {name} is {tensors[name].dtype}, which no parameter is")


def model_tensors(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the model's tensors of a checkpoint, by their names in the model."""
    return {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}


class Policy:
    """A trained policy that acts in one environment.

    An observation is a stack of frames, such as ``[4, 84, 84]``, for Atari, and else that of the Gymnasium environment.
    One environment is made to learn its spaces, and closed again.

    Args:
        config: the run's config.
        tensors: the model's parameters and buffers by name.
        seed: of sampled actions.
    """

    def __init__(self, config: Config, tensors: Mapping[str, Tensor], seed: int = 0) -> None:
        self.config = config
        with looked_at(config.env, 1, seconds=config.env_timeout, atari=config.atari) as (envs, _):
            spec, self._conversion = EnvSpec.of(envs), envs.conversion
        with usual_tensors():
            self.model = make_trained(config, spec, tensors)
        self._generator = Streams.of(seed, EVALUATION_STREAM).act
        self.reset()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, error: object, at: object) -> None:
        self.close()

    def close(self) -> None:
        """Do nothing: a policy holds nothing open. It is there for programs that close what they load."""

    def reset(self) -> None:
        """Reset the LSTM's state; call it when an episode starts. It has no effect on a policy without an LSTM."""
        self._state, self._first = self.model.initial_state(1), True

    @torch.inference_mode()
    def act(self, observation: Any, *, deterministic: bool = True) -> Any:
        """Return the action for one observation, in the form that the Gymnasium environment's ``step`` takes.

        Args:
            observation: one observation, without a batch axis.
            deterministic: return the most likely action; otherwise a sample.

        Raises:
            UsageError: the observation has another shape than those of the environment, or `deterministic` no bool.
        """
        expect("deterministic", deterministic, bool)
        # From NumPy, since the caller's default device is not the policy's.
        x, is_first = map(torch.from_numpy, (_encoded(self._conversion, observation)[None], np.array([self._first])))
        # Other threads would have to be waited for, and one row is soon done.
        with torch_threads(1), torch.autocast("cpu", enabled=False):
            params, self._state = self.model.step(x, self._state, is_first)
            pi = self.model.distribution(params)
            action = pi.mode() if deterministic else pi.sample(self._generator)
        self._first = False
        return self._conversion.decode(action.numpy())[0]


def _encoded(conversion: Conversion, observation: Any) -> NDArray[Any]:
    """Return one observation ``[*O]`` as environments encode it. Raises `UsageError` where its shape is another."""
    try:
        if not conversion.flat:
            _refuse_unreal(observation)
        x, why = conversion.encode(observation), ""
    except Exception as error:  # whatever a space says of what is none of its values
        x, why = np.empty(0, np.float32), f": {one_line(error, most=120)}"
    shape, bytes_of = conversion.observation_space.shape, conversion.observation_space.dtype == np.uint8
    if not why and bytes_of:
        given = np.asarray(observation)
        if given.dtype.kind == "f":
            raise UsageError("an observation of floats is not allowed: the policy sees bytes from 0 to 255")
        if given.shape == x.shape and (given != x).any():
            other = given[given != x].flat[0]
            raise UsageError(f"an observation with {other} is not allowed: the policy sees bytes from 0 to 255")
    if why or x.shape != shape:
        own = getattr(observation, "shape", None)
        what = f"a {type(observation).__name__}" if own is None else f"the shape {tuple(own)}"
        batch = "; act takes one observation, without a batch axis" * (x.shape[1:] == shape)
        raise UsageError(f"an observation of {what} is not allowed: the policy sees the shape {shape}{why}{batch}")
    return x


def _refuse_unreal(observation: Any) -> None:
    """Raise `TypeError` for what NumPy would make numbers of without a word: masked ones, texts, None, complex ones."""
    if np.ma.is_masked(observation):
        raise TypeError("some of its numbers are masked")
    x = np.asarray(observation)
    objects = x.flat if x.dtype == object else ()
    if x.dtype.kind not in "fiubO" or any(each is None or isinstance(each, str) for each in objects):
        raise TypeError("it does not consist of real numbers")


def load(path: str | Path, *, tag: str | None = None, env: Any = None, trust_env: bool = False) -> Policy:
    """Load the policy of a run directory (its best checkpoint, else its last) or of one checkpoint.

    Args:
        path: a run directory or a checkpoint directory.
        tag: "best" or "last"; by default "best" if the run has it.
        env: an environment in place of the run's; needed where that was a callable that cannot be imported by name.
        trust_env: allow the import of the module of an environment ``module:something``. The import runs code that
            whoever made the checkpoint chose.

    Raises:
        UsageError: the run's environment is code, and ``trust_env`` is off.
        CheckpointError: there is no checkpoint, or it is damaged, not of polyactor, or of another model.
    """
    trust_env = expect("trust_env", trust_env, bool) or env is not None
    tag = expect("tag", tag, str | None)
    config, tensors = read(Path(expect("path", path, str | Path)), tag, trust_env=trust_env)
    return Policy(config if env is None else replace(config, env=env), tensors)


def read(path: Path, tag: str | None = None, *, trust_env: bool = False) -> tuple[Config, dict[str, Tensor]]:
    """Read and verify the config and the model's tensors of a run or checkpoint.

    Args:
        path: a run directory or a checkpoint directory.
        tag: "best" or "last"; by default "best" if the run has it.
        trust_env: accept an environment ``module:something``, whose module will be imported.

    Raises:
        UsageError: the run's environment is code, and ``trust_env`` is off.
        CheckpointError: there is no checkpoint, or it is damaged, not of polyactor, or not finite.
    """
    if tag is None:
        tag = "best" if checkpoint.exists(path, tag="best") else "last"
    found = checkpoint.load(path, tag=tag)
    config = from_json(found.meta.get("config", {}), trust_env=trust_env)
    refuse_not_finite(found)
    return config, model_tensors(found.tensors)


def refuse_not_finite(found: checkpoint.Checkpoint) -> None:
    """Refuse a checkpoint with parameters, statistics or optimizer tensors that hold NaN or infinity.

    Raises:
        CheckpointError: a tensor is not finite; the sentence names the first such tensor.
    """
    bad = checkpoint.not_finite(found.tensors)
    if bad:
        raise CheckpointError(f"{found.path} has numbers that are not finite, in {bad[0]}")


def start_from(state: State, path: Path) -> None:
    """Copy the parameters and running statistics of another run into a new run's state.

    Args:
        state: of the new run.
        path: the run directory or checkpoint directory of the other run.

    Raises:
        CheckpointError: the other run has another model, or its checkpoint cannot be read.
    """
    _, tensors = read(path, trust_env=True)  # only its parameters are used, not its environment
    for name, view in state.views().items():
        if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (view.shape, view.dtype):
            raise CheckpointError(f"--init-from {path} is of another model: {name} is missing or of another shape")
        view.copy_(tensors[name])
