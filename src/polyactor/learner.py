"""Learning: `Learner` turns a rollout into gradients, `Updater` applies them. Schemes decide where each happens."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch
from torch import Tensor

from polyactor.board import Board, Counter, Part, Watch, scalars, unwatched
from polyactor.compiled import compiled
from polyactor.errors import Diverged
from polyactor.models.actor_critic import ActorCritic
from polyactor.models.normalizer import merge
from polyactor.optim.flat import State, bind, parameter_views
from polyactor.optim.rules import Rule
from polyactor.types import Algorithm, Batch, Gradients, Metrics, Rollout

SKIPS_ALLOWED = 20
"""Updates in a row that may be skipped for a non-finite gradient before the run stops."""


class Replica:
    """θ', a private copy of the state that a model is bound to.

    Args:
        model: re-pointed at the copy; what computes in bf16 gets a rounded copy of its own beside the exact one.
        state: what `pull` copies.
        board: tells its version.
        reading: held while the copy is made.
        device: where the copy lives.
    """

    def __init__(
        self,
        model: ActorCritic,
        state: State,
        board: Board,
        *,
        reading: AbstractContextManager[object] | None = None,
        device: str = "cpu",
    ) -> None:
        self.model, self.state, self.board = model, state, board
        self.reading = reading or nullcontext()
        self.device = device
        self.vector = torch.empty_like(state.vector, device=device)
        layout = bind(model, self.vector)
        model.lower()
        own = dict(model.named_parameters())
        places = [(own[slot.name], slot.view(self.vector)) for slot in layout.slots if slot.name in own]
        self.lowered = [(parameter, place) for parameter, place in places if parameter.dtype != place.dtype]
        self.pull()

    def pull(self, *, running: bool = True) -> None:
        """θ' ← θ, and unless told otherwise the running statistics."""
        size = len(self.vector) if running else self.state.layout.theta
        with self.reading:
            self.version = self.board.version
            self.vector[:size].copy_(self.state.vector[:size])
        with torch.no_grad():
            for parameter, place in self.lowered:
                parameter.copy_(place)


class Learner:
    """Turns rollouts into gradients at a replica's parameters.

    Args:
        algorithm: the loss, and which batches a rollout gives.
        replica: its model is differentiated; gets a gradient vector of its own.
        total_steps: environment steps of the whole run; progress is steps consumed ÷ this.
        clip_reward: learn from rewards clipped to ±this; none does not clip.
        generator: the algorithm's own random stream, on the replica's device.
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
        compile: bool = False,
        spend: Callable[[Part, float], None] = unwatched,
    ) -> None:
        self.algorithm, self.replica, self.spend = algorithm, replica, spend
        self.total_steps, self.clip_reward, self.generator = total_steps, clip_reward, generator
        vector = replica.vector
        self.gradient = torch.zeros(replica.state.layout.theta, dtype=vector.dtype, device=vector.device)
        self.places = parameter_views(replica.model, self.gradient)
        self.differentiate = compiled(differentiate) if compile else differentiate

    def gradients(self, rollout: Rollout) -> Iterator[Gradients]:
        """dθ of every batch the algorithm makes of a rollout.

        The first is taken at the replica's parameters of now; before each later one the newest are pulled, while the
        running statistics stay: all batches see the rollout scaled alike.
        """
        watch = Watch(self.spend)
        replica, model = self.replica, self.replica.model
        algorithm = self.algorithm.at(replica.board.steps / self.total_steps)
        steps, moments, acted = rollout.steps, rollout.moments, rollout.version.double().mean()
        if acted != replica.version:
            rollout = rollout.replace(memo=None)
        rollout = rollout.to(replica.device)
        rollout = rollout.replace(reward=self._scaled(rollout.reward))
        if algorithm.reuses:
            rollout = model.look(rollout)
        batches = algorithm.batches(model, rollout, None, self.generator)
        with torch.no_grad():  # what a batch needs of the model (targets) is not differentiated; its loss is
            batch: Batch | None = next(batches, None)
        while batch is not None:
            dtheta, metrics = self.differentiate(algorithm, model, batch)
            for place, gradient in zip(self.places, dtheta, strict=True):
                place.copy_(gradient)  # all of it, so nothing survives from the update before
            metrics["policy_lag"] = replica.version - acted
            gradients = Gradients(self.gradient.cpu(), metrics, replica.version, steps, moments)
            watch.lap(Part.DIFFERENTIATE)
            yield gradients
            watch = Watch(self.spend)
            steps, moments = 0, {}
            try:
                with torch.no_grad():
                    batch = batches.send(metrics)
            except StopIteration:
                return
            replica.pull(running=False)

    def _scaled(self, reward: Tensor) -> Tensor:
        """What is learned from; the score stays the environment's own."""
        moments = self.replica.model.return_moments
        if moments is not None and moments.count > 0:
            reward = reward / (moments.variance + 1e-8).sqrt()
        return reward if self.clip_reward is None else reward.clamp(-self.clip_reward, self.clip_reward)


def differentiate(algorithm: Algorithm, model: ActorCritic, batch: Batch) -> tuple[tuple[Tensor, ...], Metrics]:
    """∂L/∂θ' of every parameter, in the model's order, and the loss's metrics."""
    loss, metrics = algorithm.loss(model, batch)
    return torch.autograd.grad(loss, tuple(model.parameters()), materialize_grads=True), metrics


class Updater:
    """Owns θ, the optimizer's statistics, clipping, and schedules on progress; the only place where θ changes.

    Args:
        state: what is moved, in place; may be shared memory.
        rule: how.
        board: where updates and consumed environment steps are counted.
        worker: whose counters and statistics these are.
        total_steps: environment steps of the whole run; progress is steps consumed ÷ this.
        applying: held while θ changes.
    """

    def __init__(
        self,
        state: State,
        rule: Rule,
        board: Board,
        *,
        worker: int,
        total_steps: int,
        applying: AbstractContextManager[object] | None = None,
    ) -> None:
        self.state, self.rule, self.board = state, rule, board
        self.worker, self.total_steps = worker, total_steps
        self.applying = applying or nullcontext()
        self.statistics = state.statistics[worker % len(state.statistics)]
        self.running = state.views()

    def apply(self, gradients: Gradients) -> int:
        """θ ← θ + Δ(dθ), merge the running statistics, count; returns the new version.

        Raises:
            Diverged: too many gradients (or running statistics) in a row were not finite. Each is skipped and counted.
        """
        watch = Watch(partial(self.board.spend, self.worker))
        dtheta, count = gradients.vector, self.board.count
        norm = float(torch.linalg.vector_norm(dtheta))
        if math.isinf(norm):  # squares of 1e20 overflow float32, but float64 takes seven times as long
            norm = float(torch.linalg.vector_norm(dtheta, dtype=torch.float64))
        finite = math.isfinite(norm) and all(bool(m.m2.isfinite().all()) for m in gradients.moments.values())
        lr = self.rule.lr_at(self.board.steps / self.total_steps)
        with self.applying:
            staleness = self.board.version - gradients.version
            if finite:
                if self.rule.max_grad_norm is not None:
                    dtheta.mul_(min(1.0, self.rule.max_grad_norm / (norm + 1e-6)))
                self.rule.step(self.state.theta, dtheta, self.statistics, lr)
                for name, moments in gradients.moments.items():
                    merge(self.running, name, moments)
            count(self.worker, Counter.UPDATES, int(finite))
            count(self.worker, Counter.STEPS, gradients.steps)
        if finite:
            self.board.counters[self.worker, Counter.SKIPPED_IN_A_ROW] = 0
            own = {"grad_norm": norm, "learning_rate": lr, "gradient_staleness": float(staleness)}
            self.board.record(self.worker, scalars(gradients.metrics) | own)
        else:
            self._skip()
        watch.lap(Part.APPLY)
        return self.board.version

    def _skip(self) -> None:
        self.board.count(self.worker, Counter.SKIPPED, 1)
        self.board.count(self.worker, Counter.SKIPPED_IN_A_ROW, 1)
        if self.board.counters[self.worker, Counter.SKIPPED_IN_A_ROW] > SKIPS_ALLOWED:
            raise Diverged(
                f"{SKIPS_ALLOWED} gradients in a row were not finite, so the run stopped; "
                "lower --optimizer.lr or look for NaN in the environment's rewards and observations"
            )
