"""Gymnasium ids that a script has registered, on their way to a process that does not run the script to its end."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from functools import partial
from typing import NoReturn

import cloudpickle
import gymnasium
from gymnasium.envs.registration import EnvSpec

from polyactor.envs.answers import first_line
from polyactor.envs.atari import is_atari
from polyactor.errors import EnvironmentUnsupported


def registrations() -> dict[str, bytes]:
    """Return the registered ids, each with its pickled spec; those of ale-py, which `find` registers, are left out."""
    return {name: _pickled(spec) for name, spec in gymnasium.registry.items() if not is_atari(spec)}


def register(pickled: Mapping[str, bytes]) -> None:
    """Register the ids that `registrations` returned in another process and this one does not know."""
    for name in pickled.keys() - gymnasium.registry.keys():
        with suppress(Exception):  # its module cannot be imported here, and nobody may need it
            gymnasium.registry[name] = cloudpickle.loads(pickled[name])


def _pickled(spec: EnvSpec) -> bytes:
    """Return a pickled spec, or one that raises an error when it is made if this one cannot be pickled."""
    try:
        return bytes(cloudpickle.dumps(spec))
    except Exception as error:  # the user's own object may raise anything
        return bytes(cloudpickle.dumps(EnvSpec(spec.id, entry_point=partial(_refuse, spec.id, first_line(error)))))


def _refuse(name: str, why: str, **_: object) -> NoReturn:
    """Raise the error of an id whose environment cannot be sent to a worker."""
    raise EnvironmentUnsupported(f"{name} cannot be sent to a process of its own ({why}): use --transport inline")
