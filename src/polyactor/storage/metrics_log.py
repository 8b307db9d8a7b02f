"""What a run writes while it goes: rows, events, TensorBoard scalars and a summary, all in its own directory.

``metrics.jsonl`` holds a row per report and ``events.jsonl`` one line per happening; both are plain JSON lines, each
written whole in one call. What a full disk has no room for waits in memory. Nothing here imports torch.
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
from collections.abc import Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from polyactor.errors import RunDirectoryError
from polyactor.storage.atomic import replace_file, writing

ROWS, EVENTS, SUMMARY = "metrics.jsonl", "events.jsonl", "summary.json"


FULL = (errno.ENOSPC, errno.EDQUOT)
"""What a disk without room says."""


MOST_WAITING = 10_000
"""Lines of a file that wait for room; then the oldest are dropped, and counted."""


Value = float | int | list[int] | None


class MetricsLog:
    """The files one run reports to. One process owns it; close it, or use it in a ``with`` statement.

    Args:
        directory: the run directory, made when missing.
        append: go on where an earlier run stopped; half a line that a crash left at the end is dropped. Otherwise
            the directory must not hold rows yet.
        steps: with ``append``, the agent steps that are gone on from; rows of later ones are dropped, they come again.

    Rows, events and scalars that a full disk has no room for wait, and are written before the next as soon as there is.

    Raises:
        RunDirectoryError: the directory cannot be written, or holds rows already and ``append`` is off.
        OutOfResources: the disk is full (here and from `summary`; nothing is left half written).
    """

    def __init__(self, directory: Path, *, append: bool = False, steps: int | None = None) -> None:
        self.directory = Path(directory)
        rows, events = self.directory / ROWS, self.directory / EVENTS
        with writing(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            if not append and rows.exists() and rows.stat().st_size:
                raise RunDirectoryError(f"{rows} already has rows of another run: resume it or choose another --out")
            self.taken_back = _take_back(rows, steps) if append and steps is not None else 0
            """Rows that were dropped, since they come again."""
            self._rows = _Pieces(_open_lines(rows, append))
            self._events = _Pieces(_open_lines(events, append))
            self._board = _Scalars(self.directory, purge=append)

    def row(self, values: Mapping[str, Value]) -> None:
        """Append one row to ``metrics.jsonl`` and its scalars to TensorBoard.

        Args:
            values: by name, in the order they are written; ``agent_steps`` must be there. NaN and infinities become
                null; lists go to the row only.

        Raises:
            KeyError: there is no ``agent_steps``; nothing is written.
        """
        plain = {name: _plain(value) for name, value in values.items()}
        step = int(plain["agent_steps"])
        with writing(self.directory / ROWS):
            self._rows.append(_line(plain))
            self._board.write(plain, step)
        self._own_up()

    def event(self, name: str, reason: str = "", **fields: object) -> None:
        """Append one line to ``events.jsonl``: UTC time (ISO 8601, milliseconds), event, reason, then the fields."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with writing(self.directory / EVENTS):
            self._events.append(_line(_plain({"time": now, "event": name, "reason": reason} | fields)))
        self._own_up()

    def summary(self, values: Mapping[str, object]) -> None:
        """Write ``summary.json``; a reader finds the old one or the new one."""
        text = json.dumps(_plain(values), indent=1, allow_nan=False) + "\n"
        with writing(self.directory / SUMMARY):
            replace_file(self.directory / SUMMARY, text.encode())

    def close(self) -> None:
        """Close the files; may be called twice. What still waits for room is lost."""
        with writing(self.directory):
            for pieces in (self._rows, self._events, self._board.pieces):
                pieces.close()

    def _own_up(self) -> None:
        """An event for the lines that were dropped while there was no room, once there is."""
        for name, pieces in ((ROWS, self._rows), (EVENTS, self._events), ("TensorBoard", self._board.pieces)):
            if pieces.dropped and not pieces.waiting:
                count, pieces.dropped = pieces.dropped, 0
                self.event("lines_dropped", "the disk was full for too long", file=name, lines=count)

    def __enter__(self) -> MetricsLog:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a JSON lines file, without the half line that a crash or a writer at work may have left at its end.

    Args:
        path: ``metrics.jsonl`` or ``events.jsonl``; no rows when it does not exist.

    Raises:
        RunDirectoryError: it cannot be read, or a whole line of it is not a JSON object.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as error:
        raise RunDirectoryError(f"cannot read {path}: {error.strerror}") from error
    rows = []
    for number, line in enumerate(data.split(b"\n")[:-1], start=1):  # what follows the last newline is no whole line
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        if not isinstance(row, dict):
            raise RunDirectoryError(f"{path} is damaged: line {number} is not a JSON object")
        rows.append(row)
    return rows


def _plain(value: Any) -> Any:
    """The value as strict JSON has it: non-finite numbers are null, array scalars numbers, anything else its name."""
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
    """A descriptor that appends after the last whole line, or to an empty file."""
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


def _take_back(path: Path, steps: int) -> int:
    """Drop the rows of more agent steps than these, all or none; returns how many."""
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
        return False  # whatever it is, it is not ours to drop


def _line(value: object) -> bytes:
    return json.dumps(value, allow_nan=False).encode() + b"\n"


class _Pieces:
    """Appends pieces to a file, each whole or not at all; those there is no room for wait, in their order."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor, self.dropped = descriptor, 0
        self.waiting: deque[bytes] = deque()

    def append(self, piece: bytes) -> None:
        """Raises `OSError` for anything but a full disk."""
        if len(self.waiting) >= MOST_WAITING:
            self.waiting.popleft()
            self.dropped += 1
        self.waiting.append(piece)
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


def _write_whole(descriptor: int, piece: bytes) -> None:
    """In one call; on failure what part of it reached the file is taken back."""
    size = os.fstat(descriptor).st_size
    written = 0
    try:
        while written < len(piece):
            written += os.write(descriptor, piece[written:])  # short only where the disk fills up: then the next raises
    except OSError:
        with suppress(OSError):
            os.ftruncate(descriptor, size)
        raise


class _Scalars:
    """A TensorBoard event file, written in this thread: nothing is queued, so nothing is lost when the run is killed.

    TensorBoard's own `EventFileWriter` has a thread that hides write errors, and torch's needs torch.
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
        self.pieces = _Pieces(os.open(directory / f"{name}.{count:04d}", flags, 0o644))
        self._writer = RecordWriter
        self._record(self._event(wall_time=time.time(), file_version="brain.Event:2"))

    def write(self, values: Mapping[str, Any], step: int) -> None:
        if self._purge:  # the resumed run replaces what the lost one wrote from here on
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
        self.pieces.append(record.getvalue())
