"""A report on whether an environment can be trained in, to be read before a long run."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import cloudpickle
import numpy as np
from numpy.typing import NDArray

from polyactor.envs import EnvFactory, Environment, EnvSpec, VectorEnv, draw, is_atari, looked_at, name_of
from polyactor.envs.finding import find
from polyactor.envs.vector_env import Observation
from polyactor.errors import EnvironmentUnsupported, one_line
from polyactor.system.child_processes import children, end_noted, lasting
from polyactor.system.deadline import Answers, Call
from polyactor.system.process_state import GUARDED, moved, streams

STEPS = 500
"""Most random steps of each environment."""
SAME = 100
"""Most steps that are taken twice, to see whether they are the same."""
ENOUGH = 6.0
"""Seconds after which no more steps are taken; a third of them for those that are taken twice."""
DEADLINE = 4.0
"""Seconds that a step may take, where nobody says otherwise; a constructor and a reset have five times as long."""
LARGE = 1e4
"""Size of observations above which `check` advises to scale them: they would saturate the first layer of an MLP."""


@dataclass
class Report:
    """What an inspection has found.

    Attributes:
        environment: the environment's name.
        spec: what the environment looks like: spaces and limits.
        problems: what a run would meet, each with what to do; none of them keeps an environment from training.
        facts: what else is known, in short texts.
    """

    environment: str
    spec: EnvSpec
    problems: list[str] = field(default_factory=list)
    facts: dict[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        """Return the report as lines to read: problems first."""
        first = f"{self.environment} is fit for training{', but mind:' if self.problems else '.'}"
        width = max(13, *map(len, self.facts))
        facts = (f"  {name:<{width}} {fact}" for name, fact in self.facts.items())
        return "\n".join([first, *(f"  ! {problem}" for problem in self.problems), *facts])

    def plain(self) -> dict[str, Any]:
        """Return the report as plain JSON."""
        return {"environment": self.environment, "fit": True, "problems": self.problems, "facts": self.facts}


@dataclass(frozen=True)
class Times:
    """Seconds that calls of one kind took, each of one environment."""

    seconds: Sequence[float]

    def __str__(self) -> str:
        """Return the median, the 99th percentile and the longest, in words."""
        median, most, longest = np.quantile(self.seconds, [0.5, 0.99, 1.0])
        return f"{_duration(median)} (median), 99 % within {_duration(most)}, the longest {_duration(longest)}"


class Watcher:
    """Listens to what environments are asked, measures how long they take, and sees what they change around them.

    Args:
        answers: is told, too.
    """

    def __init__(self, answers: Answers) -> None:
        self.answers = answers
        self.before, self.streams = surroundings(), streams()
        self.changed: dict[str, str] = {}
        """What has been changed, and in which call it was first seen."""
        self.steps: list[float] = []
        self.resets: list[float] = []
        self.env, self.call, self.stepping, self.start = -1, Call.CONSTRUCTOR, False, 0.0

    def asked(self, env: int, action: Any, call: Call = Call.RESET) -> None:
        """Note that an environment is about to be asked for a step with this action, or for a call if it is None."""
        if self.env >= 0:  # else the whole vector was asked, which now asks each of its environments
            self._end()
        self.answers.asked(env, action, call)
        self.env, self.call, self.stepping, self.start = env, call, action is not None, time.perf_counter()

    def answered(self) -> None:
        """Note that all environments have answered."""
        self._end()
        self.env = -1
        self.answers.answered()
        for what, value in surroundings().items():
            if value != self.before[what]:
                self.changed.setdefault(what, "a step" if self.stepping else f"its {self.call}")

    def _end(self) -> None:
        """Keep the time of the call that has ended."""
        if self.start:
            took = time.perf_counter() - self.start
            if self.stepping:
                self.steps.append(took)
            elif self.call == Call.RESET:
                self.resets.append(took)
        self.start = 0.0


def surroundings() -> dict[str, Any]:
    """Return the state of this process that environments should leave alone, by words for a sentence."""
    found: dict[str, Any] = {"the working directory": None, "numpy.seterr": np.geterr()}
    with suppress(OSError):  # it has been removed
        found["the working directory"] = os.getcwd()
    found |= {f"the handler of {signal.Signals(number).name}": signal.getsignal(number) for number in GUARDED}
    torch, found["torch's dtype"], found["torch's grad mode"] = sys.modules.get("torch"), "torch.float32", True
    if torch is not None:  # else an environment may import it, which changes nothing
        found |= {"torch's dtype": str(torch.get_default_dtype()), "torch's grad mode": torch.is_grad_enabled()}
    return found


INSTEAD = {
    "the working directory": "a run puts it back only at its end: name files by absolute paths",
    "the handler": "a run puts it back, since signals stop it and end its workers: take SIGALRM",
    "numpy.seterr": "use the context manager numpy.errstate",
    "torch": "put it back",
}
"""What to do about a change of the surroundings, by the beginning of its words."""


def inspect(env: str | EnvFactory | Environment, num_envs: int = 4, *, seconds: float = DEADLINE) -> Report:
    """Take random steps in an environment, some of them twice, and report what a run would meet in it.

    Args:
        env: the environment, as in `make_envs`.
        num_envs: the number of copies that are stepped.
        seconds: the deadline of a step, with that of all else as in `Call.factor`.

    Raises:
        EnvironmentUnsupported: the environment is not supported, failed, missed its deadline, or returned a NaN or an
            infinity.
    """
    family = children()
    with looked_at(env, num_envs, seconds=seconds, listening=Watcher) as (envs, watcher):
        assert isinstance(watcher, Watcher)
        seen = _Steps(envs, watcher, name_of(env))
        same = _twice(seen)
        while len(seen.rewards) < STEPS and (time.perf_counter() < seen.start + ENOUGH or not seen.rewards):
            seen.step()
        report = Report(seen.name, EnvSpec.of(envs))  # masks are known only now
        drawn = moved(watcher.streams)
        begun = children() - family
    left = lasting(children() - family)
    end_noted(left)

    problems = report.problems
    if unsendable := _unsendable(env):
        problems.append(unsendable)
    if same and not same.startswith("the same"):
        problems.append(f"not the same twice: {same}; draw from self.np_random, which reset(seed=…) seeds")
    if drawn:
        streams_drawn = " and ".join(drawn)
        problems.append(
            f"draws from the global stream of {streams_drawn}, which workers seed by chance: use self.np_random"
        )
    for what, where in watcher.changed.items():
        instead = next(words for beginning, words in INSTEAD.items() if what.startswith(beginning))
        problems.append(f"changes {what} in {where}: {instead}")
    if left:
        problems.append(f"leaves {len(left)} of the processes that it begins: end them in close()")
    source = find(env).source
    unlimited = not is_atari(env) and (callable(source) or source.max_episode_steps is None)
    if unlimited and not seen.ends and len(seen.rewards) >= SAME:
        problems.append(
            f"no game ended in {len(seen.rewards):,} random steps of each: if none can, --max-episode-steps N ends them"
        )

    spec, games, steps = report.spec, seen.ends, len(seen.rewards) * num_envs
    for (name, x), largest in zip(spec.entries.items(), seen.largest, strict=True):
        size = f"up to {largest:.3g} in size" + "; --normalize.observation scales them" * (largest > LARGE)
        report.facts[f"observation {name}".rstrip()] = f"{x.dtype} {list(x.shape)}, {size}"
    if spec.dropped:
        report.facts["left out"] = f"the texts {one_line(', '.join(spec.dropped), most=80)}, which no network reads"
    report.facts |= {
        "action": f"{spec.action_space}, {'masked' if spec.masked else 'without masks'}",
        "reward": f"{np.min(seen.rewards):g} to {np.max(seen.rewards):g} in {steps:,} random steps",
        "games": f"{games} ended, one in {steps / games:,.0f} steps" if games else "none ended",
        "seeding": same or "not tested, for it is too slow",
        "processes": f"begins {len(begun)}" if begun else "begins none",
        "a step": str(Times(watcher.steps if len(watcher.steps) >= steps - games else seen.times)),
        "a reset": str(Times(watcher.resets)),
        "speed": f"{steps / seen.took:,.0f} steps/s, {num_envs} environments in one process",
    }
    return report


class _Steps:
    """Steps environments by random actions, and keeps what they answer.

    Args:
        envs: B environments.
        watcher: is told of calls.
        name: the environment's name.
    """

    def __init__(self, envs: VectorEnv, watcher: Watcher, name: str) -> None:
        self.envs, self.watcher, self.name = envs, watcher, name
        self.rng = np.random.default_rng(0)
        self.rewards: list[NDArray[Any]] = []
        self.times: list[float] = []
        self.ends, self.took, self.start = 0, 0.0, time.perf_counter()
        self.largest: list[float] = []

    def reset(self, seed: int) -> list[NDArray[Any]]:
        """Start B games and return their first observations, entry by entry, and their masks."""
        self.watcher.asked(-1, None)
        first = self.envs.reset(seed)
        self.watcher.answered()
        mask = self.envs.action_mask
        return [*self._entries(first), *([] if mask is None else [mask])]

    def step(self, action: NDArray[Any] | None = None) -> dict[str, NDArray[Any]]:
        """Take a step by these actions ``[B, *A]``, or by random ones, and return its answer by words.

        Observations are returned as bytes, all entries of them.

        Raises:
            EnvironmentUnsupported: an environment failed, or gave a number that is not finite.
        """
        if action is None:
            action = self.random()
        begun = time.perf_counter()
        observation, reward, terminated, done, _, why = self.envs.step(action)
        took = time.perf_counter() - begun
        self.watcher.answered()
        if why:
            raise EnvironmentUnsupported(f"{why[0].removesuffix(': made anew')}.")
        found = self._entries(observation)
        for what, values in (*(("an observation", each) for each in found), ("a reward", reward)):
            if not np.isfinite(values).all():
                step = len(self.rewards)
                raise EnvironmentUnsupported(f"{self.name} gave {what} that is not finite at step {step}")
        self.rewards.append(reward)
        self.times.append(took / len(reward))
        self.took += took
        self.ends += int(done.sum())
        shown = np.concatenate([np.ascontiguousarray(each).reshape(-1).view(np.uint8) for each in found])
        mask = np.empty(0) if self.envs.action_mask is None else self.envs.action_mask
        return {"observations": shown, "rewards": reward, "terminations": terminated, "ends": done, "masks": mask}

    def random(self) -> NDArray[Any]:
        """Return random legal actions ``[B, *A]``."""
        return draw(self.envs.action_space, self.envs.num_envs, self.rng, self.envs.action_mask)

    def _entries(self, observation: Observation) -> list[NDArray[Any]]:
        """Return the entries of observations, and note the largest number in each."""
        found = list(observation.values()) if isinstance(observation, dict) else [observation]
        before = self.largest or [0.0] * len(found)
        self.largest = [max(most, float(np.abs(x).max(initial=0))) for most, x in zip(before, found, strict=True)]
        return found


def _twice(seen: _Steps) -> str:
    """Take steps twice from one seed, and return whether they were the same; empty where that takes too long."""
    first, answers, actions = seen.reset(0), [], list[NDArray[Any]]()
    while len(actions) < SAME and time.perf_counter() < seen.start + ENOUGH / 3:
        actions.append(seen.random())
        answers.append(seen.step(actions[-1]))
    if not actions:
        return ""
    if [each.tobytes() for each in first] != [each.tobytes() for each in seen.reset(0)]:
        return "with one seed the first observations differ"
    for i, (action, before) in enumerate(zip(actions, answers, strict=True)):
        for what, values in seen.step(action).items():
            if values.tobytes() != before[what].tobytes():
                return f"with one seed and the same actions the {what} differ at step {i}"
    return f"the same twice, {len(actions)} steps of {seen.envs.num_envs} environments"


def _unsendable(env: str | EnvFactory | Environment) -> str:
    """Return a sentence where a callable cannot be sent to workers; names are looked up there."""
    asked = Environment.of(env)
    for each in (asked.source, *asked.wrappers):
        try:
            cloudpickle.dumps(each)
        except Exception as error:  # the user's own object may raise anything
            why = one_line(error, most=120)
            return f"{name_of(each)} cannot be sent to workers ({why}): use --scheme sync or --transport inline"
    return ""


def _duration(seconds: float) -> str:
    """Return seconds with three figures, in the unit that suits them."""
    for unit, size in (("s", 1.0), ("ms", 1e-3)):
        if seconds >= size:
            return f"{seconds / size:.3g} {unit}"
    return f"{seconds / 1e-6:.3g} µs"
