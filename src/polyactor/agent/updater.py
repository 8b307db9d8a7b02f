"""Applying: an `Updater` moves θ by gradients. No other code changes θ; schemes decide which process runs it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from functools import partial

import torch

from polyactor.data import Gradients, Moments
from polyactor.errors import Diverged
from polyactor.models.running_stats import can_merge, merge, why_skipped
from polyactor.optim.flat import State
from polyactor.optim.rules import Rule
from polyactor.shared.counters import Counter, SharedCounters, scalars
from polyactor.shared.timing import Part, Watch
from polyactor.system.failpoints import hit

SKIPS_ALLOWED = 20
"""Updates in a row that a worker may skip because of a non-finite gradient before the run stops."""


class Updater:
    """Applies gradients: clips them, anneals the learning rate, moves θ and merges the running statistics.

    Args:
        state: θ and all statistics, which are changed in place; may be in shared memory.
        rule: the optimizer's rule, such as RMSprop.
        counters: count updates and the agent steps consumed by them.
        worker: the worker whose counters and optimizer statistics are used.
        total_steps: agent steps of the whole run; progress is the steps consumed divided by this number.
        averaging: α of the average network, θ_a ← α θ_a + (1 − α) θ; None if the model has none.
        applying: a lock that is held while θ changes.
    """

    def __init__(
        self,
        state: State,
        rule: Rule,
        counters: SharedCounters,
        *,
        worker: int,
        total_steps: int,
        averaging: float | None = None,
        applying: AbstractContextManager[object] | None = None,
    ) -> None:
        self.average, self.averaging = state.average, 1.0 if averaging is None else averaging
        self.state, self.rule, self.counters = state, rule, counters
        self.worker, self.total_steps, self.applying = worker, total_steps, applying or nullcontext()
        self.statistics = state.statistics[worker % len(state.statistics)]
        self.running = state.views()

    def apply(self, gradients: Gradients) -> int:
        """Move the parameters, θ ← θ + Δ(dθ), merge the running statistics, and return the new version of θ.

        A gradient that is not finite, or whose running statistics are not, is skipped and counted.

        Raises:
            Diverged: more than `SKIPS_ALLOWED` gradients in a row were skipped.
        """
        hit("update")
        watch = Watch(partial(self.counters.spend, self.worker))
        dtheta, count = gradients.vector, self.counters.count
        norm = float(torch.linalg.vector_norm(dtheta))
        if math.isinf(norm):  # squares of 1e20 overflow float32, but float64 takes seven times as long
            norm = float(torch.linalg.vector_norm(dtheta, dtype=torch.float64))
        finite = math.isfinite(norm) and all(map(can_merge, gradients.moments.values()))
        finite = finite and (gradients.step is None or bool(gradients.step.isfinite().all()))
        finite = finite and all(math.isfinite(factor.sum()) for factor in gradients.factors.values())
        self.rule = self.counters.changes.into("optimizer", self.rule)
        lr = self.rule.lr_at(self.counters.steps / self.total_steps)
        with self.applying:
            staleness = self.counters.version - gradients.version
            if finite:
                if self.rule.max_grad_norm is not None:
                    dtheta.mul_(min(1.0, self.rule.max_grad_norm / (norm + 1e-6)))
                if gradients.factors:
                    self.rule.observe(self.statistics, gradients.factors)
                self.rule.step(self.state.theta, dtheta, self.statistics, lr)
                hit("update.inside")
                if gradients.step is not None:
                    self.state.theta.add_(gradients.step)
                if self.average is not None:
                    self.average.lerp_(self.state.theta, 1 - self.averaging)  # θ_a ← α θ_a + (1 − α) θ
                for name, moments in gradients.moments.items():
                    merge(self.running, name, moments)
            count(self.worker, Counter.UPDATES, int(finite))
            count(self.worker, Counter.STEPS, gradients.steps)
        if finite:
            self.counters.table[self.worker, Counter.SKIPPED_IN_A_ROW] = 0
            own = {"grad_norm": norm, "learning_rate": lr, "gradient_staleness": float(staleness)}
            self.counters.record(self.worker, scalars(gradients.metrics) | own)
        else:
            self._skip(gradients.moments)
        watch.lap(Part.APPLY)
        return self.counters.version

    def _skip(self, moments: Mapping[str, Moments]) -> None:
        self.counters.count(self.worker, Counter.SKIPPED, 1)
        self.counters.count(self.worker, Counter.SKIPPED_IN_A_ROW, 1)
        if self.counters.table[self.worker, Counter.SKIPPED_IN_A_ROW] > SKIPS_ALLOWED:
            raise Diverged(f"more than {SKIPS_ALLOWED} {why_skipped(moments)}")
