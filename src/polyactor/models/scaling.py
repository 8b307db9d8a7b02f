"""Scaling of observations for a torso: bytes to [0, 1], or all by running moments, images with channels first."""

from __future__ import annotations

from collections.abc import Mapping
from typing import cast

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor

from polyactor.models.encoders import channels_are_last, is_image, to_channels_last
from polyactor.models.running_stats import RunningMoments
from polyactor.models.spec import ModelSpec

CLIP_OBSERVATION = 5.0
"""Normalised observations are clipped to this many standard deviations."""


IMAGES_IN_CACHE = 8
"""Number of images that are scaled at a time, few enough to stay in the CPU's cache."""


def scalings(space: spaces.Box | spaces.Dict, spec: ModelSpec, dtype: torch.dtype | None = None) -> dict[str, Scaling]:
    """Return how each entry of observations is scaled, by its name; that of a single one is empty."""
    boxes = cast("Mapping[str, spaces.Box]", getattr(space, "spaces", {"": space}))
    return {name: Scaling(box, spec, dtype) for name, box in boxes.items()}


class Scaling:
    """Scales one entry of observations for its torso.

    Args:
        box: the space of the entry.
        spec: the settings of the network.
        dtype: the dtype of scaled images, such as that of a bf16 torso; None is that of the model.
    """

    def __init__(self, box: spaces.Box, spec: ModelSpec, dtype: torch.dtype | None = None) -> None:
        kind = torch.from_numpy(box.low[:0]).dtype
        self.shape, self.bytes, self.image = box.shape, kind == torch.uint8, is_image(box.shape, kind)
        self.channels_last = self.image and channels_are_last(box.shape, spec.channels)
        self.dtype = dtype
        # Added to variances to keep constant inputs finite; for bytes it is the square of two gray levels.
        self.variance_floor = 4.0 if self.bytes else 1e-8

    def space(self, normalized: bool) -> spaces.Box:
        """Return the space of scaled observations: float32, images with channels first."""
        shape = self._channels_first(torch.empty(1, *self.shape)).shape[1:] if self.image else self.shape
        if not self.bytes:
            return spaces.Box(-np.inf, np.inf, shape, np.float32)
        low, high = (-CLIP_OBSERVATION, CLIP_OBSERVATION) if normalized else (0.0, 1.0)
        return spaces.Box(low, high, shape, np.float32)

    def __call__(self, x: Tensor, stats: RunningMoments | None, dtype: torch.dtype, ready: Tensor | None) -> Tensor:
        """Return scaled observations ``[N, ...]``.

        Args:
            x: observations ``[N, *O]``.
            stats: their running moments, or None.
            dtype: that of the model.
            ready: memory that scaled images are written to, ``[N, C, H, W]``; None allocates it.
        """
        moments = self._moments(stats)
        if not self.image:
            return self._scaled(x, stats, moments, dtype).to(dtype)
        x = self._channels_first(x)
        if ready is None:  # convolutions are fastest with channels last
            kind = self.dtype or dtype
            ready = torch.empty(x.shape, dtype=kind, device=x.device, memory_format=torch.channels_last)
        few = IMAGES_IN_CACHE if x.device.type == "cpu" else len(x)
        for images, place in zip(x.split(few), ready.split(few), strict=True):  # type: ignore[no-untyped-call]
            place.copy_(self._scaled(to_channels_last(images), stats, moments, dtype))
        return ready

    def _channels_first(self, images: Tensor) -> Tensor:
        """Return images ``[N, H, W, C]`` or ``[N, C, H, W]`` as a view ``[N, C, H, W]``."""
        return images.permute(0, 3, 1, 2) if self.channels_last else images

    def _moments(self, stats: RunningMoments | None) -> tuple[Tensor, Tensor] | None:
        """Return mean and 1/σ of the observations in the layout of scaled ones, or None without normalisation.

        Bytes are normalised only once there are samples.
        """
        if stats is None or (self.bytes and stats.count == 0):
            return None
        mean, scale = stats.mean, (stats.variance + self.variance_floor).rsqrt()
        if not self.image:
            return mean, scale

        def laid(part: Tensor) -> Tensor:
            return self._channels_first(part.unsqueeze(0)).contiguous(memory_format=torch.channels_last)

        return laid(mean), laid(scale)

    def _scaled(
        self, x: Tensor, stats: RunningMoments | None, moments: tuple[Tensor, Tensor] | None, dtype: torch.dtype
    ) -> Tensor:
        if self.bytes:
            x = x.to(dtype)
        if moments is None or stats is None:
            return x.mul_(1 / 255) if self.bytes else x
        mean, scale = moments
        scaled = (x - mean).mul_(scale).clamp_(-CLIP_OBSERVATION, CLIP_OBSERVATION)
        # torch.where, since torch.compile cannot handle a branch that depends on a tensor.
        return scaled if self.bytes else x.where(stats.count == 0, scaled)
