"""Workers that die are replaced: a `Supervisor` notices, tells, starts another process, and knows when to give up."""

from __future__ import annotations

import time
from collections import deque
from typing import Protocol

from polyactor.config import Config, Roles
from polyactor.errors import EnvironmentUnsupported, OutOfResources, PolyactorError, WorkerExit, WorkerFailed
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.shared.slot_queue import WakeUp
from polyactor.transport.watchdog import PATIENCE, Tell

WINDOW = 3600.0
"""Seconds in which `Config.restarts` counts."""
FRUITLESS = 3
"""Processes of one worker in a row that end before they have done anything, after which the run stops. Before each next
one as many seconds pass as there have been of them; a worker that had done something is replaced at once."""
LIFELESS = 600.0
"""Seconds of silence, environments aside, after which a worker counts as hanging: a gradient may be long, and its
compilation longer."""
SPARED = 10.0
"""Seconds in which no other worker is ended for its silence: it may only have waited for a lock that this one held."""
OUT_OF_MEMORY = "killed by signal 9"


class WorkerPool(Protocol):
    """What a supervisor needs of a `ProcessPool` or of `ThreadPool`."""

    workers: int
    done: set[int]

    def start(self, i: int) -> None:
        """Worker i."""

    def pid(self, i: int) -> int:
        """Its process id."""

    def watch(self, timeout: float, wake_up: WakeUp | None = None) -> list[WorkerExit]:
        """Wait for news."""

    def ask(self, i: int, *, kill: bool) -> None:
        """To end."""


class Supervisor:
    """Keeps W workers at work.

    Args:
        pool: the workers, started.
        config: of the run.
        counters: their counters and signs of life.
        roles: told of losses.
        tell: of what happens.
    """

    def __init__(self, pool: WorkerPool, config: Config, counters: SharedCounters, roles: Roles, tell: Tell) -> None:
        self.pool, self.config, self.counters, self.roles, self.tell = pool, config, counters, roles, tell
        workers, now = range(pool.workers), time.monotonic()
        self.turns = [self._turns(i) for i in workers]
        self.began = list(self.turns)
        self.losses: list[deque[float]] = [deque() for _ in workers]
        self.fruitless = [0] * pool.workers
        self.due: dict[int, float] = {}
        """When a worker that is lost is started again."""
        self.gone: set[int] = set()
        """Lost for good."""
        self.hangs: dict[int, tuple[float, str]] = {}
        """Workers asked to end: when, and what they hang in."""
        self.looked, self.trusted, self.spared = now, now, now
        for i in workers:
            tell("worker_started", worker=i, pid=pool.pid(i))

    def supervise(self, timeout: float, wake_up: WakeUp | None = None) -> bool:
        """Wait up to `timeout` seconds for news or a bell, and see to what is lost; True when all work is done.

        Raises:
            PolyactorError: what ended a worker, where that would come again, or has come too often.
        """
        for loss in self.pool.watch(timeout, wake_up):
            self._lost(loss)
        self._end_what_hangs()
        now = time.monotonic()
        for i in [i for i, when in self.due.items() if when <= now]:
            self._replace(i)
        return len(self.pool.done) + len(self.gone) == self.pool.workers

    def _lost(self, loss: WorkerExit) -> None:
        i, now = loss.worker, time.monotonic()
        self.counters.leave(i)
        _, hang = self.hangs.pop(i, (0.0, ""))
        if loss.ours:
            raise loss.error
        reason, error = self._words(loss, hang)
        idle = self._turns(i) == self.turns[i]
        if loss.raised and self._turns(i) == self.began[i]:
            raise error  # it would do so again
        self.tell("worker_lost", f"worker {i} {reason}", worker=i)
        self.fruitless[i] = self.fruitless[i] + 1 if idle else 0
        if self.fruitless[i] >= FRUITLESS:
            raise self._in_vain(error, loss, hang)
        for_good = self.config.restarts is None
        if self.roles.lost is not None:
            self.roles.lost(i, for_good)
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
        """Why a worker was lost, and what to raise of it; what it was asking of an environment is named."""
        if hang:
            reason = f"was ended: {self._env}: {hang}"
            return reason, EnvironmentUnsupported(f"worker {loss.worker} {reason}")
        asked = None if loss.raised else self.counters.heartbeats.asked(loss.worker)
        if asked is None:
            return loss.reason, loss.error
        asked = f"; of {self._env} {asked}"
        return f"{loss.reason}{asked}", type(loss.error)(f"{loss.error}{asked}")

    def _in_vain(self, error: PolyactorError, loss: WorkerExit, hang: str) -> PolyactorError:
        """What to say of a worker none of whose processes gets anywhere."""
        kind: type[PolyactorError] = EnvironmentUnsupported
        if loss.raised:
            kind = WorkerFailed
        elif OUT_OF_MEMORY in loss.reason and not hang:
            kind = OutOfResources
        return kind(f"{error}; {FRUITLESS} processes in a row have, none of them having done anything")

    def _replace(self, i: int) -> None:
        del self.due[i]
        self.counters.count(i, Counter.STARTS, 1)
        self.counters.heartbeats.begin(i)
        self.turns[i] = self._turns(i)
        self.pool.start(i)
        self.tell("worker_restarted", worker=i, pid=self.pool.pid(i))

    def _end_what_hangs(self) -> None:
        now = time.monotonic()
        gap, self.looked = now - self.looked, now
        if gap > PATIENCE:  # this process was stopped or busy, and they may have been stopped with it
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
        return str(getattr(self.config.env, "__qualname__", self.config.env))
