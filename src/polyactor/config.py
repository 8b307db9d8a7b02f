"""The settings of a run as a tree of frozen dataclasses, and what schemes and transports can do, as data."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
from collections.abc import Callable, Generator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self

import gymnasium

from polyactor.algorithms.base import Algorithm
from polyactor.envs import AtariOptions, Environment
from polyactor.errors import UsageError, one_line
from polyactor.fields import Allowed, Group, replace_at
from polyactor.models.spec import ModelSpec
from polyactor.optim.rules import Rule
from polyactor.system.cluster_token import refuse_without_token

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from polyactor.agent.parts import Parts
    from polyactor.agent.sharing import Sharing
    from polyactor.shared.slot_queue import WakeUp


Role = Generator["WakeUp | None", None, None]
"""The work of a process as a generator, which does one turn per step. It yields None after a turn (a rollout, an
update), or the `WakeUp` it waits for when it could do nothing."""


@dataclass(frozen=True)
class Roles:
    """The roles of a scheme, which a transport runs in processes, in threads or in turn.

    Attributes:
        workers: W, the number of workers.
        work: the role of a worker, called as ``work(worker, parts, *shared)``; importable, to run in a process.
        shared: further arguments, the same for all workers; tensors in shared memory stay shared.
        main: the role of the run's own process, such as the learner; the run ends with it. None: only workers.
        threads: whether workers are threads of the run's own process.
        lost: called when a worker's process has ended, with its number and whether it will not be replaced.
    """

    workers: int = 0
    work: Callable[..., Role] | None = None
    shared: tuple[Any, ...] = ()
    main: Role | None = None
    threads: bool = False
    lost: Callable[[int, bool], None] | None = None


@dataclass(frozen=True)
class Scheme:
    """Says which process holds θ, and which ones collect, differentiate and apply. It does not depend on the loss."""

    name: ClassVar[str]
    single: ClassVar[bool] = False
    """Whether the run's own process does everything, without workers."""
    per_worker: ClassVar[bool] = False
    """Whether `Config.per_worker` can give workers different values."""
    applies_apart: ClassVar[bool] = False
    """Whether the workers' processes change θ, rather than the run's own process."""
    learns_on_gpu: ClassVar[bool] = False
    """Whether gradients can be computed on a GPU."""

    @property
    def in_threads(self) -> bool:
        """Return whether workers are threads of the run's own process."""
        return False

    def fits(self, config: Config) -> None:
        """Refuse a run that would be wrong under this scheme; by default every run is allowed.

        Raises:
            UsageError: a value is not allowed; the message names the flag, the value and what is allowed.
        """

    def alone(self, config: Config) -> bool:
        """Return whether θ cannot change between the time a gradient is taken and the time it is applied."""
        return True

    def learners(self, config: Config) -> int:
        """Return the number of workers that differentiate, each with a replay buffer of its own."""
        return config.workers

    def columns(self, config: Config) -> int:
        """Return B, the number of environments in one batch."""
        return config.envs

    def roles(self, parts: Parts, sharing: Sharing) -> AbstractContextManager[Roles]:
        """Return a context manager that gives the roles, and releases what they share when it exits.

        Args:
            parts: the parts of the run.
            sharing: makes what the roles share.
        """
        raise NotImplementedError


@dataclass(frozen=True)
class Transport:
    """What a transport can do, as data; the package `transport` has the code of each transport."""

    apart: bool
    """Whether workers run in processes or threads of their own; otherwise all roles take turns in one thread."""
    elsewhere: bool = False
    """Whether workers may be on other machines, so that they share no memory with the run's own process."""
    needs: str | None = None
    """The package that it needs, which is also the name of the extra that installs it."""

    def sends(self, scheme: Scheme) -> bool:
        """Return whether workers are other processes, to which environments and algorithms are sent."""
        return self.apart and not scheme.single and not scheme.in_threads

    def forks(self, scheme: Scheme) -> bool:
        """Return whether this transport starts worker processes itself, so that a fork server pays."""
        return self.sends(scheme) and not self.elsewhere

    def fits(self, config: Config) -> None:
        """Refuse a run that this transport cannot place.

        Raises:
            UsageError: the scheme wants threads, and this transport runs roles in turn; or it starts processes, and
                this process may start none; or it has no place for the scheme, or lacks its package or its token.
        """
        if self.elsewhere and (config.scheme.single or config.scheme.applies_apart):
            why = "has no workers" if config.scheme.single else "has workers that write into one memory"
            raise UsageError(
                f"--scheme {config.scheme.name} is not allowed with --transport {config.transport}: it {why}; "
                "use --scheme param-server or actor-learner, or --transport local"
            )
        if self.elsewhere:
            refuse_without_token(config.ray.address)
        if self.needs is not None and importlib.util.find_spec(self.needs) is None:
            raise UsageError(
                f"--transport {config.transport} is not allowed: {self.needs} is not installed; "
                f"pip install 'polyactor[{self.needs}]'"
            )
        if self.forks(config.scheme) and multiprocessing.current_process().daemon:
            raise UsageError(
                f"--transport {config.transport} is not allowed here: this is a daemonic process, as those of "
                "multiprocessing.Pool are, which may start no workers: use --transport inline "
                "(in Python: transport='inline')"
            )
        if config.scheme.in_threads and not self.apart:
            raise UsageError(
                "--scheme.workers-as thread is not allowed with "
                f"--transport {config.transport}, where workers take turns: use local"
            )


TRANSPORTS = {
    "local": Transport(apart=True),
    "inline": Transport(apart=False),
    "ray": Transport(apart=True, elsewhere=True, needs="ray"),
}


HOST = re.compile(r"[^\s/:\[\]]+|\[[\da-fA-F:.]+\]")
"""A name or an address of a machine; one with colons stands in brackets."""


@dataclass(frozen=True)
class RayOptions:
    """The cluster whose nodes have the workers of ``--transport ray``."""

    address: str = "local"
    """The head node as host:port; auto: the cluster that runs on this machine; local: one that begins and ends with
    the run, on this machine alone."""
    cpus: Annotated[float, Allowed(0, above=True)] = 1.0
    """Cores of a node that a worker takes."""
    lease: Annotated[float, Allowed(1)] = 30.0
    """Seconds without an answer from a worker's node after which the worker is given up."""
    wire: Literal["fp32", "bf16"] = "fp32"
    """What gradients and parameters travel in; statistics always in fp32."""

    def fits(self) -> None:
        """Refuse cores that Ray cannot count, and an address that is none.

        Raises:
            UsageError: the cores or the address are not allowed.
        """
        if self.cpus != round(self.cpus, 4):
            raise UsageError(f"--ray.cpus {self.cpus} is not allowed: it must be a multiple of 0.0001")
        if self.address in ("local", "auto"):
            return
        host, _, port = self.address.rpartition(":")
        if not HOST.fullmatch(host) or not port.isdecimal() or not 0 < int(port) < 1 << 16:
            raise UsageError(
                f"--ray.address {one_line(self.address, most=80)} is not allowed: it must be local, auto or host:port"
            )


@dataclass(frozen=True)
class Normalize:
    """How observations and rewards are scaled; the running statistics are part of the state."""

    observation: bool = False
    """Scale observations to (x − mean)/σ by running moments, clipped to ±5; per pixel for images."""
    reward: bool = False
    """Divide rewards by the running standard deviation of the discounted return."""
    clip_reward: Annotated[float | None, Allowed(0, above=True)] = None
    """Clip rewards to ± this value for learning; scores are not clipped."""


@dataclass(frozen=True)
class EvaluateOptions:
    """When evaluations end: those that confirm a score, those during training, and those of ``polyactor evaluate``."""

    envs: Annotated[int | None, Allowed(0)] = None
    """Most environments that an evaluation makes; none: as many as a worker has (--envs), 50 at most. 0: none are made
    beside the run's own, and the next 100 games of training confirm a score."""
    max_steps: Annotated[int | None, Allowed(1)] = None
    """Agent steps after which a game is cut, and its score so far counts; none: 27,000 in Atari, else no limit."""
    stuck_after: Annotated[int | None, Allowed(1)] = None
    """Agent steps without a reward or a change of the observation after which a game is cut, and its score counts;
    none: 2,000 in Atari, else no limit."""
    timeout: Annotated[float, Allowed(0, above=True)] = 600.0
    """Seconds after which an evaluation ends with the games played so far, which confirm no score."""


OBJECTS = ("env", "env_wrappers")
"""Settings that may be Python objects; the JSON of a config has names in their place."""

GROUPS = tuple(map(Group, ("run", "model", "algorithm", "scheme", "optimizer", "environment", "faults")))


RUN, MODEL, ALGORITHM, SCHEME, OPTIMIZER, ENVIRONMENT, FAULTS = GROUPS
"""The headings of ``train --help``, in their order there."""


@dataclass(frozen=True)
class Config:
    """The settings of a run."""

    env: Annotated[str | Callable[..., gymnasium.Env[Any, Any]], ENVIRONMENT]
    """Any Gymnasium id, module:name or file.py:name."""
    algorithm: Annotated[Algorithm, ALGORITHM]
    scheme: Annotated[Scheme, SCHEME]
    optimizer: Annotated[Rule, OPTIMIZER]
    steps: Annotated[int, Allowed(1), RUN] = 1_000_000
    """Agent steps of the whole run, all workers together."""
    seed: Annotated[int, Allowed(0), RUN] = 0
    """Seed of every random stream."""
    workers: Annotated[int, Allowed(1), SCHEME] = field(default_factory=lambda: len(os.sched_getaffinity(0)))
    """Worker processes (`sync` has one process); auto: one per core."""
    envs: Annotated[int, Allowed(1), ENVIRONMENT] = 16
    """Environments per worker; auto: the fewest with which a step is about as cheap as it gets, by a measurement."""
    rollout: Annotated[int, Allowed(1), ALGORITHM] = 5
    """T, steps per rollout."""
    stop_at: Annotated[float | None, Allowed(), RUN] = None
    """Stop when the mean of the last 100 games reaches this score and a fresh evaluation of 100 games confirms it."""
    evaluate_every: Annotated[int | None, Allowed(1), RUN] = None
    """Evaluate in a process of its own every so many agent steps, and keep the parameters with the best score."""
    transport: Annotated[Literal["local", "inline", "ray"], SCHEME] = "local"
    """local: workers are processes; inline: all roles in one process, taking turns (to debug, or in a notebook); ray:
    workers are processes on the nodes of a Ray cluster."""
    restarts: Annotated[int | None, Allowed(0), FAULTS] = 20
    """How often a worker that died or whose environment hangs is replaced within an hour; one loss more stops the run.
    none: no worker is replaced, and the run goes on with those that are left."""
    env_timeout: Annotated[float, Allowed(0, above=True), FAULTS] = 60.0
    """Seconds a step of an environment may take (a constructor or a reset: five times as long); then its worker is
    ended and replaced, or only the environment, if it runs in the run's own process."""
    checkpoint_every: Annotated[float, Allowed(0), RUN] = 60.0
    """Seconds between two checkpoints."""
    exact_resume: Annotated[bool, RUN] = False
    """Save environments and random streams, too: a resumed run is bit-identical to one that was never stopped. For
    `sync` and environments that can be saved; others are refused."""
    init_from: Annotated[str | None, RUN] = None
    """Start from the parameters of this run directory (or checkpoint)."""
    max_episode_steps: Annotated[int | None, Allowed(1), ENVIRONMENT] = None
    """Truncate episodes after this many agent steps; none is the environment's own limit."""
    env_kwargs: Annotated[tuple[str, ...], ENVIRONMENT] = ()
    """Arguments that the environment is made with, each name=value with a literal of Python: is_slippery=False."""
    env_wrappers: Annotated[
        tuple[str | Callable[[gymnasium.Env[Any, Any]], gymnasium.Env[Any, Any]], ...], ENVIRONMENT
    ] = ()
    """Wrappers around each environment, the first innermost: gymnasium.wrappers:NAME, module:name or file.py:name."""
    env_resize: Annotated[tuple[int, ...], ENVIRONMENT] = ()
    """Height and width that every image of an observation is resized to, such as 84 84; not for Atari, which has
    --atari.frame-size."""
    out: Annotated[str | None, RUN] = None
    """The run directory; default runs/<preset>-<env>-<time>."""
    device: Annotated[Literal["cpu", "cuda", "auto"], RUN] = "auto"
    """The device that gradients are computed on; acting is on CPUs. auto is the CPU, because the networks are small."""
    precision: Annotated[Literal["auto", "fp32", "bf16"], MODEL] = "auto"
    """The precision of the torso; auto is bf16 for CNNs on a CPU that has AVX512-BF16, else fp32."""
    compile: Annotated[bool, RUN] = False
    """Compute gradients by compiled code (torch.compile): small networks learn up to 1.7 times as fast; CNNs are
    refused. It needs a C++ compiler, and time when a run starts: seconds, or more than a minute with an LSTM."""
    quiet: Annotated[bool, RUN] = False
    """Print nothing but errors."""
    callbacks: Annotated[tuple[str, ...], RUN] = ()
    """Objects that are told of the run's events and may stop it or change coefficients, each file.py:Class or
    module:Class; --callback my.py:Watch may be given several times."""
    per_worker: Annotated[tuple[str, ...], SCHEME] = ()
    """Values by worker, such as algorithm.entropy-coef=.01,.02, repeated if there are more workers than values."""
    model: Annotated[ModelSpec, MODEL] = field(default_factory=ModelSpec)
    normalize: Annotated[Normalize, ENVIRONMENT] = field(default_factory=Normalize)
    atari: Annotated[AtariOptions, ENVIRONMENT] = field(default_factory=AtariOptions)
    evaluate: Annotated[EvaluateOptions, RUN] = field(default_factory=EvaluateOptions)
    ray: Annotated[RayOptions, SCHEME] = field(default_factory=RayOptions)
    preset: Annotated[str, RUN] = ""
    """The name that this run is shown under."""

    @property
    def environment(self) -> Environment:
        """Return what the run's environments are made of."""
        return Environment(self.env, self.env_kwargs, self.env_wrappers, self.env_resize)

    @property
    def learning_device(self) -> str:
        """Return the device that gradients are computed on, as torch names it."""
        return "cuda" if self.device == "cuda" else "cpu"

    def for_worker(self, worker: int) -> Self:
        """Return the config of one worker, with its values of `per_worker` in place.

        Raises:
            UsageError: a value of `per_worker` is not allowed for its setting.
        """
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
    """Parse ``("algorithm.entropy-coef=.01,.02",)`` to ``{"algorithm.entropy_coef": (.01, .02)}``.

    Raises:
        UsageError: an entry is not of that form, or its setting is not of the algorithm or the optimizer.
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
