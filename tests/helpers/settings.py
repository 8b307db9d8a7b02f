"""A setting by its dotted name."""

from __future__ import annotations

from typing import Any

from polyactor.config import Config
from polyactor.settings.registry import name_of


def value_at(config: Config, path: str) -> Any:
    if path in ("algorithm", "scheme", "optimizer"):
        return name_of(path, getattr(config, path))
    found: Any = config
    for part in path.split("."):
        found = getattr(found, part)
    return found
