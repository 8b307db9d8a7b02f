"""One tree of frozen dataclasses: everything that decides a run, as data; and the sentence when a value cannot be."""

from __future__ import annotations

import os
import shutil
import typing
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import gymnasium

from polyactor.envs import AtariOptions
from polyactor.errors import UsageError, suggestion
from polyactor.models.spec import ModelSpec
from polyactor.optim.rules import Rule
from polyactor.types import Algorithm, Allowed

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from polyactor.build import Parts
    from polyactor.channel import Bell


Role = Generator["Bell | None", None, None]
"""What a process does, a turn per step: None when it did something, the bell it waits for when it could not."""


@dataclass(frozen=True)
class Cast:
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

    def cast(self, parts: Parts) -> AbstractContextManager[Cast]:
        """Everything the roles share, for as long as they play."""
        raise NotImplementedError


@dataclass(frozen=True)
class Normalize:
    """Scaling of what the model sees and learns from; the statistics are part of the state."""

    observation: bool = False
    """(x − mean)/σ by running moments, clipped to ±5; per pixel for images."""
    reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
    clip_reward: Annotated[float | None, Allowed(0, above=True)] = None
    """Learn from rewards clipped to ± this; scores stay the environment's own."""


@dataclass(frozen=True)
class Config:
    """A run."""

    env: str | Callable[[], gymnasium.Env[Any, Any]]
    """Any Gymnasium id, or module:Env-vN."""
    algorithm: Algorithm
    scheme: Scheme
    optimizer: Rule
    steps: Annotated[int, Allowed(1)] = 1_000_000
    """Environment steps of the whole run, all workers together."""
    seed: Annotated[int, Allowed(0)] = 0
    """Of every random stream."""
    workers: Annotated[int, Allowed(1)] = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Worker processes (`sync` has one); auto: one per core."""
    envs: Annotated[int, Allowed(1)] = 16
    """Environments per worker; auto: the fewest with which a step is about as cheap as it gets, by a measurement."""
    rollout: Annotated[int, Allowed(1)] = 5
    """T, steps per rollout."""
    stop_at: Annotated[float | None, Allowed()] = None
    """Stop when the mean of the last 100 games reaches this and a fresh evaluation of 100 games confirms it."""
    evaluate_every: Annotated[int | None, Allowed(1)] = None
    """Evaluate in a process of its own every so many steps, and keep the best by that."""
    transport: Literal["local", "inline"] = "local"
    """local: workers are processes; inline: all roles in one process, taking turns (to debug, or in a notebook)."""
    restarts: Annotated[int | None, Allowed(0)] = 20
    """How often a worker that died or whose environment hangs is replaced within an hour; one loss more stops the run.
    none: nobody is replaced, and the run goes on with those that are left."""
    env_timeout: Annotated[float, Allowed(0, above=True)] = 60.0
    """Seconds a step of an environment may take (a reset: five times as long); after that its worker is ended and
    replaced, or in the run's own process the environment alone."""
    checkpoint_every: Annotated[float, Allowed(0)] = 60.0
    """Seconds between two checkpoints."""
    exact_resume: bool = False
    """Save environments and random streams too: a resumed run is bit for bit the one that was never stopped. For `sync`
    and environments that can be saved; others are refused."""
    init_from: str | None = None
    """Start from the parameters of this run (or checkpoint)."""
    max_episode_steps: Annotated[int | None, Allowed(1)] = None
    """Truncate episodes after this many agent steps; none is the environment's own limit."""
    out: str | None = None
    """The run directory itself; default runs/<preset>-<env>-<time>."""
    device: Literal["cpu", "cuda", "auto"] = "auto"
    """Where learning happens; acting is on CPUs. auto is the CPU, too: networks here are small."""
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    """Of the torso; auto is bf16 for CNNs on a CPU that has it."""
    compile: bool = False
    """Differentiate by compiled code (torch.compile): small networks learn up to 1.7 times as fast, CNNs no faster. It
    needs a C++ compiler, and some time when a run starts: seconds, or more than a minute with an LSTM."""
    quiet: bool = False
    """Print nothing but errors."""
    per_worker: tuple[str, ...] = ()
    """Values by worker, such as algorithm.entropy-coef=.01,.02"""
    model: ModelSpec = field(default_factory=ModelSpec)
    normalize: Normalize = field(default_factory=Normalize)
    atari: AtariOptions = field(default_factory=AtariOptions)
    preset: str = ""
    """The name this run is shown under."""

    @property
    def learning_device(self) -> str:
        """Where gradients are computed."""
        return "cuda" if self.device == "cuda" else "cpu"

    def for_worker(self, worker: int) -> Self:
        """The config as one worker sees it, `per_worker` values in place (they repeat when workers are more)."""
        config = self
        for path, values in parse_per_worker(self.per_worker).items():
            config = with_value(config, path, values[worker % len(values)])
        return config


def parse_per_worker(entries: tuple[str, ...]) -> dict[tuple[str, str], tuple[float, ...]]:
    """``("algorithm.entropy-coef=.01,.02",)`` to ``{("algorithm", "entropy_coef"): (.01, .02)}``.

    Raises:
        UsageError: not of that form.
    """
    parsed = {}
    for entry in entries:
        path, _, values = entry.partition("=")
        group, _, name = path.replace("-", "_").partition(".")
        try:
            parsed[group, name] = tuple(float(value) for value in values.split(","))
        except ValueError:
            raise UsageError(
                f"--per-worker {entry} is not understood: write it as algorithm.entropy-coef=.01,.02"
            ) from None
        if group not in ("algorithm", "optimizer") or not name:
            raise UsageError(f"--per-worker {entry} can set only values of the algorithm or the optimizer")
    return parsed


def with_value(config: Config, path: tuple[str, str], value: float) -> Any:
    """The config with ``config.<group>.<name>`` replaced.

    Raises:
        UsageError: there is no such field.
    """
    group, name = path
    part = getattr(config, group)
    known = [f.name for f in fields(part)]
    flag = f"{group}.{name}".replace("_", "-")
    if name not in known:
        raise UsageError(f"--per-worker {flag} does not exist{suggestion(name, known)}")
    if isinstance(getattr(part, name), int):
        if not value.is_integer():
            raise UsageError(f"--per-worker {flag}={value:g} is not allowed: it must be a whole number")
        value = int(value)
    return replace(config, **{group: replace(part, **{name: value})})


def check(config: Config) -> None:
    """Every number in its range, every name one of those there are.

    Raises:
        UsageError: naming the flag, the value and what is allowed.
    """
    check_values(config)
    for worker in range(config.workers if config.per_worker else 0):
        check(replace(config.for_worker(worker), per_worker=()))
    scheme, flag = config.scheme, f"--scheme {config.scheme.name}"
    if config.device == "cuda":
        if not scheme.learns_on_gpu:
            raise UsageError(f"--device cuda is not allowed with {flag}: use cpu, or --scheme sync or actor-learner")
        import torch

        if not torch.cuda.is_available():
            raise UsageError("--device cuda is not allowed: this machine has no GPU that torch can use; use cpu")
    if config.exact_resume and not scheme.single:
        raise UsageError(f"--exact-resume is not allowed with {flag}, which never runs twice alike: use --scheme sync")
    if config.exact_resume and config.device == "cuda":
        raise UsageError("--exact-resume is not allowed with --device cuda, which never runs twice alike: use cpu")
    if config.compile and not shutil.which(os.environ.get("CXX", "g++")):
        raise UsageError("--compile is not allowed: it needs a C++ compiler (g++, or what CXX names), and none is here")
    if config.algorithm.differentiate and config.compile:
        raise UsageError("--compile is not allowed: what would be compiled is the gradient of a loss, and this is not")
    if config.algorithm.moves and config.precision == "bf16":
        raise UsageError("--precision bf16 is not allowed: steps this small would be rounded away; use fp32")
    if scheme.single and config.workers != 1:
        raise UsageError(
            f"--workers {config.workers} is not allowed: {flag} has one worker; "
            "give it more environments with --envs, or use --scheme hogwild"
        )
    if config.per_worker and not scheme.per_worker:
        raise UsageError(
            f"--per-worker is not allowed with {flag}, where one learner serves all: use hogwild or param-server"
        )
    scheme.fits(config)
    memory, alone = config.model.core != "none", scheme.alone(config)
    config.algorithm.fits(scheme.columns(config), memory=memory, alone=alone)


def check_values(config: Config) -> None:
    """Every number in its range, every name one of those there are; whether they go together is not asked.

    Raises:
        UsageError: naming the flag, the value and what is allowed.
    """
    for flag, value, allowed in _allowed(config, ""):
        for each in value if isinstance(value, tuple) else (value,):
            if each is not None and each not in allowed:
                raise UsageError(f"--{flag} {each} is not allowed: it must be {allowed}")
    for entry in config.model.hidden:
        if entry < 1:
            raise UsageError(f"--model.hidden {entry} is not allowed: it must be a number of at least 1")


class OneOf(tuple[str, ...]):
    """The names a setting can have."""

    __slots__ = ()

    def __str__(self) -> str:
        """The sentence's end."""
        return f"one of {', '.join(self)}"


def _allowed(part: Any, prefix: str) -> Iterator[tuple[str, Any, Allowed | OneOf]]:
    hints = typing.get_type_hints(type(part), include_extras=True)
    for f in fields(part):
        value, hint = getattr(part, f.name), hints.get(f.name)
        flag = prefix + f.name.replace("_", "-")
        if is_dataclass(value):
            yield from _allowed(value, f"{flag}.")
        for extra in getattr(hint, "__metadata__", ()):
            if isinstance(extra, Allowed):
                yield flag, value, extra
        choices = [name for kind in (hint, *typing.get_args(hint)) for name in _names(kind)]
        if choices:
            yield flag, value, OneOf(choices)


def _names(hint: Any) -> tuple[str, ...]:
    return typing.get_args(hint) if typing.get_origin(hint) is Literal else ()
