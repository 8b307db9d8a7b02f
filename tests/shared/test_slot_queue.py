"""Queues of slots in shared memory, and the pipe that wakes who waits for one."""

from __future__ import annotations

import threading
import time
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from polyactor.shared.slot_queue import SlotQueue, WakeUp


@settings(deadline=None)
@given(st.integers(1, 4), st.lists(st.sampled_from(["put", "release"]), max_size=40))
@pytest.mark.fault("D5")
def test_its_slots_are_a_bounded_queue(slots: int, actions: list[str]) -> None:
    ours, theirs, number, stored = SlotQueue(1, slots, [WakeUp()]), deque[int](), 0, [-1] * slots
    for action in actions:
        free = ours.free(0)
        assert (free is None) == (len(theirs) == slots)
        assert ours.waiting(0) == len(theirs)
        if action == "put" and free is not None:
            stored[free] = number
            theirs.append(number)
            number += 1
            ours.put(0)
        elif action == "release" and theirs:
            assert stored[ours.next(0)] == theirs.popleft()
            ours.release(0)


def test_who_left_something_behind_still_plays() -> None:
    slots = SlotQueue(2, 2, [WakeUp(), WakeUp()])
    slots.put(0)
    slots.leave(0)
    assert slots.playing(0)
    slots.release(0)
    assert not slots.playing(0)
    assert slots.playing(1)


@pytest.mark.alone
def test_a_wake_up_before_anybody_waits_is_heard_and_then_quiet() -> None:
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


def test_a_wake_up_wakes_who_waits() -> None:
    wake_up = WakeUp()
    threading.Timer(0.05, wake_up.wake).start()
    start = time.monotonic()
    wake_up.wait(10.0)
    assert time.monotonic() - start < 5.0


@settings(deadline=None)
@given(st.integers(1, 4), st.lists(st.sampled_from(["turn", "release"]), max_size=40))
def test_a_queue_elsewhere_is_granted_the_slots_of_the_runs_queue(slots: int, actions: list[str]) -> None:
    ours, theirs = SlotQueue(1, slots, [WakeUp()]), SlotQueue(1, slots, [WakeUp()])
    for action in actions:
        if action == "turn" and ours.free(0) is not None:
            theirs.grant(0, ours.filled(0))
            assert theirs.free(0) == ours.free(0)
            theirs.put(0)
            ours.put(0)
            assert theirs.filled(0) == ours.filled(0)
        elif action == "release" and ours.waiting(0):
            ours.release(0)


def test_who_is_not_let_in_is_granted_nothing() -> None:
    queue = SlotQueue(2, 2, [WakeUp(), WakeUp()])
    queue.grant(1, None)
    assert queue.free(1) is None
    queue.grant(1, 5)
    assert queue.free(1) == 1
