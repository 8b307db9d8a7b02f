"""Every environment that is not Atari: found, refused with a reason, or adapted to the contract."""

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
from polyactor.envs.serial_vector_env import Each, first_line, shortened
from polyactor.envs.vector_env import ActionSpace, Listener, Step, none_lost
from polyactor.errors import EnvironmentUnsupported, suggestion

EnvFactory = Callable[[], "gymnasium.Env[Any, Any]"]
"""Called once per environment, without arguments."""

OBSERVATIONS = "Box, Discrete, MultiBinary, MultiDiscrete, or Dict and Tuple of these"
ACTIONS = "Discrete, one-dimensional MultiDiscrete and float Box"

EXTRAS = {"gymnasium.envs.mujoco": "mujoco", "gymnasium.envs.box2d": "box2d"}
"""Modules of Gymnasium that need an extra of ours."""

NUMPY_VECTORS = "gymnasium.envs.classic_control."
"""Where Gymnasium's own vector classes are numpy and keep to NEXT_STEP (its others are JAX)."""


def find(env: str | EnvFactory) -> EnvSpec | EnvFactory:
    """The registered id or the callable that a person means.

    Raises:
        EnvironmentUnsupported: unknown id or module, or ale-py is missing.
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
    """B environments of one kind; a `VectorEnv`.

    Gymnasium's own vector class is used where it has one in numpy (CartPole); otherwise the B environments are stepped
    one after the other.

    Observations: a Box stays as it is if uint8 and is cast to float32 otherwise; Discrete, MultiBinary, MultiDiscrete,
    Dict and Tuple are flattened to one float32 vector (`gymnasium.spaces.flatten`: a Discrete is one-hot).

    Actions: Discrete and MultiDiscrete count from 0 whatever their start. In a Box, a dimension bounded on both sides
    is clipped to [-1, 1] and rescaled to [low, high]; an unbounded one passes as it is, clipped at the bound it may
    have on one side.

    Args:
        source: what `find` returned.
        num_envs: B.
        max_episode_steps: truncate after this many steps.
        saved: of a kind whose `snapshot` can be taken.
        render: make environment 0 draw itself.
        listener: of those that are stepped one after the other.

    Raises:
        EnvironmentUnsupported: as `check`.
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
        self._saved, self._render = saved, render
        self._last: bytes | None = None
        self._envs: gymnasium.vector.VectorEnv[Any, Any, Any] | Each
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
            self._envs = Each(factories, self._name, listener)
        self._lost = none_lost(num_envs)
        self.num_envs = num_envs
        self.frames_per_second = int(self._envs.metadata.get("render_fps", 30))
        self._raw_space: spaces.Space[Any] | None = None
        first = self._envs.envs[0] if isinstance(self._envs, Each) else None
        if isinstance(first, gymnasium.wrappers.FlattenObservation):
            self._raw_space = first.env.observation_space
        self.observation_space = _observation_space(self._envs.single_observation_space, self._name)
        self.action_space, self._to_environment = _action_space(self._envs.single_action_space, self._name)

    def reset(self, seed: int | None) -> NDArray[Any]:
        """Start B episodes; environment i is seeded with ``seed + i`` (Gymnasium's own vector classes share one)."""
        seed = None if seed is None else int(seed)
        if isinstance(self._envs, Each):
            return self._envs.reset(seed)
        observation, _ = self._envs.reset(seed=seed)
        return self._fresh(observation)

    def step(self, action: NDArray[Any]) -> Step:
        """One step; `action` is ``[B]`` or ``[B, *A]`` in `action_space`."""
        if isinstance(self._envs, Each):
            return self._envs.step(self.decode(action))
        observation, reward, terminated, truncated, _ = self._envs.step(self.decode(action))
        reward, done = np.asarray(reward, np.float32), terminated | truncated
        return Step(self._fresh(observation), reward, terminated, done, self._lost)

    def encode(self, observation: Any) -> NDArray[Any]:
        """One raw observation, flattened and cast like those of `step`."""
        if self._raw_space is not None:
            observation = spaces.flatten(self._raw_space, observation)
        return self._fresh(observation)

    def decode(self, action: NDArray[Any]) -> NDArray[Any]:
        """Clipped and rescaled, or counted from the space's own start."""
        return self._to_environment(np.asarray(action))

    def snapshot(self) -> bytes:
        """The attributes of every environment and its wrappers."""
        if self._last is not None:
            return self._last
        try:
            return snapshot.snapshot([self._restarting(), *self._layers()])
        except EnvironmentUnsupported as error:
            raise EnvironmentUnsupported(f"{self._name} cannot be saved: {error}.") from None

    def restore(self, saved: bytes) -> None:
        """Replace the attributes of every environment and its wrappers."""
        restarting = self._restarting()
        snapshot.restore([restarting, *self._layers()], saved)
        if isinstance(self._envs, Each):
            self._envs.restarting = restarting

    def _restarting(self) -> SimpleNamespace:
        """Whose next step starts a game, and more; Gymnasium's own vector classes keep that in themselves."""
        return self._envs.restarting if isinstance(self._envs, Each) else SimpleNamespace(envs=None)

    def _layers(self) -> Iterator[Any]:
        for env in self._envs.envs if isinstance(self._envs, Each) else [self._envs]:
            yield from snapshot.layers(env)

    def close(self) -> None:
        """Close the environments, once they have been saved where they can be: a run's last checkpoint comes after."""
        if self._saved:
            self._last = self.snapshot()
        self._envs.close()

    def render(self) -> NDArray[np.uint8] | None:
        """RGB picture ``[H, W, 3]`` of environment 0, or None when there is none.

        Raises:
            EnvironmentUnsupported: it fails to draw, as where what it draws with is not installed.
        """
        if not self._render:
            return None
        try:
            if isinstance(self._envs, Each):
                single = self._envs.envs[0]
                picture = single.render() if single.render_mode == "rgb_array" else None
            else:
                pictures = self._envs.render()
                picture = None if pictures is None else pictures[0]
        except Exception as error:  # a graphics library says what it lacks in a way of its own
            raise EnvironmentUnsupported(f"{self._name} cannot draw itself: {first_line(error)}.") from error
        return None if picture is None else np.array(picture, np.uint8)

    def _fresh(self, observation: Any) -> NDArray[Any]:
        with np.errstate(over="ignore"):
            return np.array(observation, self.observation_space.dtype, order="C")


def _observation_space(space: spaces.Space[Any], name: str) -> spaces.Box:
    """The space of what `GymnasiumEnvs` returns for a (flattened) Box."""
    assert isinstance(space, spaces.Box), f"{name} was not flattened"
    if space.dtype == np.uint8:
        return space
    with np.errstate(over="ignore"):  # a bound of float64 may be infinite in float32
        return spaces.Box(space.low.astype(np.float32), space.high.astype(np.float32), dtype=np.float32)


def _action_space(space: spaces.Space[Any], name: str) -> tuple[ActionSpace, Callable[[NDArray[Any]], NDArray[Any]]]:
    """The space a policy speaks in, and the way from there to the environment's own.

    Raises:
        EnvironmentUnsupported: nobody can act in it.
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
        # Stand-ins where there is no interval, so that the arithmetic below stays finite.
        bottom, width = np.where(bounded, low, 0.0), np.where(bounded, high, 0.0) - np.where(bounded, low, 0.0)

        def rescale(action: NDArray[Any]) -> NDArray[Any]:
            inside = bottom + (action + 1.0) / 2.0 * width
            return np.clip(np.where(bounded, inside, action), low, high).astype(dtype)

        ours = np.where(bounded, 1.0, np.inf).astype(np.float32)
        return spaces.Box(-ours, ours, dtype=np.float32), rescale
    raise EnvironmentUnsupported(f"{name} has the action space {shortened(space)}; a policy can act in {ACTIONS}.")


def _make(source: EnvSpec | EnvFactory, *, max_episode_steps: int | None, render: bool) -> gymnasium.Env[Any, Any]:
    """One environment whose spaces we can serve, its observations flattened to a Box."""
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
    """Refuse an object or class that steps like an environment but is none of Gymnasium's."""
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
    """The spec of an id; `others` are further names a person may have meant.

    Raises:
        EnvironmentUnsupported: it is unknown.
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
    """What the old gym knows, if something has imported it."""
    registry = getattr(getattr(sys.modules.get("gym"), "envs", None), "registry", {})
    return list(getattr(registry, "env_specs", registry))


def _import(module_name: str, asked: str) -> ModuleType:
    # A console script does not look for modules in the directory it is started from; a person does.
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
    """The extra of ours that an id of Gymnasium needs."""
    point = source.entry_point if isinstance(source, EnvSpec) else None
    if not isinstance(point, str):
        return None
    return next((extra for module, extra in EXTRAS.items() if point.startswith(module)), None)


def _name(source: EnvSpec | EnvFactory) -> str:
    if isinstance(source, EnvSpec):
        return source.id
    return str(getattr(source, "__qualname__", type(source).__qualname__))
