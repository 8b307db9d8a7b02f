"""The last words of a worker that raised: its error as text, which any process of the run can read."""

from __future__ import annotations

import traceback
from typing import NamedTuple

from polyactor import errors

MOST = 6_000
"""Most characters of an error message and of its traceback; both fit into an unread pipe (64 KiB)."""


class LastWords(NamedTuple):
    """The error of a worker.

    Attributes:
        kind: the class of the error if it is polyactor's own, else empty.
        sentence: its message.
        trace: its traceback.
    """

    kind: str
    sentence: str
    trace: str

    @classmethod
    def of(cls, error: BaseException) -> LastWords:
        """Return the words of an error that is being handled."""
        kind = type(error).__name__ if isinstance(error, errors.PolyactorError) else ""
        return cls(kind, _shortened(errors.shown(error)), _shortened(traceback.format_exc().rstrip()))

    def of_worker(self, worker: int) -> errors.WorkerExit:
        """Return the exit of the worker with this number that said them."""
        error_type = getattr(errors, self.kind, None)
        if error_type is not None:
            failure: errors.PolyactorError = error_type(f"worker {worker}: {self.sentence}")
            failure.add_note(self.trace)
            return errors.WorkerExit(worker, failure, self.sentence, ours=True, raised=True)
        reason = f"raised: {self.sentence or 'an error'}"
        failure = errors.WorkerFailed(f"worker {worker} {reason}\n{self.trace}")
        return errors.WorkerExit(worker, failure, reason, raised=True)


def _shortened(text: str) -> str:
    """Return the head and tail of a long text: a message too long for the pipe would block the dying worker."""
    half = MOST // 2
    return text if len(text) <= MOST else f"{text[:half]} […] {text[-half:]}"
