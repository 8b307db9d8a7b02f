"""Environments other than Atari: making, wrapping and refusing them, and adapting them to `VectorEnv`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import suppress
from functools import partial
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from numpy.typing import NDArray

from polyactor.envs import pictures, snapshot
from polyactor.envs.answers import first_line, passed, shortened
from polyactor.envs.conversion import Conversion, Encoded
from polyactor.envs.environment import EnvFactory, Wrapper
from polyactor.envs.finding import Found, refuse_unknown
from polyactor.envs.serial_vector_env import SerialVectorEnv
from polyactor.envs.vector_env import Listener, Observation, Step, none_lost
from polyactor.errors import EnvironmentUnsupported, PolyactorError, UsageError
from polyactor.system.deadline import Call

EXTRAS = {"gymnasium.envs.mujoco": "mujoco", "gymnasium.envs.box2d": "box2d"}
"""Modules of Gymnasium whose environments need an extra of polyactor, and the extra."""

NUMPY_VECTORS = "gymnasium.envs.classic_control."
"""Package of Gymnasium's vector environments that use numpy and NEXT_STEP autoreset (the others use JAX)."""


MAKES = {"id", "max_episode_steps", "disable_env_checker"}
"""Arguments that `gymnasium.make` keeps to itself."""


class GymnasiumEnvs:
    """B copies of one Gymnasium environment as a `VectorEnv`.

    Where Gymnasium has a vector class in numpy (CartPole), that is used, unless there are wrappers, each of which is
    around one environment; otherwise the B environments are stepped one after the other.

    Observations and actions are converted as `Conversion` says.

    Args:
        found: what `find` returned.
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
        found: Found,
        num_envs: int,
        *,
        max_episode_steps: int | None,
        saved: bool = False,
        render: bool,
        listener: Listener | None = None,
    ) -> None:
        self._name, source = found.name, found.source
        self._saved, self._render, self._listener = saved, render, listener
        self._last: bytes | None = None
        self._envs: gymnasium.vector.VectorEnv[Any, Any, Any] | SerialVectorEnv
        if (
            isinstance(source, EnvSpec)
            and isinstance(source.vector_entry_point, str)
            and source.vector_entry_point.startswith(NUMPY_VECTORS)
            and not found.wrappers
        ):
            _creator(source, found.kwargs)
            limit: dict[str, Any] = {} if max_episode_steps is None else {"max_episode_steps": max_episode_steps}
            self._envs = gymnasium.make_vec(
                source.id,
                num_envs,
                vectorization_mode="vector_entry_point",
                render_mode="rgb_array" if render else None,
                **limit,
                **found.kwargs,
            )
        else:
            factories = [
                partial(_make, found, max_episode_steps=max_episode_steps, render=render and index == 0)
                for index in range(num_envs)
            ]
            self._envs = SerialVectorEnv(factories, self._name, listener)
        self._lost = none_lost(num_envs)
        self.num_envs = num_envs
        self.frames_per_second = pictures.rate(self._envs.metadata)
        first = self._envs.envs[0] if isinstance(self._envs, SerialVectorEnv) else None
        if isinstance(first, Encoded):
            self.conversion = first.conversion
        else:
            spaces_of = self._envs.single_observation_space, self._envs.single_action_space
            self.conversion = Conversion(*spaces_of, self._name, found.resize)
        self.observation_space, self.action_space = self.conversion.observation_space, self.conversion.action_space

    @property
    def action_mask(self) -> NDArray[np.bool_] | None:
        """``[B, C]`` the legal choices in the observations returned last; None where environments give no mask."""
        return self._envs.action_mask if isinstance(self._envs, SerialVectorEnv) else None

    def reset(self, seed: int | None) -> Observation:
        """Start B episodes and return their first observations ``[B, *O]``.

        Args:
            seed: environment i is seeded with ``seed + i``, but Gymnasium's vector class has one seed for all B.
        """
        seed = None if seed is None else int(seed)
        if isinstance(self._envs, SerialVectorEnv):
            return self._envs.reset(seed)
        observation, _ = self._envs.reset(seed=seed)
        return self.conversion.encode(observation)

    def step(self, action: NDArray[Any]) -> Step:
        """Take one step in every environment; `action` is ``[B]`` or ``[B, *A]`` in `action_space`."""
        if isinstance(self._envs, SerialVectorEnv):
            return self._envs.step(self.conversion.decode(action))
        observation, reward, terminated, truncated, _ = self._envs.step(np.asarray(self.conversion.decode(action)))
        reward, done = np.asarray(reward, np.float32), terminated | truncated
        return Step(self.conversion.encode(observation), reward, terminated, done, self._lost)

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
            EnvironmentUnsupported: drawing failed, for example because a graphics library is not installed, or what was
                drawn is no picture.
        """
        if not self._render:
            return None
        drawn: Any
        if self._listener is not None:
            self._listener.asked(0, None, Call.RENDER)
        try:
            if isinstance(self._envs, SerialVectorEnv):
                single = self._envs.envs[0]
                drawn = single.render() if single.render_mode in ("rgb_array", "rgb_array_list") else None
            else:
                drawn = self._envs.render()
                drawn = None if drawn is None else drawn[0]
            return pictures.rgb(drawn)
        except passed():
            raise
        except BaseException as error:  # graphics libraries raise exceptions of many classes
            what = "" if isinstance(error, Exception) else f"{type(error).__name__}: "
            raise EnvironmentUnsupported(f"{self._name} cannot draw itself: {what}{first_line(error)}.") from error
        finally:
            if self._listener is not None:
                self._listener.answered()


def _make(found: Found, *, max_episode_steps: int | None, render: bool) -> gymnasium.Env[Any, Any]:
    """Make one environment, wrap it, check its spaces, and convert its observations.

    Raises:
        EnvironmentUnsupported: the environment cannot be made, is not of Gymnasium, or has an unsupported space.
        UsageError: it takes no such argument.
    """
    name, source = found.name, found.source
    made: Any
    try:
        if isinstance(source, EnvSpec):
            made = _of_id(
                source, found.kwargs, -1 if found.wrappers and max_episode_steps else max_episode_steps, render
            )
        else:
            refuse_unknown(source, found.kwargs, name)
            made = _drawing(source, found.kwargs) if render else source(**found.kwargs)
    except PolyactorError:
        raise
    except passed():
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        extra = _extra(source)
        if extra:
            raise EnvironmentUnsupported(f'{name} needs an extra: pip install "polyactor[{extra}]".') from error
        raise EnvironmentUnsupported(f"{name} lacks a dependency: {first_line(error)}.") from error
    except BaseException as error:
        given = " ".join(f"{argument}={value!r}" for argument, value in found.kwargs.items())
        how = f" with --env-kwargs {shortened(given)}" if given else ""
        raise EnvironmentUnsupported(
            f"{name} could not be made{how}: {type(error).__name__}: {first_line(error)}."
        ) from error

    _refuse_old_gym(made, name)
    if not isinstance(made, gymnasium.Env):
        raise EnvironmentUnsupported(f"{name} returns a {type(made).__name__}; it must return one gymnasium.Env.")
    for label, wrapper in found.wrappers:
        made = _wrapped(made, wrapper, f"--env-wrapper {label}")
    if max_episode_steps is not None and (found.wrappers or not isinstance(source, EnvSpec)):
        made = gymnasium.wrappers.TimeLimit(made, max_episode_steps)
    try:
        conversion = Conversion(_space(made, "observation", name), _space(made, "action", name), name, found.resize)
    except PolyactorError:
        with suppress(Exception):
            made.close()
        raise
    result: gymnasium.Env[Any, Any] = Encoded(made, conversion) if conversion.flat else made
    return result


def _of_id(
    source: EnvSpec, kwargs: Mapping[str, Any], max_episode_steps: int | None, render: bool
) -> gymnasium.Env[Any, Any]:
    """Make one environment of a registered id; a limit of -1 is none."""
    creator = _creator(source, kwargs)
    draws = render and pictures.draws(getattr(creator, "metadata", {}))
    options = {"render_mode": "rgb_array"} if draws else {}
    limits: dict[str, Any] = {"max_episode_steps": max_episode_steps, "disable_env_checker": True}
    return gymnasium.make(source, **limits, **(dict(kwargs) | options))


def _creator(source: EnvSpec, kwargs: Mapping[str, Any]) -> Any:
    """Return the callable that makes an environment of a registered id.

    Raises:
        EnvironmentUnsupported: it is of the old gym.
        UsageError: it takes no such argument.
    """
    point = source.entry_point
    creator = load_env_creator(point) if isinstance(point, str) else point
    _refuse_old_gym(creator, source.id)
    for name in MAKES & kwargs.keys():
        instead = ": use --max-episode-steps" * (name == "max_episode_steps")
        raise UsageError(f"--env-kwargs {name}={kwargs[name]!r} is not allowed: no environment is given it{instead}")
    refuse_unknown(creator, kwargs, source.id)
    return creator


def _wrapped(env: gymnasium.Env[Any, Any], wrapper: Wrapper, said: str) -> gymnasium.Env[Any, Any]:
    """Return what a wrapper returns for an environment, which is closed where that is none.

    Args:
        env: the environment.
        wrapper: is called with it.
        said: the wrapper in a sentence, such as ``--env-wrapper my.py:wrap``.

    Raises:
        EnvironmentUnsupported: the wrapper raises an exception, or returns no environment.
    """
    try:
        made = wrapper(env)
        if isinstance(made, gymnasium.Env):
            return made
        cause, failed = None, f"returned a {type(made).__name__}; it must return one gymnasium.Env"
    except PolyactorError:
        raise
    except passed():
        raise
    except BaseException as error:
        cause, failed = error, f"raised {type(error).__name__}: {first_line(error)}"
    with suppress(Exception):
        env.close()
    raise EnvironmentUnsupported(f"{said} {failed}.") from cause


def _drawing(source: EnvFactory, kwargs: Mapping[str, Any]) -> Any:
    """Make one environment by a callable, in the mode ``rgb_array`` where the callable takes a ``render_mode``."""
    try:
        takes = list(inspect.signature(source).parameters.values())
    except (TypeError, ValueError):  # a callable in C may have no signature
        takes = []
    drawing = dict(kwargs) | {"render_mode": "rgb_array"}
    if any(each.name == "render_mode" for each in takes):
        return source(**drawing)
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes):
        with suppress(TypeError):  # it may hand its arguments on to what takes none
            return source(**drawing)
    return source(**kwargs)


def _space(env: gymnasium.Env[Any, Any], kind: str, name: str) -> spaces.Space[Any]:
    """Return the observation or action space of an environment.

    Raises:
        EnvironmentUnsupported: the environment has none, or something else in its place.
    """
    try:
        space = getattr(env, f"{kind}_space")
    except Exception as error:  # a property of the user's may raise anything
        raise EnvironmentUnsupported(f"{name} has no {kind} space: {first_line(error)}.") from error
    if not isinstance(space, spaces.Space):
        raise EnvironmentUnsupported(f"{name} has the {kind} space {shortened(space)}, which is none of Gymnasium's.")
    return space


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


def _extra(source: EnvSpec | EnvFactory) -> str | None:
    """Return the extra of polyactor that a Gymnasium id needs, or None."""
    point = source.entry_point if isinstance(source, EnvSpec) else None
    if not isinstance(point, str):
        return None
    return next((extra for module, extra in EXTRAS.items() if point.startswith(module)), None)
