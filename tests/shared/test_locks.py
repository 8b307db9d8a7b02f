"""Locks among processes, and the one that no reader holds."""

from __future__ import annotations

import fcntl
import multiprocessing
import multiprocessing.util
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import multiprocessing

from polyactor.shared.locks import FileLock, SequenceLock
from tests.helpers.programs import program


def test_what_is_written_meanwhile_is_read_again() -> None:
    lock, rounds = SequenceLock(), 0
    for rounds, _ in enumerate(lock.reading(), start=1):
        if rounds < 3:
            with lock:
                pass
    assert rounds == 3


def test_nobody_reads_while_it_is_written_and_threads_write_in_turn() -> None:
    lock, read = SequenceLock(), threading.Event()
    reader = threading.Thread(target=lambda: (next(lock.reading()), read.set()))
    writer = threading.Thread(target=lambda: lock.__enter__())
    with lock:
        reader.start()
        writer.start()
        assert not read.wait(0.2)
        assert int(lock.written[0]) == 1
    writer.join(5.0)
    assert not read.is_set() or int(lock.written[0]) == 2
    lock.__exit__()
    assert read.wait(5.0)
    reader.join()


def read_pairs(lock: SequenceLock, pair: torch.Tensor, found: torch.Tensor) -> None:
    """Count what was read, and what was half of one write and half of another."""
    while int(pair[-1]) >= 0:
        for _ in lock.reading():
            both = pair[:2].clone()
        found[int(both[0] != both[1])] += 1


def test_another_process_never_reads_half_of_a_write() -> None:
    lock = SequenceLock()
    pair, found = (torch.zeros(3, dtype=torch.int64).share_memory_() for _ in range(2))
    reader = multiprocessing.get_context("spawn").Process(target=read_pairs, args=(lock, pair, found))
    reader.start()
    try:
        while int(found[0]) < 200:
            assert reader.is_alive()
            with lock:
                pair[0] += 1
                time.sleep(1e-5)
                pair[1] += 1
            time.sleep(1e-4)
        pair[2] = -1
        reader.join(10.0)
    finally:
        reader.kill()
    assert reader.exitcode == 0
    assert int(found[1]) == 0


HOLDER = """
import sys
from polyactor.shared.locks import FileLock
with FileLock(sys.argv[1]):
    print("held", flush=True)
    input()
"""
COUNTER = """
import sys
from pathlib import Path
from polyactor.shared.locks import FileLock
lock, number = FileLock(sys.argv[1]), Path(sys.argv[2])
print("ready", flush=True)
input()
for _ in range(int(sys.argv[3])):
    with lock:
        number.write_text(str(int(number.read_text()) + 1))
"""


def test_the_lock_excludes_and_a_dead_holder_lets_go(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    path.touch()
    entered = threading.Event()

    def enter() -> None:
        with FileLock(str(path)):
            entered.set()

    with program(tmp_path / "holder.py", HOLDER, path) as holder, open(path) as file:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        threading.Thread(target=enter, daemon=True).start()
        assert not entered.wait(0.2)
        holder.send_signal(signal.SIGKILL)
        assert entered.wait(5.0)


def test_the_lock_makes_two_processes_take_turns(tmp_path: Path) -> None:
    path, number, times = tmp_path / "lock", tmp_path / "number", 200
    path.touch()
    number.write_text("0")
    with program(tmp_path / "counter.py", COUNTER, path, number, times) as other:
        assert other.stdout is not None
        assert other.stdin is not None
        assert other.stdout.readline() == "ready\n"
        other.stdin.write("\n")
        other.stdin.flush()
        lock = FileLock(str(path))
        for _ in range(times):
            with lock:
                number.write_text(str(int(number.read_text()) + 1))
        assert other.wait(30) == 0
    assert int(number.read_text()) == 2 * times
