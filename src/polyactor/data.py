"""The data that everything speaks: rollouts, batches, gradients, and what a model says of them.

Shapes are written ``[T, B, ...]``: time first, always; ``T`` steps of ``B`` environments. ``O`` is the shape of
one observation, ``A`` of one action, ``P`` the number of parameters of the action distribution.

Nothing here imports torch when it is loaded, and neither do `equations`, `optim.rules` or `algorithms`: they are
written with tensor methods alone, so that reading flags stays fast.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor


Metrics = dict[str, "Tensor"]
"""Scalars by name, detached, as they were at this update."""


CoreState = tuple["Tensor", ...]
"""Recurrent state ``([B, H], ...)``; ``()`` when the model has no memory, so that one code path serves both."""


Tree = Any
"""A tensor, or a tuple or mapping of trees; a NamedTuple stays one."""


def map_tree(f: Callable[[Any], Any], tree: Tree) -> Tree:
    """The tree with f applied to each of its tensors."""
    if isinstance(tree, tuple):
        mapped = [map_tree(f, each) for each in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else tuple(mapped)
    if isinstance(tree, Mapping):
        return {name: map_tree(f, each) for name, each in tree.items()}
    return f(tree)


def leaves(tree: Tree) -> Iterator[Any]:
    """The tensors of a tree, in its order."""
    parts = tree if isinstance(tree, tuple) else tree.values() if isinstance(tree, Mapping) else None
    if parts is None:
        yield tree
    else:
        for part in parts:
            yield from leaves(part)


class Moments(NamedTuple):
    """Count, mean and squared deviations of new values of a running statistic; a row per source.

    Attributes:
        samples: their number, ``[N]``.
        mean: their mean, ``[N, *shape]`` with the statistic's shape.
        m2: the sum of their squared deviations from that mean, same shape.
    """

    samples: Tensor
    mean: Tensor
    m2: Tensor

    def rows(self, rows: slice) -> Moments:
        """Some sources, sharing memory."""
        return Moments(self.samples[rows], self.mean[rows], self.m2[rows])

    def copy_(self, other: Moments) -> None:
        """Overwrite in place."""
        for mine, theirs in zip(self, other, strict=True):
            mine.copy_(theirs)


class Pull(NamedTuple):
    """Which copy of the state a model holds, by numbers that no other copy in this process has.

    Attributes:
        parameters: a new number whenever its parameters were replaced.
        statistics: a new number whenever its running statistics were replaced.
    """

    parameters: int
    statistics: int


NEVER = Pull(0, 0)
"""Of a model whose state nobody has replaced."""


@dataclass(frozen=True)
class Memo:
    """What was computed of a rollout's first T rows, so that learning need not compute it again.

    A model uses it only where it still holds the copy of the state that it was computed with; an algorithm need not
    know of it.

    Attributes:
        features: of each torso, ``[T·B, F]``; what needs no gradient needs no more.
        images: ``[T·B, C, H, W]`` as the convolutions see them, channels last in memory.
        outputs: of each torso, those of each layer that has weights, ``[T·B, ...]``.
        pull: the copy of the state. Features and outputs depend on its parameters, images on its running statistics.
    """

    features: tuple[Tensor, ...] = ()
    images: Tensor | None = None
    outputs: tuple[tuple[Tensor, ...] | None, ...] = ()
    pull: Pull = NEVER

    def __getitem__(self, rows: slice) -> Memo:
        """Some rows, sharing memory."""
        return Memo(
            tuple(each[rows] for each in self.features),
            None if self.images is None else self.images[rows],
            tuple(torso and tuple(each[rows] for each in torso) for torso in self.outputs),
            self.pull,
        )

    def of_images(self, rows: Tensor) -> Memo | None:
        """A copy of the images of some rows ``[n]``; features and outputs would cost more to copy than they save."""
        if self.images is None:
            return None
        images = self.images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
        return Memo(images=images, pull=self.pull)


Axis = Literal["T", "T+1", "B", "N"]
"""Steps of a rollout, those and the row to bootstrap from, environments, or actors."""


@dataclass(frozen=True)
class Along:
    """How a field of a rollout is laid out, and where it goes besides travelling between processes.

    Attributes:
        axes: that each of its tensors begins with.
        replayed: kept by a replay buffer.
        moved: moved to the device that learns; what only the run's own books need is not.
    """

    axes: tuple[Axis, ...]
    replayed: bool = True
    moved: bool = True

    @property
    def timed(self) -> bool:
        """Whether it has a row for each step."""
        return self.axes[0] in ("T", "T+1")


def along(*axes: Axis, replayed: bool = True, moved: bool = True) -> Mapping[str, Along]:
    """Metadata of a field of `Rollout`, from which everything that is done to all fields follows."""
    return {"along": Along(axes, replayed, moved)}


@dataclass(frozen=True)
class Rollout:
    """T steps of B environments by N actors; it may span episodes.

    Gymnasium's NEXT_STEP convention: the row after an episode's end holds the true final observation, and the
    transition from it is a fake one (the environment ignores the action and resets). `mask` is 0 there.

    A field may be a tensor or a tree of tensors, or be missing (None) where nobody needs it. A new one is declared here
    with its axes and written by `Actor.collect`; that is all.

    Attributes:
        observation: ``[T+1, B, *O]``; uint8 stays uint8 until the torso.
        is_first: ``[T+1, B]`` bool, the observation is the first of an episode.
        action: ``[T, B, *A]`` as sampled, before any clipping.
        reward: ``[T, B]`` as the environment gave it.
        terminated: ``[T, B]`` bool, nothing follows (or a life was lost and counts as an end).
        behavior_log_prob: ``[T, B]`` log μ(a_t|x_t) of the policy that acted.
        core_state: recurrent state before the first step, ``[B, ...]`` each.
        version: ``[B]`` int64, the version of θ that acted.
        behavior_params: ``[T, B, P]`` parameters of μ(·|x_t), where the algorithm reads them.
        moments: what it adds to the running statistics, by name, a row per actor.
        memo: what is known of its first T rows; it stays in the process that computed it.
    """

    observation: Tensor = field(metadata=along("T+1", "B"))
    is_first: Tensor = field(metadata=along("T+1", "B"))
    action: Tensor = field(metadata=along("T", "B"))
    reward: Tensor = field(metadata=along("T", "B"))
    terminated: Tensor = field(metadata=along("T", "B"))
    behavior_log_prob: Tensor = field(metadata=along("T", "B"))
    core_state: CoreState = field(metadata=along("B"))
    version: Tensor = field(metadata=along("B", moved=False))
    behavior_params: Tensor | None = field(default=None, metadata=along("T", "B"))
    moments: Mapping[str, Moments] = field(default_factory=dict, metadata=along("N", replayed=False, moved=False))
    memo: Memo | None = None

    @classmethod
    def blank(cls, row: Mapping[str, Tree], *, t: int, b: int, actors: int = 1) -> Self:
        """Memory of zeros for T steps of B environments.

        Args:
            row: of each field that will be there, its tensors without the axes that it declares.
            t: T.
            b: B.
            actors: N.
        """
        sizes = {"T": t, "T+1": t + 1, "B": b, "N": actors}

        def zeros(name: str) -> Tree:
            axes = [sizes[axis] for axis in FIELDS[name].axes]
            return map_tree(lambda one: one.new_zeros((*axes, *one.shape)), row[name])

        return cls(**{name: zeros(name) for name in row})

    @property
    def steps(self) -> int:
        """Real environment steps in it; fake rows are not counted."""
        return int((~self.is_first[1:]).sum())

    @property
    def mask(self) -> Tensor:
        """``[T, B]`` float: 1 for a real transition, 0 for the fake one after an episode's end."""
        return (~self.is_first[1:]).to(self.reward.dtype)

    def discount(self, gamma: float) -> Tensor:
        """``[T, B]`` γ_t = γ (1 − terminated_t)."""
        return gamma * (~self.terminated).to(self.reward.dtype)

    def replace(self, **changes: object) -> Rollout:
        """A copy with some fields replaced; with other observations the memo is no longer theirs."""
        if "observation" in changes:
            changes.setdefault("memo", None)
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def map(self, f: Callable[[Any, Along], Any], memo: Memo | None = None) -> Rollout:
        """A copy with f applied to each tensor and its layout.

        Args:
            f: of a tensor.
            memo: what is known of the copy.
        """
        mapped: dict[str, Any] = {"memo": memo}
        for name, own in FIELDS.items():
            if (tree := getattr(self, name)) is not None:
                mapped[name] = map_tree(partial(_applied, f, own), tree)
        return dataclasses.replace(self, **mapped)

    def tensors(self) -> Iterator[Tensor]:
        """Every tensor that travels: all but what the memo has."""
        for name in FIELDS:
            if (tree := getattr(self, name)) is not None:
                yield from leaves(tree)

    @property
    def acted(self) -> Rollout:
        """The T rows that were acted on, without the one to bootstrap from; sharing memory."""
        t = len(self.reward)
        return self.map(lambda x, own: x[:t] if own.timed else x, self.memo)

    def columns(self, index: Tensor | slice) -> Rollout:
        """Some environments ``[n]``: ``[T, B, ...]`` to ``[T, n, ...]``; a slice shares memory, and has no memo."""

        def chosen(x: Tensor, own: Along) -> Tensor:
            return x if "B" not in own.axes else x[:, index] if own.timed else x[index]

        memo = None
        if self.memo is not None and not isinstance(index, slice):
            t, b = self.reward.shape
            rows = b * index.new_tensor(range(t)).unsqueeze(1) + index
            memo = self.memo.of_images(rows.flatten())
        return self.map(chosen, memo)

    def rows(self, index: Tensor) -> Rollout:
        """Some of the T · B rows that were acted on ``[n]``, as one step of n environments: ``[1, n, ...]``.

        Row t of environment b is number ``t · B + b``. This is for models without a recurrent state.
        """
        t, b = self.reward.shape

        def chosen(x: Tensor, own: Along) -> Tensor:
            if own.timed:
                return x[:t].flatten(0, 1).index_select(0, index).unsqueeze(0)
            return x.index_select(0, (index % b).to(x.device)) if "B" in own.axes else x

        return self.map(chosen, self.memo and self.memo.of_images(index))

    def block(self, i: int, width: int) -> Rollout:
        """Actor i's columns, ``i · width`` to ``(i + 1) · width``, and row i of the moments; shares memory."""
        own = self.columns(slice(i * width, (i + 1) * width))
        return own.replace(moments={name: each.rows(slice(i, i + 1)) for name, each in self.moments.items()})

    def blank_(self, version: int) -> None:
        """Let it hold no step: every row is a fake one, and it adds nothing to the running statistics."""
        self.is_first.fill_(True)
        self.reward.zero_()
        self.terminated.zero_()
        self.version.fill_(version)
        for each in leaves(self.moments):
            each.zero_()

    def to(self, device: str) -> Rollout:
        """Itself where the model is, with the memo; else a copy there, without."""
        if self.observation.device.type == device:
            return self
        return self.map(lambda x, own: x.to(device) if own.moved else x)


def _applied(f: Callable[[Any, Along], Any], own: Along, tensor: Any) -> Any:
    return f(tensor, own)


FIELDS: Mapping[str, Along] = {
    each.name: each.metadata["along"] for each in dataclasses.fields(Rollout) if "along" in each.metadata
}
"""The fields of a rollout that travel, and how each is laid out."""


@dataclass(frozen=True)
class Batch:
    """What a loss sees: a rollout and what the algorithm computed once for it (targets, advantages)."""

    rollout: Rollout
    targets: Mapping[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Gradients:
    """The gradient of one batch.

    Attributes:
        vector: ``[θ]`` flat, aligned with the parameters of `State`.
        metrics: scalars of the loss.
        version: the version of θ it was computed at.
        steps: environment steps it consumes (0 when a later batch of the same rollout).
        moments: running statistics to merge when it is applied.
        step: ``[θ]`` what θ moves by besides, past the optimizer.
    """

    vector: Tensor
    metrics: Mapping[str, float | Tensor]
    version: int
    steps: int
    moments: Mapping[str, Moments] = field(default_factory=dict)
    step: Tensor | None = None


@dataclass(frozen=True)
class Outputs:
    """What a model says of every row of a rollout.

    Attributes:
        policy: ``[T+1, B, P]`` parameters of the action distribution.
        value: ``[T+1, B]`` V(x_t), or ``[T+1, B, A]`` Q(x_t, ·) where the algorithm asked for q of listed actions.
        advantage: where it asked for q of a Box, from actions ``[..., T, B, d]`` to A(x_t, a) of the first T rows.
    """

    policy: Tensor
    value: Tensor
    advantage: Callable[[Tensor], Tensor] | None = None

    @property
    def q(self) -> Tensor:
        """``[T+1, B, A]`` Q(x_t, ·) of listed actions."""
        return self.value


class Direction(NamedTuple):
    """Where a batch leads.

    Attributes:
        gradient: of each parameter, for the optimizer to descend.
        metrics: scalars by name.
        step: of each parameter, taken without the optimizer; None where there is none.
    """

    gradient: tuple[Tensor, ...]
    metrics: Metrics
    step: tuple[Tensor, ...] | None = None


class Distribution(Protocol):
    """π(·|x) for a batch of observations; leading shape ``[...]``, actions ``[..., *A]``."""

    def sample(self, generator: torch.Generator | None) -> Tensor:
        """a ~ π, ``[..., *A]``, drawn from the generator given."""

    def mode(self) -> Tensor:
        """The most likely action, ``[..., *A]``."""

    def log_prob(self, action: Tensor) -> Tensor:
        """log π(a|x), ``[...]``."""

    def entropy(self) -> Tensor:
        """H(π(·|x)) in nats, ``[...]``."""

    def kl_from(self, other: Any, /) -> Tensor:
        """KL(other ‖ π), ``[...]``, of another of its kind."""
