"""Environments other than Atari: finding them by name, refusing unsupported ones, and adapting them to `VectorEnv`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, NoReturn

import gymnasium
import numpy as np
from gymnasium import spaces
from gymnasium.envs.registration import EnvSpec, load_env_creator
from numpy.typing import NDArray

from polyactor.envs import pictures, snapshot
from polyactor.envs.atari import looks_atari
from polyactor.envs.conversion import Conversion, Flattened
from polyactor.envs.serial_vector_env import SerialVectorEnv, first_line, passed, shortened
from polyactor.envs.vector_env import Listener, Step, none_lost
from polyactor.errors import EnvironmentUnsupported, one_line, suggestion
from polyactor.files import load_file, same_directory
from polyactor.system.deadline import Call

EnvFactory = Callable[[], "gymnasium.Env[Any, Any]"]
"""A callable without arguments that makes one environment; it is called once per environment."""

OWN = "hand over its class (in Python), or register it in a module and name both:"
"""The way out for an id that is registered in a script, in words for the sentence of an error."""
EXTRAS = {"gymnasium.envs.mujoco": "mujoco", "gymnasium.envs.box2d": "box2d"}
"""Modules of Gymnasium whose environments need an extra of polyactor, and the extra."""

OPTIONS = "what an environment is made with is said in a function of your own: --env FILE.py:FUNCTION"
"""How an environment is given arguments, for the sentences of errors."""

NUMPY_VECTORS = "gymnasium.envs.classic_control."
"""Package of Gymnasium's vector environments that use numpy and NEXT_STEP autoreset (the others use JAX)."""


def find(env: str | EnvFactory) -> EnvSpec | EnvFactory:
    """Return the registered id or the callable that an environment's name stands for.

    Args:
        env: a Gymnasium id, ``module:Env-v0``, ``module:callable``, the same in a file, as ``file.py:callable``, or a
            callable, which is returned as it is.

    Raises:
        EnvironmentUnsupported: the id, module or file is unknown, ale-py is missing, or an object is no callable.
    """
    if not isinstance(env, str):
        _refuse_no_factory(env)
        return env
    module_name, _, name = resolved(env).rpartition(":")
    if module_name:
        module = _import(module_name, env)
        try:
            found = getattr(module, name, None)
        except Exception as error:  # of a module that imports what it has only when it is asked for
            _refuse_import(module_name, env, error)
        if name not in gymnasium.registry and callable(found):
            return found  # type: ignore[no-any-return]
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        imported = "" if "-v" in name else f", which was imported from {getattr(module, '__file__', 'Python itself')}"
        return _registered(name, env, own, where=f" in {module_name}{imported}" if imported else "")
    if env not in gymnasium.registry and importlib.util.find_spec("ale_py") is not None:
        import ale_py

        gymnasium.register_envs(ale_py)
    return _registered(env, env, [])


def resolved(env: str) -> str:
    """Return the name of an environment such that it means the same in every working directory.

    The path of ``file.py:name`` becomes absolute. So does ``module:name`` become a file where this directory has a file
    of the module's name, and an installed module of that name would be imported in its place.
    """
    module_name, _, name = env.rpartition(":")
    file = Path(module_name if module_name.endswith(".py") else f"{module_name}.py")
    hidden = module_name.isidentifier() and os.path.isfile(file) and not _is_of(module_name, file)
    return f"{file.absolute()}:{name}" if hidden or module_name.endswith(".py") else env


def _is_of(module_name: str, file: Path) -> bool:
    """Return whether a module is, or would be, imported from a file; True also where there is no such module yet."""
    if module_name in sys.modules:
        origin = getattr(sys.modules[module_name], "__file__", None)
    else:
        spec = importlib.util.find_spec(module_name)
        if spec is None:
            return True
        origin = spec.origin
    return origin is not None and os.path.exists(origin) and file.samefile(origin)


def name_of(env: str | EnvFactory) -> str:
    """Return an environment's name for people: that of a callable is the name of its function or class."""
    while isinstance(env, partial):
        env = env.func
    return env if isinstance(env, str) else str(getattr(env, "__qualname__", type(env).__qualname__))


class GymnasiumEnvs:
    """B copies of one Gymnasium environment as a `VectorEnv`.

    Where Gymnasium has a vector class in numpy (CartPole), that is used; otherwise the B environments are stepped one
    after the other.

    Observations and actions are converted as `Conversion` says.

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
        self.frames_per_second = pictures.rate(self._envs.metadata)
        first = self._envs.envs[0] if isinstance(self._envs, SerialVectorEnv) else None
        raw = first.env.observation_space if isinstance(first, Flattened) else self._envs.single_observation_space
        self.conversion = Conversion(raw, self._envs.single_action_space, self._name)
        self.observation_space, self.action_space = self.conversion.observation_space, self.conversion.action_space

    def reset(self, seed: int | None) -> NDArray[Any]:
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
            return self._envs.step(self.conversion.decode(np.asarray(action)))
        observation, reward, terminated, truncated, _ = self._envs.step(self.conversion.decode(np.asarray(action)))
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
            draws = render and pictures.draws(getattr(creator, "metadata", {}))
            options = {"render_mode": "rgb_array"} if draws else {}
            made = gymnasium.make(source, max_episode_steps=max_episode_steps, disable_env_checker=True, **options)
        else:
            made = _drawing(source) if render else source()
    except EnvironmentUnsupported:
        raise
    except passed():
        raise
    except gymnasium.error.DependencyNotInstalled as error:
        extra = _extra(source)
        if extra:
            raise EnvironmentUnsupported(f'{name} needs an extra: pip install "polyactor[{extra}]".') from error
        raise EnvironmentUnsupported(f"{name} lacks a dependency: {first_line(error)}.") from error
    except BaseException as error:
        raise EnvironmentUnsupported(
            f"{name} could not be made: {type(error).__name__}: {first_line(error)}."
        ) from error

    _refuse_old_gym(made, name)
    if not isinstance(made, gymnasium.Env):
        raise EnvironmentUnsupported(f"{name} returns a {type(made).__name__}; it must return one gymnasium.Env.")
    if max_episode_steps is not None and not isinstance(source, EnvSpec):
        made = gymnasium.wrappers.TimeLimit(made, max_episode_steps)
    try:
        conversion = Conversion(_space(made, "observation", name), _space(made, "action", name), name)
    except EnvironmentUnsupported:
        with suppress(Exception):
            made.close()
        raise
    result: gymnasium.Env[Any, Any] = Flattened(made) if conversion.flat else made
    return result


def _drawing(source: EnvFactory) -> Any:
    """Make one environment by a callable, in the mode ``rgb_array`` where the callable takes a ``render_mode``."""
    try:
        takes = list(inspect.signature(source).parameters.values())
    except (TypeError, ValueError):  # a callable in C may have no signature
        takes = []
    if any(each.name == "render_mode" for each in takes):
        return source(render_mode="rgb_array")  # type: ignore[call-arg]
    if any(each.kind is inspect.Parameter.VAR_KEYWORD for each in takes):
        with suppress(TypeError):  # it may hand its arguments on to what takes none
            return source(render_mode="rgb_array")  # type: ignore[call-arg]
    return source()


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


def _refuse_no_factory(env: object) -> None:
    """Raise an error for an object in place of an environment's name that cannot be called without arguments.

    Raises:
        EnvironmentUnsupported: it is an environment, a list, or a callable that needs arguments.
    """
    wanted = "hand over an id, or a function without arguments that returns one new gymnasium.Env at each call"
    if isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv) or not callable(env):
        kind = type(env).__name__
        raise EnvironmentUnsupported(f"an environment cannot be given as an object of type {kind}: {wanted}.")
    with suppress(ValueError):  # of a callable written in C, whose arguments nobody knows
        signature = inspect.signature(env)
        try:
            signature.bind()
        except TypeError:
            raise EnvironmentUnsupported(f"{name_of(env)} cannot be called without arguments: {wanted}.") from None


def _registered(env_id: str, asked: str, others: Iterable[str], where: str = "") -> EnvSpec:
    """Return the registered spec of an id.

    Args:
        env_id: the id, without a module.
        asked: the name that the user gave, for the sentence of an error.
        others: further names that may be suggested.
        where: the module that has no such name, for the sentence of an error.

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
    options = f"; {OPTIONS}" if re.search(r"[?(=]", env_id) else ""
    options += "; name what is in the file, too, as FILE.py:NAME" * env_id.endswith(".py")
    mistyped = difflib.get_close_matches(env_id, gymnasium.registry, n=1, cutoff=0.8)
    known_there = f"; one that a script of yours registers is known there alone: {OWN} my_module:{one_line(asked)}"
    own = "" if options or mistyped or ":" in asked else known_there
    raise EnvironmentUnsupported(f"there is no environment {one_line(asked)}{where}{near}{options}{own}.")


def _old_gym_ids() -> Iterable[str]:
    """Return the ids that are registered with the old gym, if it was imported."""
    registry = getattr(getattr(sys.modules.get("gym"), "envs", None), "registry", {})
    return list(getattr(registry, "env_specs", registry))


def _import(module_name: str, asked: str) -> ModuleType:
    """Import a module by its name, or a file by its path; the working directory stays as it is.

    Raises:
        EnvironmentUnsupported: there is none, or it raises an exception.
    """
    asked = one_line(asked)
    if module_name.endswith(".py") and not os.path.isfile(module_name):
        raise EnvironmentUnsupported(f"there is no file {one_line(module_name)} for {asked}.")
    if not module_name.endswith(".py") and (module_name.startswith(".") or "/" in module_name):
        raise EnvironmentUnsupported(f"there is no module {one_line(module_name)} for {asked}; a file ends with .py.")
    try:
        with same_directory():
            if module_name.endswith(".py"):
                return load_file(Path(module_name))
            # A console script has no entry of sys.path for the current directory, where users keep their modules.
            if os.getcwd() not in sys.path and "" not in sys.path:
                sys.path.append(os.getcwd())
            return importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is not None and (module_name == error.name or module_name.startswith(f"{error.name}.")):
            raise EnvironmentUnsupported(
                f"there is no module {module_name} for {asked}; it must be installed or in this directory."
            ) from error
        _refuse_import(module_name, asked, error)
    except (Exception, SystemExit) as error:  # a script may parse arguments, or end, where it is imported
        _refuse_import(module_name, asked, error)


def _refuse_import(module_name: str, asked: str, error: BaseException) -> NoReturn:
    raise EnvironmentUnsupported(
        f"the module {one_line(module_name)} of {asked} could not be imported: "
        f"{type(error).__name__}: {first_line(error)}."
    ) from error


def _extra(source: EnvSpec | EnvFactory) -> str | None:
    """Return the extra of polyactor that a Gymnasium id needs, or None."""
    point = source.entry_point if isinstance(source, EnvSpec) else None
    if not isinstance(point, str):
        return None
    return next((extra for module, extra in EXTRAS.items() if point.startswith(module)), None)


def _name(source: EnvSpec | EnvFactory) -> str:
    return source.id if isinstance(source, EnvSpec) else name_of(source)
