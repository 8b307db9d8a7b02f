"""A callback of one's own: it halves the entropy bonus whenever the score has risen by half, and keeps the scores.

polyactor train a2c --env CartPole-v1 --algorithm.entropy-coef 0.02 --callback examples/lower_entropy.py:LowerEntropy
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from polyactor.types import Callback, RunHandle


class LowerEntropy(Callback):
    """Explore while the policy is poor, and less the better it is; end the run once there is nothing left to lower."""

    least = 1e-4

    def on_start(self, run: RunHandle) -> None:
        self.best = run.row["score_mean100"]  # of a run that is resumed; None in a new one
        self.scores = (run.path / "scores.csv").open("a", buffering=1)

    def on_report(self, run: RunHandle, row: Mapping[str, Any]) -> None:
        score, entropy_coef = row["score_mean100"], run.config.algorithm.entropy_coef
        print(row["agent_steps"], score, entropy_coef, sep=",", file=self.scores)
        if row["games"] < 20:  # too few to say
            return
        if self.best is None:
            self.best = score
        elif score > 1.5 * self.best:
            self.best = score
            run.set("algorithm.entropy_coef", entropy_coef / 2)
        if entropy_coef < self.least:
            run.stop(f"the entropy bonus is below {self.least}")

    def on_end(self, run: RunHandle, status: str) -> None:
        self.scores.close()
