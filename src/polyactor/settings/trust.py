"""What a run's config names that is code, and the one place that decides whether it may be imported and run."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import gymnasium

from polyactor.config import Config
from polyactor.errors import UsageError, one_line
from polyactor.fields import declared, expect, is_code, replace_at
from polyactor.models.spec import CODE


@dataclass(frozen=True)
class Code:
    """A place in the JSON of a config that may name code.

    Attributes:
        what: the part that it names, in words for the sentence of an error.
        again: how an object without a name is handed over again.
        plays: whether the part is needed to play with the policy; otherwise only to go on training.
    """

    what: str
    again: str
    plays: bool = True


PLACES = {
    "env": Code("environment", "env=…"),
    "env_wrappers": Code("wrapper", "env_wrappers=[…]"),
    "callbacks": Code("callback", "callbacks=[…], or --callback none to go on without", plays=False),
    "model.torso": Code("torso", 'model={"torso": …}'),
    "model.core": Code("core", 'model={"core": …}'),
    "model.network": Code("network", 'model={"network": …}'),
    "algorithm.name": Code("algorithm", "--algorithm FILE:CLASS", plays=False),
}
"""Every place of a config that may name code, by its dotted path."""

ENVIRONMENT = ("env", "env_wrappers")
"""Places that the older flag ``--trust-env`` speaks of."""


def vouched_for(trust_env: bool, **handed: Any) -> tuple[str, ...]:
    """Return the places of a config whose code the caller hands over or trusts, as `refuse_untrusted` takes them.

    Args:
        trust_env: whether the environment and its wrappers are trusted.
        handed: what the caller hands over by the name of its setting; None where nothing is. Of a model these are
            parts of one's own by name.

    Raises:
        UsageError: `trust_env` is no bool, or the model is no mapping of parts of one's own.
    """
    trusted = ENVIRONMENT if expect("trust_env", trust_env, bool) else ()
    return (*trusted, *_by_path(handed))


def handed_over(config: Config, **handed: Any) -> Config:
    """Return a config with what the caller hands over in place of the saved, where it is not None.

    Raises:
        UsageError: a value is not of the type of its setting.
    """
    for path, value in _by_path(handed).items():
        hint = Any if "." in path else declared(Config)[path].hint
        config = replace_at(config, path, expect(path, value, hint))
    return config


def _by_path(handed: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a caller hands over by its path in the config, without None.

    Raises:
        UsageError: the model is no mapping of parts of one's own.
    """
    given = {name: value for name, value in handed.items() if value is not None}
    parts = expect("model", given.pop("model", {}), Mapping)
    for name, value in parts.items():
        if name not in CODE or not (callable(value) or is_code(value)):
            raise UsageError(
                f"model {one_line({name: value}, most=80)} is not allowed: a run keeps its network, and only code for "
                f"its {', '.join(CODE)} can be handed over again"
            )
    return given | {f"model.{name}": value for name, value in parts.items()}


def refuse_untrusted(
    plain: Mapping[str, Any], trust_code: bool, *, given: Collection[str] = (), training: bool = False
) -> None:
    """Refuse a config that names code, unless the caller trusts it; nothing is imported here.

    Args:
        plain: the JSON of a config, which `from_json` has found to be one.
        trust_code: whether the code that the config names may run.
        given: places of `PLACES` whose code the caller has handed over or trusts.
        training: whether the run goes on; otherwise its policy is only played with.

    Raises:
        UsageError: the config names code that is not trusted, or an object that has no name; the sentence lists all.
    """
    named = []
    for path, code in PLACES.items():
        for name in _names(plain, path) if path not in given and (training or code.plays) else ():
            if "<" in name.rpartition(":")[2]:
                raise UsageError(
                    f"the {code.what} of this run was an object that has no name to import it by, {one_line(name)}: "
                    f"hand it over again, in Python: {code.again}"
                )
            named.append(f"the {code.what} {one_line(name)}")
    if named and not trust_code:
        raise UsageError(
            f"this run names code, which would be imported and run: {', '.join(named)}; "
            "if you trust it, add --trust-code (in Python: trust_code=True)"
        )


def _names(plain: Mapping[str, Any], path: str) -> Iterator[str]:
    """Iterate over the names of code at a place; names of Gymnasium's own wrappers are none."""
    value: Any = plain
    for name in path.split("."):
        value = value.get(name, ())
    for name in [value] if isinstance(value, str) else value or ():
        module, colon, part = name.rpartition(":")
        own = path == "env_wrappers" and module == "gymnasium.wrappers" and part in gymnasium.wrappers.__all__
        if "<" in name or (colon and not own):
            yield name
