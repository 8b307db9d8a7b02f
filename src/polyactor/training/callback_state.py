"""What callbacks keep in checkpoints: the values of their ``state_dict()``, which may be JSON or tensors."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any

from polyactor.errors import CheckpointError, UsageError, in_brief, one_line

if TYPE_CHECKING:
    from torch import Tensor

PREFIX = "callbacks"
"""The key of these values in a checkpoint's meta, and the prefix of the names of their tensors."""
MOST_JSON = 1 << 15
"""Most bytes of what one callback keeps as JSON, as a checkpoint's meta, which holds 32 times as many, writes it."""


def keyed(callbacks: Iterable[object]) -> list[tuple[str, object]]:
    """Return callbacks with the name that their state has in a checkpoint: that of the class, and a number if again."""
    seen = Counter[str]()
    found = []
    for callback in callbacks:
        name = type(callback).__qualname__
        seen[name] += 1
        found.append((name if seen[name] == 1 else f"{name}.{seen[name]}", callback))
    return found


def parted(state_dict: Callable[[], Any]) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Part the values of a ``state_dict()`` in plain ones and tensors.

    Raises:
        TypeError, ValueError: it is no mapping of texts to JSON values and tensors, or too large; the message says why.
    """
    from torch import Tensor  # here, since flags are judged without torch

    state = state_dict()
    if not isinstance(state, Mapping) or not all(isinstance(name, str) for name in state):
        raise TypeError(f"its state_dict() is a {type(state).__name__}, not a mapping from texts to values")
    tensors = {name: value.detach().cpu().clone() for name, value in state.items() if isinstance(value, Tensor)}
    plain = {name: value for name, value in state.items() if name not in tensors}
    for name, value in plain.items():
        try:
            same = json.loads(json.dumps(value, allow_nan=False)) == value
        except (TypeError, ValueError, RecursionError):
            same = False
        if not same:
            raise TypeError(
                f"its state_dict() has {one_line(name)}, a {type(value).__name__} that is no JSON or tensor"
            )
    if len(json.dumps([[plain]], indent=1)) > MOST_JSON:
        raise ValueError(f"its state_dict() has more than {MOST_JSON:,} bytes of JSON: keep large values as tensors")
    return plain, tensors


def restore(callbacks: Iterable[object], meta: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> None:
    """Give callbacks what they have kept in a checkpoint; one without ``load_state_dict`` or a saved state begins anew.

    Raises:
        UsageError: a callback does not take its state; the sentence names it.
        CheckpointError: the checkpoint's states are not what a run keeps.
    """
    saved = meta.get(PREFIX, {})
    if not isinstance(saved, dict) or not all(isinstance(state, dict) for state in saved.values()):
        raise CheckpointError("the checkpoint's callbacks are not what a run keeps")
    for name, callback in keyed(callbacks):
        load: Any = getattr(callback, "load_state_dict", None)
        if name not in saved or not callable(load):
            continue
        start = f"{PREFIX}.{name}/"
        own = {key.removeprefix(start): tensor for key, tensor in tensors.items() if key.startswith(start)}
        try:
            load(saved[name] | own)
        except (Exception, SystemExit) as error:
            raise UsageError(
                f"the callback {name} does not take the state that the checkpoint has of it: {in_brief(error)}; "
                "mend its load_state_dict, or go on without it: --callback none"
            ) from error
