"""Environments other than Atari: finding them by name, refusing unsupported ones, and adapting them to `VectorEnv`."""

from __future__ import annotations

import importlib
import importlib.util
import inspect
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from numpy.typing import NDArray

from polyactor.envs import snapshot
from polyactor.envs.atari import looks_atari
from polyactor.envs.serial_vector_env import SerialVectorEnv, first_line, shortened
from polyactor.envs.vector_env import ActionSpace, Listener, Step, none_lost
from polyactor.errors import EnvironmentUnsupported, suggestion
from polyactor.system.deadline import Call

EnvFactory = Callable[[], "gymnasium.Env[Any, Any]"]
"""A callable without arguments that makes one environment; it is called once per environment."""

OBSERVATIONS = "Box, Discrete, MultiBinary, MultiDiscrete, or Dict and Tuple of these"
"""The supported observation spaces, in words for the sentences of errors."""
ACTIONS = "Discrete, one-dimensional MultiDiscrete and float Box"
"""The supported action spaces, in words for the sentences of errors."""

EXTRAS = {"gymnasium.envs.mujoco": "mujoco", "gymnasium.envs.box2d": "box2d"}
"""Modules of Gymnasium whose environments need an extra of polyactor, and the extra."""

NUMPY_VECTORS = "gymnasium.envs.classic_control."
"""Package of Gymnasium's vector environments that use numpy and NEXT_STEP autoreset (the others use JAX)."""


def find(env: str | EnvFactory) -> EnvSpec | EnvFactory:
    """Return the registered id or the callable that an environment's name stands for.

    Args:
        env: a Gymnasium id, ``module:Env-v0``, ``module:callable`` or a callable, which is returned as it is.

    Raises:
        EnvironmentUnsupported: the id or module is unknown, or ale-py is missing.
    """
    if not isinstance(env, str):
        return env
    module_name, _, name = env.rpartition(":")
    if module_name:
        module = _import(module_name, env)
        found = getattr(module, name, None)
        if name not in gymnasium.registry and callable(found):
            return found  # type: ignore[no-any-return]
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        return _registered(name, env, own)
    if env not in gymnasium.registry and importlib.util.find_spec("ale_py") is not None:
        import ale_py

        gymnasium.register_envs(ale_py)
    return _registered(env, env, [])


class GymnasiumEnvs:
    """B copies of one Gymnasium environment as a `VectorEnv`.

    Where Gymnasium has a vector class in numpy (CartPole), that is used; otherwise the B environments are stepped one
    after the other.

    Observations of a Box stay as they are if uint8 and are cast to float32 otherwise; those of Discrete, MultiBinary,
    MultiDiscrete, Dict and Tuple are flattened to one float32 vector (`gymnasium.spaces.flatten`).

    Actions of Discrete and MultiDiscrete spaces count from 0, whatever the space's start is. In a Box, actions are
    clipped to [-1, 1] and rescaled to [low, high] in dimensions with two bounds, and clipped at a single bound.

    Args:
        source: the registered id or callable that `find` returned.
        num_envs: B.
        max_episode_steps: truncate episodes after this many steps; None leaves the limit of the environment.
        saved: whether `snapshot` will be taken, possibly after `close`.
        render: whether environment 0 shall draw pictures.
        listener: told before each call of an environment; with Gymnasium's vector class only of drawing.

    Raises:
        EnvironmentUnsupported: the environment cannot be made, or polyactor does not support its spaces.
    """

    def __init__(
        self,
        source: EnvSpec | EnvFactory,
        num_envs: int,
        *,
        max_episode_steps: int | None,
        saved: bool = False,
        render: bool,
        listener: Listener | None = None,
    ) -> None:
        self._name = _name(source)
        self._saved, self._render, self._listener = saved, render, listener
        self._last: bytes | None = None
        self._envs: gymnasium.vector.VectorEnv[Any, Any, Any] | SerialVectorEnv
        if (
            isinstance(source, EnvSpec)
            and isinstance(source.vector_entry_point, str)
            and source.vector_entry_point.startswith(NUMPY_VECTORS)
        ):
            limit: dict[str, Any] = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
            self._envs = gymnasium.make_vec(
                source.id,
                num_envs,
                vectorization_mode="vector_entry_point",
                render_mode="rgb_array" if render else None,
                **limit,
            )
        else:
            factories = [
                partial(_make, source, max_episode_steps=max_episode_steps, render=render and index == 0)
                for index in range(num_envs)
            ]
            self._envs = SerialVectorEnv(factories, self._name, listener)
        self._lost = none_lost(num_envs)
        self.num_envs = num_envs
        self.frames_per_second = int(self._envs.metadata.get("render_fps", 30))
        self._raw_space: spaces.Space[Any] | None = None
        first = self._envs.envs[0] if isinstance(self._envs, SerialVectorEnv) else None
        if isinstance(first, gymnasium.wrappers.FlattenObservation):
            self._raw_space = first.env.observation_space
        self.observation_space = _observation_space(self._envs.single_observation_space, self._name)
        self.action_space, self._to_environment = _action_space(self._envs.single_action_space, self._name)

    def reset(self, seed: int | None) -> NDArray[Any]:
        """Start B episodes and return their first observations ``[B, *O]``.

        Args:
            seed: environment i is seeded with ``seed + i``, but Gymnasium's vector class has one seed for all B.
        """
        seed = None if seed is None else int(seed)
        if isinstance(self._envs, SerialVectorEnv):
            return self._envs.reset(seed)
        observation, _ = self._envs.reset(seed=seed)
        return self._fresh(observation)

    def step(self, action: NDArray[Any]) -> Step:
        """Take one step in every environment; `action` is ``[B]`` or ``[B, *A]`` in `action_space`."""
        if isinstance(self._envs, SerialVectorEnv):
            return self._envs.step(self.decode(action))
        observation, reward, terminated, truncated, _ = self._envs.step(self.decode(action))
        reward, done = np.asarray(reward, np.float32), terminated | truncated
        return Step(self._fresh(observation), reward, terminated, done, self._lost)

    def encode(self, observation: Any) -> NDArray[Any]:
        """Flatten and cast one observation of the underlying environment, as `step` does."""
        if self._raw_space is not None:
            observation = spaces.flatten(self._raw_space, observation)
        return self._fresh(observation)

    def decode(self, action: NDArray[Any]) -> NDArray[Any]:
        """Convert actions ``[B]`` or ``[B, *A]`` to the environment's space by rescaling, or by adding its start."""
        return self._to_environment(np.asarray(action))

    def snapshot(self) -> bytes:
        """Return the attributes of every environment and its wrappers as JSON; after `close` the last ones.

        Raises:
            EnvironmentUnsupported: an attribute is no plain value.
        """
        if self._last is not None:
            return self._last
        try:
            return snapshot.snapshot([self._restart_state(), *self._layers()])
        except EnvironmentUnsupported as error:
            raise EnvironmentUnsupported(f"{self._name} cannot be saved: {error}.") from None

    def restore(self, saved: bytes) -> None:
        """Set the attributes of every environment and its wrappers to those of a snapshot.

        Raises:
            CheckpointError: the snapshot is not of such environments.
        """
        restarting = self._restart_state()
        snapshot.restore([restarting, *self._layers()], saved)
        if isinstance(self._envs, SerialVectorEnv):
            self._envs.restarting = restarting

    def _restart_state(self) -> SimpleNamespace:
        """Return `SerialVectorEnv.restarting`; Gymnasium's vector classes have this state in their attributes."""
        return self._envs.restarting if isinstance(self._envs, SerialVectorEnv) else SimpleNamespace(envs=None)

    def _layers(self) -> Iterator[Any]:
        for env in self._envs.envs if isinstance(self._envs, SerialVectorEnv) else [self._envs]:
            yield from snapshot.layers(env)

    def close(self) -> None:
        """Close the environments; with ``saved=True`` after a snapshot, for a last checkpoint that comes later."""
        if self._saved:
            self._last = self.snapshot()
        self._envs.close()

    def render(self) -> NDArray[np.uint8] | None:
        """Return an RGB picture ``[H, W, 3]`` of environment 0, or None if it does not draw.

        Raises:
            EnvironmentUnsupported: drawing failed, for example because a graphics library is not installed.
        """
        if not self._render:
            return None
        if self._listener is not None:
            self._listener.asked(0, None, Call.RENDER)
        try:
            if isinstance(self._envs, SerialVectorEnv):
                single = self._envs.envs[0]
                picture = single.render() if single.render_mode == "rgb_array" else None
            else:
                pictures = self._envs.render()
                picture = None if pictures is None else pictures[0]
        except Exception as error:  # graphics libraries raise exceptions of many classes
            raise EnvironmentUnsupported(f"{self._name} cannot draw itself: {first_line(error)}.") from error
        finally:
            if self._listener is not None:
                self._listener.answered()
        return None if picture is None else np.array(picture, np.uint8)

    def _fresh(self, observation: Any) -> NDArray[Any]:
        with np.errstate(all="ignore"):
            return np.array(observation, self.observation_space.dtype, order="C")


def _observation_space(space: spaces.Space[Any], name: str) -> spaces.Box:
    """Return the observation space of `GymnasiumEnvs` for a Box: the Box itself if uint8, otherwise in float32."""
    assert isinstance(space, spaces.Box), f"{name} was not flattened"
    if space.dtype == np.uint8:
        return space
    with np.errstate(over="ignore"):  # a bound of float64 may be infinite in float32
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)


def _action_space(space: spaces.Space[Any], name: str) -> tuple[ActionSpace, Callable[[NDArray[Any]], NDArray[Any]]]:
    """Return the action space of the policy, and the function from its actions to those of the environment.

    Raises:
        EnvironmentUnsupported: policies do not support the environment's action space.
    """
    if isinstance(space, spaces.Discrete):
        first = int(space.start)
        return spaces.Discrete(int(space.n)), lambda action: action.astype(np.int64) + first
    if isinstance(space, spaces.MultiDiscrete) and space.nvec.ndim == 1:
        starts = space.start
        return spaces.MultiDiscrete(space.nvec), lambda action: action.astype(np.int64) + starts
    if isinstance(space, spaces.Box) and len(space.shape) == 1 and np.issubdtype(space.dtype, np.floating):
        low, high, dtype = space.low.astype(np.float64), space.high.astype(np.float64), space.dtype
        bounded = np.isfinite(low) & np.isfinite(high)
        # 0 in dimensions without two bounds, so that the arithmetic below stays finite.
        bottom, width = np.where(bounded, low, 0.0), np.where(bounded, high, 0.0) - np.where(bounded, low, 0.0)

        def rescale(action: NDArray[Any]) -> NDArray[Any]:
            inside = bottom + (action + 1.0) / 2.0 * width
            with np.errstate(all="ignore"):
                return np.clip(np.where(bounded, inside, action), low, high).astype(dtype)

        ours = np.where(bounded, 1.0, np.inf).astype(np.float32)
        return spaces.Box(-ours, ours, dtype=np.float32), rescale
    raise EnvironmentUnsupported(f"{name} has the action space {shortened(space)}; a policy can act in {ACTIONS}.")


def _make(source: EnvSpec | EnvFactory, *, max_episode_steps: int | None, render: bool) -> gymnasium.Env[Any, Any]:
    """Make one environment, check its spaces, and flatten its observations to a Box.

    Raises:
        EnvironmentUnsupported: the environment cannot be made, is not of Gymnasium, or has an unsupported space.
    """
    name = _name(source)
    made: Any
    try:
        if isinstance(source, EnvSpec):
            point = source.entry_point
            creator = load_env_creator(point) if isinstance(point, str) else point
            _refuse_old_gym(creator, name)
            draws = render and "rgb_array" in getattr(creator, "metadata", {}).get("render_modes", [])
            options = {"render_mode": "rgb_array"} if draws else {}
            made = gymnasium.make(source, max_episode_steps=max_episode_steps, disable_env_checker=True, **options)
        elif render and "render_mode" in inspect.signature(source).parameters:
            made = source(render_mode="rgb_array")  # type: ignore[call-arg]
        else:
            made = source()
    except EnvironmentUnsupported:
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        extra = _extra(source)
        if extra:
            raise EnvironmentUnsupported(f'{name} needs an extra: pip install "polyactor[{extra}]".') from error
        raise EnvironmentUnsupported(f"{name} lacks a dependency: {first_line(error)}.") from error
    except Exception as error:
        raise EnvironmentUnsupported(
            f"{name} could not be made: {type(error).__name__}: {first_line(error)}."
        ) from error

    _refuse_old_gym(made, name)
    if not isinstance(made, gymnasium.Env):
        raise EnvironmentUnsupported(f"{name} returns a {type(made).__name__}; it must return one gymnasium.Env.")
    if max_episode_steps is not None and not isinstance(source, EnvSpec):
        made = gymnasium.wrappers.TimeLimit(made, max_episode_steps)
    space = made.observation_space
    try:
        _action_space(made.action_space, name)
        if not _flattenable(space):
            raise EnvironmentUnsupported(
                f"{name} has the observation space {shortened(space)}; what can be observed is {OBSERVATIONS}."
            )
    except EnvironmentUnsupported:
        with suppress(Exception):
            made.close()
        raise
    flat = isinstance(space, spaces.Box) and space.shape
    result: gymnasium.Env[Any, Any] = made if flat else gymnasium.wrappers.FlattenObservation(made)
    return result


def _flattenable(space: spaces.Space[Any]) -> bool:
    if isinstance(space, spaces.Dict):
        return all(_flattenable(part) for part in space.spaces.values())
    if isinstance(space, spaces.Tuple):
        return all(_flattenable(part) for part in space.spaces)
    return isinstance(space, spaces.Box | spaces.Discrete | spaces.MultiBinary | spaces.MultiDiscrete)


def _refuse_old_gym(made: Any, name: str) -> None:
    """Raise an error for an object or class with `reset` and `step` that is no `gymnasium.Env`.

    Raises:
        EnvironmentUnsupported: it is a vector environment, or an environment of the old gym.
    """
    kind = made if inspect.isclass(made) else type(made)
    if hasattr(kind, "reset") and hasattr(kind, "step"):
        if issubclass(kind, gymnasium.vector.VectorEnv):
            raise EnvironmentUnsupported(
                f"{name} is a vector environment; give one gymnasium.Env, polyactor makes the vector."
            )
        if not issubclass(kind, gymnasium.Env):
            raise EnvironmentUnsupported(
                f"{name} is {kind.__module__}.{kind.__qualname__}, an environment of the old gym and not a"
                " gymnasium.Env; port it to Gymnasium (reset returns two values, step five) or wrap it with shimmy."
            )


def _registered(env_id: str, asked: str, others: Iterable[str]) -> EnvSpec:
    """Return the registered spec of an id.

    Args:
        env_id: the id, without a module.
        asked: the name that the user gave, for the sentence of an error.
        others: further names that may be suggested.

    Raises:
        EnvironmentUnsupported: the id is unknown.
    """
    spec = gymnasium.registry.get(env_id)
    if spec is not None:
        return spec
    if looks_atari(env_id) and importlib.util.find_spec("ale_py") is None:
        raise EnvironmentUnsupported(f'{asked} is an Atari game and needs ale-py: pip install "polyactor[atari]".')
    if env_id in _old_gym_ids():
        raise EnvironmentUnsupported(
            f"{asked} is registered with the old gym only; polyactor runs those registered with gymnasium."
        )
    near = suggestion(env_id, [*others, *gymnasium.registry])
    raise EnvironmentUnsupported(f"there is no environment {asked}{near}.")


def _old_gym_ids() -> Iterable[str]:
    """Return the ids that are registered with the old gym, if it was imported."""
    registry = getattr(getattr(sys.modules.get("gym"), "envs", None), "registry", {})
    return list(getattr(registry, "env_specs", registry))


def _import(module_name: str, asked: str) -> ModuleType:
    # A console script has no entry of sys.path for the current directory, where users keep their modules.
    if os.getcwd() not in sys.path and "" not in sys.path:
        sys.path.append(os.getcwd())
    try:
        return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise EnvironmentUnsupported(
                f"there is no module {module_name} for {asked}; it must be installed or in this directory."
            ) from error
        _refuse_import(module_name, asked, error)
    except Exception as error:
        _refuse_import(module_name, asked, error)


def _refuse_import(module_name: str, asked: str, error: Exception) -> NoReturn:
    raise EnvironmentUnsupported(
        f"the module {module_name} of {asked} could not be imported: {type(error).__name__}: {first_line(error)}."
    ) from error


def _extra(source: EnvSpec | EnvFactory) -> str | None:
    """Return the extra of polyactor that a Gymnasium id needs, or None."""
    point = source.entry_point if isinstance(source, EnvSpec) else None
    if not isinstance(point, str):
        return None
    return next((extra for module, extra in EXTRAS.items() if point.startswith(module)), None)


def _name(source: EnvSpec | EnvFactory) -> str:
    if isinstance(source, EnvSpec):
        return source.id
    return str(getattr(source, "__qualname__", type(source).__qualname__))
