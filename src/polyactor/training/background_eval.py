"""Background evaluation: another process plays games with checkpoints while training goes on."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path

import cloudpickle

from polyactor.config import Config
from polyactor.errors import EnvironmentUnsupported, one_line
from polyactor.evaluation.evaluate import Evaluation, evaluate
from polyactor.evaluation.policy import parameters
from polyactor.files import same_directory
from polyactor.storage.atomic import replace_file, writing
from polyactor.system.notices import Doing, waiting
from polyactor.training.checkpointing import Checkpointer
from polyactor.training.events import Events
from polyactor.transport.processes import ProcessPool


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
            raise EnvironmentUnsupported(f"it cannot be sent to a process of its own: {one_line(error)}") from error
        with same_directory():  # an environment of this process may have left the directory that a worker begins in
            os.chdir(self._home)
            self._pool = ProcessPool(_evaluate_checkpoint, 1, (pickled, str(saved), str(self._result), self.games))

    def poll(self, timeout: float = 0.0) -> Evaluation | None:
        """Return the result of the evaluation once it has finished, else None; wait at most `timeout` seconds.

        Raises:
            PolyactorError: the evaluation failed.
            OSError, ValueError: its result cannot be read.
        """
        if self._pool is None or not self._pool.wait(timeout):
            return None
        self.close()
        found = json.loads(self._result.read_text())
        del found["mean"]
        return Evaluation(**found)

    def close(self) -> None:
        """Stop the evaluation process, finished or not."""
        if self._pool is not None:
            self._pool.stop(grace=0.5)
            self._pool = None


def _evaluate_checkpoint(worker: int, pickled: bytes, saved: str, result: str, games: int) -> None:
    """Evaluate a checkpoint in a process of its own, and write the mean and all games to the JSON file `result`."""
    config: Config = cloudpickle.loads(pickled)
    found = evaluate(config, parameters(Path(saved)), games=games, seed=config.seed)
    with writing(Path(result)):
        replace_file(Path(result), json.dumps({"mean": found.mean if found.scores else None} | asdict(found)).encode())


EVALUATION_GAMES = 20
"""Games in each background evaluation."""
LAST_EVALUATION_WITHIN = 120.0
"""Most seconds that a run waits at its end for the evaluation under way."""
LOOK_EVERY = 0.2
"""Seconds between two checks for a stop signal while a run waits for its last evaluation."""


class BackgroundEvaluation:
    """Starts background evaluations on schedule and points the tag `best` at the best checkpoint evaluated so far.

    A failed evaluation is logged, and does not stop the run. One that ended before all its games had is logged, and not
    compared with others, since it lacks the longest games.

    Args:
        config: the run's config; without ``evaluate_every`` nothing is evaluated.
        checkpointer: moves the tag `best`.
        events: logs an event for each evaluation, finished or failed, and prints what is waited for.
        best: the best evaluation score so far, or None.
        steps: agent steps so far.
    """

    def __init__(
        self, config: Config, checkpointer: Checkpointer, events: Events, best: float | None, steps: int
    ) -> None:
        self.every, self.checkpointer, self.events, self.best = config.evaluate_every, checkpointer, events, best
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
                except Exception as error:  # no process could be started, for whatever reason
                    self._failed(error)

    def hear(self, wall: float, *, unless: Callable[[], bool] | None = None) -> None:
        """Log the score of a finished evaluation, and move the tag `best` if the score is the best so far.

        Args:
            wall: seconds of training so far.
            unless: if given, wait for the evaluation under way until this returns True or 120 seconds have passed.
        """
        end = time.monotonic() + LAST_EVALUATION_WITHIN
        try:
            found = self.evaluator.poll()
            if unless is not None and self.evaluator.busy:
                self.events.say(f"waiting for the last evaluation, {LAST_EVALUATION_WITHIN:g} s at most")
                with waiting(Doing("waiting for the last evaluation")):
                    while self.evaluator.busy and not unless():
                        if time.monotonic() > end:
                            raise TimeoutError(f"it had not ended {LAST_EVALUATION_WITHIN:g} s after the run")
                        found = self.evaluator.poll(timeout=LOOK_EVERY)
        except Exception as error:  # whatever went wrong in a process of its own
            self._failed(error)
            return
        if found is None:
            return
        if not found.scores:
            self._failed(TimeoutError(f"no game has ended: {found.cuts}"))
            return
        told = {"agent_steps": self.evaluator.steps, "wall_s": wall, "evaluation_score": found.mean}
        self.events.tell("evaluation", found.cuts, **told)
        better = not found.unplayed and (self.best is None or found.mean > self.best)
        if better and self.checkpointer.point("best", at="candidate"):
            self.best = found.mean

    def _failed(self, error: Exception) -> None:
        """Stop the evaluation and log why it failed."""
        with suppress(Exception):
            self.evaluator.close()
        self.events.tell("evaluation_failed", one_line(error) or type(error).__name__, agent_steps=self.evaluator.steps)

    def close(self) -> None:
        """Stop the evaluation under way, if there is one."""
        self.evaluator.close()
