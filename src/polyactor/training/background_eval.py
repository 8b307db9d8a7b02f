"""Evaluation beside training: a process of its own plays with a checkpoint now and then; `best` is the best so far."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import cloudpickle

from polyactor.config import Config
from polyactor.errors import EnvironmentUnsupported, PolyactorError
from polyactor.evaluation.evaluate import evaluate
from polyactor.evaluation.policy import read
from polyactor.storage.atomic import replace_file, writing
from polyactor.training.checkpointing import Checkpointer
from polyactor.transport.processes import ProcessPool
from polyactor.transport.watchdog import Tell


class Evaluator:
    """Evaluates checkpoints in a process of its own while training goes on; one at a time.

    Args:
        config: of the run.
        games: of each evaluation.
    """

    def __init__(self, config: Config, games: int) -> None:
        self.config, self.games = config, games
        self._pool: ProcessPool | None = None
        self._result = Path()
        self.steps = 0

    @property
    def busy(self) -> bool:
        """An evaluation is under way."""
        return self._pool is not None

    def start(self, saved: Path, steps: int) -> None:
        """Evaluate a checkpoint, taken after so many environment steps.

        Raises:
            EnvironmentUnsupported: the environment or the algorithm cannot be sent to a process.
            WorkerFailed: the process cannot be started.
        """
        self.steps, self._result = steps, saved / "evaluation.json"
        try:
            pickled = cloudpickle.dumps(self.config)  # a checkpoint only names what is the user's own code
        except Exception as error:  # of the user's own object
            raise EnvironmentUnsupported(f"it cannot be sent to a process of its own: {error}") from error
        self._pool = ProcessPool(_evaluate_checkpoint, 1, (pickled, str(saved), str(self._result), self.games))

    def poll(self, timeout: float = 0.0) -> float | None:
        """The mean score once it is known; waits at most `timeout` seconds.

        Raises:
            PolyactorError: what went wrong in the evaluation.
        """
        if self._pool is None or not self._pool.wait(timeout):
            return None
        self.close()
        mean: float = json.loads(self._result.read_text())["mean"]
        return mean

    def close(self) -> None:
        """End it, finished or not."""
        if self._pool is not None:
            self._pool.stop(grace=0.5)
            self._pool = None


def _evaluate_checkpoint(worker: int, pickled: bytes, saved: str, result: str, games: int) -> None:
    config: Config = cloudpickle.loads(pickled)
    _, tensors = read(Path(saved), trust_env=True)  # only the parameters are used: no environment of it is made
    found = evaluate(config, tensors, games=games, seed=config.seed)
    with writing(Path(result)):
        replace_file(Path(result), json.dumps({"mean": found.mean, "scores": found.scores}).encode())


EVALUATION_GAMES = 20
LAST_EVALUATION_WITHIN = 120.0
"""Seconds in which the evaluation under way may end when the run has."""
LOOK_EVERY = 0.2
"""Seconds between two looks whether somebody asked for the end meanwhile."""


class BackgroundEvaluation:
    """Evaluates one checkpoint at a time; an evaluation that fails is told of, and the next may succeed.

    Args:
        config: of the run; does nothing without ``evaluate_every``.
        checkpointer: points `best`.
        tell: hears of every evaluation, and says which failed.
        best: the best score so far.
        steps: environment steps so far.
    """

    def __init__(self, config: Config, checkpointer: Checkpointer, tell: Tell, best: float | None, steps: int) -> None:
        self.every, self.checkpointer, self.tell, self.best = config.evaluate_every, checkpointer, tell, best
        self.evaluator = Evaluator(config, games=EVALUATION_GAMES)
        self.next = steps + (self.every or 0)

    def advance(self, steps: int, wall: float, save: Callable[[str], Path | None]) -> None:
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
        end = time.monotonic() + LAST_EVALUATION_WITHIN
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
        if (self.best is None or score > self.best) and self.checkpointer.point("best", at="candidate"):
            self.best = score

    def _failed(self, error: PolyactorError) -> None:
        self.evaluator.close()
        self.tell("evaluation_failed", str(error), agent_steps=self.evaluator.steps)

    def close(self) -> None:
        """End the one under way."""
        self.evaluator.close()
