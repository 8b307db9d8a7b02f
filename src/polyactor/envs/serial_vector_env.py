"""B single environments, stepped one after the other; one that fails costs its game and not the run.

It is closed and made anew by its factory, and the others lose nothing. One that fails again and again ends the run.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from polyactor.envs.vector_env import Listener, Step
from polyactor.errors import EnvironmentUnsupported

MOST_FAILURES = 5
"""Of one environment in a row: the last of so many stops the run."""
SOUND_AFTER = 100
"""Good steps after which a failure is the first in a row again."""

FAILURES = (Exception, SystemExit)
"""What an environment may raise at the price of its game; it is no environment's business to end a worker."""
LARGEST = float(np.finfo(np.float32).max)
LONGEST_LINE = 200
"""Characters of an error's first line."""


class Unsound(Exception):
    """An environment answered with what it must not, or could not be made; says so as the rest of a sentence."""


class Each:
    """B environments in Gymnasium's NEXT_STEP autoreset mode; environment i is seeded with ``seed + i``.

    An environment fails when it raises (`SystemExit` too) or answers with something else than its observation space's
    shape, a castable dtype, finite numbers and five values. Its row of the step is then `lost`: another environment is
    made, seeded with a number of its own, and its first observation is what the row returns.

    Args:
        factories: of the B environments; called again for one that failed.
        name: of their kind, for sentences.
        listener: told what is about to be asked of which environment.

    Raises:
        EnvironmentUnsupported: they differ in their spaces. Later: one failed `MOST_FAILURES` times in a row.
    """

    def __init__(
        self, factories: Sequence[Callable[[], gymnasium.Env[Any, Any]]], name: str, listener: Listener | None = None
    ) -> None:
        self.factories, self.name, self.listener = factories, name, listener
        self.num_envs = b = len(factories)
        self.envs = [factories[0]()]
        self.metadata = self.envs[0].metadata
        self.single_action_space = self.envs[0].action_space
        space = self.envs[0].observation_space
        assert isinstance(space, gymnasium.spaces.Box), f"{name} was not flattened"
        self.single_observation_space, self.shape, self.dtype = space, space.shape, np.dtype(space.dtype)
        self.result = np.dtype(np.uint8 if self.dtype == np.uint8 else np.float32)
        with ExitStack() as made:
            made.callback(self.close)
            for i in range(1, b):
                if listener is not None:
                    listener.asked(i, None)
                try:
                    self.envs.append(self._made(i))
                except Unsound as error:
                    raise EnvironmentUnsupported(f"{name} {error}.") from error
            made.pop_all()
        self.over = [False] * b
        """Whose next step starts a game."""
        self.castable = {self.dtype}
        """Dtypes seen to be good."""
        self.time = 0
        self.seed: int | None = None
        self.action: NDArray[Any] | None = None
        self.failures, self.in_a_row, self.failed_at = [0] * b, [0] * b, [0] * b
        self.why: list[str] = []

    def reset(self, seed: int | None) -> NDArray[Any]:
        """First observations ``[B, *O]``; what failed on the way is told by the next `step`."""
        self.seed, self.over, self.action = seed, [False] * self.num_envs, None
        rows = np.empty((self.num_envs, *self.shape), self.dtype)
        for i, env in enumerate(self.envs):
            if self.listener is not None:
                self.listener.asked(i, None)
            try:
                rows[i] = self._first(env, None if seed is None else seed + i)
            except FAILURES as error:
                rows[i] = self._anew(i, error, " in reset")
        return self._cast(rows)

    def step(self, action: NDArray[Any]) -> Step:
        """One step of every environment; `action` is ``[B]`` or ``[B, *A]`` as the environments take it."""
        b, shape, castable, listener, over = self.num_envs, self.shape, self.castable, self.listener, self.over
        rows, reward = np.empty((b, *shape), self.dtype), np.zeros(b, np.float32)
        terminated, done, lost = np.zeros(b, np.bool_), np.zeros(b, np.bool_), np.zeros(b, np.bool_)
        before, self.action = self.action, action
        self.time += 1
        for i, (env, a_i) in enumerate(zip(self.envs, action, strict=True)):
            if listener is not None:
                listener.asked(i, None if over[i] else a_i)
            try:
                if over[i]:
                    rows[i] = self._first(env, None)
                    continue
                answer = env.step(a_i)
                if type(answer) is not tuple or len(answer) != 5:
                    raise Unsound(f"failed: step returned {_count(answer)} where Gymnasium has 5")
                x_i, r_i, terminated_i, truncated_i, _ = answer
                if not isinstance(r_i, float):
                    r_i = _number(r_i)
                if not -LARGEST <= r_i <= LARGEST:
                    raise Unsound(f"returned the reward {r_i}, which is not finite as float32")
                if type(x_i) is not np.ndarray or x_i.dtype not in castable or x_i.shape != shape:
                    x_i = self._checked(x_i)
                rows[i] = x_i
                if terminated_i:
                    terminated[i] = done[i] = True
                elif truncated_i:
                    done[i] = True
                reward[i] = r_i
            except FAILURES as error:
                last = before if over[i] else action
                where = " in reset" if over[i] else ""
                rows[i] = self._anew(i, error, where, None if last is None else last[i])
                lost[i] = True
                terminated[i] = done[i] = False
        observation = self._cast(rows)
        if observation.dtype == np.float32 and not np.isfinite(observation).all():
            # Looked for once in all rows, which costs less than in each. A first observation is finite already.
            for i in np.flatnonzero(~np.isfinite(observation.reshape(b, -1)).all(1)).tolist():
                observation[i] = self._anew(i, Unsound(NOT_FINITE), "", action[i])
                lost[i], reward[i], terminated[i], done[i] = True, 0.0, False, False
        self.over = done.tolist()
        why, self.why = tuple(self.why), []
        return Step(observation, reward, terminated, done, lost, why)

    @property
    def restarting(self) -> SimpleNamespace:
        """What decides how the environments go on, but for themselves."""
        kept = ("time", "seed", "failures", "in_a_row", "failed_at", "why")
        return SimpleNamespace(envs=self.over, **{name: getattr(self, name) for name in kept})

    @restarting.setter
    def restarting(self, saved: SimpleNamespace) -> None:
        self.over, self.action = saved.envs, None
        self.time, self.seed, self.why = saved.time, saved.seed, saved.why
        self.failures, self.in_a_row, self.failed_at = saved.failures, saved.in_a_row, saved.failed_at

    def close(self) -> None:
        """Close the environments; what one has to say against it changes nothing any more."""
        while self.envs:
            _close(self.envs.pop())

    def _anew(self, i: int, error: BaseException, where: str, action: Any = None) -> NDArray[Any]:
        """The first observation of another environment i.

        Args:
            error: what the old one failed with.
            where: it failed, for the sentence.
            action: the last one it was asked for.

        Raises:
            EnvironmentUnsupported: too many failures in a row.
        """
        when = f" at step {self.time}" + ("" if action is None else f", after the action {_shown(action)}")
        broken: gymnasium.Env[Any, Any] | None = self.envs[i]
        while True:
            what = f"{_said(error)}{where}{when}"
            if broken is not None:
                _close(broken)
            # A failure right after `SOUND_AFTER` good steps is the first of a new row.
            good = self.time - self.failed_at[i] - 1
            self.in_a_row[i] = 1 if good >= SOUND_AFTER else self.in_a_row[i] + 1
            self.failures[i] += 1
            self.failed_at[i] = self.time
            if self.in_a_row[i] >= MOST_FAILURES:
                raise EnvironmentUnsupported(
                    f"environment {i} of {self.name} failed {MOST_FAILURES} times in a row without {SOUND_AFTER} good"
                    f" steps in between; the last time it {what}."
                ) from (error.__cause__ if isinstance(error, Unsound) and error.__cause__ else error)
            if self.listener is not None:
                self.listener.asked(i, None)
            try:
                broken, where = None, ""
                broken = made = self._made(i)
                self.why.append(f"environment {i} of {self.name} {what}: made anew")
                where, what = " in reset", ""
                first = self._first(made, self._fresh_seed(i))
            except FAILURES as again:
                if what:
                    self.why.append(f"environment {i} of {self.name} {what}")
                error = again
            else:
                self.envs[i] = made
                return first

    def _fresh_seed(self, i: int) -> int | None:
        """None where the run has none; else another one after each failure, the same in every run of that seed."""
        if self.seed is None:
            return None
        return int(np.random.SeedSequence((self.seed, i, self.failures[i])).generate_state(1)[0])

    def _made(self, i: int) -> gymnasium.Env[Any, Any]:
        """Environment i from its factory.

        Raises:
            Unsound: it could not be made, or is none like the first.
        """
        try:
            made = self.factories[i]()
        except EnvironmentUnsupported as error:
            cause = error.__cause__ or error
            raise Unsound(f"could not be made: {type(cause).__name__}: {first_line(cause)}") from cause
        except FAILURES as error:
            raise Unsound(f"could not be made: {type(error).__name__}: {first_line(error)}") from error
        for kind in ("observation", "action"):
            space, first = getattr(made, f"{kind}_space"), getattr(self, f"single_{kind}_space")
            if space != first:
                _close(made)
                raise Unsound(f"has the {kind} space {shortened(space)} once and {shortened(first)} at first")
        return made

    def _first(self, env: gymnasium.Env[Any, Any], seed: int | None) -> NDArray[Any]:
        """The first observation of a game, ``[*O]`` in the space's dtype and finite.

        Raises:
            Unsound: it is none; or whatever the environment raises.
        """
        answer = env.reset() if seed is None else env.reset(seed=seed)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise Unsound(f"failed: reset returned {_count(answer)} where Gymnasium has 2")
        x = self._checked(answer[0])
        if self.result == np.float32 and not np.isfinite(self._cast(x)).all():
            raise Unsound(NOT_FINITE)
        return x

    def _checked(self, observation: Any) -> NDArray[Any]:
        """As an array of the space's shape, of a dtype that can be cast to its own.

        Raises:
            Unsound: it is none.
        """
        try:
            x = np.asarray(observation)
        except (ValueError, TypeError) as error:
            raise Unsound(f"returned an observation that is no array: {first_line(error)}") from error
        if x.dtype not in self.castable and not np.can_cast(x.dtype, self.dtype, "same_kind"):
            raise Unsound(f"returned an observation of {x.dtype}, which cannot be cast to {self.dtype}")
        if x.shape != self.shape:
            raise Unsound(f"returned an observation of shape {x.shape} where its space has {self.shape}")
        self.castable.add(x.dtype)
        return x

    def _cast(self, rows: NDArray[Any]) -> NDArray[Any]:
        if rows.dtype == self.result:
            return rows
        with np.errstate(over="ignore"):
            return rows.astype(self.result)


NOT_FINITE = "returned an observation that is not finite"


def first_line(error: BaseException) -> str:
    """What an error says, as much of it as a sentence can hold."""
    lines = str(error).strip().splitlines()
    return shortened(lines[0].rstrip("."), LONGEST_LINE) if lines else "no reason given"


def shortened(value: Any, most: int = 100) -> str:
    """A value as text of one line and at most so many characters."""
    text = " ".join(str(value).split())
    return text if len(text) <= most else text[: most - 3] + "..."


def _said(error: BaseException) -> str:
    """The rest of the sentence that begins with the environment's name."""
    if isinstance(error, Unsound):
        return str(error)
    found = re.fullmatch(r"not enough values to unpack \(expected 5, got (\d)\)", str(error))
    if found and _innermost(error).startswith("gymnasium."):  # a wrapper met the answer first
        return f"failed: step returned {found[1]} values where Gymnasium has 5"
    return f"raised {type(error).__name__}: {first_line(error)}"


def _innermost(error: BaseException) -> str:
    """The module that raised it."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))


def _number(reward: Any) -> float:
    """A reward as a float, infinite where it is too large for one.

    Raises:
        Unsound: it is no single number.
    """
    try:
        if not isinstance(reward, str | bytes) and getattr(reward, "shape", ()) == ():
            return float(reward)
    except (TypeError, ValueError):
        pass
    except OverflowError:
        return float("inf")
    raise Unsound(f"returned the reward {shortened(repr(reward))}, which is no number")


def _count(answer: Any) -> str:
    return f"{len(answer)} values" if isinstance(answer, tuple | list) else f"a single {type(answer).__name__}"


def _shown(action: Any) -> str:
    return shortened(np.asarray(action))


def _close(env: gymnasium.Env[Any, Any]) -> None:
    with suppress(*FAILURES):
        env.close()
