"""A vector of B environments that are stepped one after the other, and replaced where they fail.

A failed environment loses its game: it is closed, and its factory makes a new one. The other environments go on. An
environment that fails too often in a row ends the run.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, nullcontext, suppress
from time import monotonic
from types import SimpleNamespace
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from polyactor.envs.action_masks import MASK, ActionMasks
from polyactor.envs.answers import (
    LARGEST,
    NOT_FINITE,
    Unsound,
    count,
    description,
    end,
    first_line,
    number,
    passed,
    shortened,
)
from polyactor.envs.vector_env import VECTOR, Listener, Observation, Step, entries, row_dtype
from polyactor.errors import EnvironmentUnsupported
from polyactor.system.child_processes import Beginnings, end_noted, noting
from polyactor.system.deadline import PATIENCE, Call, Unanswered

MOST_FAILURES = 5
"""Failures of one environment in a row that end the run."""
SOUND_AFTER = 100
"""Steps without a failure after which failures are counted from 0 again."""


class SerialVectorEnv:
    """B environments in Gymnasium's NEXT_STEP autoreset mode; environment i is seeded with ``seed + i``.

    An environment fails if it raises an exception (but for `passed`), or if a step does not return five values with
    an observation of the space's shape and a castable dtype, finite numbers, and two ends that are true or false. Its
    row of the step is then `lost`: a new one is made and seeded anew, and the row has its first observation.

    Processes that an environment begins when it is made or first reset, and in later resets if it had begun any, are
    ended where it cannot be made or closed, and otherwise, like those of `Beginnings`, at the end of this process, if
    its `close` has not done so.

    Args:
        factories: one callable per environment that makes it, and makes it again after a failure.
        name: the name of the environments in sentences.
        listener: told before each call of an environment.

    Raises:
        EnvironmentUnsupported: the spaces of the environments differ, or one cannot be made.
    """

    def __init__(
        self, factories: Sequence[Callable[[], gymnasium.Env[Any, Any]]], name: str, listener: Listener | None = None
    ) -> None:
        self.factories, self.name, self.listener = factories, name, listener
        self.num_envs = b = len(factories)
        self.begun: list[set[int]] = [set() for _ in factories]
        """For each environment, the processes that it has begun."""
        self.beginnings = Beginnings()
        with noting(self.begun[0]):
            self.envs = [factories[0]()]
        self.metadata: Any = None
        with suppress(Exception):  # a property of the user's may raise anything
            self.metadata = self.envs[0].metadata
        self.single_action_space = self.envs[0].action_space
        space = self.envs[0].observation_space
        assert isinstance(space, gymnasium.spaces.Box | gymnasium.spaces.Dict), f"{name} was not converted"
        several = isinstance(space, gymnasium.spaces.Dict)
        self.single_observation_space, self.dtype = space, row_dtype(space)
        self.shape: tuple[int, ...] = () if several else space.shape or ()
        self.result = self.dtype if several or self.dtype == np.uint8 else np.dtype(np.float32)
        self.masks = ActionMasks(self.single_action_space)
        self.masked: bool | None = None
        """Whether environments give action masks; None before the first reset."""
        self.action_mask: NDArray[np.bool_] | None = None
        self.late = ""
        """The call, in words, in which a mask came, though the first reset gave none."""
        with ExitStack() as made:
            made.callback(self.close)
            for i in range(1, b):
                if listener is not None:
                    listener.asked(i, None, Call.CONSTRUCTOR)
                try:
                    self.envs.append(self._make(i))
                except Unsound as error:
                    raise EnvironmentUnsupported(f"{name} {error}.") from error
            made.pop_all()
        self.over = [False] * b
        """For each environment, whether its game is over, so that its next step starts a new one."""
        self.castable = {self.dtype}
        """Dtypes of observations that are known to be castable to that of the space."""
        self.time = 0
        self.seed: int | None = None
        self.action: Sequence[Any] | None = None
        self.failures, self.in_a_row, self.failed_at = [0] * b, [0] * b, [0] * b
        self.why: list[str] = []

    def reset(self, seed: int | None) -> Observation:
        """Start B games and return their first observations ``[B, *O]``; the next `step` reports failures.

        Raises:
            EnvironmentUnsupported: an environment failed `MOST_FAILURES` times in a row, or gives its first mask here.
        """
        self.seed, self.over, self.action, self.action_mask = seed, [False] * self.num_envs, None, None
        rows = np.empty((self.num_envs, *self.shape), self.dtype)
        for i, env in enumerate(self.envs):
            if self.listener is not None:
                self.listener.asked(i, None)
            try:
                with noting(self.begun[i]):
                    rows[i] = self._first_observation(i, env, None if seed is None else seed + i)
            except passed():
                raise
            except BaseException as error:
                rows[i] = self._replacement(i, error, " in reset")
        self._refuse_late()
        return entries(self._cast(rows))

    def step(self, action: Sequence[Any]) -> Step:
        """Take one step in every environment, by B actions in its own action space.

        Raises:
            EnvironmentUnsupported: an environment failed `MOST_FAILURES` times in a row, or gives its first mask here.
        """
        b, shape, dtype, listener, over = self.num_envs, self.shape, self.dtype, self.listener, self.over
        rows, rewards = np.empty((b, *shape), self.dtype), [0.0] * b
        terminated, done, lost = np.zeros(b, np.bool_), np.zeros(b, np.bool_), np.zeros(b, np.bool_)
        before, self.action = self.action, action
        self.time += 1
        if self.masked:
            self.action_mask = self.masks.blank(b)
        unmasked = not self.masked and self.masks.choices > 0
        for i, (env, a_i) in enumerate(zip(self.envs, action, strict=True)):
            if listener is not None:
                listener.asked(i, None if over[i] else a_i)
            try:
                if over[i]:
                    with noting(self.begun[i]) if self.begun[i] else nullcontext():  # it may begin its simulator anew
                        rows[i] = self._first_observation(i, env, None)
                    continue
                answer = env.step(a_i)
                if (type(answer) is not tuple and not isinstance(answer, tuple | list)) or len(answer) != 5:
                    raise Unsound(f"failed: step returned {count(answer)} where Gymnasium has 5")
                x_i, r_i, terminated_i, truncated_i, info_i = answer
                if not isinstance(r_i, float):
                    r_i = number(r_i)
                if not -LARGEST <= r_i <= LARGEST:
                    raise Unsound(f"returned the reward {r_i}, which is not finite as float32")
                if type(x_i) is not np.ndarray or x_i.dtype is not dtype or x_i.shape != shape:
                    x_i = self._checked(x_i)
                if type(terminated_i) is not bool:
                    terminated_i = end("terminated", terminated_i)
                if type(truncated_i) is not bool:
                    truncated_i = end("truncated", truncated_i)
                if self.action_mask is not None:
                    acted_on = not (terminated_i or truncated_i)
                    self.action_mask[i] = self.masks.read(env, info_i, acted_on=acted_on)
                elif unmasked and (type(info_i) is dict or isinstance(info_i, Mapping)) and MASK in info_i:
                    self.late = "step"
                rows[i] = x_i
                if terminated_i:
                    terminated[i] = done[i] = True
                elif truncated_i:
                    done[i] = True
                rewards[i] = r_i
            except passed():
                raise
            except BaseException as error:
                last = before if over[i] else action
                where = " in reset" if over[i] else ""
                rows[i] = self._replacement(i, error, where, None if last is None else last[i])
                lost[i] = True
                terminated[i] = done[i] = False
        with np.errstate(all="ignore"):  # whatever the environment has NumPy do about numbers too large or too small
            observation, reward = self._cast(rows), np.array(rewards, np.float32)
        numbers = _numbers(observation)
        if numbers is not None and not np.isfinite(numbers).all():
            # One check of all rows costs less than one per environment. First observations were checked already.
            for i in np.flatnonzero(~np.isfinite(numbers.reshape(b, -1)).all(1)).tolist():
                observation[i] = self._replacement(i, Unsound(NOT_FINITE), "", action[i])
                lost[i], reward[i], terminated[i], done[i] = True, 0.0, False, False
        self._refuse_late()
        self.over = done.tolist()
        why, self.why = tuple(self.why), []
        return Step(entries(observation), reward, terminated, done, lost, why)

    @property
    def restarting(self) -> SimpleNamespace:
        """The state of this vector, without that of the environments themselves; it can be saved and set."""
        kept = ("time", "seed", "failures", "in_a_row", "failed_at", "why")
        return SimpleNamespace(envs=self.over, **{name: getattr(self, name) for name in kept})

    @restarting.setter
    def restarting(self, saved: SimpleNamespace) -> None:
        self.over, self.action = saved.envs, None
        self.time, self.seed, self.why = saved.time, saved.seed, saved.why
        self.failures, self.in_a_row, self.failed_at = saved.failures, saved.in_a_row, saved.failed_at

    def close(self) -> None:
        """Close the environments; exceptions that they raise are ignored.

        They are closed one after the other, in the thread that made them. After the first that did not answer within
        its deadline the others are closed at once, each in a thread of its own, for `PATIENCE` seconds together.
        """
        while self.envs:
            i, env = len(self.envs) - 1, self.envs.pop()
            if self.listener is not None:
                self.listener.asked(i, None, Call.CLOSE)
            if not self._close(i, env):
                break
        threads = [threading.Thread(target=self._close, args=pair, daemon=True) for pair in enumerate(self.envs)]
        self.envs.clear()
        end = monotonic() + PATIENCE / 2  # below what the watchdog waits for
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, end - monotonic()))
        self.beginnings.end()

    def _replacement(self, i: int, error: BaseException, where: str, action: Any = None) -> NDArray[Any]:
        """Replace environment i, which failed, and return the first observation of the new one, ``[*O]``.

        Args:
            i: the number of the environment.
            error: the exception that it failed with.
            where: the place of the failure in a sentence, such as `` in reset``.
            action: the action that was last given to it, or None.

        Raises:
            EnvironmentUnsupported: the environment failed `MOST_FAILURES` times in a row, or missed its deadline before
                the first step: at once, if no other has answered, else twice.
        """
        when = f" at step {self.time}" + ("" if action is None else f", after the action {shortened(_shown(action))}")
        broken: gymnasium.Env[Any, Any] | None = self.envs[i]
        while True:
            what = f"{description(error)}{where}{when}"
            if broken is not None:
                self._close(i, broken)
            good = self.time - self.failed_at[i] - 1
            self.in_a_row[i] = 1 if good >= SOUND_AFTER else self.in_a_row[i] + 1
            self.failures[i] += 1
            self.failed_at[i] = self.time
            if isinstance(error, Unanswered) and self.time == 0 and (i == 0 or self.failures[i] > 1):
                raise EnvironmentUnsupported(f"environment {i} of {self.name} {what}.")
            if self.in_a_row[i] >= MOST_FAILURES:
                raise EnvironmentUnsupported(
                    f"environment {i} of {self.name} failed {MOST_FAILURES} times in a row without {SOUND_AFTER} good"
                    f" steps in between; the last time it {what}."
                ) from (error.__cause__ if isinstance(error, Unsound) and error.__cause__ else error)
            if self.listener is not None:
                self.listener.asked(i, None, Call.CONSTRUCTOR)
            try:
                broken, where = None, ""
                broken = made = self._make(i)
                if self.listener is not None:
                    self.listener.asked(i, None)
                self.why.append(f"environment {i} of {self.name} {what}: made anew")
                where, what = " in reset", ""
                with noting(self.begun[i]):
                    first = self._first_observation(i, made, self._fresh_seed(i))
            except passed():
                raise
            except BaseException as again:
                if what:
                    self.why.append(f"environment {i} of {self.name} {what}")
                error = again
            else:
                self.envs[i] = made
                return first

    def _fresh_seed(self, i: int) -> int | None:
        """Derive the seed of a replacement from the run's seed and the number of failures; None if there is no seed."""
        if self.seed is None:
            return None
        return int(np.random.SeedSequence((self.seed, i, self.failures[i])).generate_state(1)[0])

    def _make(self, i: int) -> gymnasium.Env[Any, Any]:
        """Make environment i by its factory.

        Raises:
            Unsound: the environment could not be made, or its spaces are not those of the first one.
        """
        try:
            with noting(self.begun[i]):
                made = self.factories[i]()
        except EnvironmentUnsupported as error:
            cause = error.__cause__ or error
            raise Unsound(f"could not be made: {type(cause).__name__}: {first_line(cause)}") from cause
        except passed():
            raise
        except BaseException as error:
            raise Unsound(f"could not be made: {type(error).__name__}: {first_line(error)}") from error
        if any(made.unwrapped is other.unwrapped for j, other in enumerate(self.envs) if j != i):
            raise Unsound("is the same object twice, but its function must return a new environment at each call")
        for kind in ("observation", "action"):
            space, first = getattr(made, f"{kind}_space"), getattr(self, f"single_{kind}_space")
            if space != first:
                self._close(i, made)
                raise Unsound(f"has the {kind} space {shortened(space)} once and {shortened(first)} at first")
        return made

    def _close(self, i: int, env: gymnasium.Env[Any, Any]) -> bool:
        """Close an environment that was made as number i, and return whether it answered within its deadline.

        Where that fails, the processes that it has begun are ended.
        """
        failure: BaseException | None = None
        try:
            env.close()
        except passed():
            raise
        except BaseException as error:
            failure = error
            end_noted(self.begun[i])
        self.begun[i] = set()
        return not isinstance(failure, Unanswered)

    def _first_observation(self, i: int, env: gymnasium.Env[Any, Any], seed: int | None) -> NDArray[Any]:
        """Reset environment i and return its first observation ``[*O]``, checked to be valid and finite.

        Exceptions of the environment are passed on.

        Raises:
            Unsound: the observation is not valid.
        """
        answer = env.reset() if seed is None else env.reset(seed=seed)
        if not isinstance(answer, tuple | list) or len(answer) != 2:
            raise Unsound(f"failed: reset returned {count(answer)} where Gymnasium has 2")
        x = self._checked(answer[0])
        numbers = _numbers(self._cast(x))
        if numbers is not None and not np.isfinite(numbers).all():
            raise Unsound(NOT_FINITE)
        if self.masked is None:
            self.masked = self.masks.given(env, answer[1])
        elif not self.masked and self.masks.choices and isinstance(answer[1], Mapping) and MASK in answer[1]:
            self.late = "a later reset"
        if self.masked:
            if self.action_mask is None:
                self.action_mask = self.masks.blank(self.num_envs)
            self.action_mask[i] = self.masks.read(env, answer[1], acted_on=True)
        return x

    def _refuse_late(self) -> None:
        """Raise `EnvironmentUnsupported` where a mask came though there was none at first, so that none was heeded."""
        if self.late:
            what = f"an {MASK} in {self.late}, but none in its first reset: give it in each reset and step"
            raise EnvironmentUnsupported(f"{self.name} gives {what}.")

    def _checked(self, observation: Any) -> NDArray[Any]:
        """Return an observation as an array of the space's shape and dtype.

        Raises:
            Unsound: the observation is no such array.
        """
        if np.ma.is_masked(observation):
            raise Unsound("returned an observation with numbers that are masked")
        try:
            x = np.asarray(observation)
        except (ValueError, TypeError) as error:
            raise Unsound(f"returned an observation that is no array: {first_line(error)}") from error
        if x.dtype not in self.castable and not np.can_cast(x.dtype, self.dtype, "same_kind"):
            raise Unsound(f"returned an observation of {x.dtype}, which cannot be cast to {self.dtype}")
        if x.shape != self.shape:
            raise Unsound(f"returned an observation of shape {x.shape} where its space has {self.shape}")
        with np.errstate(all="ignore"):
            cast = x.astype(self.dtype, copy=False)
            if x.dtype in self.castable:
                return cast
            if self.dtype.kind == "f" or np.can_cast(x.dtype, self.dtype):
                self.castable.add(x.dtype)
            elif (x != cast).any():
                other = x[x != cast].flat[0]
                raise Unsound(f"returned an observation with the number {other}, which {self.dtype} does not hold")
        return cast

    def _cast(self, rows: NDArray[Any]) -> NDArray[Any]:
        if rows.dtype == self.result:
            return rows
        with np.errstate(all="ignore"):
            return rows.astype(self.result)


def _shown(action: Any) -> Any:
    """Return an action as a sentence shows it: those of several parts as they are, since their shapes differ."""
    return action if isinstance(action, tuple | dict) else np.asarray(action)


def _numbers(observation: NDArray[Any]) -> NDArray[np.float32] | None:
    """Return those numbers of converted observations that may be infinite or NaN, or None where all are bytes."""
    if observation.dtype.names is not None:
        return _numbers(observation[VECTOR]) if VECTOR in observation.dtype.names else None
    return observation if observation.dtype == np.float32 else None
