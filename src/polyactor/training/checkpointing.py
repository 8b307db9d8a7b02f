"""Saving while a run goes on: nothing that is not finite, and a disk that is full for a while ends no run."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from torch import Tensor

from polyactor.errors import Diverged, OutOfResources, PolyactorError, RunDirectoryError
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import MetricsLog

FAILURES_ALLOWED = 2
"""Saves in a row that may fail before the run stops."""


class Checkpointer:
    """Writes the checkpoints of one run.

    Args:
        directory: of the run.
        log: hears of every save, and of those that were refused or failed.
        say: shows a line to a person.
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
        """Save, as `checkpoint.save` does.

        Args:
            tensors: copies that nobody else writes, so what is checked is what is saved.
            meta: plain JSON.
            steps: agent steps so far.
            tags: the pointers to move.
            reason: what the event of a save says.
            final: no later save can make up for this one.

        Returns:
            The checkpoint's directory, or None where the one before stays the last.

        Raises:
            Diverged: the last save of the run, and a number is not finite.
            OutOfResources, RunDirectoryError: it could not be written, as the two before, or it is the last.
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
        """Point one tag where another points; False where that could not be written, which counts as a failed save.

        Raises:
            OutOfResources, RunDirectoryError: the third failure in a row.
        """
        try:
            checkpoint.point(self.directory, tag, at=at)
        except (OutOfResources, RunDirectoryError) as error:
            self._failed(error, final=False)
            return False
        return True

    def _failed(self, error: PolyactorError, *, final: bool) -> None:
        self.failures += 1
        with suppress(PolyactorError):  # the disk that refused the checkpoint may refuse this, too
            self.log.event("save_failed", str(error), in_a_row=self.failures)
        if final or self.failures > FAILURES_ALLOWED:
            raise error
        self.say(f"not saved: {error}; training goes on and tries again")


def advise(error: Exception, directory: Path) -> None:
    """End the error that stopped a run with where to go on from, where there is a checkpoint."""
    if isinstance(error, PolyactorError):
        error.args = (with_advice(str(error), directory),)
    elif advice := with_advice("", directory):
        error.add_note(advice.removeprefix("; "))


def with_advice(message: str, directory: Path) -> str:
    """What stopped a run, and where to go on from where there is a checkpoint; said once."""
    found = checkpoint.last(directory)
    if found is None or "go on with: polyactor resume" in message:
        return message
    end = "\n" if "\n" in message else "; "
    return f"{message.rstrip()}{end}last checkpoint: {found}, go on with: polyactor resume {directory}"
