"""The run's side of its workers on other machines: a thread that sends orders and takes letters in."""

from __future__ import annotations

import threading
import time
from collections import deque
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import ray
from ray.exceptions import ActorUnavailableError, OutOfMemoryError, RayError

from polyactor.agent.parts import Parts
from polyactor.data.wire import decode
from polyactor.envs.registrations import registrations
from polyactor.errors import ClusterFailed, WorkerExit, WorkerFailed, in_brief
from polyactor.shared.exchange import Exchange
from polyactor.shared.slot_queue import WakeUp
from polyactor.transport.last_words import LastWords
from polyactor.transport.ray.cluster import Cluster
from polyactor.transport.ray.letters import Letter, Publisher, own_versions
from polyactor.transport.ray.remote import Remote
from polyactor.transport.watchdog import Tell

TICK = 0.25
"""Seconds after which the thread looks at its workers, even if nothing has come."""
PULSE_EVERY = 1.0
"""Seconds that a worker computes before it is asked for a sign of life, and between two such questions."""
UNKNOWN_AFTER = 3.0
"""Seconds without an answer after which what a worker was waiting for no longer counts."""
PLACED_WITHIN = 10.0
"""Seconds after which a worker that no node has room for counts as away, so that it is not waited for."""
STOPPED = 2.0
"""Seconds between two looks after which this process was itself stopped, so that no worker has been silent."""
NEVER = -1
"""The version of θ that a worker has before it has any."""


class _Lost(Exception):
    """A worker is lost."""

    def __init__(self, exit: WorkerExit) -> None:
        super().__init__(exit.reason)
        self.exit = exit


@dataclass
class Seat:
    """One start of a worker, as the run sees it.

    Attributes:
        remote: the handle of its process, which Ray places on a node that has room.
        greeting: its first answer.
        since: when it was started, or when it last answered; seconds of the monotonic clock.
        here: whether it has greeted.
        unplaced: whether it has been said that it waits for a node.
        arrived: whether it waits to be let in.
        version: the version of θ that it has.
        turns: the turns that it has been asked for, with the number of the slot that each fills.
        pulse: the question whether it lives, while it has no answer.
    """

    remote: Any
    greeting: Future[Any]
    since: float
    here: bool = False
    unplaced: bool = False
    arrived: bool = False
    version: int = NEVER
    turns: deque[tuple[int | None, Future[Any]]] = field(default_factory=deque)
    pulse: Future[Any] | None = None


class Post:
    """A pool of workers on the nodes of a cluster.

    A worker has one call out for each of its free slots, whose result is the content of that slot. θ goes with a call
    if the worker does not have it yet. A thread of its own takes the results in and makes new calls; it writes the
    cells of workers alone, and reads θ under its lock, so that the scheme's main role sees what it would see of workers
    in processes of this machine.

    Args:
        parts: the parts of the run.
        exchange: the run's own queues and places.
        wake_up: wakes the thread; the queues wake it when a slot is free.
        cluster: the cluster that has the nodes.
        tell: called when a worker waits for a node that has room.
    """

    def __init__(self, parts: Parts, exchange: Exchange, wake_up: WakeUp, cluster: Cluster, tell: Tell) -> None:
        config = parts.config
        self.lease, self.counters, self.exchange, self.lost = config.ray.lease, parts.counters, exchange, cluster.lost
        self.cpus, self.tell, self.unplaced = cluster.cpus, tell, deque[int]()
        self.workers, self.steps, self.slots, self.wake_up = config.workers, config.steps, exchange.slots, wake_up
        self.publisher = Publisher(parts.state, parts.counters, exchange.lock, config.ray.wire)
        self.given = cloudpickle.dumps((config, parts.spec, registrations()))
        self.make = ray.remote(
            num_cpus=cluster.cpus,
            max_restarts=0,  # budgets and streams of replacements are the supervisor's
            max_task_retries=0,  # each turn is played at most once
            concurrency_groups={"control": 2},
            enable_task_events=False,  # of each of 100,000 calls the head would keep an account
            scheduling_strategy="SPREAD",
        )(Remote)
        self.done: set[int] = set()
        self.seats: dict[int, Seat] = {}
        self.lock = threading.Lock()
        self.new: list[tuple[int, dict[str, object]]] = []
        self.exits: deque[WorkerExit] = deque()
        self.over = threading.Event()
        self.failure: BaseException | None = None
        for i in range(self.workers):
            self.start(i)
        self.thread = threading.Thread(target=self._run, name="polyactor-post", daemon=True)
        self.thread.start()

    # -- for the supervisor, in the run's main thread --------------------------------------------------------------

    def start(self, i: int) -> None:
        """Start worker i on any node that has room, now or later."""
        remote = self.make.remote(i)
        order = self.counters.order(i)
        greeting = self._asked(remote.greet.remote(own_versions(), self.given, order))
        with self.lock:
            self.seats[i] = Seat(remote, greeting, time.monotonic())

    def begun(self) -> list[tuple[int, dict[str, object]]]:
        """Return the workers that have greeted since the last call, each with its node and process id."""
        with self.lock:
            new, self.new = self.new, []
        return new

    def watch(self, timeout: float, wake_up: WakeUp | None = None) -> list[WorkerExit]:
        """Wait until `wake_up` is called or `timeout` seconds have passed; return the lost workers.

        Raises:
            ClusterFailed: the cluster is lost.
        """
        if wake_up is not None:
            wake_up.wait(timeout)
        if self.failure is not None:
            raise self.failure
        if why := self.lost():
            raise ClusterFailed(f"the cluster is lost: {why}")
        while self.unplaced:
            i, cores = self.unplaced.popleft(), f"{self.cpus:g} free cores (--ray.cpus), or to start on a slow one"
            self.tell("worker_waits", f"worker {i} waits for a node with {cores}", worker=i)
        return [self.exits.popleft() for _ in range(len(self.exits))]

    def ask(self, i: int, *, kill: bool) -> None:
        """Kill worker i, which a worker on another machine is not asked for; the thread then finds that it is gone."""
        with self.lock:
            if (seat := self.seats.get(i)) is not None:
                _kill(seat.remote)

    def stop(self, grace: float = 10.0) -> None:
        """Ask all workers to close their environments, and kill them when they have or `grace` seconds are over."""
        self.over.set()
        self.wake_up.wake()
        if self.lost():  # nothing that a lost cluster is asked for need ever return
            return
        self.thread.join(grace)
        closing = []
        for seat in [seat for seat in self.seats.values() if seat.here]:
            seat.remote.stop.remote()
            closing.append(seat.remote.close.remote())
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=grace)
        for seat in self.seats.values():
            _kill(seat.remote)

    # -- the thread ------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        looked = time.monotonic()
        try:
            while not self.over.is_set():
                self.wake_up.wait(TICK)
                gap, looked = time.monotonic() - looked, time.monotonic()
                with self.lock:
                    for seat in self.seats.values() if gap > STOPPED else ():
                        seat.since += gap
                    for i, seat in list(self.seats.items()):
                        self._attend(i, seat)
        except BaseException as error:  # raised where it is seen, in the run's main thread
            self.failure = error
            self.slots.main.wake()

    def _attend(self, i: int, seat: Seat) -> None:
        """Do for one worker what can be done now."""
        try:
            if not seat.here and i not in self.done:
                self._welcome(i, seat)
            while seat.turns and seat.turns[0][1].done():
                self._take(i, seat)
            while seat.here and i not in self.done and self._wants(i, seat):
                self._ask_turn(i, seat)
            self._feel(i, seat)
        except _Lost as lost:
            self._give_up(i, lost.exit)
        except RayError as error:
            self._give_up(i, _exit(i, error))

    def _welcome(self, i: int, seat: Seat) -> None:
        """Hear what a new worker says first; while no node has room for it, let nobody wait for it."""
        self.counters.heartbeats.beat(i)
        if seat.greeting.done():
            words = seat.greeting.result()
            if isinstance(words, LastWords):
                raise _Lost(words.of_worker(i))
            seat.here, seat.since = True, time.monotonic()
            self.new.append((i, {"node": words.node, "pid": words.pid}))
        elif self.counters.steps >= self.steps:  # nothing is left for it to do, should it ever have a place
            self.slots.leave(i)
            self.done.add(i)
        elif time.monotonic() > seat.since + PLACED_WITHIN and not seat.unplaced:
            seat.unplaced = True
            self.unplaced.append(i)
            self.slots.lost(i, False)

    def _wants(self, i: int, seat: Seat) -> bool:
        """Return whether worker i has a slot to fill, or has still to arrive before it is let in."""
        if self.slots.away(i):
            return not seat.turns and not seat.arrived
        return self.slots.waiting(i) + len(seat.turns) < self.slots.slots

    def _ask_turn(self, i: int, seat: Seat) -> None:
        order, published = self.publisher.order(i, seat.version)
        number = None if self.slots.away(i) else self.slots.filled(i) + len(seat.turns)
        if not seat.turns:
            seat.since = time.monotonic()
        seat.turns.append((number, self._asked(seat.remote.turn.remote(order, number, published))))
        seat.version = order.version

    def _take(self, i: int, seat: Seat) -> None:
        """Take in the oldest letter of worker i, as if the worker had written into the run's own places."""
        number, turn = seat.turns.popleft()
        letter: Letter | LastWords = turn.result()
        if isinstance(letter, LastWords):
            raise _Lost(letter.of_worker(i))
        seat.since = time.monotonic()
        self.counters.heartbeats.begin(i)
        self.counters.take(i, letter.report)
        if letter.arrays is not None:
            assert number == self.slots.filled(i), "letters come in the order of the slots, each once"
            decode(letter.arrays, self.exchange.places.place(i, self.slots.latest(i)).named())
            self.slots.put(i)
        elif not letter.done:
            seat.arrived = True
            self.slots.arrive(i)
        if letter.left:
            self.slots.leave(i)
        if letter.done:
            self.done.add(i)

    def _feel(self, i: int, seat: Seat) -> None:
        """Ask a worker that computes for a sign of life, and give it up if none has come for the length of a lease."""
        now = time.monotonic()
        if seat.pulse is not None and seat.pulse.done():
            self.counters.heartbeats.rebase(i, seat.pulse.result())
            seat.pulse, seat.since = None, now
        if not seat.turns:  # it waits for a slot, and is asked when there is one
            self.counters.heartbeats.beat(i)
        elif seat.pulse is None and now > seat.since + PULSE_EVERY:
            seat.pulse = self._asked(seat.remote.pulse.remote())
        elif seat.pulse is not None and now > seat.since + UNKNOWN_AFTER:
            self.counters.heartbeats.begin(i)  # whether its environments answer is not known
        if seat.pulse is not None and now > seat.since + self.lease:
            reason = f"gave no answer for {self.lease:g} s (--ray.lease)"
            raise _Lost(WorkerExit(i, WorkerFailed(f"worker {i} {reason}"), reason))

    def _give_up(self, i: int, exit: WorkerExit) -> None:
        """Count a worker as lost; what it may still send is never read."""
        _kill(self.seats.pop(i).remote)
        self.exits.append(exit)
        self.slots.main.wake()

    def _asked(self, ref: Any) -> Future[Any]:
        """Return the future of a call, which wakes the thread when it has a result."""
        future: Future[Any] = ref.future()
        future.add_done_callback(lambda _: self.wake_up.wake())
        return future


def _kill(remote: Any) -> None:
    """Kill the process of a worker on its node, now or when the node answers again."""
    with suppress(RayError):
        ray.kill(remote, no_restart=True)


def _exit(i: int, error: RayError) -> WorkerExit:
    """Return how worker i was lost, by the error that Ray raises for it."""
    text = str(error)
    if getattr(error, "actor_init_failed", False):
        failure = ClusterFailed(f"worker {i} cannot start on its node: {in_brief(error)}")
        return WorkerExit(i, failure, str(failure), ours=True, raised=True)
    memory = isinstance(error, OutOfMemoryError) or "SYSTEM_ERROR" in text  # of a kill Ray knows no more
    if memory:
        reason = "was killed on its node (out of memory?)"
    elif isinstance(error, ActorUnavailableError) or "node has died" in text:
        reason = "was lost with its node"
    else:
        reason = f"was lost: {in_brief(error)}"
    return WorkerExit(i, WorkerFailed(f"worker {i} {reason}"), reason, memory=memory)
