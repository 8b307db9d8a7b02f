"""Evaluation beside training: another process plays with a checkpoint now and then, and `best` is the best so far."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from polyactor.config import Config
from polyactor.errors import PolyactorError
from polyactor.evaluate import Evaluator
from polyactor.metrics import MetricsLog
from polyactor.saving import Saver

GAMES = 20
PATIENCE = 120.0
"""Seconds in which the evaluation under way may end when the run has."""


class Beside:
    """Evaluates one checkpoint at a time; an evaluation that fails is told of, and the next may succeed.

    Args:
        config: of the run; does nothing without ``evaluate_every``.
        saver: points `best`.
        log: hears of every evaluation.
        best: the best score so far.
        steps: environment steps so far.
    """

    def __init__(self, config: Config, saver: Saver, log: MetricsLog, best: float | None, steps: int) -> None:
        self.every, self.saver, self.log, self.best = config.evaluate_every, saver, log, best
        self.evaluator = Evaluator(games=GAMES, seed=config.seed)
        self.next = steps + (self.every or 0)

    def look(self, steps: int, wall: float, save: Callable[[str], Path | None]) -> None:
        """Hear of the one under way, or begin another one when it is time.

        Args:
            steps: so far.
            wall: seconds so far.
            save: saves a checkpoint under a tag.
        """
        if self.every is None:
            return
        self.hear(wall)
        if steps >= self.next and not self.evaluator.busy:
            self.next = steps + self.every
            saved = save("candidate")
            if saved is not None:
                self.evaluator.start(saved, steps)

    def hear(self, wall: float, *, to_the_end: bool = False) -> None:
        """Take in a result, if there is one; `to_the_end` waits for it."""
        try:
            score = self.evaluator.poll(timeout=PATIENCE if to_the_end else 0.0)
        except PolyactorError as error:
            self.evaluator.close()
            self.log.event("evaluation_failed", str(error), agent_steps=self.evaluator.steps)
            return
        if score is None:
            return
        self.log.event("evaluation", agent_steps=self.evaluator.steps, wall_s=wall, evaluation_score=score)
        if (self.best is None or score > self.best) and self.saver.point("best", at="candidate"):
            self.best = score

    def close(self) -> None:
        """End the one under way."""
        self.evaluator.close()
