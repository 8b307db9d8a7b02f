"""Learning: a `Learner` turns a rollout into gradients of the loss, taken at a `Replica` of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import torch
from torch import Tensor

from polyactor.agent.compiled import compiled
from polyactor.agent.fisher import Observer
from polyactor.agent.replay_buffer import ReplayBuffer
from polyactor.agent.replica import Replica
from polyactor.agent.reward_scaling import RewardScaling
from polyactor.algorithms.base import Algorithm
from polyactor.data import Batch, Direction, Gradients, Metrics, Rollout
from polyactor.errors import UsageError
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.noisy import MEAN_SIGMA
from polyactor.optim.flat import parameter_views
from polyactor.shared.timing import Part, Watch, unwatched
from polyactor.system.failpoints import hit


class Learner:
    """Turns rollouts into gradients at the parameters of a replica.

    Args:
        algorithm: defines the loss, and the batches that a rollout gives.
        replica: holds the model that is differentiated.
        total_steps: agent steps of the whole run; progress is the steps consumed divided by this number.
        clip_reward: the bound that rewards are clipped to before learning, ±clip_reward; None means no clipping.
        generator: the random stream of the algorithm, on the device of the replica.
        replay: the replay buffer, for algorithms that replay.
        compile: whether gradients are computed by code that torch.compile makes when the first batch comes.
        observer: estimates the factors of the Fisher matrix, for optimizers that want them.
        spend: called with `Part.DIFFERENTIATE` and the seconds each gradient took.
    """

    def __init__(
        self,
        algorithm: Algorithm,
        replica: Replica,
        *,
        total_steps: int,
        clip_reward: float | None,
        generator: torch.Generator,
        replay: ReplayBuffer | None = None,
        compile: bool = False,
        observer: Observer | None = None,
        spend: Callable[[Part, float], None] = unwatched,
    ) -> None:
        self.algorithm, self.replica, self.spend, self.observer = algorithm, replica, spend, observer
        self.total_steps, self.generator, self.replay = total_steps, generator, replay
        self.scaled = RewardScaling(replica.model.return_moments, clip_reward)
        vector = replica.vector
        self.gradient = torch.zeros(replica.state.layout.theta, dtype=vector.dtype, device=vector.device)
        self.places = parameter_views(replica.model, self.gradient)
        self.uncounted = 0
        self.differentiate = compiled(differentiate) if compile else differentiate

    def gradients(self, rollout: Rollout) -> Iterator[Gradients]:
        """Yield dθ, the gradient of each batch that the algorithm makes of a rollout.

        The first gradient is taken at the replica's current parameters; before each later one the replica pulls the
        newest. If all batches come from this rollout, the running statistics stay, so that all batches are scaled
        alike. The gradients share one memory: apply each before the next is asked for.

        Raises:
            UsageError: the algorithm has given no batch for as many steps as the whole run has.
        """
        watch, replica, model = Watch(self.spend), self.replica, self.replica.model
        self.algorithm = replica.counters.changes.into("algorithm", self.algorithm)
        algorithm = self.algorithm.at(replica.counters.steps / self.total_steps)
        steps, moments = rollout.steps + self.uncounted, rollout.moments
        self.uncounted = steps  # until a gradient carries them: a rollout may give no batch
        if self.replay is not None:
            self.replay.add(rollout)
        rollout = rollout.to(replica.device)
        rollout = rollout.replace(reward=self.scaled(rollout.reward))
        if algorithm.reuses:
            rollout = model.with_images(rollout)
        batches = algorithm.batches(model, rollout, self, self.generator)
        with torch.no_grad():  # targets of a batch are not differentiated
            batch: Batch | None = next(batches, None)
        if batch is None and steps >= self.total_steps:
            name = type(algorithm).__name__
            raise UsageError(f"--algorithm {name} cannot be trained: batches() gave none of the run's {steps} steps")
        while batch is not None:
            if model.average is not None:  # it sees the same images, scaled as they are now
                batch = replace(batch, rollout=model.with_images(batch.rollout))
            dtheta, metrics, step = self._direction(algorithm, batch)
            for place, gradient in zip(self.places, dtheta, strict=True):
                place.copy_(gradient)
            if model.noise is not None:
                metrics[MEAN_SIGMA] = model.noise.mean_sigma()
            metrics["policy_lag"] = replica.version - batch.rollout.version.double().mean()
            own = {} if self.observer is None else self.observer(batch.rollout, self.generator, replica.version)
            gradients = Gradients(
                self.gradient.cpu(), metrics, replica.version, steps, moments, self._joined(step), own
            )
            watch.lap(Part.DIFFERENTIATE)
            self.uncounted = 0
            yield gradients
            watch = Watch(self.spend)
            steps, moments = 0, {}
            try:
                with torch.no_grad():
                    batch = batches.send(metrics)
            except StopIteration:
                return
            replica.pull(running=not algorithm.reuses)

    @property
    def steps(self) -> int:
        """Return the number of agent steps that can be replayed."""
        return 0 if self.replay is None else self.replay.steps

    @property
    def full(self) -> bool:
        """Return whether the replay buffer holds as many steps as it ever will."""
        return self.replay is None or self.replay.full

    def sample(self, count: int, generator: torch.Generator, length: int | None = None) -> Rollout:
        """Sample replayed rollouts ``[T, count]``, on the model's device, with rewards scaled as in fresh rollouts.

        The arguments are those of `ReplayBuffer.sample`.
        """
        assert self.replay is not None, "an algorithm samples when there are steps"
        rollout = self.replay.sample(count, generator, length).to(self.replica.device)
        return rollout.replace(reward=self.scaled(rollout.reward))

    def snapshot(self) -> dict[str, Tensor]:
        """Return the random stream and the counts that an exact resume needs; replayed rollouts stay in their files."""
        own = {"generator": self.generator.get_state(), "uncounted": torch.tensor(self.uncounted)}
        return own if self.replay is None else own | {"replayed": torch.tensor(self.replay.flushed())}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Restore a `snapshot`: the gradients that follow are bit-identical to those of the learner it was taken of.

        Raises:
            CheckpointError: rollouts that the snapshot could replay have been overwritten since.
        """
        self.generator.set_state(saved["generator"])
        self.uncounted = int(saved["uncounted"])
        if self.replay is not None:
            self.replay.rewind(int(saved["replayed"]))

    @torch.enable_grad()
    def _direction(self, algorithm: Algorithm, batch: Batch) -> Direction:
        """Return the gradient of the loss, or the direction of the algorithm if it defines its own `differentiate`."""
        hit("gradient")
        model, own = self.replica.model, algorithm.differentiate
        if own is None:
            return Direction(*self.differentiate(algorithm, model, batch))
        model.pulled(statistics=False)  # the algorithm may move θ' while it differentiates
        return own(model, batch, model.average, tuple(model.parameters()))

    def _joined(self, step: tuple[Tensor, ...] | None) -> Tensor | None:
        """Join a step of each parameter into one vector ``[θ]`` with the layout of the gradient."""
        if step is None:
            return None
        vector = torch.zeros_like(self.gradient)
        for place, part in zip(parameter_views(self.replica.model, vector), step, strict=True):
            place.copy_(part)
        return vector.cpu()


def differentiate(algorithm: Algorithm, model: ActorCritic, batch: Batch) -> tuple[tuple[Tensor, ...], Metrics]:
    """Return ∂L/∂θ' of every parameter, in the model's order, and the metrics of the loss."""
    loss, metrics = algorithm.loss(model, batch, model.average)
    return torch.autograd.grad(loss, tuple(model.parameters()), materialize_grads=True), metrics
