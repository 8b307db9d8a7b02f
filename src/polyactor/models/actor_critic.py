"""The actor-critic network that all algorithms use: torso, core, policy head and value head."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal, cast

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polyactor.data import NEVER, CoreState, Distribution, Memo, Outputs, Pull, Rollout, Tree, at, map_tree
from polyactor.models.action_space import action_spec
from polyactor.models.core import make_core
from polyactor.models.encoders import CNN, dense, make_torso
from polyactor.models.heads import Dueling, critic_width, own_layer, policy_head
from polyactor.models.noisy import Noise, noise_of
from polyactor.models.norms import normalize_layers
from polyactor.models.own_parts import own_core, own_torso, to_buffers
from polyactor.models.running_stats import RunningMoments
from polyactor.models.scaling import scalings
from polyactor.models.spec import ModelSpec

Precision = Literal["fp32", "bf16"]


MOST_PIXELS_KEPT = 1 << 27
"""The largest number of pixels of a rollout that a memo keeps scaled: 256 MiB in bf16, twice that in fp32."""


PULLS = itertools.count(1)
"""The source of the numbers in `Pull`, unique within the process."""


class Trunk(nn.Module):
    """A torso, which encodes each observation by itself, and a core, which reads the features in order of time."""

    def __init__(
        self, space: spaces.Box | spaces.Dict, spec: ModelSpec, precision: Precision, normalized: bool = False
    ) -> None:
        super().__init__()
        if "torso" in spec.own:
            self.torso, width = own_torso(space, spec, normalized)
        else:
            self.torso = torso = make_torso(space, spec)
            width = torso.features
        if "core" in spec.own:
            self.core, self.features = own_core(width, spec)
        else:
            self.core = core = make_core(width, spec)
            self.features = core.features
        self.bf16 = precision == "bf16" and isinstance(self.torso, CNN)

    def see(self, x: Tree, outputs: Sequence[Tensor] | None = None, *, known: bool = False) -> Tensor:
        """Compute the torso's features ``[N, F]`` of ``x [N, ...]``.

        Args:
            x: prepared observations.
            outputs: for a CNN, memory for the outputs of its layers, as in `CNN.forward`.
            known: whether `outputs` hold the layers' outputs already; otherwise they are written.
        """
        how: dict[str, Any] = {} if outputs is None else {"outputs": outputs, "known": known}
        if not self.bf16:
            return cast("Tensor", self.torso(x, **how))
        with torch.autocast(cast("Tensor", x).device.type, torch.bfloat16):
            return cast("Tensor", self.torso(x, **how)).float()

    def run_core(self, features: Tensor, state: CoreState, is_first: Tensor) -> tuple[Tensor, CoreState]:
        """Compute the core's features ``[T, B, F]`` from the torso's ``[T·B, F]``, and the state after the last row."""
        output: tuple[Tensor, CoreState] = self.core(features.view(*is_first.shape, -1), state, is_first)
        return output


class ActorCritic(nn.Module):
    """An actor-critic network, which computes the policy π(·|x) and V(x), or Q(x, ·).

    Args:
        observation_space: the observation space of one environment, a Box, or a Dict of them.
        action_space: the action space of one environment.
        spec: the settings of torso, core and heads.
        precision: the precision of CNN torsos; heads, core, values and losses are always float32.
        normalize_observation: keep running moments of the observations, and give the torso (x − mean)/σ.
        normalize_return: keep running moments of the discounted return, which rewards are scaled by.
        value_head: the output of the critic, value or q.
        averaged: have an average network, whose parameters are buffers of this one.
    """

    average: ActorCritic | None
    noise: Noise | None = None
    """The noise of the layers that have some; None without such layers."""
    observation_moments: RunningMoments | nn.ModuleList | None
    """The running moments of observations; a list of one for each entry, where they have several."""
    return_moments: RunningMoments | None

    def __init__(
        self,
        observation_space: spaces.Box | spaces.Dict,
        action_space: spaces.Space[object],
        spec: ModelSpec,
        *,
        precision: Precision = "fp32",
        normalize_observation: bool = False,
        normalize_return: bool = False,
        value_head: str = "value",
        averaged: bool = False,
    ) -> None:
        super().__init__()
        log_std = spec.log_std_start if spec.log_std == "fixed" else None
        self.actions = action_spec(action_space, log_std, spec.distribution)
        self.trunk = Trunk(observation_space, spec, precision, normalize_observation)
        self.critic = None if spec.share_torso else Trunk(observation_space, spec, precision, normalize_observation)
        features, value_width = self.trunk.features, spec.value_head_width or spec.head_width
        self.policy_layer = own_layer(features, spec.head_width, spec)
        self.value_layer = own_layer(features, value_width, spec)
        self.policy = policy_head(spec.head_width or features, self.actions, spec)
        self.value = dense(value_width or features, critic_width(value_head, self.actions), spec.head_noise, 1.0)
        self.lists_actions = value_head == "q" and not self.actions.dims
        dueling = value_head == "q" and self.actions.dims
        self.dueling = Dueling(features, self.actions.encoding, spec.head_noise) if dueling else None
        normalize_layers(self, spec, [getattr(trunk, name) for trunk in self.trunks for name in spec.own])
        self.noise = noise_of(self) if spec.head_noise else None
        images = torch.bfloat16 if self.trunk.bf16 else None
        self._keep_statistics(observation_space, spec, normalize_observation, normalize_return, images)
        self.average = copy_of(self) if averaged else None

    def _keep_statistics(
        self,
        space: spaces.Box | spaces.Dict,
        spec: ModelSpec,
        normalize_observation: bool,
        normalize_return: bool,
        images: torch.dtype | None = None,
    ) -> None:
        """Make the scaling of observations and the running statistics; `images` is the dtype of scaled images."""
        self.scalings = scalings(space, spec, images)
        """How each entry of observations is scaled, by its name; that of a single one is empty."""
        several = isinstance(space, spaces.Dict)
        self.several, self.image = several, not several and self.scalings[""].image
        statistics = [RunningMoments(each.shape) for each in self.scalings.values() if normalize_observation]
        self.observation_moments = nn.ModuleList(statistics) if several and statistics else next(iter(statistics), None)
        self.return_moments = RunningMoments(()) if normalize_return else None
        self.pull = NEVER
        """The copy of parameters and running statistics that the model holds; `pulled` must follow each replacement."""

    @property
    def running(self) -> dict[str, RunningMoments]:
        """The running statistics that the model keeps, by name."""
        own = {} if self.return_moments is None else {"return_moments": self.return_moments}
        return dict(self.statistics.values()) | own

    @property
    def statistics(self) -> dict[str, tuple[str, RunningMoments]]:
        """For each entry of observations that is normalised, its name in `running` and its running statistics."""
        own, name = self.observation_moments, "observation_moments"
        if not isinstance(own, nn.ModuleList):
            return {} if own is None else {"": (name, own)}
        parts = cast("list[RunningMoments]", list(own))
        return {entry: (f"{name}.{i}", part) for i, (entry, part) in enumerate(zip(self.scalings, parts, strict=True))}

    def distribution(self, params: Tensor) -> Distribution:
        """Return the policy that has the parameters ``[..., P]``."""
        return self.actions.distribution(params)

    def initial_state(self, batch: int) -> CoreState:
        """Return the recurrent state before an episode, tensors ``[B, H]``."""
        states = [cast("Any", trunk.core).initial_state(batch) for trunk in self.trunks]
        return tuple(itertools.chain(*states))

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of parameters and values, but for a torso that computes in bf16."""
        return self.value.weight.dtype

    @property
    def trunks(self) -> list[Trunk]:
        """The trunk that policy and value share, or that of the policy and that of the value."""
        return [self.trunk] if self.critic is None else [self.trunk, self.critic]

    def step(
        self,
        observation: Tree,
        state: CoreState,
        is_first: Tensor,
        memo: Memo | None = None,
        action_mask: Tensor | None = None,
        noise: Tensor | None = None,
    ) -> tuple[Tensor, CoreState]:
        """Compute the policy of one step: parameters ``[B, P]`` and the next recurrent state.

        Args:
            observation: ``[B, *O]``, or a mapping of the tensors of its entries.
            state: the recurrent state before the step.
            is_first: ``[B]`` bool, whether the observation is the first of an episode.
            memo: B rows that activations are written to, which saves `unroll` from computing them again.
            action_mask: ``[B, C]`` bool, the legal choices; None allows all.
            noise: the noise of a model with noisy layers; None acts by the means of their weights.
        """
        if self.noise is not None:
            self.noise.put(noise)
        x = self.prepared(observation, None if memo is None else memo.images)
        if memo is not None:
            seen = self.see(x, memo.outputs)
            for kept, features in zip(memo.features, seen, strict=True):
                kept.copy_(features)
        else:  # acting needs a separate torso of the value only if the value's core has a state to advance
            seen = self.see(x) if state else [self.trunk.see(x)]
        remembered, state = self.run_core(seen, state, is_first.unsqueeze(0))
        params: Tensor = self.policy(self.policy_layer(remembered[0]))
        return self.actions.masked(params[0], action_mask), state

    def unroll(self, rollout: Rollout) -> Outputs:
        """Compute policy and value of all rows of a rollout, from the recurrent state before its first row.

        Noisy layers compute all rows, the bootstrap row too, with the noise that acted. Gradients flow through the
        torso at the T rows with an action, but not at the bootstrap row.
        """
        noise = None if self.noise is None else self.noise.of(rollout)
        if self.noise is not None:
            self.noise.put(noise)
        t, memo = len(rollout.reward), self._valid(rollout.memo, noise)
        if memo.features and not torch.is_grad_enabled():
            seen = list(memo.features)
        else:
            acted = map_tree(lambda each: each[:t].flatten(0, 1), rollout.observation)
            x = self.prepared(acted) if memo.images is None else memo.images
            seen = self.see(x, memo.outputs, known=True)
        if len(rollout.is_first) > t:
            with torch.no_grad():
                last = self.see(self.prepared(at(rollout.observation, -1)))
            seen = [torch.cat(both) for both in zip(seen, last, strict=True)]
        remembered, _ = self.run_core(seen, rollout.core_state, rollout.is_first)
        params, value = self.heads(remembered)
        advantage = None if self.dueling is None else partial(self._advantage, self.dueling, remembered[-1][:t], noise)
        return Outputs(self.actions.masked(params, rollout.action_mask), value, advantage)

    def _advantage(self, dueling: Dueling, features: Tensor, noise: Tensor | None, action: Tensor) -> Tensor:
        """Compute A(x_t, a) ``[..., T, B]`` of features ``[T, B, F]`` and actions ``[..., T, B, *A]``."""
        if self.noise is not None:
            self.noise.put(noise)
        return cast("Tensor", dueling(features, self.actions.encoded(action)))

    def forward(self, observation: Tree, state: CoreState, is_first: Tensor) -> tuple[Tensor, Tensor, CoreState]:
        """Compute policy parameters ``[T, B, P]``, values ``[T, B]`` and the recurrent state after the last row.

        Args:
            observation: ``[T, B, *O]``.
            state: the recurrent state before the first row.
            is_first: ``[T, B]`` bool, whether the observation is the first of an episode.
        """
        if self.noise is not None:
            self.noise.put(None)
        remembered, state = self.run_core(
            self.see(self.prepared(map_tree(lambda x: x.flatten(0, 1), observation))), state, is_first
        )
        return *self.heads(remembered), state

    def see(self, x: Tree, outputs: Sequence[Sequence[Tensor] | None] = (), *, known: bool = False) -> list[Tensor]:
        """Compute each torso's features ``[N, F]`` of ``x [N, ...]``; `outputs` has those of `Trunk.see` per torso."""
        per_torso = outputs or [None for _ in self.trunks]
        return [trunk.see(x, each, known=known) for trunk, each in zip(self.trunks, per_torso, strict=True)]

    def heads(self, remembered: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Compute policy parameters ``[T, B, P]`` and the critic's output from each core's features ``[T, B, F]``.

        The critic's output is V(x) ``[T, B]``, or Q(x, ·) ``[T, B, A]`` of discrete actions.
        """
        params: Tensor = self.policy(self.policy_layer(remembered[0]))
        value: Tensor = self.value(self.value_layer(remembered[-1]))
        return params, value if self.lists_actions else value.squeeze(-1)

    def run_core(self, seen: Sequence[Tensor], state: CoreState, is_first: Tensor) -> tuple[list[Tensor], CoreState]:
        """Compute each core's features ``[T, B, F]`` of its torso's ``[T·B, F]``, and the state after the last row."""
        size = len(state) // len(seen)
        remembered: list[Tensor] = []
        after: CoreState = ()
        for i, (trunk, features) in enumerate(zip(self.trunks, seen, strict=False)):
            output, state_i = trunk.run_core(features, state[i * size : (i + 1) * size], is_first)
            remembered.append(output)
            after += state_i
        return remembered, after

    def blank_memo(self, rows: int, *, differentiated: bool) -> Memo | None:
        """Allocate a memo for a rollout, or return None if there is no CNN, whose activations are worth keeping.

        Args:
            rows: T·B.
            differentiated: whether the memo shall serve gradients too, and hold the outputs of all layers. Otherwise it
                has features, and images unless they have more than `MOST_PIXELS_KEPT` pixels.
        """
        torsos = [trunk.torso for trunk in self.trunks if isinstance(trunk.torso, CNN)]
        if not torsos:  # nor is one kept of a CNN for one entry of several
            return None
        shape = self.scalings[""].shape
        features = tuple(torch.empty(rows, torso.features) for torso in torsos)
        if not differentiated and rows * math.prod(shape) > MOST_PIXELS_KEPT:
            return Memo(features)
        with torch.no_grad():
            images = self.prepared(torch.zeros((rows, *shape), dtype=torch.uint8))
            return Memo(features, images, tuple(torso.blank_outputs(images) for torso in torsos if differentiated))

    def pulled(self, *, statistics: bool = True) -> None:
        """Record that the parameters were replaced, so that memos of the old parameters are no longer used.

        Args:
            statistics: whether the running statistics were replaced, too.
        """
        number = next(PULLS)
        self.pull = Pull(number, number if statistics else self.pull.statistics)
        if self.average is not None:
            self.average.pull = self.pull._replace(parameters=next(PULLS))

    def _valid(self, memo: Memo | None, noise: Tensor | None = None) -> Memo:
        """Return the parts of a memo that were computed with the parameters and statistics that the model holds.

        Args:
            memo: the memo of a rollout.
            noise: the noise of that rollout, with which features and outputs must have been computed.
        """
        if memo is None:
            return Memo()
        same = memo.pull.parameters == self.pull.parameters and (
            memo.noise is noise or (memo.noise is not None and noise is not None and torch.equal(memo.noise, noise))
        )
        scaled_alike = self.observation_moments is None or memo.pull.statistics == self.pull.statistics
        return Memo(
            memo.features if same else (),
            memo.images if scaled_alike else None,
            memo.outputs if same else (),
        )

    def with_images(self, rollout: Rollout) -> Rollout:
        """Return the rollout with its scaled images in the memo, which pays if it is learned from more than once.

        A rollout without images, or with more than `MOST_PIXELS_KEPT` pixels, is returned as it is.
        """
        if not self.image:
            return rollout
        memo, observation = self._valid(rollout.memo), rollout.observation[: len(rollout.reward)]
        if memo.images is not None or observation.numel() > MOST_PIXELS_KEPT:
            return rollout
        with torch.no_grad():
            images = self.prepared(observation.flatten(0, 1))
        return rollout.replace(memo=replace(memo, images=images, pull=self.pull))

    def lower(self) -> None:
        """Convert the parameters of bf16 torsos to bf16, so that they are not rounded again in every forward pass."""
        if self.average is not None:
            self.average.lower()
        for trunk in self.trunks:
            if trunk.bf16:
                trunk.torso.to(torch.bfloat16)

    def prepared(self, x: Tree, ready: Tensor | None = None) -> Tree:
        """Scale observations for the torso, in its precision: bytes to [0, 1], or all by the running moments.

        Args:
            x: observations ``[N, *O]``, or a mapping of the tensors of their entries.
            ready: memory that scaled images are written to, ``[N, C, H, W]``; None allocates it.
        """
        if not self.several:
            return self.scalings[""](x, cast("RunningMoments | None", self.observation_moments), self.dtype, ready)
        own = {entry: part for entry, (_, part) in self.statistics.items()}
        return {entry: scaling(x[entry], own.get(entry), self.dtype, None) for entry, scaling in self.scalings.items()}


def copy_of(model: ActorCritic) -> ActorCritic:
    """Copy a model into an average network, whose parameters are buffers and so not part of θ.

    The copy scales observations by the running moments of the model itself.
    """
    average = copy.deepcopy(model)
    to_buffers(average, list(average.parameters()))
    average.observation_moments = model.observation_moments
    average.return_moments = average.average = None
    average.pull = Pull(next(PULLS), 0)
    return average
