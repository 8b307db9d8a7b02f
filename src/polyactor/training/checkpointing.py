"""Checkpoints during a run: parameters that are not finite are refused, and a few failed writes are tolerated."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from polyactor.errors import CheckpointError, Diverged, OutOfResources, PolyactorError, RunDirectoryError
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import MetricsLog
from polyactor.storage.run_directory import RESUME, how_to_resume

FAILURES_ALLOWED = 2
"""Failed saves in a row that a run tolerates; one more stops it."""


class Checkpointer:
    """Writes the checkpoints of one run and logs an event for each.

    Args:
        directory: the run directory.
        log: receives an event for each checkpoint that was saved, refused or not written.
        say: prints a line.
    """

    def __init__(self, directory: Path, log: MetricsLog, say: Callable[[str], None]) -> None:
        self.directory, self.log, self.say = directory, log, say
        self.failures = 0

    def save(
        self,
        tensors: Mapping[str, Tensor],
        meta: Mapping[str, Any],
        steps: int,
        *,
        tags: Collection[str],
        reason: str = "",
        final: bool = False,
    ) -> Path | None:
        """Save a checkpoint if all its parameters, statistics and optimizer tensors are finite.

        Args:
            tensors: by name; copies that no other process writes, so that the tensors checked are those saved.
            meta: counters, config and statistics as plain JSON.
            steps: agent steps so far.
            tags: the tags to point at the checkpoint.
            reason: the reason in the event of a save.
            final: whether this is the run's last save, so that a failure is an error.

        Returns:
            The checkpoint directory, or None where nothing was saved.

        Raises:
            Diverged: `final`, and a number is not finite.
            OutOfResources, RunDirectoryError: the write failed, and it was the third in a row to fail or `final`.
        """
        bad = checkpoint.not_finite(tensors)
        if bad:
            what = f"{bad[0]}{f' and {len(bad) - 1} more' * (len(bad) > 1)} is not finite after {steps:,} steps"
            self.log.event("checkpoint_refused", what, tags=list(tags))
            if final:
                raise Diverged(f"{what}, so it was not saved")
            self.say(f"not saved: {what}")
            return None
        try:
            saved = checkpoint.save(self.directory, tensors, meta, steps, tags=tags)
        except (OutOfResources, RunDirectoryError) as error:
            self._failed(error, final=final)
            return None
        self.failures = 0
        self.log.event("checkpoint_saved", reason, path=saved.name, tags=list(tags))
        return saved

    def point(self, tag: str, *, at: str) -> bool:
        """Point `tag` at the checkpoint of the tag `at`, and return whether that was written.

        Raises:
            CheckpointError, OutOfResources, RunDirectoryError: there is no tag `at`, or the write failed, as did the
                two before.
        """
        try:
            checkpoint.point(self.directory, tag, at=at)
        except (CheckpointError, OutOfResources, RunDirectoryError) as error:
            self._failed(error, final=False)
            return False
        return True

    def _failed(self, error: PolyactorError, *, final: bool) -> None:
        """Log a failed write, and raise its error where no further try is left."""
        self.failures += 1
        with suppress(PolyactorError):  # the same disk may refuse the event, too
            self.log.event("save_failed", str(error), in_a_row=self.failures)
        if final or self.failures > FAILURES_ALLOWED:
            raise error
        self.say(f"not saved: {error}; training goes on and tries again")


def advise(error: Exception, directory: Path) -> None:
    """Append to an error that stopped a run how to resume it, where the run has a checkpoint."""
    if isinstance(error, PolyactorError):
        error.args = (with_advice(str(error), directory),)
    elif advice := with_advice("", directory):
        error.add_note(advice.removeprefix("; "))


def with_advice(message: str, directory: Path) -> str:
    """Return `message` with the last checkpoint and the command that resumes the run, where it has a checkpoint."""
    found = checkpoint.last(directory)
    if found is None or RESUME in message:
        return message
    end = "\n" if "\n" in message else "; "
    return f"{message.rstrip()}{end}last checkpoint: {found}, {how_to_resume(directory)}"
