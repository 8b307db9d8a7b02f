"""What an algorithm is, and what it may ask of a model and of a replay buffer."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Protocol, Self

if TYPE_CHECKING:
    import torch
    from torch import Tensor
from polyactor.data import Batch, Direction, Distribution, Metrics, Outputs, Rollout
from polyactor.fields import Allowed


class Model(Protocol):
    """What an algorithm may ask of an actor-critic."""

    def distribution(self, params: Tensor, /) -> Distribution:
        """Parameters ``[..., P]`` to the distribution they describe."""

    def unroll(self, rollout: Rollout) -> Outputs:
        """Policy and value of every row, from the rollout's initial recurrent state.

        The row after the last step is there to bootstrap from: what the torso sees in it is not differentiated.
        """


class Replay(Protocol):
    """A memory of past rollouts (none of the on-policy algorithms has one)."""

    @property
    def steps(self) -> int:
        """Steps in it that can be sampled."""

    @property
    def full(self) -> bool:
        """It will not hold more than now."""

    def sample(self, count: int, generator: torch.Generator, length: int | None = None) -> Rollout:
        """So many rollouts of one environment each, ``[T, count]``, any of them as likely as any other.

        Args:
            count: of rollouts.
            generator: draws them.
            length: T of stretches that begin anywhere, instead of rollouts as they were.
        """


Differentiate = Callable[["Model", Batch, "Model | None", Sequence["Tensor"]], Direction]
"""Called with the model, a batch, the average network and the model's parameters."""


@dataclass(frozen=True)
class Algorithm:
    """Hyper-parameters and the equation. Knows nothing of processes, optimizers or environments.

    A new one is a frozen dataclass with a `loss`; everything else has a default.
    """

    gamma: Annotated[float, Allowed(0, 1)] = 0.99
    """Discount γ of one agent step; ``--normalize.reward`` scales by the return that it discounts."""

    outputs: ClassVar[tuple[str, ...]] = ("policy", "value")
    """The heads its loss reads: policy, and value or q (of each action, or by a dueling network of a Box)."""
    metrics: ClassVar[tuple[str, ...]] = ("policy_loss", "value_loss", "entropy")
    """The scalars its loss reports; each becomes a key of ``metrics.jsonl``."""
    corrects_lag: ClassVar[bool] = False
    """It learns rightly from rollouts of a policy older than the one that is improved."""
    reuses: ClassVar[bool] = False
    """It makes several batches of one rollout, each to be taken at the parameters the last one left."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """The optional fields of a rollout that its loss reads, by name, such as behavior_params."""

    @property
    def remembers(self) -> int:
        """Steps it wants remembered, by all workers together, to be learned from again."""
        return 0

    @property
    def averaging(self) -> float | None:
        """α of an average network θ_a ← α θ_a + (1 − α) θ after every update; None has none."""
        return None

    @property
    def moves(self) -> bool:
        """It moves θ itself, past the optimizer, from the θ it differentiated at."""
        return False

    @property
    def differentiate(self) -> Differentiate | None:
        """What stands in for the gradient of `loss`; None: nothing does."""
        return None

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        """The scalar whose gradient is descended, and metrics by name."""
        raise NotImplementedError

    def batches(
        self, model: Model, rollout: Rollout, replay: Replay | None, generator: torch.Generator
    ) -> Generator[Batch, Metrics, None]:
        """The batches one rollout gives; each `yield` returns the metrics of the batch just applied."""
        yield Batch(rollout)

    def fits(self, columns: int, *, memory: bool, alone: bool) -> None:
        """Whether it can be run so.

        Args:
            columns: environments in one batch.
            memory: the model has a recurrent core.
            alone: nobody else moves θ between a gradient's being taken and its being applied.

        Raises:
            UsageError: naming the flag, the value and what is allowed.
        """

    def suits(self, *, continuous: bool) -> None:
        """Whether it can be run with such actions.

        Args:
            continuous: they are a Box.

        Raises:
            UsageError: naming the flag, the value and what is allowed.
        """

    def at(self, progress: float) -> Self:
        """Itself with annealed coefficients; progress in [0, 1] is environment steps consumed ÷ total."""
        return self
