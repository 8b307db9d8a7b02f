"""One tree of frozen dataclasses: everything that decides a run, as data; and the sentence when a value cannot be."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import gymnasium

from polyactor.algorithms.base import Algorithm
from polyactor.envs import AtariOptions
from polyactor.errors import UsageError
from polyactor.fields import Allowed, Group, replace_at
from polyactor.models.spec import ModelSpec
from polyactor.optim.rules import Rule

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from polyactor.agent.parts import Parts
    from polyactor.shared.slot_queue import WakeUp


Role = Generator["WakeUp | None", None, None]
"""What a process does, a turn per step: None when it did something, the bell it waits for when it could not."""


@dataclass(frozen=True)
class Roles:
    """Who plays in a scheme; a transport decides where.

    Attributes:
        workers: how many play `work`.
        work: called as ``work(worker, parts, *shared)``; importable, so that it can be played in a process.
        shared: the same for all workers; tensors in shared memory stay shared.
        main: played in the run's own process; the run is over when it is. None where workers need nobody.
        threads: workers are threads of the run's own process.
        lost: called with a worker whose process has ended, and whether that is for good; it may come back as another.
    """

    workers: int = 0
    work: Callable[..., Role] | None = None
    shared: tuple[Any, ...] = ()
    main: Role | None = None
    threads: bool = False
    lost: Callable[[int, bool], None] | None = None


@dataclass(frozen=True)
class Scheme:
    """Placement only: which process holds, collects, differentiates, applies. Knows no loss."""

    name: ClassVar[str]
    single: ClassVar[bool] = False
    """One worker, in the run's own process."""
    per_worker: ClassVar[bool] = False
    """Workers may have values of their own."""
    applies_apart: ClassVar[bool] = False
    """θ changes in the workers' processes, and not in the run's own."""
    learns_on_gpu: ClassVar[bool] = False

    @property
    def in_threads(self) -> bool:
        """Workers are threads of the run's own process."""
        return False

    def fits(self, config: Config) -> None:
        """Whether this run can be right under it.

        Raises:
            UsageError: naming the flag, the value and the way out.
        """

    def alone(self, config: Config) -> bool:
        """Whoever differentiates applies, and nobody else moves θ in between."""
        return True

    def learners(self, config: Config) -> int:
        """How many differentiate."""
        return config.workers

    def columns(self, config: Config) -> int:
        """Environments in one batch."""
        return config.envs

    def roles(self, parts: Parts) -> AbstractContextManager[Roles]:
        """Everything the roles share, for as long as they play."""
        raise NotImplementedError


@dataclass(frozen=True)
class Transport:
    """What a way to place workers can do, as data; the package `transport` is how each does it."""

    apart: bool
    """Workers run beside the run's own role, in processes or threads; otherwise all take turns in one thread."""

    def forks(self, scheme: Scheme) -> bool:
        """Whether worker processes are started, so that a fork server is worth its start."""
        return self.apart and not scheme.single

    def fits(self, config: Config) -> None:
        """Whether this run can be placed so.

        Raises:
            UsageError: naming the flag, the value and the way out.
        """
        if config.scheme.in_threads and not self.apart:
            raise UsageError(
                "--scheme.workers-as thread is not allowed with "
                f"--transport {config.transport}, where workers take turns: use local"
            )


TRANSPORTS = {"local": Transport(apart=True), "inline": Transport(apart=False)}


@dataclass(frozen=True)
class Normalize:
    """Scaling of what the model sees and learns from; the statistics are part of the state."""

    observation: bool = False
    """(x − mean)/σ by running moments, clipped to ±5; per pixel for images."""
    reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
    clip_reward: Annotated[float | None, Allowed(0, above=True)] = None
    """Learn from rewards clipped to ± this; scores stay the environment's own."""


GROUPS = tuple(map(Group, ("run", "model", "algorithm", "scheme", "optimizer", "environment", "faults")))


RUN, MODEL, ALGORITHM, SCHEME, OPTIMIZER, ENVIRONMENT, FAULTS = GROUPS
"""The headings of ``train --help``, in their order there."""


@dataclass(frozen=True)
class Config:
    """A run."""

    env: Annotated[str | Callable[[], gymnasium.Env[Any, Any]], ENVIRONMENT]
    """Any Gymnasium id, or module:Env-vN."""
    algorithm: Annotated[Algorithm, ALGORITHM]
    scheme: Annotated[Scheme, SCHEME]
    optimizer: Annotated[Rule, OPTIMIZER]
    steps: Annotated[int, Allowed(1), RUN] = 1_000_000
    """Environment steps of the whole run, all workers together."""
    seed: Annotated[int, Allowed(0), RUN] = 0
    """Of every random stream."""
    workers: Annotated[int, Allowed(1), SCHEME] = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Worker processes (`sync` has one); auto: one per core."""
    envs: Annotated[int, Allowed(1), ENVIRONMENT] = 16
    """Environments per worker; auto: the fewest with which a step is about as cheap as it gets, by a measurement."""
    rollout: Annotated[int, Allowed(1), ALGORITHM] = 5
    """T, steps per rollout."""
    stop_at: Annotated[float | None, Allowed(), RUN] = None
    """Stop when the mean of the last 100 games reaches this and a fresh evaluation of 100 games confirms it."""
    evaluate_every: Annotated[int | None, Allowed(1), RUN] = None
    """Evaluate in a process of its own every so many steps, and keep the best by that."""
    transport: Annotated[Literal["local", "inline"], SCHEME] = "local"
    """local: workers are processes; inline: all roles in one process, taking turns (to debug, or in a notebook)."""
    restarts: Annotated[int | None, Allowed(0), FAULTS] = 20
    """How often a worker that died or whose environment hangs is replaced within an hour; one loss more stops the run.
    none: nobody is replaced, and the run goes on with those that are left."""
    env_timeout: Annotated[float, Allowed(0, above=True), FAULTS] = 60.0
    """Seconds a step of an environment may take (a reset: five times as long); after that its worker is ended and
    replaced, or in the run's own process the environment alone."""
    checkpoint_every: Annotated[float, Allowed(0), RUN] = 60.0
    """Seconds between two checkpoints."""
    exact_resume: Annotated[bool, RUN] = False
    """Save environments and random streams too: a resumed run is bit for bit the one that was never stopped. For `sync`
    and environments that can be saved; others are refused."""
    init_from: Annotated[str | None, RUN] = None
    """Start from the parameters of this run (or checkpoint)."""
    max_episode_steps: Annotated[int | None, Allowed(1), ENVIRONMENT] = None
    """Truncate episodes after this many agent steps; none is the environment's own limit."""
    out: Annotated[str | None, RUN] = None
    """The run directory itself; default runs/<preset>-<env>-<time>."""
    device: Annotated[Literal["cpu", "cuda", "auto"], RUN] = "auto"
    """Where learning happens; acting is on CPUs. auto is the CPU, too: networks here are small."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], MODEL] = "auto"
    """Of the torso; auto is bf16 for CNNs on a CPU that has it."""
    compile: Annotated[bool, RUN] = False
    """Differentiate by compiled code (torch.compile): small networks learn up to 1.7 times as fast, CNNs no faster. It
    needs a C++ compiler, and some time when a run starts: seconds, or more than a minute with an LSTM."""
    quiet: Annotated[bool, RUN] = False
    """Print nothing but errors."""
    per_worker: Annotated[tuple[str, ...], SCHEME] = ()
    """Values by worker, such as algorithm.entropy-coef=.01,.02"""
    model: Annotated[ModelSpec, MODEL] = field(default_factory=ModelSpec)
    normalize: Annotated[Normalize, ENVIRONMENT] = field(default_factory=Normalize)
    atari: Annotated[AtariOptions, ENVIRONMENT] = field(default_factory=AtariOptions)
    preset: Annotated[str, RUN] = ""
    """The name this run is shown under."""

    @property
    def learning_device(self) -> str:
        """Where gradients are computed."""
        return "cuda" if self.device == "cuda" else "cpu"

    def for_worker(self, worker: int) -> Self:
        """The config as one worker sees it, `per_worker` values in place (they repeat when workers are more)."""
        config = self
        for path, values in parse_per_worker(self.per_worker).items():
            value, flag = values[worker % len(values)], path.replace("_", "-")
            section, _, name = path.partition(".")
            before = getattr(getattr(self, section), name, None)
            if isinstance(before, int):
                if not value.is_integer():
                    raise UsageError(f"--per-worker {flag}={value:g} is not allowed: it must be a whole number")
                value = type(before)(value)
            try:
                config = replace_at(config, path, value)
            except UsageError as error:
                raise UsageError(f"--per-worker {flag} is not allowed: {error}") from None
        return config


def parse_per_worker(entries: tuple[str, ...]) -> dict[str, tuple[float, ...]]:
    """``("algorithm.entropy-coef=.01,.02",)`` to ``{"algorithm.entropy_coef": (.01, .02)}``.

    Raises:
        UsageError: not of that form.
    """
    parsed = {}
    for entry in entries:
        flag, _, values = entry.partition("=")
        path = flag.replace("-", "_")
        group, _, name = path.partition(".")
        try:
            parsed[path] = tuple(float(value) for value in values.split(","))
        except ValueError:
            raise UsageError(
                f"--per-worker {entry} is not understood: write it as algorithm.entropy-coef=.01,.02"
            ) from None
        if group not in ("algorithm", "optimizer") or not name:
            raise UsageError(f"--per-worker {entry} can set only values of the algorithm or the optimizer")
    return parsed
