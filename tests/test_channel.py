"""Rings, bells, and the word that pauses: what processes tell each other."""

from __future__ import annotations

import threading
import time
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import multiprocessing

from polyactor.data import Gradients, Moments
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.shared.gradient_slots import GradientSlot, mean
from polyactor.shared.locks import SequenceLock
from polyactor.shared.slot_queue import SlotQueue, WakeUp

pytestmark = pytest.mark.alone


@settings(deadline=None)
@given(st.integers(1, 4), st.lists(st.sampled_from(["put", "release"]), max_size=40))
@pytest.mark.fault("D5")
def test_a_slot_queue_is_a_bounded_queue(slots: int, actions: list[str]) -> None:
    slot_queue, queue, number, stored = SlotQueue(1, slots), deque[int](), 0, [-1] * slots
    for action in actions:
        free = slot_queue.free(0)
        assert (free is None) == (len(queue) == slots)
        assert slot_queue.waiting(0) == len(queue)
        if action == "put" and free is not None:
            stored[free] = number
            queue.append(number)
            number += 1
            slot_queue.put(0)
        elif action == "release" and queue:
            assert stored[slot_queue.next(0)] == queue.popleft()
            slot_queue.release(0)


def test_who_left_something_behind_still_plays() -> None:
    slots = SlotQueue(2, 2)
    slots.put(0)
    slots.leave(0)
    assert slots.playing(0)
    slots.release(0)
    assert not slots.playing(0)
    assert slots.playing(1)


def test_a_bell_rung_before_anybody_waits_is_heard_and_then_quiet() -> None:
    wake_up = WakeUp()
    for _ in range(100_000):  # more than a pipe holds
        wake_up.wake()
    start = time.monotonic()
    wake_up.wait(10.0)
    assert time.monotonic() - start < 1.0
    for _ in range(3):
        wake_up.wait(0.0)  # the rest of what was in the pipe
    start = time.monotonic()
    wake_up.wait(0.1)
    assert time.monotonic() - start >= 0.09


def test_a_bell_wakes_who_waits() -> None:
    wake_up = WakeUp()
    threading.Timer(0.05, wake_up.slots).start()
    start = time.monotonic()
    wake_up.wait(10.0)
    assert time.monotonic() - start < 5.0


def test_a_worker_that_just_woke_is_not_taken_for_one_that_waits() -> None:
    """The echo of the pause before must not satisfy the next one."""
    counters = SharedCounters(1)
    counters.table[0, Counter.PAUSED] = 1  # what it said to the first pause
    counters._pauses = 1
    assert counters.pause(deadline=0.05) is False


def test_a_pause_that_nobody_heeds_is_given_up_where_something_else_is_asked() -> None:
    start = time.monotonic()
    assert SharedCounters(1).pause(unless=lambda: time.monotonic() > start + 0.05) is False
    assert time.monotonic() < start + 5.0


def test_pausing_often_loses_no_worker() -> None:
    """A word read twice could change in between, and a worker would take a pause for the end."""
    counters, over = SharedCounters(2), threading.Event()
    ended: list[int] = []

    def work(worker: int) -> None:
        while counters.proceed(worker):
            counters.count(worker, Counter.UPDATES, 1)
        ended.append(worker)
        counters.leave(worker)

    threads = [threading.Thread(target=work, args=(worker,)) for worker in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(300):
        with counters.paused() as heeded:
            assert heeded
            before = counters.table[:, Counter.UPDATES].copy()
            time.sleep(0.0005)
            assert (counters.table[:, Counter.UPDATES] == before).all()
    assert ended == []
    counters.stop()
    over.set()
    for thread in threads:
        thread.join(10.0)
    assert sorted(ended) == [0, 1]


def test_metrics_are_means_since_the_mark() -> None:
    counters = SharedCounters(2)
    assert counters.metrics()["entropy"] is None
    counters.record(0, {"entropy": 1.0, "grad_norm": float("nan")})
    counters.record(1, {"entropy": 2.0})
    assert counters.metrics()["entropy"] == 1.5
    assert counters.metrics()["grad_norm"] is None  # what is not finite is no number
    counters.mark()
    assert counters.metrics()["entropy"] == 1.5  # nothing new
    counters.record(0, {"entropy": 5.0})
    assert counters.metrics()["entropy"] == 5.0


def gradients(value: float, *, version: int = 0, steps: int = 3, count: float = 2.0) -> Gradients:
    moments = Moments(torch.tensor([count]), torch.tensor([value]), torch.tensor([1.0]))
    return Gradients(torch.full((4,), value), {"entropy": value}, version, steps, {"x": moments})


def gradient_slot(rows: int) -> GradientSlot:
    zeros = torch.zeros(rows)
    return GradientSlot.blank(4, ("entropy", "kl"), {"x": Moments(zeros, zeros.clone(), zeros.clone())})


@pytest.mark.parametrize(("reduction", "expected"), [("mean", 2.0), ("sum", 4.0)])
def test_a_parcel_joins_gradients_and_forgets_the_last_ones(reduction: str, expected: float) -> None:
    box = gradient_slot(2)
    box.put(gradients(9.0))
    box.add(gradients(9.0))
    box.put(gradients(1.0, version=7))
    box.add(gradients(3.0, version=5))
    joined = box.gradients(reduction)  # type: ignore[arg-type]
    assert joined.vector.tolist() == [expected] * 4
    assert joined.metrics == {"entropy": 2.0}
    assert (joined.version, joined.steps) == (5, 6)
    assert joined.moments["x"].mean.tolist() == [1.0, 3.0]
    box.put(gradients(1.0))
    assert box.gradients("mean").moments["x"].samples.tolist() == [2.0, 0.0]  # the second row is empty again


def test_the_mean_of_several_workers() -> None:
    joined = mean([gradients(1.0, version=4), gradients(2.0, version=2), gradients(6.0, version=3)])
    assert joined.vector.tolist() == [3.0] * 4
    assert (joined.version, joined.steps, joined.metrics) == (2, 9, {"entropy": 3.0})
    assert joined.moments["x"].samples.tolist() == [2.0] * 3


# ---- the lock that no reader holds ---------------------------------------------------------------------------------


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
        while int(found[0]) < 500:
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
