"""The interface of algorithms, and of the model and the replay buffer that they are given."""

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
    """The part of an actor-critic network that a loss can use."""

    def distribution(self, params: Tensor, /) -> Distribution:
        """Return the policy that has the parameters ``[..., P]``."""

    def unroll(self, rollout: Rollout) -> Outputs:
        """Compute policy and value of every row, from the rollout's initial recurrent state.

        No gradient flows through the torso at the bootstrap row, the one after the last step.
        """


class Replay(Protocol):
    """A replay buffer of past rollouts, for off-policy algorithms."""

    @property
    def steps(self) -> int:
        """Number of steps that can be sampled."""

    @property
    def full(self) -> bool:
        """Whether the buffer has reached its capacity, so that a new rollout replaces the oldest one."""

    def sample(self, count: int, generator: torch.Generator, length: int | None = None) -> Rollout:
        """Sample sequences of one environment each uniformly, as a rollout ``[T, count]``.

        Args:
            count: the number of sequences.
            generator: the source of random numbers.
            length: T of sequences that may begin at any step; None samples whole rollouts as they were collected.
        """


Differentiate = Callable[["Model", Batch, "Model | None", Sequence["Tensor"]], Direction]
"""A function of the model, a batch, the average network (or None) and the model's parameters to a `Direction`."""


@dataclass(frozen=True)
class Algorithm:
    """An algorithm is a frozen dataclass of hyper-parameters with a `loss`; everything else has a default.

    It is independent of processes, optimizers and environments, so it runs under every scheme.
    """

    gamma: Annotated[float, Allowed(0, 1)] = 0.99
    """Discount γ of one agent step; it also discounts the return whose deviation ``--normalize.reward`` divides by."""

    outputs: ClassVar[tuple[str, ...]] = ("policy", "value")
    """The heads that the loss reads: policy, and value or q (for a Box of actions, q is a dueling network)."""
    metrics: ClassVar[tuple[str, ...]] = ("policy_loss", "value_loss", "entropy")
    """The scalars that the loss reports; each becomes a key of ``metrics.jsonl``."""
    corrects_lag: ClassVar[bool] = False
    """Whether the loss corrects for rollouts of a behaviour policy older than the current one."""
    reuses: ClassVar[bool] = False
    """Whether one rollout gives several batches, each differentiated with the parameters after the one before."""

    needs: ClassVar[frozenset[str]] = frozenset()
    """The optional fields of a rollout that the loss reads, by name, such as behavior_params."""

    @property
    def remembers(self) -> int:
        """Capacity of the replay buffers of all workers together, in steps; 0 without replay."""
        return 0

    @property
    def spans_rollouts(self) -> bool:
        """Whether a replayed sequence may begin within a rollout and end in the next one."""
        return False

    @property
    def averaging(self) -> float | None:
        """α of an average network, θ_a ← α θ_a + (1 − α) θ after every update; None without such a network."""
        return None

    @property
    def moves(self) -> bool:
        """Whether `differentiate` returns steps that are added to θ without the optimizer."""
        return False

    @property
    def differentiate(self) -> Differentiate | None:
        """A function that computes the direction of an update in place of the gradient of `loss`, or None."""
        return None

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[Tensor, Metrics]:
        """Compute the scalar loss of a batch, and metrics by name.

        Args:
            model: the network with the parameters that are differentiated.
            batch: a rollout ``[T, B]`` and its targets.
            average: the average network, for algorithms whose `averaging` is not None.
        """
        raise NotImplementedError

    def batches(
        self, model: Model, rollout: Rollout, replay: Replay | None, generator: torch.Generator
    ) -> Generator[Batch, Metrics, None]:
        """Yield the batches that one rollout gives; each `yield` returns the metrics of the batch just applied.

        Args:
            model: the network. Until the first `yield` it has its current parameters; after each `yield` those at which
                the batch just applied was differentiated: the newest are pulled when the next batch is given.
            rollout: a fresh rollout ``[T, B]``, with its rewards scaled and clipped as the run's config says.
            replay: the worker's replay buffer, which holds the fresh rollout already and whose `steps` are 0 where
                `remembers` is 0; None where batches are made without a run.
            generator: the source of random numbers.
        """
        yield Batch(rollout)

    def fits(self, columns: int, *, memory: bool, alone: bool) -> None:
        """Check that the hyper-parameters fit each other, the model and the scheme.

        Args:
            columns: the number of environments in one batch.
            memory: whether the model has a recurrent core.
            alone: whether no other worker changes θ between differentiating a batch and applying its gradient.

        Raises:
            UsageError: they do not; the sentence names the flag, its value and what is allowed.
        """

    def suits(self, *, continuous: bool, parts: int) -> None:
        """Check that the hyper-parameters fit the action space.

        Args:
            continuous: whether actions are a Box, or have one among their parts.
            parts: the number of discrete parts of an action.

        Raises:
            UsageError: they do not; the sentence names the flag, its value and what is allowed.
        """

    def at(self, progress: float) -> Self:
        """Return a copy with annealed coefficients.

        Args:
            progress: environment steps consumed ÷ total steps of the run, in [0, 1].
        """
        return self
