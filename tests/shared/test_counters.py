"""Counters that all workers share, and the word that pauses them."""

from __future__ import annotations

import threading
import time

from polyactor.shared.counters import Counter, Report, SharedCounters
from polyactor.shared.timing import Part


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


def test_what_utf_8_cannot_say_is_replaced_in_the_failure_of_an_environment() -> None:
    counters = SharedCounters(1)
    counters.env_error(0, "no file caf\udce9.txt")
    assert counters.new_env_errors() == [(0, "no file caf?.txt")]


def test_what_a_worker_elsewhere_reports_is_counted_once() -> None:
    ours, theirs = SharedCounters(3), SharedCounters(3)
    ours.count(1, Counter.UPDATES, 7)
    ours.count(2, Counter.STEPS, 70)
    ours.count(2, Counter.STARTS, 2)
    ours.changes.put({"algorithm.entropy_coef": 0.5})
    theirs.obey(2, ours.order(2))
    assert (theirs.version, theirs.steps, theirs.starts(2)) == (7, 70, 2)
    assert theirs.changes.made() == {"algorithm.entropy_coef": 0.5}
    for scores in ([1.5, 2.5], [3.5]):
        for score in scores:
            theirs.game(2, score, 9)
        theirs.env_error(2, f"it failed at {scores[0]}")
        theirs.count(2, Counter.TURNS, 4)
        theirs.spend(2, Part.EMULATE, 0.25)
        ours.take(2, theirs.report(2))
        assert theirs.report(2) == Report(0, [], [], {})
    assert [(game.score, game.length, game.worker) for game in ours.new_games()] == [
        (1.5, 9, 2), (2.5, 9, 2), (3.5, 9, 2)
    ]  # fmt: skip
    assert ours.new_env_errors() == [(2, "it failed at 1.5"), (2, "it failed at 3.5")]
    assert int(ours.table[2, Counter.TURNS]) == 8
    assert ours.spent()[Part.EMULATE] == 0.5
