"""Rollouts: T steps of B environments, what is known of them, and what is done to all of their fields.

Shapes are written ``[T, B, ...]``: time first, always; ``T`` steps of ``B`` environments. ``O`` is the shape of
one observation, ``A`` of one action, ``P`` the number of parameters of the action distribution.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Self

if TYPE_CHECKING:
    from torch import Tensor


CoreState = tuple["Tensor", ...]
"""The recurrent state of a model, ``([B, H], ...)``, which is ``()`` for a model without a recurrent core."""


Tree = Any
"""A tensor, or a tuple, NamedTuple or mapping of trees."""


def map_tree(f: Callable[[Any], Any], tree: Tree) -> Tree:
    """Apply f to each tensor of a tree, and return a tree of the same structure."""
    if isinstance(tree, tuple):
        mapped = [map_tree(f, each) for each in tree]
        return type(tree)(*mapped) if hasattr(tree, "_fields") else tuple(mapped)
    if isinstance(tree, Mapping):
        return {name: map_tree(f, each) for name, each in tree.items()}
    return f(tree)


def leaves(tree: Tree) -> Iterator[Any]:
    """Iterate over the tensors of a tree, depth first."""
    parts = tree if isinstance(tree, tuple) else tree.values() if isinstance(tree, Mapping) else None
    if parts is None:
        yield tree
    else:
        for part in parts:
            yield from leaves(part)


def named(name: str, tree: Tree) -> Tree:
    """Return the tree with each tensor replaced by a name for it; that of several is followed by their numbers."""
    if isinstance(tree, tuple):
        return tuple(named(f"{name}_{i}", part) for i, part in enumerate(tree))
    if isinstance(tree, Mapping):
        return {key: named(f"{name}_{i}", part) for i, (key, part) in enumerate(tree.items())}
    return name


def at(tree: Tree, index: Any) -> Tree:
    """Index each tensor or array of a tree; the result shares memory with it where indexing does."""
    return {name: at(each, index) for name, each in tree.items()} if isinstance(tree, Mapping) else tree[index]


class Moments(NamedTuple):
    """Moments of the new samples of a running statistic, one row for each of N actors.

    Attributes:
        samples: ``[N]`` the number of samples.
        mean: ``[N, *shape]`` the mean of the samples; ``shape`` is that of the statistic.
        m2: ``[N, *shape]`` the sum of the samples' squared deviations from the mean.
    """

    samples: Tensor
    mean: Tensor
    m2: Tensor

    def rows(self, rows: slice) -> Moments:
        """Select the moments of some actors; the result shares memory with this one."""
        return Moments(self.samples[rows], self.mean[rows], self.m2[rows])

    def copy_(self, other: Moments) -> None:
        """Overwrite these moments in place with other ones of the same shape."""
        for target, source in zip(self, other, strict=True):
            target.copy_(source)


class Pull(NamedTuple):
    """Identifies the copy of parameters and running statistics that a model holds; numbers are unique in the process.

    Attributes:
        parameters: the number of the copy of θ; it changes whenever the model's parameters are replaced.
        statistics: the number of the copy of the running statistics; it changes whenever they are replaced.
    """

    parameters: int
    statistics: int


NEVER = Pull(0, 0)
"""The pull of a model that still has its initial parameters and statistics."""


@dataclass(frozen=True)
class Memo:
    """Activations of a rollout's first T rows, kept while acting so that learning need not compute them again.

    A model uses a memo only while it holds the same parameters (for features and outputs) and running statistics (for
    images) as when the memo was written. Algorithms do not see it.

    Attributes:
        features: ``[T·B, F]`` for each torso; they suffice where no gradient is needed.
        images: ``[T·B, C, H, W]`` scaled as the convolutions take them, channels last in memory.
        outputs: for each torso the outputs ``[T·B, ...]`` of its layers with weights, from which gradients are taken.
        pull: identifies the parameters and running statistics that the memo was computed with.
        noise: the noise of noisy layers that features and outputs were computed with; None without such layers.
    """

    features: tuple[Tensor, ...] = ()
    images: Tensor | None = None
    outputs: tuple[tuple[Tensor, ...] | None, ...] = ()
    pull: Pull = NEVER
    noise: Tensor | None = None

    def __getitem__(self, rows: slice) -> Memo:
        """Select some of the T·B rows; the result shares memory with this memo."""
        return Memo(
            tuple(each[rows] for each in self.features),
            None if self.images is None else self.images[rows],
            tuple(torso and tuple(each[rows] for each in torso) for torso in self.outputs),
            self.pull,
            self.noise,
        )

    def of_images(self, rows: Tensor) -> Memo | None:
        """Copy the images of some rows ``[n]`` to a new memo, without features and outputs; None without images.

        To copy features and outputs would take longer than to compute them again.
        """
        if self.images is None:
            return None
        images = self.images.permute(0, 2, 3, 1).index_select(0, rows).permute(0, 3, 1, 2)
        return Memo(images=images, pull=self.pull)


Axis = Literal["T", "T+1", "B", "N"]
"""Axis of a rollout: T steps, T+1 steps with the bootstrap row, B environments, or N actors."""


@dataclass(frozen=True)
class Along:
    """The leading axes of a field of a rollout, and the places besides other processes that the field is copied to.

    Attributes:
        axes: the axes that each tensor of the field begins with.
        replayed: whether a replay buffer keeps the field.
        moved: whether the field is moved to the device that learns; bookkeeping such as `version` stays on the CPU.
    """

    axes: tuple[Axis, ...]
    replayed: bool = True
    moved: bool = True

    @property
    def timed(self) -> bool:
        """Whether the field has a row for each step."""
        return self.axes[0] in ("T", "T+1")


def along(*axes: Axis, replayed: bool = True, moved: bool = True) -> Mapping[str, Along]:
    """Return the dataclass metadata that declares a field of `Rollout` with its leading axes.

    Args:
        axes: the axes that each tensor of the field begins with.
        replayed: whether a replay buffer keeps the field.
        moved: whether the field is moved to the device that learns.
    """
    return {"along": Along(axes, replayed, moved)}


@dataclass(frozen=True)
class Rollout:
    """A rollout is T steps of B environments, collected by N actors; it may span episodes.

    It follows Gymnasium's NEXT_STEP convention: the row after the last step of an episode holds the true final
    observation. The transition from that row is fake: the environment ignores the action and resets. `mask` is 0 there.

    A field is a tensor, a tree of tensors, or None where the algorithm does not read it. To add a field, declare it
    here with its axes and write it in `Actor.collect`.

    Attributes:
        observation: ``[T+1, B, *O]``; uint8 stays uint8 until the torso. A mapping of such tensors by the name of the
            entry, where an observation has several.
        is_first: ``[T+1, B]`` bool, whether the observation is the first of an episode.
        action: ``[T, B, *A]`` as sampled, before any clipping; of mixed actions the choices first, then the numbers.
        reward: ``[T, B]`` as the environment gave it; a loss sees it scaled and clipped as the run's config says.
        terminated: ``[T, B]`` bool, whether the episode terminated (or a life was lost and counts as an end).
        behavior_log_prob: ``[T, B]`` log μ(a_t|x_t) of the policy that acted.
        core_state: the recurrent state before the first step, tensors ``[B, ...]``.
        version: ``[B]`` int64, the version of θ that acted.
        behavior_params: ``[T, B, P]`` parameters of μ(·|x_t), for algorithms that read them.
        action_mask: ``[T+1, B, C]`` bool, the legal ones of the C choices of all discrete parts of an action, for
            environments that say so; all are legal in rows that are not acted on and have no legal one.
        noise: ``[B, n]`` factorised noise of the model's noisy layers, drawn when the rollout began.
        actor_noise: ``[N, n]`` independent noise of these layers, the same for all environments of an actor.
        moments: the samples that the rollout adds to each running statistic, by name, one row per actor.
        memo: activations of the first T rows; it stays in the process that computed it.
    """

    observation: Tree = field(metadata=along("T+1", "B"))
    is_first: Tensor = field(metadata=along("T+1", "B"))
    action: Tensor = field(metadata=along("T", "B"))
    reward: Tensor = field(metadata=along("T", "B"))
    terminated: Tensor = field(metadata=along("T", "B"))
    behavior_log_prob: Tensor = field(metadata=along("T", "B"))
    core_state: CoreState = field(metadata=along("B"))
    version: Tensor = field(metadata=along("B", moved=False))
    behavior_params: Tensor | None = field(default=None, metadata=along("T", "B"))
    action_mask: Tensor | None = field(default=None, metadata=along("T+1", "B"))
    noise: Tensor | None = field(default=None, metadata=along("B"))
    actor_noise: Tensor | None = field(default=None, metadata=along("N", replayed=False))
    moments: Mapping[str, Moments] = field(default_factory=dict, metadata=along("N", replayed=False, moved=False))
    memo: Memo | None = None

    @classmethod
    def blank(cls, row: Mapping[str, Tree], *, t: int, b: int, actors: int = 1) -> Self:
        """Allocate a rollout of zeros.

        Args:
            row: for each field to be allocated, an example of its tensors without their leading axes.
            t: T, steps.
            b: B, environments.
            actors: N, actors.
        """
        sizes = {"T": t, "T+1": t + 1, "B": b, "N": actors}

        def zeros(name: str) -> Tree:
            axes = [sizes[axis] for axis in FIELDS[name].axes]
            return map_tree(lambda one: one.new_zeros((*axes, *one.shape)), row[name])

        return cls(**{name: zeros(name) for name in row})

    @property
    def steps(self) -> int:
        """Number of real environment steps in this rollout; fake rows do not count."""
        return int((~self.is_first[1:]).sum())

    @property
    def mask(self) -> Tensor:
        """``[T, B]`` float, 1 for a real transition and 0 for the fake one after an episode's end."""
        return (~self.is_first[1:]).to(self.reward.dtype)

    def discount(self, gamma: float) -> Tensor:
        """Return the discounts ``[T, B]``, γ_t = γ (1 − terminated_t)."""
        return gamma * (~self.terminated).to(self.reward.dtype)

    def replace(self, **changes: object) -> Rollout:
        """Return a copy with some fields replaced; new observations drop the memo, which belongs to the old ones."""
        if "observation" in changes:
            changes.setdefault("memo", None)
        return dataclasses.replace(self, **changes)  # type: ignore[arg-type]

    def map(self, f: Callable[[Any, Along], Any], memo: Memo | None = None) -> Rollout:
        """Return a copy with f applied to each tensor.

        Args:
            f: called with a tensor and the layout of its field.
            memo: the memo of the copy.
        """
        mapped: dict[str, Any] = {"memo": memo}
        for name, layout in FIELDS.items():
            if (tree := getattr(self, name)) is not None:
                mapped[name] = map_tree(partial(_applied, f, layout), tree)
        return dataclasses.replace(self, **mapped)

    def tensors(self) -> Iterator[Tensor]:
        """Iterate over the tensors of all fields but the memo."""
        yield from self.named().values()

    def named(self) -> dict[str, Tensor]:
        """Return the tensors of all fields but the memo by name."""
        trees = {name: tree for name in FIELDS if (tree := getattr(self, name)) is not None}
        names = [each for name, tree in trees.items() for each in leaves(named(name, tree))]
        return dict(zip(names, leaves(trees), strict=True))

    @property
    def acted(self) -> Rollout:
        """The T rows with an action, without the bootstrap row; shares memory with this rollout."""
        t = len(self.reward)
        return self.map(lambda x, layout: x[:t] if layout.timed else x, self.memo)

    def columns(self, index: Tensor | slice) -> Rollout:
        """Select n environments: ``[T, B, ...]`` to ``[T, n, ...]``; a slice shares memory and drops the memo."""

        def chosen(x: Tensor, layout: Along) -> Tensor:
            return x if "B" not in layout.axes else x[:, index] if layout.timed else x[index]

        memo = None
        if self.memo is not None and not isinstance(index, slice):
            t, b = self.reward.shape
            rows = b * index.new_tensor(range(t)).unsqueeze(1) + index
            memo = self.memo.of_images(rows.flatten())
        return self.map(chosen, memo)

    def rows(self, index: Tensor) -> Rollout:
        """Select n of the T · B rows with an action, as one step of n environments: ``[1, n, ...]``.

        This is for models without a recurrent state.

        Args:
            index: ``[n]`` row numbers; step t of environment b is row ``t · B + b``.
        """
        t, b = self.reward.shape

        def chosen(x: Tensor, layout: Along) -> Tensor:
            if layout.timed:
                return x[:t].flatten(0, 1).index_select(0, index).unsqueeze(0)
            return x.index_select(0, (index % b).to(x.device)) if "B" in layout.axes else x

        return self.map(chosen, self.memo and self.memo.of_images(index))

    def block(self, i: int, width: int) -> Rollout:
        """Select what actor i collects: its `width` environments and row i of what has one per actor; shares memory."""
        columns = self.columns(slice(i * width, (i + 1) * width))
        return columns.map(lambda x, layout: x[i : i + 1] if layout.axes == ("N",) else x)

    def blank_(self, version: int) -> None:
        """Empty this rollout in place: all rows become fake ones, and the moments have no samples.

        Args:
            version: the version of θ that the rollout is marked with.
        """
        self.is_first.fill_(True)
        self.reward.zero_()
        self.terminated.zero_()
        self.version.fill_(version)
        for each in leaves(self.moments):
            each.zero_()

    def to(self, device: str) -> Rollout:
        """Return a copy on the device, without the memo; or this rollout if it is on the device already."""
        if self.reward.device.type == device:
            return self
        return self.map(lambda x, layout: x.to(device) if layout.moved else x)


def _applied(f: Callable[[Any, Along], Any], layout: Along, tensor: Any) -> Any:
    return f(tensor, layout)


FIELDS: Mapping[str, Along] = {
    each.name: each.metadata["along"] for each in dataclasses.fields(Rollout) if "along" in each.metadata
}
"""The layout of each field of a rollout but the memo, by name."""


OPTIONAL = frozenset({"behavior_params"})
"""The fields that a rollout has only where an algorithm needs them."""


@dataclass(frozen=True)
class Batch:
    """The input of a loss: a rollout, and targets that the algorithm computed once for it, such as advantages."""

    rollout: Rollout
    targets: Mapping[str, Tensor] = field(default_factory=dict)
