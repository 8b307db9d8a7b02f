"""Finding what a name stands for: registered ids of Gymnasium, callables and wrappers, in modules and in files."""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import os
import re
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import gymnasium
from gymnasium.envs.registration import EnvSpec

from polyactor.envs.atari import looks_atari
from polyactor.envs.environment import EnvFactory, Environment, Wrapper, name_of
from polyactor.envs.resizing import size_of
from polyactor.errors import EnvironmentUnsupported, UsageError, one_line, suggestion
from polyactor.files import callables, code, imported, named

OWN = "hand over its class (in Python), or register it in a module and name both:"
"""The way out for an id that is registered in a script, in words for the sentence of an error."""
OPTIONS = (
    "what an environment is made with is said by --env-kwargs NAME=VALUE, or in a function of your own: "
    "--env FILE.py:FUNCTION"
)
"""How an environment is given arguments, for the sentences of errors."""


@dataclass(frozen=True)
class Found:
    """An environment whose names have been looked up.

    Attributes:
        source: the registered id or the callable.
        kwargs: the arguments that it is made with, by name.
        wrappers: the name and the callable of each wrapper, from the innermost outwards.
        resize: height and width that images are resized to, in pixels; empty leaves them as they are.
    """

    source: EnvSpec | EnvFactory
    kwargs: Mapping[str, Any] = field(default_factory=dict)
    wrappers: tuple[tuple[str, Wrapper], ...] = ()
    resize: tuple[int, ...] = ()

    @property
    def name(self) -> str:
        """The environment's name for people."""
        return self.source.id if isinstance(self.source, EnvSpec) else name_of(self.source)


def find(env: str | EnvFactory | Environment) -> Found:
    """Return the registered id or callable, the arguments and the wrappers that an environment consists of.

    Args:
        env: a Gymnasium id, ``module:Env-v0``, ``module:callable``, the same in a file, as ``file.py:callable``, a
            callable, or an `Environment` of these.

    Raises:
        EnvironmentUnsupported: the id, module or file is unknown, ale-py is missing, or an object is no callable.
        UsageError: an argument is not of the form ``name=value``, a size of images not two numbers, or a wrapper is
            unknown.
    """
    env = Environment.of(env)
    kwargs = env.kwargs
    if isinstance(env.source, str):
        source = _named(env.source)
    else:
        _refuse_no_factory(env.source, kwargs)
        source = env.source
    return Found(source, kwargs, tuple((name_of(each), _wrapper(each)) for each in env.wrappers), size_of(env.resize))


def _named(env: str) -> EnvSpec | EnvFactory:
    """Return the registered id or the callable that a name stands for."""
    module_name, _, name = resolved(env).rpartition(":")
    if module_name:
        try:
            module = imported(module_name)
            found = named(module, name, module_name)
        except ImportError as error:
            raise EnvironmentUnsupported(f"--env {one_line(env)} is not allowed: {error}.") from error
        if name not in gymnasium.registry and callable(found):
            return found
        where = "" if "-v" in name else f", which was imported from {getattr(module, '__file__', 'Python itself')}"
        return _registered(name, env, callables(module), where=f" in {module_name}{where}" if where else "")
    if env not in gymnasium.registry and importlib.util.find_spec("ale_py") is not None:
        import ale_py

        gymnasium.register_envs(ale_py)
    return _registered(env, env, [])


def _wrapper(wrapper: str | Wrapper) -> Wrapper:
    """Return the callable that a wrapper's name stands for; a callable is returned as it is.

    Raises:
        UsageError: the module or file is unknown, or has no such callable.
    """
    if not isinstance(wrapper, str):
        return wrapper
    said = f"--env-wrapper {one_line(wrapper)} is not allowed"
    try:
        found = code(resolved(wrapper))
    except ImportError as error:
        raise UsageError(f"{said}: {error}") from error
    if not callable(found):
        raise UsageError(f"{said}: it is a {type(found).__name__}, not a function or class that wraps an environment")
    return cast("Wrapper", found)


def refuse_unknown(creator: Any, kwargs: Mapping[str, Any], name: str) -> None:
    """Refuse arguments that a callable does not take, as far as its signature says.

    Args:
        creator: makes the environment.
        kwargs: the arguments by name.
        name: the environment's name.

    Raises:
        UsageError: there is no such argument; the sentence names those that there are.
    """
    try:
        takes = list(inspect.signature(creator).parameters.values())
    except (TypeError, ValueError):  # of a callable written in C, whose arguments nobody knows
        return
    known = [each.name for each in takes if each.kind in (each.POSITIONAL_OR_KEYWORD, each.KEYWORD_ONLY)]
    for argument in kwargs:
        if argument not in known and not any(each.kind is each.VAR_KEYWORD for each in takes):
            raise UsageError(
                f"--env-kwargs {argument}={one_line(repr(kwargs[argument]), most=80)} is not allowed: {name} takes no"
                f" argument {argument}{suggestion(argument, known)}; it takes {', '.join(known) or 'none'}"
            )


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


def _refuse_no_factory(env: object, kwargs: Mapping[str, Any]) -> None:
    """Raise an error for an object in place of an environment's name that cannot be called with these arguments.

    Raises:
        EnvironmentUnsupported: it is an environment, a list, or a callable that needs other arguments.
        UsageError: it takes no such argument.
    """
    wanted = "hand over an id, or a function without arguments that returns one new gymnasium.Env at each call"
    if isinstance(env, gymnasium.Env | gymnasium.vector.VectorEnv) or not callable(env):
        kind = type(env).__name__
        raise EnvironmentUnsupported(f"an environment cannot be given as an object of type {kind}: {wanted}.")
    refuse_unknown(env, kwargs, name_of(env))
    with suppress(ValueError):  # of a callable written in C, whose arguments nobody knows
        signature = inspect.signature(env)
        try:
            signature.bind(**kwargs)
        except TypeError as error:
            how = f"with these arguments alone ({error})" if kwargs else "without arguments"
            raise EnvironmentUnsupported(f"{name_of(env)} cannot be called {how}: {wanted}.") from None


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
