"""A `Supervisor` replaces workers that die or hang, and stops the run if they keep failing."""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from polyactor.config import Config, Roles
from polyactor.envs import name_of
from polyactor.errors import EnvironmentUnsupported, OutOfResources, PolyactorError, WorkerExit, WorkerFailed
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.shared.slot_queue import WakeUp
from polyactor.system.deadline import PATIENCE
from polyactor.transport.watchdog import Tell

WINDOW = 3600.0
"""Seconds during which at most `Config.restarts` losses of a worker are accepted."""
FRUITLESS = 3
"""The run stops after so many processes of one worker in a row have ended before their first turn. After the n-th of
them the next is started n seconds later; a worker that had taken a turn is replaced at once."""
LIFELESS = 600.0
"""Seconds without a heartbeat, time in environments aside, after which a worker counts as hanging. A gradient may take
long, and its compilation longer."""
SPARED = 10.0
"""Seconds after a silent worker is ended in which no other is: others may have waited for a lock that it held."""


class WorkerPool(Protocol):
    """The interface of a pool of workers that a supervisor uses."""

    workers: int
    done: set[int]

    def start(self, i: int) -> None:
        """Start a process or thread for worker i."""

    def begun(self) -> list[tuple[int, dict[str, object]]]:
        """Return the workers that have begun since the last call, each with where it is, as fields of an event."""

    def watch(self, timeout: float, wake_up: WakeUp | None = None) -> list[WorkerExit]:
        """Wait until a worker ends, `wake_up` is called or `timeout` seconds have passed; return the lost workers."""

    def ask(self, i: int, *, kill: bool) -> None:
        """Ask worker i to end, or kill it."""


class Supervisor:
    """Replaces lost workers of a pool while it runs.

    Args:
        pool: the workers, started.
        config: the config of the run, with the number of restarts and the deadline of environments.
        counters: the counters and heartbeats of the workers.
        roles: the roles of the scheme; their `lost` is called for each worker lost.
        tell: called with each event: a worker is started, lost or restarted.
    """

    def __init__(self, pool: WorkerPool, config: Config, counters: SharedCounters, roles: Roles, tell: Tell) -> None:
        self.pool, self.config, self.counters, self.roles, self.tell = pool, config, counters, roles, tell
        workers, now = range(pool.workers), time.monotonic()
        self.turns = [self._turns(i) for i in workers]
        self.began = list(self.turns)
        self.losses: list[deque[float]] = [deque() for _ in workers]
        self.fruitless = [0] * pool.workers
        self.due: dict[int, float] = {}
        """By lost worker, the time at which it is started again."""
        self.gone: set[int] = set()
        """Workers lost for good."""
        self.hangs: dict[int, tuple[float, str]] = {}
        """By worker asked to end because it hangs, the time of asking and a sentence about the cause."""
        self.replaced: set[int] = set()
        """Workers that have been replaced."""
        self.looked, self.trusted, self.spared = now, now, now
        self._announce()

    def supervise(self, timeout: float, wake_up: WakeUp | None = None) -> bool:
        """Wait for workers that end, replace those lost, and return whether all workers are done.

        Args:
            timeout: seconds to wait at most.
            wake_up: ends the wait early.

        Raises:
            PolyactorError: the error of a lost worker, if its replacement would fail as well or losses are too many.
        """
        for loss in self.pool.watch(timeout, wake_up):
            self._lost(loss)
        self._end_what_hangs()
        now = time.monotonic()
        for i in [i for i, when in self.due.items() if when <= now]:
            self._replace(i)
        self._announce()
        return len(self.pool.done) + len(self.gone) == self.pool.workers

    def _announce(self) -> None:
        for i, where in self.pool.begun():
            self.tell("worker_restarted" if i in self.replaced else "worker_started", worker=i, **where)

    def _lost(self, loss: WorkerExit) -> None:
        """Report a lost worker and schedule its replacement, or raise its error if the run cannot go on."""
        i, now = loss.worker, time.monotonic()
        self.counters.leave(i)
        _, hang = self.hangs.pop(i, (0.0, ""))
        if loss.ours:
            raise loss.error
        reason, error = self._words(loss, hang)
        idle = self._turns(i) == self.turns[i]
        if loss.raised and self._turns(i) == self.began[i]:
            raise error  # an exception before the first turn would come again
        self.tell("worker_lost", f"worker {i} {reason}", worker=i)
        over = self.counters.steps >= self.config.steps
        if self.roles.lost is not None:
            self.roles.lost(i, over or self.config.restarts is None)
        if over:  # it only closed its environments, or was at what nobody waits for any more
            self.gone.add(i)
            return
        self.fruitless[i] = self.fruitless[i] + 1 if idle else 0
        if self.fruitless[i] >= FRUITLESS:
            raise self._in_vain(error, loss, hang)
        if self.config.restarts is None:
            self.gone.add(i)
            if len(self.gone) == self.pool.workers:
                raise error
            return
        recent = self.losses[i]
        recent.append(now)
        while recent[0] < now - WINDOW:
            recent.popleft()
        if len(recent) > self.config.restarts:
            count = f"that was loss {len(recent)} of this worker within an hour"
            raise type(error)(f"{error}; {count}, and --restarts allows {self.config.restarts}")
        self.due[i] = now + self.fruitless[i]

    def _words(self, loss: WorkerExit, hang: str) -> tuple[str, PolyactorError]:
        """Return why a worker was lost and the error for it; both name the environment that it was waiting for."""
        if hang:
            reason = f"was ended: {self._env}: {hang}"
            return reason, EnvironmentUnsupported(f"worker {loss.worker} {reason}")
        asked = None if loss.raised else self.counters.heartbeats.asked(loss.worker)
        if asked is None:
            return loss.reason, loss.error
        asked = f"; of {self._env} {asked}"
        return f"{loss.reason}{asked}", type(loss.error)(f"{loss.error}{asked}")

    def _in_vain(self, error: PolyactorError, loss: WorkerExit, hang: str) -> PolyactorError:
        """Return the error for a worker whose last `FRUITLESS` processes ended before their first turn."""
        kind: type[PolyactorError] = EnvironmentUnsupported
        if loss.raised:
            kind = WorkerFailed
        elif loss.memory and not hang:
            kind = OutOfResources
        return kind(f"{error}; {FRUITLESS} processes in a row have, none of them having done anything")

    def _replace(self, i: int) -> None:
        del self.due[i]
        self.counters.count(i, Counter.STARTS, 1)
        self.counters.heartbeats.begin(i)
        self.turns[i] = self._turns(i)
        self.replaced.add(i)
        self.pool.start(i)

    def _end_what_hangs(self) -> None:
        """Ask workers that hang or are silent to end, and kill those that do not end within `PATIENCE` seconds."""
        now = time.monotonic()
        gap, self.looked = now - self.looked, now
        if gap > PATIENCE:  # this process was stopped or busy, and the workers may have been stopped with it
            self.trusted = max(self.trusted, now + min(gap, self.config.env_timeout))
        if now < self.trusted:
            return
        heartbeats = self.counters.heartbeats
        at_work = [i for i in range(self.pool.workers) if not (i in self.due or i in self.gone or i in self.pool.done)]
        for i in at_work:
            if i in self.hangs:
                asked, _ = self.hangs[i]
                if now > asked + PATIENCE:
                    self.pool.ask(i, kill=True)
            elif hang := heartbeats.hanging(i, self.config.env_timeout):
                self._end(i, hang)
        silence, i = max(((heartbeats.silence(i), i) for i in at_work if i not in self.hangs), default=(0.0, 0))
        if silence > LIFELESS and now > self.spared:
            self.spared = now + SPARED
            self._end(i, f"it has shown no sign of life for {silence:.0f} s")

    def _end(self, i: int, hang: str) -> None:
        self.hangs[i] = time.monotonic(), hang
        self.pool.ask(i, kill=False)

    def _turns(self, i: int) -> int:
        return int(self.counters.table[i, Counter.TURNS])

    @property
    def _env(self) -> str:
        return name_of(self.config.env)
