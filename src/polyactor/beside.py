"""Evaluation beside training: another process plays with a checkpoint now and then, and `best` is the best so far."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from polyactor.config import Config
from polyactor.errors import PolyactorError
from polyactor.evaluate import Evaluator
from polyactor.saving import Saver
from polyactor.transport.watchdog import Tell

GAMES = 20
PATIENCE = 120.0
"""Seconds in which the evaluation under way may end when the run has."""
LOOK_EVERY = 0.2
"""Seconds between two looks whether somebody asked for the end meanwhile."""


class Beside:
    """Evaluates one checkpoint at a time; an evaluation that fails is told of, and the next may succeed.

    Args:
        config: of the run; does nothing without ``evaluate_every``.
        saver: points `best`.
        tell: hears of every evaluation, and says which failed.
        best: the best score so far.
        steps: environment steps so far.
    """

    def __init__(self, config: Config, saver: Saver, tell: Tell, best: float | None, steps: int) -> None:
        self.every, self.saver, self.tell, self.best = config.evaluate_every, saver, tell, best
        self.evaluator = Evaluator(config, games=GAMES)
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
                try:
                    self.evaluator.start(saved, steps)
                except PolyactorError as error:
                    self._failed(error)

    def hear(self, wall: float, *, unless: Callable[[], bool] | None = None) -> None:
        """Take in a result, if there is one; with `unless` wait for the one under way, unless that says not to."""
        end = time.monotonic() + PATIENCE
        try:
            score = self.evaluator.poll()
            while unless is not None and self.evaluator.busy and not unless() and time.monotonic() < end:
                score = self.evaluator.poll(timeout=LOOK_EVERY)
        except PolyactorError as error:
            self._failed(error)
            return
        if score is None:
            return
        self.tell("evaluation", agent_steps=self.evaluator.steps, wall_s=wall, evaluation_score=score)
        if (self.best is None or score > self.best) and self.saver.point("best", at="candidate"):
            self.best = score

    def _failed(self, error: PolyactorError) -> None:
        self.evaluator.close()
        self.tell("evaluation_failed", str(error), agent_steps=self.evaluator.steps)

    def close(self) -> None:
        """End the one under way."""
        self.evaluator.close()
