"""Estimates of the Fisher matrix of a model, which K-FAC averages: factors of each layer, from one rollout."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Self, cast

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from polyactor.agent.rollout_row import row_of
from polyactor.data import Rollout
from polyactor.envs import EnvSpec
from polyactor.equations.kronecker import homogeneous_moment, second_moment
from polyactor.errors import OutOfResources, UsageError
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.noisy import NoisyLinear
from polyactor.models.norms import WeightNormConv2d, WeightNormLinear
from polyactor.optim.flat import Layout, State
from polyactor.optim.kfac import Factors, Layer
from polyactor.optim.rules import Rule
from polyactor.shared.changes import Changes
from polyactor.system.machine import memory_mb

T, B = 2, 3
"""Steps and environments of the zeros that a model is tried on, to see which layers compute row by row."""
MOST_IMAGES = 64
"""Most rows, evenly spread, that the factors of a convolution are estimated from: each has hundreds of places."""
MOST_ROWS = 320
"""Most rows of images, in columns evenly spread, that an estimate is made from: sampled targets vary it more."""
COMPUTED: tuple[type[nn.Module], ...] = (NoisyLinear, WeightNormLinear, WeightNormConv2d)
"""Classes of layers that compute their weights from other parameters."""
LAYERS: tuple[type[nn.Module], ...] = (nn.Linear, nn.Conv2d, *COMPUTED)
"""Classes of layers that have weights."""
PLAIN = (nn.Linear.forward, nn.Conv2d.forward)
"""How layers compute s = W ā; a subclass with a way of its own has no factors."""


def layers_of(model: ActorCritic, spec: EnvSpec) -> tuple[Layer, ...]:
    """Return the layers whose Fisher matrix is a Kronecker product, and every other parameter.

    These are the dense layers and convolutions that compute all rows of a rollout in one call.

    Args:
        model: the model.
        spec: the spaces of its environments.

    Raises:
        UsageError: a layer computes its weights from other parameters.
        OutOfResources: the factors do not fit the memory.
    """
    layout = Layout.of(model)
    places = {slot.name: slot for slot in layout.slots if slot.start < layout.theta}
    modules = {name: each for name, each in model.named_modules() if isinstance(each, LAYERS)}
    uses = Counter(id(parameter) for each in modules.values() for parameter in each.parameters(recurse=False))
    for name, module in modules.items():
        if isinstance(module, COMPUTED) or "weight" not in {**module._parameters, **module._buffers}:
            raise UsageError(
                f"--optimizer kfac is not allowed with {name}, a {type(module).__name__} that computes its weights "
                "from other parameters, as weight normalisation and noise do: use plain layers, or --optimizer adam"
            )
    modules = {name: module for name, module in modules.items() if type(module).forward in PLAIN}
    seen: dict[str, list[tuple[int, ...]]] = {name: [] for name in modules}

    def watch(name: str, x: Tensor, _: Tensor) -> None:
        seen[name].append(tuple(x.shape))

    with torch.no_grad(), _watching(modules, watch):
        model.unroll(Rollout.blank(row_of(spec, model), t=T, b=B).acted)
    found = []
    for name, module in modules.items():
        weight, bias = places.get(f"{name}.weight"), places.get(f"{name}.bias")
        whole = weight is not None and (module.bias is None) == (bias is None) and uses[id(module.weight)] == 1
        if weight is not None and whole and len(seen[name]) == 1 and _by_rows(module, seen[name][0]):
            found.append(Layer(name, weight, bias))
    _refuse_small_memory(found)
    taken = {slot for layer in found for slot in (layer.weight, layer.bias)}
    return (*found, *(Layer(name, slot, factored=False) for name, slot in places.items() if slot not in taken))


def _refuse_small_memory(layers: Sequence[Layer]) -> None:
    """Raise OutOfResources if factors, inverses and an estimate of them need more memory than this machine has."""
    needed = [3 * 4 * sum(size**2 for size in layer.sizes) for layer in layers]
    there = memory_mb() * 2**20
    if sum(needed) > there:
        largest = layers[needed.index(max(needed))]
        o, i = largest.sizes
        raise OutOfResources(
            f"--optimizer kfac needs {sum(needed) / 1e9:,.1f} GB of memory for the Fisher matrix, most of it for "
            f"{largest.name}, {i:,} x {o:,}, and this machine has {there / 1e9:,.1f} GB: use a smaller network, a CNN "
            "for images, or --optimizer adam"
        )


@dataclass
class Observer:
    """Estimates the factors from rollouts, at the updates that the optimizer wants it at.

    Attributes:
        model: the model, with the parameters at which the Fisher matrix is estimated.
        layers: the model's layers and other parameters.
        rule: the optimizer.
        changes: the settings that callbacks have changed.
    """

    model: ActorCritic
    layers: Sequence[Layer]
    rule: Rule
    changes: Changes

    @classmethod
    def of(cls, model: ActorCritic, state: State, rule: Rule, changes: Changes) -> Self | None:
        """Return the observer of a run's optimizer; None if it wants no estimates."""
        statistics = state.statistics[0]
        return cls(model, statistics.layers, rule, changes) if isinstance(statistics, Factors) else None

    def __call__(self, rollout: Rollout, generator: torch.Generator, update: int) -> Mapping[str, Tensor]:
        """Return the estimate of a rollout by the names of the statistics, or an empty one where none is wanted."""
        self.rule = self.changes.into("optimizer", self.rule)
        if not self.rule.estimates_at(update):
            return {}
        return estimate(self.model, self.layers, rollout, generator)


@torch.enable_grad()
def estimate(
    model: ActorCritic, layers: Sequence[Layer], rollout: Rollout, generator: torch.Generator
) -> dict[str, Tensor]:
    """Estimate the Fisher matrix of p(a, v|x) = π(a|x) N(v; V(x), 1) over the real rows of a rollout, or part of it.

    Targets are sampled from the model (Wu et al. 2017, §3.1); actions that an older policy chose would be none of its.

    Args:
        model: the model, which computes in float32.
        layers: its layers and other parameters.
        rollout: a rollout ``[T, B]``.
        generator: the source of the targets.

    Returns:
        For each layer A = ⟨Σ_i ā_i ā_iᵀ⟩ and G = ⟨Σ_i g_i g_iᵀ⟩/I, where i are the I places that a convolution is
        applied at (Grosse & Martens 2016, §3), or 1. For each other parameter (Σ ∂ log p)²/N over the N real rows:
        the terms are independent with mean 0, so the expectation is that of ⟨(∂ log p)²⟩. Nothing where no row is real.
    """
    if any(each.image for each in model.scalings.values()):
        rollout = rollout.columns(slice(None, None, -(-rollout.reward.numel() // MOST_ROWS)))
    mask_t = rollout.mask
    n = mask_t.sum()
    if not n:
        return {}
    x = rollout.acted
    if x.memo is not None:  # a pass from remembered outputs calls no layer
        x = x.replace(memo=replace(x.memo, features=(), outputs=()))
    modules = {layer.name: model.get_submodule(layer.name) for layer in layers if layer.factored}
    inputs, outputs = dict[str, Tensor](), dict[str, Tensor]()

    def watch(name: str, a: Tensor, s: Tensor) -> Tensor:
        inputs[name], outputs[name] = a.detach(), s
        return s.clone()  # an activation may be computed in place

    with _watching(modules, watch):
        out = model.unroll(x)
    pi_t, v_t = model.distribution(out.policy), out.value
    with torch.no_grad():
        a_t = pi_t.sample(generator)
        target_t = v_t + v_t.new_empty(v_t.shape).normal_(generator=generator)
    log_p = (mask_t * (pi_t.log_prob(a_t) - 0.5 * (v_t - target_t) ** 2)).sum()
    others = [layer for layer in layers if not layer.factored]
    own = dict(model.named_parameters())
    wanted = [*outputs.values(), *(own[layer.name] for layer in others)]
    gradients = torch.autograd.grad(log_p, wanted, materialize_grads=True)

    found = {f"diagonal.{layer.name}": g**2 / n for layer, g in zip(others, gradients[len(outputs) :], strict=True)}
    for (name, a), g in zip(inputs.items(), gradients, strict=False):
        found[f"inputs.{name}"], found[f"outputs.{name}"] = factors(modules[name], a, g, mask_t)
    return {name: factor.cpu() for name, factor in found.items()}


def factors(module: nn.Module, a: Tensor, g: Tensor, mask_t: Tensor) -> tuple[Tensor, Tensor]:
    """Compute A and G of a layer over the real rows, or for a convolution over at most `MOST_IMAGES` of them.

    Args:
        module: a dense layer or a convolution.
        a: its inputs of all rows.
        g: the gradient of log p by its outputs.
        mask_t: ``[T, B]``, 1 for real rows.
    """
    rows = mask_t.flatten().nonzero().squeeze(1)
    if isinstance(module, nn.Conv2d):
        rows = rows[:: -(-len(rows) // MOST_IMAGES)]
        a_n, g_n = _patches(module, a[rows]), g[rows].flatten(2).transpose(1, 2)
    else:
        a_n, g_n = (x.reshape(mask_t.numel(), -1, x.shape[-1])[rows] for x in (a, g))
    n, places = a_n.shape[:2]  # a_n is [n, I, inputs], g_n is [n, I, outputs]
    a_moment = (second_moment if module.bias is None else homogeneous_moment)(a_n.flatten(0, 1))
    return a_moment.div_(n), second_moment(g_n.flatten(0, 1)).div_(n * places)


def _patches(conv: nn.Conv2d, x: Tensor) -> Tensor:
    """Return what a convolution reads at each of the I places of images ``[N, C, H, W]``, ``[N, I, inputs]``.

    So each place is copied in one piece, where `unfold` of torch.nn.functional puts the places last.
    """
    height, width = cast("tuple[int, int]", conv.padding)
    x = pad(x, (width, width, height, height))
    for axis, size, apart, stride in zip((2, 3), conv.kernel_size, conv.dilation, conv.stride, strict=True):
        x = x.unfold(axis, apart * (size - 1) + 1, stride)[..., ::apart]
    return x.permute(0, 2, 3, 1, 4, 5).flatten(3).flatten(1, 2)


def _by_rows(module: nn.Module, shape: tuple[int, ...]) -> bool:
    """Return whether a layer takes inputs of this shape row by row, at places that `factors` knows."""
    if isinstance(module, nn.Conv2d):
        plain = module.groups == 1 and module.padding_mode == "zeros" and not isinstance(module.padding, str)
        return plain and len(shape) == 4 and shape[0] == T * B
    return shape[:-1][:1] == (T * B,) or shape[:-1][:2] == (T, B)


@contextmanager
def _watching(
    modules: Mapping[str, nn.Module], watch: Callable[[str, Tensor, Tensor], Tensor | None]
) -> Iterator[None]:
    """Call a function with the name, the input and the output of each module that computes inside the with block."""

    def hook(name: str, _: nn.Module, args: Any, kwargs: Any, output: Tensor) -> Tensor | None:
        return watch(name, next(iter((*args, *kwargs.values()))), output)

    with ExitStack() as hooks:
        for name, module in modules.items():
            hooks.callback(module.register_forward_hook(partial(hook, name), with_kwargs=True).remove)
        yield
