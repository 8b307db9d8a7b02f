"""Policy and value on a torso and a core: the one model every algorithm sees."""

from __future__ import annotations

from typing import Literal

import torch
from gymnasium import spaces
from torch import Tensor, nn

from polyactor.distributions import ActionSpec, action_spec
from polyactor.models.core import LSTM, Identity
from polyactor.models.normalizer import RunningMoments
from polyactor.models.spec import ModelSpec
from polyactor.models.torso import is_image, make_torso, orthogonal, to_channels_first
from polyactor.types import CoreState, Distribution, Outputs, Rollout

Precision = Literal["fp32", "bf16"]

CLIP_OBSERVATION = 5.0
"""Normalised observations are clipped to this many standard deviations."""


IMAGES_IN_CACHE = 8
"""Images scaled at a time, so that every pass over them but the first reads from the cache."""


class Trunk(nn.Module):
    """Torso then core: observations ``[T, B, *O]`` to features ``[T, B, F]``."""

    def __init__(self, shape: tuple[int, ...], dtype: torch.dtype, spec: ModelSpec, precision: Precision) -> None:
        super().__init__()
        self.torso = make_torso(shape, dtype, spec)
        self.core = LSTM(self.torso.features, spec.core_size) if spec.core == "lstm" else Identity(self.torso.features)
        self.features = self.core.features
        self.bf16 = precision == "bf16"

    def forward(self, x: Tensor, state: CoreState, is_first: Tensor) -> tuple[Tensor, CoreState]:
        """Features and the state after the last row."""
        t, b = is_first.shape
        with torch.autocast(x.device.type, torch.bfloat16, enabled=self.bf16):
            features = self.torso(x)
        features = (features.float() if self.bf16 else features).unflatten(0, (t, b))
        output: tuple[Tensor, CoreState] = self.core(features, state, is_first)
        return output


class GaussianHead(nn.Module):
    """Mean and log σ, ``[..., 2d]``; log σ free of the observation."""

    def __init__(self, features: int, dims: int, log_std: float) -> None:
        super().__init__()
        self.mean = orthogonal(nn.Linear(features, dims), 0.01)
        self.log_std = nn.Parameter(torch.full((dims,), log_std))

    def forward(self, x: Tensor) -> Tensor:
        """``[..., F]`` to ``[..., 2d]``."""
        mean = self.mean(x)
        return torch.cat([mean, self.log_std.expand_as(mean)], -1)


def policy_head(features: int, actions: ActionSpec, spec: ModelSpec) -> nn.Module:
    """Features to the parameters of the action distribution; near-uniform, near-zero at the start."""
    if actions.dims and spec.log_std == "free":
        return GaussianHead(features, actions.dims, spec.log_std_start)
    head = orthogonal(nn.Linear(features, actions.params), 0.01)
    if actions.dims:
        nn.init.constant_(head.bias[actions.dims :], spec.log_std_start)
    return head


def own_layer(features: int, width: int | None) -> nn.Module:
    """What a head has to itself before its output: a ReLU layer of `width` units, or nothing."""
    if width is None:
        return nn.Identity()
    return nn.Sequential(orthogonal(nn.Linear(features, width)), nn.ReLU())


class ActorCritic(nn.Module):
    """π(·|x) and V(x).

    Args:
        observation_space: of one environment, a Box.
        action_space: of one environment.
        spec: what it is made of.
        precision: of the torso; heads, core, values and losses are float32 either way.
        normalize_observation: keep running moments of the observations and feed (x − mean)/σ.
        normalize_return: keep running moments of the discounted return, for reward scaling.
    """

    observation_moments: RunningMoments | None
    return_moments: RunningMoments | None

    def __init__(
        self,
        observation_space: spaces.Box,
        action_space: spaces.Space[object],
        spec: ModelSpec,
        *,
        precision: Precision = "fp32",
        normalize_observation: bool = False,
        normalize_return: bool = False,
    ) -> None:
        super().__init__()
        shape = observation_space.shape
        dtype = torch.from_numpy(observation_space.low[:0]).dtype
        self.image = is_image(shape, dtype)
        self.bytes = dtype == torch.uint8
        self.actions = action_spec(action_space)
        self.trunk = Trunk(shape, dtype, spec, precision)
        self.critic = None if spec.share_torso else Trunk(shape, dtype, spec, precision)
        features = self.trunk.features
        self.policy_layer, self.value_layer = (own_layer(features, spec.head_width) for _ in range(2))
        self.policy = policy_head(spec.head_width or features, self.actions, spec)
        self.value = orthogonal(nn.Linear(spec.head_width or features, 1), 1.0)
        self.observation_moments = RunningMoments(shape) if normalize_observation else None
        self.return_moments = RunningMoments(()) if normalize_return else None
        # Two levels of noise for bytes, next to none for numbers: keeps constant inputs finite.
        self.variance_floor = 4.0 if self.bytes else 1e-8

    @property
    def running(self) -> dict[str, RunningMoments]:
        """Its running statistics by name."""
        named = {"observation_moments": self.observation_moments, "return_moments": self.return_moments}
        return {name: part for name, part in named.items() if part is not None}

    def distribution(self, params: Tensor) -> Distribution:
        """``[..., P]`` to π."""
        return self.actions.distribution(params)

    def initial_state(self, batch: int) -> CoreState:
        """The recurrent state before an episode."""
        own = self.trunk.core.initial_state(batch)
        return own if self.critic is None else own + self.critic.core.initial_state(batch)

    def step(self, observation: Tensor, state: CoreState, is_first: Tensor) -> tuple[Tensor, CoreState]:
        """Act: ``[B, *O]`` and ``is_first [B]`` to policy parameters ``[B, P]`` and the next state."""
        params, _, state = self(observation.unsqueeze(0), state, is_first.unsqueeze(0))
        return params[0], state

    def unroll(self, rollout: Rollout) -> Outputs:
        """Learn: policy and value of all T+1 rows, from the stored state at the first."""
        params, value, _ = self(rollout.observation, rollout.core_state, rollout.is_first)
        return Outputs(policy=params, value=value)

    def forward(self, observation: Tensor, state: CoreState, is_first: Tensor) -> tuple[Tensor, Tensor, CoreState]:
        """``[T, B, *O]`` to policy parameters ``[T, B, P]``, values ``[T, B]`` and the state after the last row."""
        x = self.prepared(observation.flatten(0, 1))
        half = len(state) if self.critic is None else len(state) // 2
        features, own = self.trunk(x, state[:half], is_first)
        params: Tensor = self.policy(self.policy_layer(features))
        if self.critic is not None:
            features, others = self.critic(x, state[half:], is_first)
            own = own + others
        value: Tensor = self.value(self.value_layer(features)).squeeze(-1)
        return params, value, own

    def lower(self) -> None:
        """Hold what computes in bf16 in bf16, so that nothing is rounded anew in every pass."""
        for trunk in (self.trunk, self.critic):
            if trunk is not None and trunk.bf16:
                trunk.torso.to(torch.bfloat16)

    def prepared(self, x: Tensor) -> Tensor:
        """``[N, *O]`` scaled for the torso, in its precision: bytes to [0, 1], or normalised by the running moments."""
        if not self.image:
            return self._scaled(x).to(self.value.weight.dtype)
        dtype = torch.bfloat16 if self.trunk.bf16 else self.value.weight.dtype
        if not torch.is_grad_enabled():
            return to_channels_first(self._scaled(x).to(dtype))
        # Convolutions train faster with channels last, and infer faster without.
        shape = to_channels_first(x).shape
        ready = torch.empty(shape, dtype=dtype, device=x.device, memory_format=torch.channels_last)
        few = IMAGES_IN_CACHE if x.device.type == "cpu" else len(x)
        for images, place in zip(x.split(few), ready.split(few), strict=True):  # type: ignore[no-untyped-call]
            place.copy_(to_channels_first(self._scaled(images).to(dtype)))  # rounded first: half the bytes to turn
        return ready

    def _scaled(self, x: Tensor) -> Tensor:
        stats = self.observation_moments
        if stats is not None and stats.count > 0:
            scale = (stats.variance + self.variance_floor).rsqrt()
            return (x - stats.mean).mul_(scale).clamp_(-CLIP_OBSERVATION, CLIP_OBSERVATION)
        return x.to(self.value.weight.dtype).mul_(1 / 255) if self.bytes else x
