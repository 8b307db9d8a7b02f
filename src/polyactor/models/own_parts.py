"""Parts of a network that a user has written: they are found by name, made, and tried on random observations.

What is made must compute the same numbers from the same inputs wherever it is copied to, because acting and learning
use copies of one state: its parameters and constants.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from polyactor.data import CoreState, Tree, leaves, map_tree
from polyactor.errors import UsageError, one_line
from polyactor.files import RAISED, code
from polyactor.models.scaling import scalings
from polyactor.models.spec import ModelSpec
from polyactor.system.process_state import kept_streams

T, B = 2, 3
"""Steps and environments that a part is tried on; no sizes that a user would choose."""
FAR = 1e6
"""A bound of observations that is as good as none: what is tried is nearer."""
NEAR = 1e-2
"""The largest difference that counts as rounding, relative to the largest number."""


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

    def compute(seen: Tree, state: CoreState, is_first: Tensor) -> _Numbers:
        n, rows = is_first.numel(), map_tree(lambda each: each.flatten(0, 1), seen)
        features = part.called(module, f"{n} observation{'s' * (n > 1)}", rows)
        part.require(f"features of {n} observation{'s' * (n > 1)}", features, (n, None))
        return _Numbers((features.unflatten(0, is_first.shape),), ())

    features = part.tried(module, compute, drawn(space, spec, 1), ())
    return part.finished(module), features.shape[2]


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

    def compute(x: Tree, state: CoreState, is_first: Tensor) -> _Numbers:
        output, after = part.called(module, _steps(is_first), x, state, is_first, results=2)
        part.require(f"features of {_steps(is_first)}", output, (*is_first.shape, None))
        part.require_state(after, state)
        return _Numbers((output,), after)

    output = part.tried(module, compute, torch.randn(T, B, features, generator=_stream()), state)
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

    def compute(seen: Tree, state: CoreState, is_first: Tensor) -> _Numbers:
        policy, value, after = part.called(module, _steps(is_first), seen, state, is_first, results=3)
        part.require(f"policy parameters of {_steps(is_first)}", policy, (*is_first.shape, params))
        part.require(f"values of {_steps(is_first)}", value, (*is_first.shape, values) if lists else is_first.shape)
        part.require_state(after, state)
        return _Numbers((policy, value), after)

    part.tried(module, compute, drawn(space, spec, T), state)
    part.finished(module)
    if not any(True for _ in module.parameters()):
        raise part.refused("it has no parameters that could be trained")
    return module


def scaled_space(space: spaces.Box | spaces.Dict, spec: ModelSpec, normalized: bool) -> spaces.Box | spaces.Dict:
    """Return the space of scaled observations: float32, images with channels first, entries as before."""
    boxes = {name: each.space(normalized) for name, each in scalings(space, spec).items()}
    return spaces.Dict(list(boxes.items())) if isinstance(space, spaces.Dict) else boxes[""]


def drawn(space: spaces.Box | spaces.Dict, spec: ModelSpec, steps: int) -> Tree:
    """Return scaled observations ``[T, B, ...]`` of random numbers in the space, or a mapping of those of entries."""
    boxes, stream = getattr(space, "spaces", {"": space}), _stream()
    found = {
        name: each(_within(boxes[name], steps * B, stream), None, torch.float32, None)
        for name, each in scalings(space, spec).items()
    }
    in_time = map_tree(lambda each: each.unflatten(0, (steps, B)), found)
    return in_time if isinstance(space, spaces.Dict) else in_time[""]


def _within(box: spaces.Box, rows: int, stream: torch.Generator) -> Tensor:
    """Return observations ``[N, *O]`` drawn uniformly between the bounds; over 2 units where one is missing."""
    low, high = torch.from_numpy(box.low).double(), torch.from_numpy(box.high).double()
    start = low.where(low > -FAR, (high - 2).where(high < FAR, torch.tensor(-1.0).double()))
    end = high.where(high < FAR, start + 2)
    share = torch.rand(rows, *box.shape, generator=stream, dtype=torch.float64)
    x = start + share * (end - start)
    return x.round().to(torch.uint8) if box.dtype == np.uint8 else x.float()


def _stream() -> torch.Generator:
    """Return the random stream of what a part is tried on, the same each time."""
    return torch.Generator().manual_seed(1)


def to_buffers(module: nn.Module, parameters: Sequence[Tensor]) -> None:
    """Make some of a module's parameters constants: buffers of the same names, which are part of no θ."""
    constants = {id(parameter): parameter.detach() for parameter in parameters}
    for each in module.modules():
        for name, parameter in list(each._parameters.items()):
            if parameter is not None and id(parameter) in constants:
                delattr(each, name)
                each.register_buffer(name, constants[id(parameter)])


def _steps(is_first: Tensor) -> str:
    """Return in words how many rows are computed."""
    t, b = is_first.shape
    return f"{t} step{'s' * (t > 1)} of {b} environment{'s' * (b > 1)}"


class _Numbers(NamedTuple):
    """What a part computes: outputs ``[T, B, ...]``, and the next state ``[B, ...]``."""

    outputs: tuple[Tensor, ...]
    state: CoreState

    def kept(self) -> _Numbers:
        """Return a copy, which no later call can change."""
        return _Numbers(*(tuple([each.detach().clone() for each in part]) for part in self))

    def of(self, b: int) -> _Numbers:
        """Return the numbers of one environment."""
        return _Numbers(_of(self.outputs, b), _row(self.state, b))

    def near(self, other: _Numbers, most: float) -> bool:
        """Return whether no number differs by more than `most`, relative to the largest one."""
        pairs = zip((*self.outputs, *self.state), (*other.outputs, *other.state), strict=True)
        return all(x.shape == y.shape and _near(x.double(), y.double(), most) for x, y in pairs)


def _near(x: Tensor, y: Tensor, most: float) -> bool:
    scale = float(x.nan_to_num(0.0, 0.0, 0.0).abs().max()) if x.numel() else 0.0
    return torch.allclose(x, y, rtol=0.0, atol=most * scale, equal_nan=True)


def _of(x: Any, b: int) -> Any:
    """Return what one environment has of a tree of ``[T, B, ...]``."""
    return map_tree(lambda each: each[:, b : b + 1], x)


def _at_step(x: Tree, t: int) -> Tree:
    """Return one step of a tree of ``[T, B, ...]``, as ``[1, B, ...]``."""
    return map_tree(lambda each: each[t : t + 1], x)


def _version(x: Tensor) -> int:
    """Return how often a tensor was changed in place; 0 of one that was made where no gradients are allowed."""
    return 0 if x.is_inference() else x._version


def _row(state: CoreState, b: int) -> CoreState:
    """Return the state of one environment."""
    return tuple([each[b : b + 1] for each in state])


Compute = Callable[[Tree, CoreState, Tensor], _Numbers]
"""Computes observations or features ``[T, B, ...]`` from a state ``[B, ...]``, with `is_first` ``[T, B]``."""


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

    def called(self, module: nn.Module, rows: str, *given: Any, results: int = 1) -> Any:
        """Return what a module computes: a tuple where several results are wanted.

        Args:
            module: the part.
            rows: how many rows it is given, in words.
            given: what it is given, which it must not change.
            results: the number of results.
        """
        before = [(each, each.clone(), _version(each)) for each in leaves(given)]
        with self.doing(f"tried on {rows}"):
            found = module(*map_tree(lambda each: each, given))  # a mapping is its own, as in a run
        if any(_version(each) != version or not torch.equal(each, was) for each, was, version in before):
            raise self.refused(
                "it changes what it is given in place, as x /= 10 does, and learning reads that again: compute new "
                "tensors, as x = x / 10 does"
            )
        if results > 1 and (not isinstance(found, tuple) or len(found) != results):
            what = f"a tuple of {len(found)}" if isinstance(found, tuple) else f"a {type(found).__name__}"
            raise self.refused(f"it returned {what}, where a tuple of {results} is wanted")
        return found

    def tried(self, module: nn.Module, compute: Compute, x: Tree, state: CoreState) -> Tensor:
        """Require the same numbers of the same rows: again, in acting as in learning, alone, and step by step.

        Args:
            module: the part.
            compute: computes by it, and refuses what has a wrong shape.
            x: observations or features ``[T, B, ...]``.
            state: the state before them.

        Returns:
            The first output ``[T, B, ...]``.
        """
        is_first = torch.zeros(next(leaves(x)).shape[:2], dtype=torch.bool)
        is_first[0] = True
        with kept_streams(), torch.no_grad():
            compute(x, state, is_first)  # by which lazy layers are made
            self._refuse_changing(module)
            before = {name: buffer.clone() for name, buffer in module.named_buffers()}
            with torch.enable_grad():
                learning = [compute(x, state, is_first).kept() for _ in range(2)]
            with torch.inference_mode():
                acting = [compute(x, state, is_first).kept() for _ in range(2)]
            whole = learning[0]
            # Last and without gradients, so that tensors that a module keeps can be copied.
            alone = [compute(_of(x, b), _row(state, b), is_first[:, b : b + 1]).kept() for b in range(B)]
            by_step = [whole._replace(state=state)]
            for t in range(len(is_first)):
                by_step.append(compute(_at_step(x, t), by_step[-1].state, is_first[t : t + 1]).kept())
        for name, buffer in module.named_buffers():
            if not torch.equal(before.get(name, buffer), buffer):
                raise self.refused(f"its buffer {name} changes when it computes, and only parameters can learn")
        for once, again in (learning, acting):
            if not once.near(again, 0.0):
                raise self.refused(
                    "it gives other numbers for the same observations each time, and what acted must be what is "
                    "learned from: leave out what it draws, counts or averages"
                )
        if not whole.near(acting[0], NEAR):
            raise self.refused("it gives other numbers for the same observations when it acts than when it learns")
        if not all(whole.of(b).near(each, NEAR) for b, each in enumerate(alone)):
            raise self.refused("its numbers for an observation depend on the others of the batch")
        outputs = tuple(torch.cat(each) for each in zip(*(step.outputs for step in by_step[1:]), strict=True))
        if not whole.near(_Numbers(outputs, by_step[-1].state), NEAR):
            raise self.refused("its numbers for a step differ where it computes one step at a time, as acting does")
        return whole.outputs[0]

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
        for batch in (1, B):
            with self.doing("asked for its initial_state"):
                state: CoreState = module.initial_state(batch)  # type: ignore[operator]
            if not isinstance(state, tuple) or not all(
                isinstance(each, Tensor) and each.dim() and len(each) == batch for each in state
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
