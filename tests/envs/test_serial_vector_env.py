"""An environment that fails costs its game, and neither the run nor the others' games."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
import threading
from asyncio import CancelledError
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import gymnasium
import numpy as np
import pytest
import torch
from gymnasium import spaces

from polyactor.envs import Step, VectorEnv, check_exact, make_envs
from polyactor.envs.serial_vector_env import MOST_FAILURES, SOUND_AFTER
from polyactor.errors import EnvironmentUnsupported
from polyactor.system.child_processes import end_noted, noted
from polyactor.system.deadline import Call
from tests.helpers.faulty_games import BOOM, FOR_EVER, LENGTH, RAISED, WRONG, Arcade, B, Game, ends, pays, raises


def steps(envs: VectorEnv, count: int, seed: int = 10) -> list[Step]:
    envs.reset(seed)
    return [envs.step(np.full(B, t % 2)) for t in range(count)]


def same(one: Step, other: Step, rows: Any) -> None:
    for name in ("observation", "reward", "terminated", "done", "lost"):
        np.testing.assert_array_equal(getattr(one, name)[rows], getattr(other, name)[rows])


@pytest.mark.fault("P3", "D1", "D2", "D12")
@pytest.mark.parametrize("kind", WRONG)
def test_a_fault_in_a_step_costs_one_game(kind: str) -> None:
    fault, why = WRONG[kind]
    arcade = Arcade({1: {("step", 5): fault}})
    found, healthy = steps(make_envs(arcade, B), 30), steps(make_envs(Arcade(), B), 30)
    for t, (step, sound) in enumerate(zip(found, healthy, strict=True)):
        same(step, sound, [0, 2])
        assert step.lost.tolist() == [False, t == 4, False]
        if t < 4:
            same(step, sound, 1)
    (sentence,) = found[4].why
    assert not any(step.why for t, step in enumerate(found) if t != 4)
    pattern = rf"environment 1 of Arcade .*({why}).* at step 5, after the action 0: made anew"
    assert re.fullmatch(pattern, sentence), sentence
    assert len(arcade.made) == B + 1
    assert arcade.made[1].closed == 1
    assert arcade.made[1].calls["step"] == 5
    new = arcade.made[B]
    assert new.calls["step"] + new.calls["reset"] == 1 + 30 - 5
    assert new.seeds[0] is not None
    assert new.seeds[0] not in range(10, 10 + B)
    assert (found[4].reward[1], found[4].terminated[1], found[4].done[1]) == (0, False, False)
    for step, seen in zip(found[4:], new.seen, strict=True):
        np.testing.assert_array_equal(step.observation[1], seen)
    games = [t for t, step in enumerate(found) if step.done[1]]
    assert games[0] == 4 + LENGTH  # the new game is a whole one


@pytest.mark.fault("P3", "D1", "D2")
@pytest.mark.parametrize("kind", RAISED)
@pytest.mark.parametrize("reset", [1, 2])
def test_a_fault_in_a_reset_costs_a_reset(kind: str, reset: int) -> None:
    fault, why = RAISED[kind]
    arcade = Arcade({1: {("reset", reset): fault}})
    found, healthy = steps(make_envs(arcade, B), 20), steps(make_envs(Arcade(), B), 20)
    at = (reset - 1) * LENGTH  # the step that tells of it
    for t, (step, sound) in enumerate(zip(found, healthy, strict=True)):
        same(step, sound, [0, 2])
        assert bool(step.why) == (t == at)
        assert step.lost.tolist() == [False, reset == 2 and t == at, False]
        assert (step.reward[1], step.done[1]) == (sound.reward[1], sound.done[1])
    when = "at step 0" if reset == 1 else "at step 8, after the action 0"
    pattern = rf"environment 1 of Arcade .*({why}).* in reset {when}: made anew"
    assert re.fullmatch(pattern, found[at].why[0]), found[at].why
    assert len(arcade.made) == B + 1


def test_an_observation_of_an_old_reset_is_named() -> None:
    arcade = Arcade({0: {("reset", 1): lambda answer: answer[0]}})
    (step,) = steps(make_envs(arcade, B), 1)
    assert "failed: reset returned a single ndarray where Gymnasium has 2 in reset" in step.why[0]


@pytest.mark.fault("D2")
def test_four_values_are_named_also_where_a_wrapper_meets_them_first() -> None:
    arcade = Arcade({1: {("step", 2): lambda answer: answer[:4]}})
    found = steps(make_envs(arcade, B, max_episode_steps=50), 3)
    assert "failed: step returned 4 values where Gymnasium has 5 at step 2" in found[1].why[0]

    def unpacks(answer: Any) -> Any:
        _, _, _, _, _ = answer[:4]

    found = steps(make_envs(Arcade({1: {("step", 2): unpacks}}), B), 3)  # of its own, which is something else
    assert "raised ValueError: not enough values to unpack" in found[1].why[0]


@pytest.mark.parametrize(
    ("observation", "reward"),
    [
        (np.array([1.0, 2.0]), np.float64(2)),
        ([1.0, 2.0], 2),
        ([1, 2], np.float32(2)),
        (np.array([1, 2]), np.array(2)),
        (torch.tensor([1.0, 2.0]), torch.tensor(2)),
        (np.array([1, 2], ">f4"), np.int8(2)),
    ],
)
def test_what_can_be_cast_is_no_fault(observation: Any, reward: Any) -> None:
    arcade = Arcade({1: {("step", 1): lambda answer: (observation, reward, *answer[2:])}})
    (step,) = steps(make_envs(arcade, B), 1)
    assert step.why == ()
    assert not step.lost.any()
    assert step.observation[1].tolist() == [1, 2]
    assert step.reward[1] == 2


@pytest.mark.parametrize(
    ("terminated", "truncated"),
    [
        (True, False),
        (np.True_, np.False_),
        (1, 0),
        (np.int64(1), np.float32(0)),
        (np.array(True), np.array(0)),
        (torch.tensor(1.0), torch.tensor(False)),
    ],
)
def test_ends_that_are_true_or_false_are_no_fault(terminated: Any, truncated: Any) -> None:
    (step,) = steps(make_envs(Arcade({1: {("step", 1): ends(terminated, truncated)}}), B), 1)
    assert step.why == ()
    assert step.terminated.tolist() == step.done.tolist() == [False, True, False]
    (step,) = steps(make_envs(Arcade({1: {("step", 1): ends(truncated, terminated)}}), B), 1)
    assert (step.terminated.tolist(), step.done.tolist()) == ([False] * B, [False, True, False])


class Mute(Exception):
    """Cannot be shown, nor be a number or an end."""

    def __str__(self) -> str:
        raise TypeError("not a text")

    __repr__ = __float__ = __eq__ = __hash__ = __str__  # type: ignore[assignment]


@pytest.mark.fault("D12", "P3")
@pytest.mark.parametrize("fault", [raises(Mute()), ends(Mute()), pays(Mute())])
def test_what_cannot_be_shown_is_named_by_its_class(fault: Any) -> None:
    (step,) = steps(make_envs(Arcade({1: {("step", 1): fault}}), B), 1)
    assert step.lost.tolist() == [False, True, False]
    assert "a Mute that cannot be shown (TypeError)" in step.why[0]


class Whole(Game):
    """Observes whole numbers."""

    def __init__(self, dtype: Any, shown: Any) -> None:
        super().__init__({})
        self.observation_space = spaces.Box(0, 99, (2,), dtype)
        self.shown = shown

    def observation(self) -> Any:
        return self.shown if self.time == 2 else np.zeros(2, self.shown.dtype)


@pytest.mark.fault("D12")
@pytest.mark.parametrize(
    ("dtype", "shown"),
    [(np.uint8, np.array([0, 300], np.uint16)), (np.int32, np.array([0, 2**40])), (np.int8, np.array([-129, 1]))],
)
def test_an_observation_that_its_dtype_cannot_hold_costs_the_game(dtype: Any, shown: Any) -> None:
    """It would wrap around, 300 to 44."""
    found = steps(make_envs(lambda: Whole(dtype, shown), B), 3)
    assert [step.lost.all() for step in found] == [False, True, False]
    assert f"which {np.dtype(dtype)} does not hold" in found[1].why[0]


class Simulated(Game):
    """Has begun a process, which it ends where it can be closed."""

    simulators: list[subprocess.Popen[bytes]]
    closes = True

    def __init__(self, faults: Any, length: int = LENGTH) -> None:
        super().__init__(faults, length)
        self.simulators.append(subprocess.Popen(["sleep", "600"]))

    def close(self) -> None:
        if not self.closes:
            raise OSError("it does not answer")
        self.simulators[0].kill()


@pytest.mark.fault("P14")
@pytest.mark.skipif(not Path("/proc/thread-self/children").exists(), reason="the kernel does not list children")
def test_what_an_environment_that_cannot_be_closed_or_made_has_begun_is_ended(monkeypatch: pytest.MonkeyPatch) -> None:
    class Unmade(Simulated):
        def __init__(self) -> None:
            super().__init__({})
            raise OSError("no licence")

    mine = subprocess.Popen(["sleep", "600"])
    monkeypatch.setattr(Simulated, "simulators", [], raising=False)
    monkeypatch.setattr(Simulated, "closes", False)
    try:
        with pytest.raises(EnvironmentUnsupported, match="no licence"):
            make_envs(Unmade, 1)
        assert Simulated.simulators[0].wait(10) == -signal.SIGKILL
        faults: list[Any] = [{}, {}, {("step", 2): raises(BOOM)}]
        envs = make_envs(lambda: Simulated(faults.pop()), 2)
        assert steps_of_two(envs, 3)[1].lost.tolist() == [True, False]
        _, first, second, again = Simulated.simulators
        assert first.wait(10) == -signal.SIGKILL
        assert (second.poll(), again.poll()) == (None, None)
        envs.close()
        assert (second.wait(10), again.wait(10)) == (-signal.SIGKILL,) * 2
        assert mine.poll() is None
    finally:
        for process in (mine, *Simulated.simulators):
            process.kill()
            process.wait()


@pytest.mark.fault("P14")
@pytest.mark.skipif(not Path("/proc/thread-self/children").exists(), reason="the kernel does not list children")
def test_what_an_environment_begins_in_a_step_ends_with_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[subprocess.Popen[bytes]] = []
    monkeypatch.setattr(threading, "enumerate", lambda: [threading.current_thread()])
    arcade = Arcade({1: {("step", 2): lambda answer: (begun.append(subprocess.Popen(["sleep", "600"])), answer)[1]}})
    envs = make_envs(arcade, 2)
    steps_of_two(envs, 3)
    envs.close()
    assert begun[0].pid in noted
    end_noted()
    assert begun[0].wait(10) == -signal.SIGKILL


def steps_of_two(envs: VectorEnv, count: int) -> list[Step]:
    envs.reset(0)
    return [envs.step(np.zeros(2, np.int64)) for _ in range(count)]


@pytest.mark.fault("P3")
def test_five_in_a_row_stop_the_run_with_one_sentence() -> None:
    always = {("step", 2): raises(BOOM)}
    arcade = Arcade({1: always}, always=always)
    envs = make_envs(arcade, B)
    envs.reset(0)
    for t in range(2 * MOST_FAILURES - 1):
        assert envs.step(np.ones(B, np.int64)).lost.tolist() == [False, t % 2 == 1, False]
    with pytest.raises(EnvironmentUnsupported) as caught:
        envs.step(np.ones(B, np.int64))
    assert caught.value.exit_code == 3
    assert caught.value.__cause__ is BOOM
    assert str(caught.value) == (
        "environment 1 of Arcade failed 5 times in a row without 100 good steps in between; the last time it raised"
        " ValueError: boom at step 10, after the action 1."
    )
    assert [game.closed for game in arcade.made] == [0, 1, 0, 1, 1, 1, 1]
    envs.close()


def test_failures_of_different_environments_are_no_row() -> None:
    always = {("step", 30): raises(BOOM)}
    envs = make_envs(Arcade(dict.fromkeys(range(B), always), always=always, length=FOR_EVER), B)
    found = steps(envs, 30 * (MOST_FAILURES - 1))
    assert sum(int(step.lost.sum()) for step in found) == B * (MOST_FAILURES - 1)


@pytest.mark.parametrize("good", [SOUND_AFTER, SOUND_AFTER - 1])
def test_good_steps_forgive(good: int) -> None:
    always = {("step", good + 1): raises(BOOM)}
    envs = make_envs(Arcade({1: always}, always=always, length=FOR_EVER), B)
    if good < SOUND_AFTER:
        with pytest.raises(EnvironmentUnsupported, match="5 times in a row"):
            steps(envs, MOST_FAILURES * (good + 1))
    else:
        assert sum(step.lost[1] for step in steps(envs, 9 * (good + 1))) == 9


def test_an_environment_that_cannot_be_made_anew_is_tried_again() -> None:
    gone = RuntimeError("no port")
    arcade = Arcade({1: {("step", 2): raises(BOOM)}, B: gone, B + 1: SystemExit("licence")})
    found = steps(make_envs(arcade, B), 3)
    assert found[1].lost.tolist() == [False, True, False]
    assert found[1].why == (
        "environment 1 of Arcade raised ValueError: boom at step 2, after the action 1",
        "environment 1 of Arcade could not be made: RuntimeError: no port at step 2, after the action 1",
        "environment 1 of Arcade could not be made: SystemExit: licence at step 2, after the action 1: made anew",
    )
    np.testing.assert_array_equal(found[1].observation[1], arcade.made[-1].seen[0])

    arcade = Arcade({1: {("step", 2): raises(BOOM)}} | dict.fromkeys(range(B, 99), gone))
    with pytest.raises(EnvironmentUnsupported, match="the last time it could not be made: RuntimeError: no port") as c:
        steps(make_envs(arcade, B), 3)
    assert c.value.__cause__ is gone
    assert len(arcade.made) == B + MOST_FAILURES - 1


def test_a_reset_that_always_fails_stops_the_run() -> None:
    always = {("reset", 1): raises(BOOM)}
    arcade = Arcade({0: always}, always=always)
    with pytest.raises(EnvironmentUnsupported, match=r"environment 0 .* raised ValueError: boom in reset at step 0\."):
        make_envs(arcade, B).reset(0)
    assert [game.closed for game in arcade.made if game.closed] == [1] * MOST_FAILURES


@pytest.mark.fault("D2")
def test_another_space_is_a_failure_too(monkeypatch: pytest.MonkeyPatch) -> None:
    arcade = Arcade({1: {("step", 2): raises(BOOM)}})

    def shrunk() -> Game:
        game = arcade()
        if len(arcade.made) > B:
            game.action_space = spaces.Discrete(1)
        return game

    with pytest.raises(EnvironmentUnsupported, match=r"has the action space Discrete\(1\) once and Discrete\(2\)"):
        steps(make_envs(shrunk, B), 3)
    assert [game.closed for game in arcade.made[B:]] == [1] * (MOST_FAILURES - 1)


def test_environments_must_be_alike_from_the_start() -> None:
    sizes = iter([2, 3])

    class Varied(Game):
        def __init__(self) -> None:
            super().__init__({})
            self.observation_space = spaces.Box(-1, 1, (next(sizes),), np.float32)

    with pytest.raises(EnvironmentUnsupported, match="Varied has the observation space"):
        make_envs(Varied, 2)


def test_closing_may_fail_and_an_interrupt_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Game, "close", lambda self: sys.exit(4))
    arcade = Arcade({1: {("step", 2): raises(BOOM)}, 2: {("step", 4): raises(KeyboardInterrupt())}})
    envs = make_envs(arcade, B)
    assert steps(envs, 3)[1].lost[1]
    with pytest.raises(KeyboardInterrupt):
        envs.step(np.zeros(B, np.int64))
    envs.close()


def test_seeds_of_new_games_are_those_of_the_run() -> None:
    def seeds(seed: int | None) -> list[int | None]:
        always = {("step", 3): raises(BOOM)}
        arcade = Arcade({0: always, 1: always}, always=always)
        steps(make_envs(arcade, B), 9, seed)  # type: ignore[arg-type]
        return [game.seeds[0] for game in arcade.made]

    first = seeds(10)
    assert first == seeds(10)
    assert len(set(first)) == B + 6
    assert first[:B] == [10, 11, 12]
    assert not set(first[B:]) & set(seeds(11)[B:])
    assert seeds(None) == [None] * (B + 6)


def test_a_listener_hears_what_is_asked_of_whom() -> None:
    class Ear:
        heard: list[Any] = []  # noqa: RUF012

        def asked(self, env: int, action: Any, call: Call = Call.RESET) -> None:
            self.heard.append((env, str(call) if action is None else int(action)))

        def answered(self) -> None:
            """Not of what is stepped here."""

    ear = Ear()
    always = {("step", 2): raises(BOOM)}
    envs = make_envs(Arcade({1: always}, always=always), B, listener=ear)
    assert ear.heard == [(1, "constructor"), (2, "constructor")]  # each has its own time to be made in
    ear.heard.clear()
    envs.reset(0)
    assert ear.heard == [(0, "reset"), (1, "reset"), (2, "reset")]
    ear.heard.clear()
    for t in range(2):
        envs.step(np.array([0, 1, t]))
    assert ear.heard == [(0, 0), (1, 1), (2, 0), (0, 0), (1, 1), (1, "constructor"), (1, "reset"), (2, 1)]
    for _ in range(LENGTH - 2):
        envs.step(np.zeros(B, np.int64))
    ear.heard.clear()
    envs.step(np.ones(B, np.int64))  # games 0 and 2 begin anew
    assert ear.heard[0] == (0, "reset")
    assert ear.heard[-1] == (2, "reset")
    ear.heard.clear()
    envs.close()
    assert ear.heard == [(2, "close"), (1, "close"), (0, "close")]


class Fragile(gymnasium.Env[Any, Any]):
    """Breaks by its own chance, so that its failures are the same from the same state on."""

    observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
    action_space = spaces.Discrete(2)
    broke = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        return self.np_random.normal(size=1), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        if self.np_random.random() < 0.02:
            Fragile.broke += 1
            raise OSError("snap")
        return self.np_random.normal(size=1), 1.0, bool(self.np_random.random() < 0.05), False, {}


def test_an_exact_snapshot_holds_what_failures_leave_behind() -> None:
    Fragile.broke = 0
    check_exact(Fragile)
    assert Fragile.broke > 4

    ours, theirs = make_envs(Fragile, B), make_envs(Fragile, B)
    ours.reset(1)
    theirs.reset(2)
    for _ in range(60):
        ours.step(np.zeros(B, np.int64))
    theirs.restore(ours.snapshot())
    for t in range(60):
        one, other = (envs.step(np.zeros(B, np.int64)) for envs in (ours, theirs))
        same(one, other, slice(None))
        assert one.why == other.why, t
    assert ours.snapshot() == theirs.snapshot()


@pytest.mark.parametrize("number", [1, 2])
def test_where_one_cannot_be_made_those_before_it_are_closed(number: int) -> None:
    arcade = Arcade({number: ValueError("no more of these")})
    with pytest.raises(EnvironmentUnsupported, match="no more of these"):
        make_envs(arcade, B)
    assert [game.closed for game in arcade.made[:number]] == [1] * number


@pytest.mark.parametrize("env", ["CartPole-v1", "ALE/Pong-v5"])
def test_those_that_never_fail_lose_nothing(env: str) -> None:
    if env.startswith("ALE"):
        pytest.importorskip("ale_py.vector_env")
    with closing(make_envs(env, B)) as envs:
        found = steps(envs, 3)
    for step in found:
        assert step.why == ()
        assert step.lost.shape == (B,)
        assert not step.lost.any()
        with pytest.raises(ValueError, match="read-only"):
            step.lost[0] = True


class Values(NamedTuple):
    """What some environments return from a step."""

    observation: Any
    reward: Any
    terminated: Any
    truncated: Any
    info: Any


@pytest.mark.parametrize("kind", [list, lambda answer: Values(*answer)])
def test_five_values_are_no_fault_in_a_list_or_with_names(kind: Any) -> None:
    (step,) = steps(make_envs(Arcade({1: {("step", 1): kind, ("reset", 1): list}}), B), 1)
    assert step.why == ()


class Panic(BaseException):
    """As a library in Rust raises it."""


@pytest.mark.fault("P3")
def test_an_exception_of_another_kind_costs_one_game() -> None:
    arcade = Arcade({1: {("step", 1): raises(Panic("slice"))}, 2: {("step", 2): raises(CancelledError())}})
    found = steps(make_envs(arcade, B), 3)
    assert "raised Panic: slice" in found[0].why[0]
    assert "raised CancelledError" in found[1].why[0]
    assert [step.lost.tolist() for step in found] == [[False, True, False], [False, False, True], [False] * 3]


class Restarting(Simulated):
    """Begins its simulator anew in each game."""

    def reset(self, **given: Any) -> Any:
        self.simulators.append(subprocess.Popen(["sleep", "600"]))
        return super().reset(**given)


@pytest.mark.fault("P14")
@pytest.mark.skipif(not Path("/proc/thread-self/children").exists(), reason="the kernel does not list children")
def test_what_is_begun_in_later_games_is_ended_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Restarting, "simulators", [], raising=False)
    monkeypatch.setattr(Restarting, "closes", False)
    envs = make_envs(lambda: Restarting({}, 1), B)
    try:
        steps(envs, 2)
        assert len(Restarting.simulators) == 3 * B
        envs.close()
        assert [each.wait(10) for each in Restarting.simulators] == [-signal.SIGKILL] * 3 * B
    finally:
        for process in Restarting.simulators:
            process.kill()
            process.wait()
