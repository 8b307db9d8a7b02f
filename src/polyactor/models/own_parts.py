"""Parts of a network that a user has written: they are found by name, made, and tried once on zeros.

What is made must compute the same numbers from the same inputs wherever it is copied to, because acting and learning
use copies of one state: its parameters and constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from polyactor.data import CoreState, Tree
from polyactor.errors import UsageError, one_line
from polyactor.files import RAISED, code
from polyactor.models.scaling import scalings
from polyactor.models.spec import ModelSpec

T, B = 2, 3
"""Steps and environments of the zeros that a part is tried on; no sizes that a user would choose."""


def own_torso(space: spaces.Box | spaces.Dict, spec: ModelSpec, normalized: bool) -> tuple[nn.Module, int]:
    """Make the torso of one's own that a spec names, and return it with F, the number of its features.

    It is called as ``make(space)`` with the space of scaled observations, and maps these ``[N, *O]``, or a mapping of
    the tensors of their entries, to features ``[N, F]``.

    Args:
        space: the space of observations as environments give them.
        spec: the settings of the network.
        normalized: whether observations are normalised.

    Raises:
        UsageError: there is no such code, or what it makes is no torso; the sentence says why.
    """
    part = _Part("torso", spec)
    module = part.make(scaled_space(space, spec, normalized))
    features = part.tried(module, lambda: (module(zeros(space, spec, B)),))[0]
    part.require("features of 3 observations", features, (B, None))
    return part.finished(module), features.shape[1]


def own_core(features: int, spec: ModelSpec) -> tuple[nn.Module, int]:
    """Make the core of one's own that a spec names, and return it with the number of features that it gives.

    It is called as ``make(features)``. What it makes has ``initial_state(batch)``, a tuple of tensors ``[B, ...]``, and
    maps features ``[T, B, F]``, a state and `is_first` ``[T, B]`` to features ``[T, B, F']`` and the next state.

    Raises:
        UsageError: there is no such code, or what it makes is no core; the sentence says why.
    """
    part = _Part("core", spec)
    module = part.make(features)
    state = part.initial_state(module)
    output, after = part.tried(module, lambda: module(torch.zeros(T, B, features), state, _starts()), results=2)
    part.require("features of 2 steps of 3 environments", output, (T, B, None))
    part.require_state(after, state)
    return part.finished(module), output.shape[2]


def own_network(
    space: spaces.Box | spaces.Dict, spec: ModelSpec, normalized: bool, params: int, values: int, *, lists: bool
) -> nn.Module:
    """Make the whole network of one's own that a spec names.

    It is called as ``make(observation_space, policy_params, value_outputs)``. What it makes maps scaled observations
    ``[T, B, *O]``, a state and `is_first` ``[T, B]`` to policy parameters ``[T, B, P]``, values and the next state.

    Args:
        space: the space of observations as environments give them.
        spec: the settings of the network.
        normalized: whether observations are normalised.
        params: P.
        values: A, the outputs of the critic.
        lists: whether values are Q of each action, ``[T, B, A]``; otherwise V, ``[T, B]``.

    Raises:
        UsageError: there is no such code, or what it makes is no such network; the sentence says why.
    """
    part = _Part("network", spec)
    module = part.make(scaled_space(space, spec, normalized), params, values)
    state = part.initial_state(module) if hasattr(module, "initial_state") else ()
    seen = _in_time(zeros(space, spec, T * B))
    policy, value, after = part.tried(module, lambda: module(seen, state, _starts()), results=3)
    of = "of 2 steps of 3 environments"
    part.require(f"policy parameters {of}", policy, (T, B, params))
    part.require(f"values {of}", value, (T, B, values) if lists else (T, B))
    part.require_state(after, state)
    part.finished(module)
    if not any(True for _ in module.parameters()):
        raise part.refused("it has no parameters that could be trained")
    return module


def scaled_space(space: spaces.Box | spaces.Dict, spec: ModelSpec, normalized: bool) -> spaces.Box | spaces.Dict:
    """Return the space of scaled observations: float32, images with channels first, entries as before."""
    boxes = {name: each.space(normalized) for name, each in scalings(space, spec).items()}
    return spaces.Dict(list(boxes.items())) if isinstance(space, spaces.Dict) else boxes[""]


def zeros(space: spaces.Box | spaces.Dict, spec: ModelSpec, rows: int) -> Tree:
    """Return scaled observations ``[N, ...]`` of zeros, or a mapping of those of entries."""
    found = {name: each.zeros(rows) for name, each in scalings(space, spec).items()}
    return found if isinstance(space, spaces.Dict) else found[""]


def to_buffers(module: nn.Module, parameters: Sequence[Tensor]) -> None:
    """Make some of a module's parameters constants: buffers of the same names, which are part of no θ."""
    constants = {id(parameter): parameter.detach() for parameter in parameters}
    for each in module.modules():
        for name, parameter in list(each._parameters.items()):
            if parameter is not None and id(parameter) in constants:
                delattr(each, name)
                each.register_buffer(name, constants[id(parameter)])


def _in_time(rows: Any) -> Any:
    """Return rows ``[T·B, ...]`` as ``[T, B, ...]``."""
    return (
        {name: _in_time(each) for name, each in rows.items()} if isinstance(rows, dict) else rows.unflatten(0, (T, B))
    )


def _starts() -> Tensor:
    """Return `is_first` ``[T, B]`` of environments that start at the first step."""
    return torch.tensor([True] + [False] * (T - 1)).unsqueeze(1).expand(T, B)


class _Part:
    """One part of one's own, for the sentences of errors: `UsageError` where anything is not as it must be."""

    def __init__(self, setting: str, spec: ModelSpec) -> None:
        self.value = spec.own[setting]
        name = self.value if isinstance(self.value, str) else getattr(self.value, "__qualname__", repr(self.value))
        self.name = f"--model.{setting} {one_line(name)}"

    def refused(self, why: str) -> UsageError:
        """Return the error with this reason."""
        return UsageError(f"{self.name} is not allowed: {why}")

    @contextmanager
    def doing(self, what: str) -> Iterator[None]:
        """Name the user's exceptions inside the with block."""
        try:
            yield
        except RAISED as error:
            if "allocate memory" in str(error):
                raise
            raise self.refused(f"it raised {type(error).__name__} when {what}: {one_line(error)}") from error

    def make(self, *args: Any) -> nn.Module:
        """Find the code, call it with these arguments and return the module that it makes."""
        try:
            maker: Any = code(self.value) if isinstance(self.value, str) else self.value
        except ImportError as error:
            raise self.refused(one_line(error)) from error
        if isinstance(maker, nn.Module):
            raise self.refused("it is a module already: name the class or function that makes one")
        if not callable(maker):
            raise self.refused(f"it is a {type(maker).__name__}, not a class or function that makes a torch.nn.Module")
        with self.doing(f"called with {one_line(', '.join(map(str, args)), most=120)}"):
            made = maker(*args)
        if not isinstance(made, nn.Module):
            raise self.refused(f"it made a {type(made).__name__}, not a torch.nn.Module")
        return made

    def tried(self, module: nn.Module, call: Callable[[], Any], results: int = 1) -> tuple[Any, ...]:
        """Compute twice on zeros, after which nothing may have changed, and return the results."""
        with torch.no_grad(), self.doing("tried on zeros"):
            found = call()
            before = {name: buffer.clone() for name, buffer in module.named_buffers()}
            call()
        self._refuse_changing(module)
        for name, buffer in module.named_buffers():
            if not torch.equal(before[name], buffer):
                raise self.refused(f"its buffer {name} changes when it computes, and only parameters can learn")
        if not isinstance(found, tuple) or len(found) != results:
            what = f"a tuple of {len(found)}" if isinstance(found, tuple) else f"a {type(found).__name__}"
            raise self.refused(f"it returned {what}, where a tuple of {results} is wanted")
        return found

    def _refuse_changing(self, module: nn.Module) -> None:
        """Refuse layers that compute other numbers when they act than when they learn."""
        for name, each in module.named_modules():
            kind = type(each).__name__
            if isinstance(each, _BatchNorm) and each.training:
                raise self.refused(
                    f"{name or 'it'} is a {kind}, whose output depends on the other rows of a batch: use GroupNorm or "
                    "LayerNorm, or call .eval() on it"
                )
            dropped = each.p if isinstance(each, _DropoutNd) else getattr(each, "dropout", 0.0)
            if each.training and isinstance(dropped, float) and dropped > 0:
                raise self.refused(
                    f"{name or 'it'} is a {kind} with a dropout of {dropped:g}, which would differ between acting and "
                    "learning: leave it out, or call .eval() on it"
                )

    def require(self, what: str, given: Any, wanted: tuple[int | None, ...]) -> None:
        """Require a float32 tensor of this shape, in which None is any size from 1."""
        shape = f"[{', '.join('F' if size is None else str(size) for size in wanted)}]"
        if not isinstance(given, Tensor):
            raise self.refused(f"its {what} are a {type(given).__name__}, not a tensor {shape}")
        fits = given.dim() == len(wanted) and all(
            size == (right or max(size, 1)) for size, right in zip(given.shape, wanted, strict=True)
        )
        if not fits:
            raise self.refused(f"its {what} have the shape {list(given.shape)}, not {shape}")
        if given.dtype != torch.float32:
            raise self.refused(f"its {what} are {given.dtype}, not torch.float32")

    def initial_state(self, module: nn.Module) -> CoreState:
        """Return the state of B environments before an episode."""
        if not callable(getattr(module, "initial_state", None)):
            raise self.refused("it has no method initial_state(batch)")
        with self.doing("asked for its initial_state"):
            state = module.initial_state(B)  # type: ignore[operator]
        if not isinstance(state, tuple) or not all(
            isinstance(each, Tensor) and each.dim() and len(each) == B for each in state
        ):
            raise self.refused("its initial_state(batch) is not a tuple of tensors [batch, …]")
        return state

    def require_state(self, after: Any, before: CoreState) -> None:
        """Require that the next state is like the one before."""
        wanted = [(list(each.shape), each.dtype) for each in before]
        given = [(list(each.shape), each.dtype) for each in after] if _tensors(after) else type(after).__name__
        if given != wanted:
            raise self.refused(
                f"its next state is {one_line(given, most=120)}, not {one_line(wanted, most=120)} as at the start"
            )

    def finished(self, module: nn.Module) -> nn.Module:
        """Check the tensors that a module learns and holds, and make those that need no gradient constants."""
        for name, tensor in (*module.named_parameters(), *module.named_buffers()):
            if tensor.device.type != "cpu":
                raise self.refused(f"its {name} is on {tensor.device}: leave it on the CPU, where actors compute")
            if tensor.dtype != torch.float32 and (tensor.is_floating_point() or tensor.is_complex()):
                raise self.refused(f"its {name} is {tensor.dtype}, not torch.float32")
        to_buffers(module, [parameter for parameter in module.parameters() if not parameter.requires_grad])
        return module


def _tensors(state: Any) -> bool:
    """Return whether a state is a tuple of tensors."""
    return isinstance(state, tuple) and all(isinstance(each, Tensor) for each in state)
