"""Learning: a `Learner` turns a rollout into gradients, taken at a `Replica` of the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping

import torch
from torch import Tensor

from polyactor.agent.compiled import compiled
from polyactor.agent.replay_buffer import ReplayBuffer
from polyactor.agent.replica import Replica
from polyactor.algorithms.base import Algorithm
from polyactor.data import Batch, Direction, Gradients, Metrics, Rollout
from polyactor.models.actor_critic import ActorCritic
from polyactor.optim.flat import parameter_views
from polyactor.shared.timing import Part, Watch, unwatched
from polyactor.system.failpoints import hit


class Learner:
    """Turns rollouts into gradients at a replica's parameters.

    Args:
        algorithm: the loss, and which batches a rollout gives.
        replica: its model is differentiated; gets a gradient vector of its own.
        total_steps: environment steps of the whole run; progress is steps consumed ÷ this.
        clip_reward: learn from rewards clipped to ±this; none does not clip.
        generator: the algorithm's own random stream, on the replica's device.
        replay: what an algorithm that replays keeps its rollouts in.
        compile: differentiate by code that is compiled for this loss and model when the first batch comes.
        spend: called with the seconds each gradient took.
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
        spend: Callable[[Part, float], None] = unwatched,
    ) -> None:
        self.algorithm, self.replica, self.spend = algorithm, replica, spend
        self.total_steps, self.clip_reward, self.generator, self.replay = total_steps, clip_reward, generator, replay
        vector = replica.vector
        self.gradient = torch.zeros(replica.state.layout.theta, dtype=vector.dtype, device=vector.device)
        self.places = parameter_views(replica.model, self.gradient)
        self.uncounted = 0
        self.differentiate = compiled(differentiate) if compile else differentiate

    def gradients(self, rollout: Rollout) -> Iterator[Gradients]:
        """dθ of every batch the algorithm makes of a rollout.

        The first is taken at the replica's parameters of now; before each later one the newest are pulled. Where all
        batches are of this rollout the running statistics stay: all see it scaled alike.
        """
        watch = Watch(self.spend)
        replica, model = self.replica, self.replica.model
        algorithm = self.algorithm.at(replica.counters.steps / self.total_steps)
        steps, moments = rollout.steps + self.uncounted, rollout.moments
        self.uncounted = steps  # until a gradient carries them: an algorithm may make none of a rollout
        if self.replay is not None:
            self.replay.add(rollout)
        rollout = rollout.to(replica.device)
        rollout = rollout.replace(reward=self._scaled(rollout.reward))
        if algorithm.reuses:
            rollout = model.with_images(rollout)
        batches = algorithm.batches(model, rollout, self, self.generator)
        with torch.no_grad():  # what a batch needs of the model (targets) is not differentiated; its loss is
            batch: Batch | None = next(batches, None)
        while batch is not None:
            dtheta, metrics, step = self._direction(algorithm, batch)
            for place, gradient in zip(self.places, dtheta, strict=True):
                place.copy_(gradient)  # all of it, so nothing survives from the update before
            metrics["policy_lag"] = replica.version - batch.rollout.version.double().mean()
            gradients = Gradients(self.gradient.cpu(), metrics, replica.version, steps, moments, self._joined(step))
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
        """Steps that can be replayed."""
        return 0 if self.replay is None else self.replay.steps

    @property
    def full(self) -> bool:
        """There is no room for more."""
        return self.replay is None or self.replay.full

    def sample(self, count: int, generator: torch.Generator, length: int | None = None) -> Rollout:
        """Replayed rollouts where the model is, their rewards scaled as those of a fresh one are."""
        assert self.replay is not None, "an algorithm samples when there are steps"
        rollout = self.replay.sample(count, generator, length).to(self.replica.device)
        return self.replica.model.with_images(rollout.replace(reward=self._scaled(rollout.reward)))

    def snapshot(self) -> dict[str, Tensor]:
        """What is its own: the rest is the state's, and replayed rollouts are in files."""
        own = {"generator": self.generator.get_state(), "uncounted": torch.tensor(self.uncounted)}
        return own if self.replay is None else own | {"replayed": torch.tensor(self.replay.flushed())}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Go on, to the bit, as the learner that `snapshot` was taken of.

        Raises:
            CheckpointError: rollouts that could be replayed then have been overwritten since.
        """
        self.generator.set_state(saved["generator"])
        self.uncounted = int(saved["uncounted"])
        if self.replay is not None:
            self.replay.rewind(int(saved["replayed"]))

    def _direction(self, algorithm: Algorithm, batch: Batch) -> Direction:
        """By the loss's gradient, or in the algorithm's own way."""
        hit("gradient")
        model, own = self.replica.model, algorithm.differentiate
        if own is None:
            return Direction(*self.differentiate(algorithm, model, batch))
        model.pulled(statistics=False)  # it may move θ' while it differentiates, or differentiate twice
        return own(model, batch, model.average, tuple(model.parameters()))

    def _joined(self, step: tuple[Tensor, ...] | None) -> Tensor | None:
        """``[θ]``, laid out as the gradient is."""
        if step is None:
            return None
        vector = torch.zeros_like(self.gradient)
        for place, part in zip(parameter_views(self.replica.model, vector), step, strict=True):
            place.copy_(part)
        return vector.cpu()

    def _scaled(self, reward: Tensor) -> Tensor:
        """What is learned from; the score stays the environment's own."""
        moments = self.replica.model.return_moments
        if moments is not None and moments.count > 0:
            reward = reward / (moments.variance + 1e-8).sqrt()
        return reward if self.clip_reward is None else reward.clamp(-self.clip_reward, self.clip_reward)


def differentiate(algorithm: Algorithm, model: ActorCritic, batch: Batch) -> tuple[tuple[Tensor, ...], Metrics]:
    """∂L/∂θ' of every parameter, in the model's order, and the loss's metrics."""
    loss, metrics = algorithm.loss(model, batch, model.average)
    return torch.autograd.grad(loss, tuple(model.parameters()), materialize_grads=True), metrics
