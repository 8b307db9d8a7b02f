"""Background evaluation: another process plays games with checkpoints while training goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import cloudpickle

from polyactor.config import Config
from polyactor.errors import EnvironmentUnsupported, PolyactorError
from polyactor.evaluation.evaluate import evaluate
from polyactor.evaluation.policy import read
from polyactor.files import same_directory
from polyactor.storage.atomic import replace_file, writing
from polyactor.training.checkpointing import Checkpointer
from polyactor.transport.processes import ProcessPool
from polyactor.transport.watchdog import Tell


class Evaluator:
    """A process that evaluates one checkpoint at a time while training goes on.

    Args:
        config: the run's config.
        games: the number of games in each evaluation.
    """

    def __init__(self, config: Config, games: int) -> None:
        self.config, self.games = config, games
        self._pool: ProcessPool | None = None
        self._result, self._home = Path(), os.curdir
        with suppress(FileNotFoundError):
            self._home = os.getcwd()
        self.steps = 0

    @property
    def busy(self) -> bool:
        """Whether an evaluation is under way."""
        return self._pool is not None

    def start(self, saved: Path, steps: int) -> None:
        """Start to evaluate a checkpoint.

        Args:
            saved: the checkpoint directory.
            steps: agent steps at which the checkpoint was taken.

        Raises:
            EnvironmentUnsupported: the environment or the algorithm cannot be sent to another process.
            WorkerFailed: the process cannot be started.
        """
        self.steps, self._result = steps, saved / "evaluation.json"
        try:
            pickled = cloudpickle.dumps(self.config)  # a checkpoint names the user's own code and does not hold it
        except Exception as error:  # the user's own object may raise anything
            raise EnvironmentUnsupported(f"it cannot be sent to a process of its own: {error}") from error
        with same_directory():  # an environment of this process may have left the directory that a worker begins in
            os.chdir(self._home)
            self._pool = ProcessPool(_evaluate_checkpoint, 1, (pickled, str(saved), str(self._result), self.games))

    def poll(self, timeout: float = 0.0) -> float | None:
        """Return the mean score of the evaluation once it has finished, else None; wait at most `timeout` seconds.

        Raises:
            PolyactorError: the evaluation failed.
        """
        if self._pool is None or not self._pool.wait(timeout):
            return None
        self.close()
        mean: float = json.loads(self._result.read_text())["mean"]
        return mean

    def close(self) -> None:
        """Stop the evaluation process, finished or not."""
        if self._pool is not None:
            self._pool.stop(grace=0.5)
            self._pool = None


def _evaluate_checkpoint(worker: int, pickled: bytes, saved: str, result: str, games: int) -> None:
    """Evaluate a checkpoint in a process of its own, and write the mean and all scores to the JSON file `result`."""
    config: Config = cloudpickle.loads(pickled)
    _, tensors = read(Path(saved), trust_env=True)  # only its parameters are used, not its environment
    found = evaluate(config, tensors, games=games, seed=config.seed)
    with writing(Path(result)):
        replace_file(Path(result), json.dumps({"mean": found.mean, "scores": found.scores}).encode())


EVALUATION_GAMES = 20
"""Games in each background evaluation."""
LAST_EVALUATION_WITHIN = 120.0
"""Most seconds that a run waits at its end for the evaluation under way."""
LOOK_EVERY = 0.2
"""Seconds between two checks for a stop signal while a run waits for its last evaluation."""


class BackgroundEvaluation:
    """Starts background evaluations on schedule and points the tag `best` at the best checkpoint evaluated so far.

    A failed evaluation is logged, and does not stop the run.

    Args:
        config: the run's config; without ``evaluate_every`` nothing is evaluated.
        checkpointer: moves the tag `best`.
        tell: logs an event for each evaluation, finished or failed.
        best: the best evaluation score so far, or None.
        steps: agent steps so far.
    """

    def __init__(self, config: Config, checkpointer: Checkpointer, tell: Tell, best: float | None, steps: int) -> None:
        self.every, self.checkpointer, self.tell, self.best = config.evaluate_every, checkpointer, tell, best
        self.evaluator = Evaluator(config, games=EVALUATION_GAMES)
        self.next = steps + (self.every or 0)

    def advance(self, steps: int, wall: float, save: Callable[[str], Path | None]) -> None:
        """Take in the result of the evaluation under way, and start another one every ``evaluate_every`` agent steps.

        Args:
            steps: agent steps so far.
            wall: seconds of training so far.
            save: saves a checkpoint under a tag and returns its directory, or None where saving failed.
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
        """Log the score of a finished evaluation, and move the tag `best` if the score is the best so far.

        Args:
            wall: seconds of training so far.
            unless: if given, wait for the evaluation under way until this returns True or 120 seconds have passed.
        """
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
        """Stop the evaluation and log why it failed."""
        self.evaluator.close()
        self.tell("evaluation_failed", str(error), agent_steps=self.evaluator.steps)

    def close(self) -> None:
        """Stop the evaluation under way, if there is one."""
        self.evaluator.close()
