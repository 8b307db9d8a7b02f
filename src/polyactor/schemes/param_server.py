"""Parameter server: workers collect and differentiate, send their gradients to a server, and pull its parameters.

With the A2C loss this is A3C over a server, the arrangement of DistBelief (Dean et al. 2012, Nair et al. 2015).
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from polyactor.config import Config, Role, Roles, Scheme
from polyactor.errors import UsageError
from polyactor.fields import Allowed

if TYPE_CHECKING:
    from polyactor.agent.parts import Parts
    from polyactor.agent.sharing import Sharing
    from polyactor.shared.gradient_slots import GradientSlots
    from polyactor.shared.locks import SequenceLock
    from polyactor.shared.slot_queue import SlotQueue


@dataclass(frozen=True)
class ParamServer(Scheme):
    """Workers collect and differentiate; a server applies."""

    name: ClassVar[str] = "param-server"
    per_worker: ClassVar[bool] = True

    accumulate: Annotated[int, Allowed(1)] = 1
    """Rollouts whose gradients a worker joins into one before it sends that one."""
    reduction: Literal["mean", "sum"] = "mean"
    """How a worker joins gradients."""
    pull_every: Annotated[int, Allowed(1)] = 1
    """Rollouts that a worker collects between two pulls of the newest parameters."""
    apply: Literal["each", "mean"] = "each"
    """each: the server applies gradients one by one; mean: it applies the mean of all that have arrived."""
    queue: Annotated[int, Allowed(1)] = 1
    """Gradients of one worker that may await the server; with 1 a worker goes on when its own is applied."""
    when_full: Literal["wait", "drop"] = "wait"
    """wait: a worker whose queue is full waits; drop: the server drops the older half of that queue."""
    updaters: Annotated[int, Allowed(1)] = 1
    """Threads of the server; one at a time moves the parameters."""
    max_staleness: Annotated[int | None, Allowed(0)] = None
    """Updates that may pass between differentiating and applying; the server holds gradients back to keep it."""

    def fits(self, config: Config) -> None:
        """Refuse options that the algorithm or the bound on staleness does not allow.

        Raises:
            UsageError: the algorithm takes several batches from a rollout, or a bound on staleness is set, and another
                option would break that; or gradients shall be dropped from a queue of one.
        """
        several = config.algorithm.reuses or config.algorithm.remembers > 0
        own = {"accumulate": self.accumulate, "pull-every": self.pull_every, "queue": self.queue}
        for flag, value in own.items():
            if value > 1 and several:
                raise UsageError(
                    f"--scheme.{flag} {value} is not allowed: the algorithm takes several batches from each rollout, "
                    "each at the parameters the last one left, so it must be 1 (a2c and vtrace take one)"
                )
            if value > 1 and self.max_staleness is not None and flag != "accumulate":
                raise UsageError(f"--scheme.{flag} {value} is not allowed with --max-staleness: it must be 1")
        needed = config.workers - 1 if self.apply == "each" else 0
        if self.max_staleness is not None and self.max_staleness < needed:
            raise UsageError(
                f"--max-staleness {self.max_staleness} is not allowed: of {config.workers} gradients applied one by "
                f"one the last is {needed} behind, so allow {needed}, or use --scheme.apply mean"
            )
        if self.when_full == "drop" and self.queue == 1:
            raise UsageError("--scheme.when-full drop is not allowed with --scheme.queue 1: allow at least 2")

    def alone(self, config: Config) -> bool:
        """Return False: the server may move θ while a worker differentiates."""
        return False

    @contextmanager
    def roles(self, parts: Parts, sharing: Sharing) -> Iterator[Roles]:
        """Give the roles: W workers, and the server as the main role."""
        shared = sharing.gradients(self.queue, self.accumulate)
        yield Roles(parts.config.workers, work, shared, main=serve(parts, *shared), lost=shared.slots.lost)


def work(worker: int, parts: Parts, slots: SlotQueue, gradient_slots: GradientSlots, lock: SequenceLock) -> Role:
    """Run a worker: pull θ, collect, differentiate, and put the gradient into a queue for the server."""
    config, counters, scheme = parts.config, parts.counters, parts.config.scheme
    assert isinstance(scheme, ParamServer)
    replica, actor = parts.actor(worker, reading=lock.reading)
    with closing(actor):
        learner = parts.learner(worker, replica)
        slots.arrive(worker)
        # A worker that replaces a lost one waits until the server has emptied the queue and let it in.
        while slots.free(worker) is None:
            yield slots.wake_ups[worker]
        for n in itertools.count():
            if counters.steps >= config.steps:
                break
            if n % scheme.pull_every == 0:
                replica.pull()  # θ' ← θ
            rollout = actor.collect(replica.version)  # T steps in B environments with π(·; θ')
            for gradients in learner.gradients(rollout):  # dθ'
                slot = slots.free(worker)
                assert slot is not None, "a worker goes on only when it has a slot"
                gradient_slot = gradient_slots.place(worker, slot)
                if n % scheme.accumulate == 0:
                    gradient_slot.put(gradients)
                else:
                    gradient_slot.add(gradients)
                if (n + 1) % scheme.accumulate == 0:
                    slots.put(worker)
                yield None
                while slots.free(worker) is None:  # with a queue of 1: until this gradient is applied
                    yield slots.wake_ups[worker]
        slots.leave(worker)


def serve(parts: Parts, slots: SlotQueue, gradient_slots: GradientSlots, lock: SequenceLock) -> Role:
    """Run the server: apply the gradients that arrive, oldest first, until no worker is left."""
    from polyactor.shared.counters import Counter
    from polyactor.shared.gradient_slots import mean

    config, counters, scheme = parts.config, parts.counters, parts.config.scheme
    assert isinstance(scheme, ParamServer)
    workers = range(config.workers)
    updaters = [parts.updater(i, applying=lock) for i in workers]
    since = [counters.version] * config.workers  # each worker's next gradient is taken at this version of θ or later
    with ThreadPoolExecutor(scheme.updaters) as pool:
        while any(slots.playing(i) for i in workers):
            for i in slots.admit():
                since[i] = counters.version
            for i in workers:
                if scheme.when_full == "drop" and slots.waiting(i) == scheme.queue:
                    slots.release(i, scheme.queue // 2)
                    counters.count(i, Counter.DROPPED, scheme.queue // 2)
            arrived = {i: gradient_slots.place(i, slots.next(i)) for i in workers if slots.waiting(i)}
            absent = [since[i] for i in workers if i not in arrived and slots.playing(i) and not slots.away(i)]
            chosen = choose(
                {i: gradient_slot.version for i, gradient_slot in arrived.items()}, absent, counters.version, scheme
            )
            if not chosen:
                yield slots.main
                continue
            gradients = {i: arrived[i].gradients(scheme.reduction) for i in chosen}  # dθ
            if scheme.apply == "mean":
                updaters[chosen[0]].apply(mean(list(gradients.values())))  # θ ← θ + Δ(⟨dθ⟩)
            else:
                turns = [pool.submit(updaters[i].apply, dtheta) for i, dtheta in gradients.items()]
                for turn in turns:
                    turn.result()  # θ ← θ + Δ(dθ), one at a time
            for i in chosen:
                since[i] = counters.version
                slots.release(i)
            yield None


def choose(arrived: Mapping[int, int], absent: Sequence[int], version: int, scheme: ParamServer) -> list[int]:
    """Return the workers whose gradients are applied now, oldest first, or none if another would become too stale.

    With a bound on staleness this is stale synchronous parallel training (Ho et al. 2013).

    Args:
        arrived: by worker, the version of θ that its waiting gradient was taken at.
        absent: for each worker that is still computing, the lowest version its gradient can have.
        version: the current version of θ.
        scheme: gives `apply`, `updaters` and `max_staleness`.
    """
    oldest_first = sorted(arrived, key=arrived.__getitem__)
    chosen = oldest_first if scheme.apply == "mean" else oldest_first[: scheme.updaters]
    if scheme.max_staleness is None:
        return chosen
    updates = 1 if scheme.apply == "mean" else len(chosen)
    others = sorted([*(arrived[i] for i in oldest_first[len(chosen) :]), *absent])
    each = scheme.apply == "each"  # one after another, so the k-th of the others becomes k updates staler
    late = [version + updates + k * each - pulled for k, pulled in enumerate(others)]
    return chosen if all(staleness <= scheme.max_staleness for staleness in late) else []
