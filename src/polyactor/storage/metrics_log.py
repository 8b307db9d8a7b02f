"""The log of a run: metrics rows, events, TensorBoard scalars and a summary, written in the run directory.

``metrics.jsonl`` holds the metrics rows and ``events.jsonl`` the events, both as JSON lines, each written in one call.
Lines for which a full disk has no room wait in memory. This module does not import torch.
"""

from __future__ import annotations

import errno
import io
import json
import math
import os
import socket
import stat
import time
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polyactor.errors import RunDirectoryError
from polyactor.storage.atomic import replace_file, writing

ROWS, EVENTS, SUMMARY = "metrics.jsonl", "events.jsonl", "summary.json"


FULL = (errno.ENOSPC, errno.EDQUOT)
"""Error numbers of a full disk and a full quota."""


MOST_WAITING = 10_000
"""Most lines per file that wait for room on the disk; then the oldest are dropped and counted."""


Value = float | int | list[int] | None


class MetricsLog:
    """The log files of one run. One process owns them; close the log, or use it in a ``with`` statement.

    Rows, events and scalars for which a full disk has no room wait, and are written in order once there is room.

    Args:
        directory: the run directory, created if missing.
        append: continue the files of an earlier run, without a last line that a crash cut off. Otherwise the directory
            must not hold metrics rows.
        steps: with ``append``, the agent steps resumed from; later metrics rows are dropped, since they come again.

    Raises:
        RunDirectoryError: the directory cannot be written, or holds metrics rows although ``append`` is off.
        OutOfResources: the disk is full (here and in `summary`); no file is left half written.
    """

    def __init__(self, directory: Path, *, append: bool = False, steps: int | None = None) -> None:
        self.directory = Path(directory)
        rows, events = self.directory / ROWS, self.directory / EVENTS
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if not append and rows.exists() and rows.stat().st_size:
                raise RunDirectoryError(f"{rows} already has rows of another run: resume it or choose another --out")
            self.taken_back = _drop_later_rows(rows, steps) if append and steps is not None else 0
            """Number of metrics rows dropped because they were later than ``steps``."""
            self._rows = _Appender(_open_lines(rows, append))
            self._events = _Appender(_open_lines(events, append))
            self._tensorboard = _Scalars(self.directory, purge=append)
        self.listener: Callable[[dict[str, Any]], object] | None = None
        """A function that is given each event after it was written."""

    def row(self, values: Mapping[str, Value]) -> None:
        """Append one metrics row to ``metrics.jsonl`` and its scalars to TensorBoard.

        Args:
            values: by name, written in this order; ``agent_steps`` is required. NaN and infinity become null, and
                lists go to ``metrics.jsonl`` only.

        Raises:
            KeyError: ``agent_steps`` is missing; nothing is written.
        """
        plain = {name: _plain(value) for name, value in values.items()}
        step = int(plain["agent_steps"])
        with writing(self.directory / ROWS):
            self._rows.append(_line(plain))
            self._tensorboard.write(plain, step)
        self._log_dropped()

    def event(self, name: str, reason: str = "", **fields: object) -> None:
        """Append one event to ``events.jsonl``: UTC time (ISO 8601, milliseconds), name, reason, then the fields."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        plain = _plain({"time": now, "event": name, "reason": reason} | fields)
        with writing(self.directory / EVENTS):
            self._events.append(_line(plain))
        self._log_dropped()
        if self.listener is not None:
            self.listener(plain)

    def summary(self, values: Mapping[str, object]) -> None:
        """Write ``summary.json`` atomically: a reader finds the old content or the new one."""
        text = json.dumps(_plain(values), indent=1, allow_nan=False) + "\n"
        with writing(self.directory / SUMMARY):
            replace_file(self.directory / SUMMARY, text.encode())

    def close(self) -> None:
        """Close the files; a second call does nothing. Lines that still wait for room on the disk are lost."""
        with writing(self.directory):
            for appender in (self._rows, self._events, self._tensorboard.appender):
                appender.close()

    def _log_dropped(self) -> None:
        """Log an event for lines dropped while the disk was full, once no line waits any more."""
        for name, appender in ((ROWS, self._rows), (EVENTS, self._events), ("TensorBoard", self._tensorboard.appender)):
            if appender.dropped and not appender.waiting:
                count, appender.dropped = appender.dropped, 0
                self.event("lines_dropped", "the disk was full for too long", file=name, lines=count)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Return the rows of a JSON lines file, without an unfinished line that a crash or a writer left at its end.

    Args:
        path: ``metrics.jsonl`` or ``events.jsonl``; a missing file has no rows.

    Raises:
        RunDirectoryError: the file cannot be read, or a whole line is not a JSON object.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunDirectoryError(f"cannot read {path}: {error.strerror}") from error
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):  # the rest after the last newline is unfinished
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise RunDirectoryError(f"{path} is damaged: line {number} is not a JSON object")
        rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    """Return a value as strict JSON: NaN and infinity as None, arrays as lists or numbers, any other object as text."""
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(entry) for entry in value]
    if callable(getattr(value, "tolist", None)):  # numpy and torch
        return _plain(value.tolist())
    return str(value)


def _open_lines(path: Path, append: bool) -> int:
    """Return a descriptor that appends after the last whole line, or, without `append`, to an emptied file."""
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
    descriptor = os.open(path, flags, 0o644)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, f"{path.name} is not a regular file")
        os.ftruncate(descriptor, path.read_bytes().rfind(b"\n") + 1 if append else 0)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


def _drop_later_rows(path: Path, steps: int) -> int:
    """Drop the metrics rows of more than `steps` agent steps, all or none, and return how many there were."""
    if not stat.S_ISREG(path.lstat().st_mode if os.path.lexists(path) else 0):
        return 0
    lines = path.read_bytes().split(b"\n")[:-1]
    kept = [line for line in lines if not _is_later(line, steps)]
    if len(kept) < len(lines):
        replace_file(path, b"".join(line + b"\n" for line in kept))
    return len(lines) - len(kept)


def _is_later(line: bytes, steps: int) -> bool:
    try:
        return bool(json.loads(line)["agent_steps"] > steps)
    except (ValueError, KeyError, TypeError, RecursionError):
        return False  # not a metrics row, so it stays


def _line(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


class _Appender:
    """Appends records to a file, each whole or not at all; records wait in order while the disk is full."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.dropped = descriptor, 0
        self.waiting: deque[bytes] = deque()

    def append(self, record: bytes) -> None:
        """Append a record after those that wait. Raises `OSError` for any failure but a full disk."""
        if len(self.waiting) >= MOST_WAITING:
            self.waiting.popleft()
            self.dropped += 1
        self.waiting.append(record)
        self._flush(self.descriptor)

    def close(self) -> None:
        descriptor, self.descriptor = self.descriptor, -1
        if descriptor >= 0:
            try:
                self._flush(descriptor)
            finally:
                os.close(descriptor)

    def _flush(self, descriptor: int) -> None:
        while self.waiting:
            try:
                _write_whole(descriptor, self.waiting[0])
            except OSError as error:
                if error.errno in FULL:
                    return
                raise
            self.waiting.popleft()


def _write_whole(descriptor: int, record: bytes) -> None:
    """Write a whole record; on failure remove the part that reached the file and raise `OSError`."""
    size = os.fstat(descriptor).st_size
    written = 0
    try:
        while written < len(record):
            written += os.write(descriptor, record[written:])  # short on a full disk: the next call raises
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


class _Scalars:
    """A TensorBoard event file, written in the calling thread, so that a killed run loses no queued values.

    TensorBoard's `EventFileWriter` has a thread that hides write errors, and torch's writer needs torch.
    """

    def __init__(self, directory: Path, purge: bool) -> None:
        from tensorboard.compat.proto import event_pb2, summary_pb2
        from tensorboard.summary.writer.record_writer import RecordWriter

        self._event, self._session, self._summary = event_pb2.Event, event_pb2.SessionLog, summary_pb2.Summary
        self._purge = purge
        # TensorBoard reads a directory's files in the order of their names, so a resumed run's must come later.
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}"
        count = len(list(directory.glob("events.out.tfevents.*")))
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_CLOEXEC
        self.appender = _Appender(os.open(directory / f"{name}.{count:04d}", flags, 0o644))
        self._writer = RecordWriter
        self._record(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, values: Mapping[str, Any], step: int) -> None:
        """Append the numbers in `values` as scalars at agent step `step`."""
        if self._purge:  # TensorBoard then hides values that come again
            start = self._session(status=self._session.START)
            self._record(self._event(wall_time=time.time(), step=step, session_log=start))
            self._purge = False
        scalars = [
            self._summary.Value(tag=name, simple_value=value)
            for name, value in values.items()
            if isinstance(value, int | float) and name != "agent_steps"
        ]
        self._record(self._event(wall_time=time.time(), step=step, summary=self._summary(value=scalars)))

    def _record(self, event: Any) -> None:
        record = io.BytesIO()
        self._writer(record).write(event.SerializeToString())
        self.appender.append(record.getvalue())
