"""Trained policies: loading the parameters of a run or checkpoint, and acting with them."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from polyactor.agent.parts import make_model
from polyactor.agent.streams import EVALUATION_STREAM, Streams
from polyactor.config import Config
from polyactor.data import map_tree
from polyactor.envs import EnvSpec, is_atari, looked_at
from polyactor.envs.action_masks import MASK
from polyactor.envs.conversion import Conversion
from polyactor.envs.vector_env import entries
from polyactor.errors import CheckpointError, UsageError, one_line
from polyactor.fields import expect
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.spec import ModelSpec
from polyactor.optim.flat import State
from polyactor.settings.serialize import from_json, to_json
from polyactor.settings.trust import handed_over, refuse_untrusted, vouched_for
from polyactor.storage import checkpoint
from polyactor.storage.run_directory import refuse_taken, write_config
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
    if config.model.own:  # code that is trusted, and that need not run without memory
        _refuse_misfit(make_model(config, spec), tensors)
        return
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
    """Return a model's parameters and buffers by name, as a checkpoint has them."""
    buffers = {name: each for name, each in model.named_buffers() if each.is_floating_point()}
    return dict(model.named_parameters()) | buffers


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


UNMASKED = (
    "act was called without action_mask, so that every choice counts as legal; the environment gives masks, and the "
    "policy was trained with them: hand over the mask of this observation, act(observation, action_mask=…)"
)


class Policy:
    """A trained policy that acts in one environment.

    An observation is a stack of frames, such as ``[4, 84, 84]``, for Atari, and else that of the Gymnasium environment.
    One environment is made and reset once, to learn its spaces and whether it gives masks, and closed again.

    Args:
        config: the run's config.
        tensors: the model's parameters and buffers by name.
        seed: of sampled actions.
        steps: agent steps of training behind the parameters.
    """

    def __init__(self, config: Config, tensors: Mapping[str, Tensor], seed: int = 0, *, steps: int = 0) -> None:
        self.config, self.steps, self._tensors = config, steps, tensors
        with looked_at(config.environment, 1, seconds=config.env_timeout, atari=config.atari) as (envs, asked):
            if not is_atari(config.environment):  # which gives no masks; of others they are known after a reset only
                asked.asked(-1, None)
                envs.reset(None)
                asked.answered()
            spec, self._conversion = EnvSpec.of(envs), envs.conversion
        self._wants_mask = spec.masked
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

    def save(self, path: str | Path) -> Path:
        """Save this policy alone, without what training would go on from, and return the directory.

        What plays with a run's policy reads the directory, too: `load`, ``polyactor evaluate`` and ``record``; so does
        ``--init-from`` of a new run. It takes four bytes for each parameter, a third of a checkpoint with Adam.

        Args:
            path: a new or empty directory.

        Raises:
            RunDirectoryError: the directory holds files, or cannot be written.
            OutOfResources: the disk or the quota is full.
        """
        directory = Path(expect("path", path, str | Path)).absolute()
        refuse_taken(directory)
        plain = to_json(self.config) | {"out": None}
        tensors = {f"model.{name}": tensor for name, tensor in self._tensors.items()}
        meta = {checkpoint.POLICY_ALONE: True, "config": plain, "agent_steps": self.steps}
        checkpoint.save(directory, tensors, meta, self.steps)
        write_config(directory, plain)
        return directory

    def reset(self) -> None:
        """Reset the recurrent state; call it when an episode starts. It has no effect on a policy without memory."""
        self._state, self._first = self.model.initial_state(1), True

    @torch.inference_mode()
    def act(self, observation: Any, *, deterministic: bool = True, action_mask: Any = None) -> Any:
        """Return the action for one observation, in the form that the Gymnasium environment's ``step`` takes.

        Args:
            observation: one observation, without a batch axis. Where it is a Dict with an action mask, that is used.
            deterministic: return the most likely action; otherwise a sample.
            action_mask: which choices are legal, in the form in which the environment gives it; None allows all, and
                the first time there is a warning where the environment gives masks.

        Raises:
            UsageError: the observation has another shape than those of the environment, the mask another size or no
                legal choice, or `deterministic` is no bool.
        """
        expect("deterministic", deterministic, bool)
        rows = entries(_encoded(self._conversion, observation)[np.newaxis])
        if action_mask is None and self._conversion.masked:
            action_mask = observation.get(MASK)
        if action_mask is None and self._wants_mask:
            self._wants_mask = False
            warnings.warn(UNMASKED, stacklevel=3)  # where `act` is called, around torch's own wrapper
        legal = None if action_mask is None else torch.from_numpy(_mask(self._conversion, action_mask)[np.newaxis])
        # From NumPy, since the caller's default device is not the policy's.
        x, is_first = map_tree(torch.from_numpy, rows), torch.from_numpy(np.array([self._first]))
        # Other threads would have to be waited for, and one row is soon done.
        with torch_threads(1), torch.autocast("cpu", enabled=False):
            params, self._state = self.model.step(x, self._state, is_first, action_mask=legal)
            pi = self.model.distribution(params)
            action = pi.mode() if deterministic else pi.sample(self._generator)
        self._first = False
        return self._conversion.decode(self.model.actions.sent(action).numpy())[0]


def _encoded(conversion: Conversion, observation: Any) -> NDArray[Any]:
    """Return one observation ``[*O]`` as environments encode it. Raises `UsageError` where its shape is another."""
    try:
        if not conversion.flat:
            _refuse_unreal(observation)
        x, why = conversion.encode(observation), ""
    except Exception as error:  # whatever a space says of what is none of its values
        x, why = np.empty(0, np.float32), f": {one_line(error, most=120)}"
    space = conversion.observation_space
    if isinstance(space, spaces.Dict):
        wanted, fits = " and ".join(f"{name} {box.shape}" for name, box in space.spaces.items()), not why
    else:
        wanted, fits = f"the shape {space.shape}", not why and x.shape == space.shape
    if not why and space.dtype == np.uint8 and not conversion.flat:
        given = np.asarray(observation)
        if given.dtype.kind == "f":
            raise UsageError("an observation of floats is not allowed: the policy sees bytes from 0 to 255")
        if given.shape == x.shape and (given != x).any():
            other = given[given != x].flat[0]
            raise UsageError(f"an observation with {other} is not allowed: the policy sees bytes from 0 to 255")
    if not fits:
        own = getattr(observation, "shape", None)
        what = f"a {type(observation).__name__}" if own is None else f"the shape {tuple(own)}"
        batch = "; act takes one observation, without a batch axis" * (x.shape[1:] == space.shape)
        raise UsageError(f"an observation of {what} is not allowed: the policy sees {wanted}{why}{batch}")
    return x


def _refuse_unreal(observation: Any) -> None:
    """Raise `TypeError` for what NumPy would make numbers of without a word: masked ones, texts, None, complex ones."""
    if np.ma.is_masked(observation):
        raise TypeError("some of its numbers are masked")
    x = np.asarray(observation)
    objects = x.flat if x.dtype == object else ()
    if x.dtype.kind not in "fiubO" or any(each is None or isinstance(each, str) for each in objects):
        raise TypeError("it does not consist of real numbers")


def _mask(conversion: Conversion, mask: Any) -> NDArray[np.bool_]:
    """Return an action mask as ``[C]``. Raises `UsageError` where it is none of the environment's."""
    try:
        return conversion.masks.parsed(mask, acted_on=True)
    except Exception as error:  # whatever NumPy says of what is no array
        why = one_line(error, most=120).removeprefix("gave ")
        raise UsageError(f"action_mask {one_line(mask, most=60)} is not allowed: {why}") from None


def load(
    path: str | Path,
    *,
    tag: str | None = None,
    env: Any = None,
    env_wrappers: Sequence[Any] | None = None,
    model: Mapping[str, Any] | None = None,
    trust_code: bool = False,
    trust_env: bool = False,
) -> Policy:
    """Load the policy of a run directory (its best checkpoint, else its last) or of one checkpoint.

    Args:
        path: a run directory or a checkpoint directory.
        tag: "best" or "last"; by default "best" if the run has it.
        env: an environment in place of the run's; needed where that was a callable that cannot be imported by name.
        env_wrappers: wrappers in place of the run's, which are needed likewise.
        model: parts of a network of one's own in place of the run's, such as ``{"torso": Net}``, which are, too.
        trust_code: allow the import of files and modules that the run's config names, such as an environment
            ``module:something``. The import runs code that whoever made the checkpoint chose.
        trust_env: as `trust_code`, for the environment and its wrappers alone.

    Raises:
        UsageError: the run's config names code that the caller has neither handed over nor trusted.
        CheckpointError: there is no checkpoint, or it is damaged, not of polyactor, or of another model.
    """
    trust_code, handed = (
        expect("trust_code", trust_code, bool),
        {"env": env, "env_wrappers": env_wrappers, "model": model},
    )
    given = vouched_for(trust_env, **handed)
    path, tag = Path(expect("path", path, str | Path)), expect("tag", tag, str | None)
    found, config = _trusted(path, tag, trust_code=trust_code, given=given)
    tensors, steps = model_tensors(found.tensors), found.meta.get("agent_steps")
    return Policy(handed_over(config, **handed), tensors, steps=steps if isinstance(steps, int) and steps >= 0 else 0)


def read(
    path: Path, tag: str | None = None, *, trust_code: bool = False, given: Collection[str] = ()
) -> tuple[Config, dict[str, Tensor]]:
    """Read and verify the config and the model's tensors of a run or checkpoint, to play with its policy.

    Args:
        path: a run directory or a checkpoint directory.
        tag: "best" or "last"; by default "best" if the run has it.
        trust_code: whether code that the config names may be imported.
        given: places of the config whose code the caller has handed over or trusts, as in `refuse_untrusted`.

    Raises:
        UsageError: the run's config names code that is not trusted.
        CheckpointError: there is no checkpoint, or it is damaged, not of polyactor, or not finite.
    """
    found, config = _trusted(path, tag, trust_code=trust_code, given=given)
    return config, model_tensors(found.tensors)


def _trusted(
    path: Path, tag: str | None, *, trust_code: bool, given: Collection[str]
) -> tuple[checkpoint.Checkpoint, Config]:
    """Return a verified checkpoint and its config, as `read` does, and raise what it raises."""
    found = _checkpoint(path, tag)
    plain = found.meta.get("config", {})
    config = from_json(plain)
    refuse_untrusted(plain, trust_code, given=given)
    refuse_not_finite(found)
    return found, config


def parameters(path: Path, tag: str | None = None) -> dict[str, Tensor]:
    """Read and verify the model's tensors alone, for which no code that the config names is needed.

    Raises:
        CheckpointError: as in `read`.
    """
    found = _checkpoint(path, tag)
    from_json(found.meta.get("config", {}))
    refuse_not_finite(found)
    return model_tensors(found.tensors)


def _checkpoint(path: Path, tag: str | None) -> checkpoint.Checkpoint:
    """Return the checkpoint with this tag; without one, the best where there is one, else the last."""
    if tag is None:
        tag = "best" if checkpoint.exists(path, tag="best") else "last"
    return checkpoint.load(path, tag=tag)


def refuse_not_finite(found: checkpoint.Checkpoint) -> None:
    """Refuse a checkpoint with parameters, statistics or optimizer tensors that hold NaN or infinity.

    Raises:
        CheckpointError: a tensor is not finite; the sentence names the first such tensor.
    """
    bad = checkpoint.not_finite(found.tensors)
    if bad:
        raise CheckpointError(f"{found.path} has numbers that are not finite, in {bad[0]}")


def start_from(state: State, path: Path, model: ModelSpec, *, numbers: bool) -> None:
    """Copy the parameters and running statistics of another run into a new run's state.

    Args:
        state: of the new run.
        path: the run directory or checkpoint directory of the other run.
        model: the settings of the new run's network.
        numbers: whether actions have numbers.

    Raises:
        CheckpointError: the other run has another model, or its checkpoint cannot be read.
    """
    found = _checkpoint(path, None)
    theirs, tensors = from_json(found.meta.get("config", {})).model, model_tensors(found.tensors)
    for name in ("norm", *["distribution"] * numbers):  # with another one the same tensors mean something else
        if (own := getattr(theirs, name)) != getattr(model, name):
            raise CheckpointError(f"--init-from {path} is of another model: its --model.{name} is {own}")
    refuse_not_finite(found)
    for name, view in state.views().items():
        if name not in tensors or (tensors[name].shape, tensors[name].dtype) != (view.shape, view.dtype):
            raise CheckpointError(f"--init-from {path} is of another model: {name} is missing or of another shape")
        view.copy_(tensors[name])
