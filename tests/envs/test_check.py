"""An environment is inspected before a run."""

from __future__ import annotations

import itertools
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import gymnasium
import numpy as np
import pytest
import torch

from polyactor.cli import main as cli
from polyactor.envs import Environment, name_of
from polyactor.envs.check import inspect
from polyactor.errors import EnvironmentUnsupported
from tests.helpers.faulty_games import Arcade, B, pays

LISTED = Path("/proc/thread-self/children").exists()
CHILDREN = pytest.mark.skipif(not LISTED, reason="the kernel does not list children")


def test_inspection_tells_what_failed() -> None:
    arcade = Arcade({1: {("step", 4): pays(float("nan"))}})
    with pytest.raises(EnvironmentUnsupported) as caught:
        inspect(arcade, B)
    assert "environment 1 of Arcade returned the reward nan, which is not finite" in str(caught.value)
    assert str(caught.value).endswith(".")
    assert "made anew" not in str(caught.value)


def test_an_inspection_closes_what_it_has_made() -> None:
    arcade = Arcade()
    inspect(arcade, B)
    assert [game.closed for game in arcade.made] == [1] * B


@pytest.mark.fault("D17")
def test_inspection_tells_of_a_number_that_would_blind_a_policy_for_the_others() -> None:
    """Such as a time in seconds since 1970."""

    def stamped() -> gymnasium.Env[Any, Any]:
        env = gymnasium.make("CartPole-v1")
        space = gymnasium.spaces.Box(-np.inf, np.inf, (5,))
        return gymnasium.wrappers.TransformObservation(env, lambda x: np.array([*x, 1.7e9], np.float32), space)

    assert "float32 [5], up to 1.7e+09 in size; --normalize.observation scales them" in str(inspect(stamped))
    assert "scales" not in str(inspect("CartPole-v1"))


# ---- what a run would meet -----------------------------------------------------------------------------------------


class Fine(gymnasium.Env[Any, Any]):
    """Games of five steps, which leave their surroundings alone."""

    def __init__(self) -> None:
        self.observation_space = gymnasium.spaces.Box(-1, 1, (2,), np.float32)
        self.action_space = gymnasium.spaces.Discrete(2)
        self.steps = 0

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        self.steps = 0
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.steps += 1
        return self.np_random.uniform(-1, 1, 2).astype(np.float32), float(action), self.steps == 5, False, {}


class Drifting(Fine):
    def __init__(self) -> None:
        super().__init__()
        self.all_steps = 0

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self.all_steps += 1
        x, _, *others = super().step(action)
        return x, float(self.all_steps), *others


class Drawing(Fine):
    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        x, info = super().reset(**given)
        return x * np.float32(random.random()), info


class Moving(Fine):
    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        os.chdir("/")
        return super().reset(**given)


class Handling(Fine):
    def __init__(self) -> None:
        super().__init__()
        signal.signal(signal.SIGTERM, signal.SIG_IGN)


class Switching(Fine):
    def step(self, action: Any) -> Any:
        np.seterr(all="ignore")
        return super().step(action)


class Leaving(Fine):
    """Begins a process."""

    begun: ClassVar[list[subprocess.Popen[bytes]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.child = subprocess.Popen(["sleep", "1000"])
        self.begun.append(self.child)


class Clearing(Leaving):
    def close(self) -> None:
        self.child.terminate()


class Endless(Fine):
    def step(self, action: Any) -> Any:
        x, reward, *_ = super().step(action)
        return x, reward, False, False, {}


LOCK = threading.Lock()


def locked(lock: Any = LOCK) -> gymnasium.Env[Any, Any]:
    return Fine()


@pytest.mark.parametrize(
    ("env", "said"),
    [
        (Drifting, "not the same twice: with one seed and the same actions the rewards differ at step 0; draw from"),
        (Drawing, "not the same twice: with one seed the first observations differ"),
        (Drawing, "draws from the global stream of random, which workers seed by chance: use self.np_random"),
        (Moving, "changes the working directory in its reset: a run puts it back only at its end"),
        (Handling, "changes the handler of SIGTERM in its constructor: a run puts it back"),
        (Switching, "changes numpy.seterr in a step: use the context manager numpy.errstate"),
        (partial(locked, LOCK), "locked cannot be sent to workers (cannot pickle '_thread.lock' object): use --scheme"),
        (Endless, "no game ended in 500 random steps of each: if none can, --max-episode-steps N ends them"),
    ],
)  # fmt: skip
def test_what_an_environment_should_leave_alone_is_said_first(env: Any, said: str) -> None:
    before = os.getcwd(), signal.getsignal(signal.SIGTERM), np.geterr()
    lines = str(inspect(env, 2)).splitlines()
    assert lines[0] == f"{name_of(env)} is fit for training, but mind:"
    problems = list(itertools.takewhile(lambda line: line.startswith("  ! "), lines[1:]))
    assert any(said in line for line in problems), problems
    assert (os.getcwd(), signal.getsignal(signal.SIGTERM), np.geterr()) == before


@pytest.mark.parametrize("does", ["nothing", "draws", "switches"])
def test_what_imports_torch_first_may_do_so_and_is_told_of_no_more_than_it_does(
    does: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Importing(Fine):
        def __init__(self) -> None:
            super().__init__()
            sys.modules["torch"] = torch
            if does == "switches":
                torch.set_default_dtype(torch.float64)
            elif does == "draws":
                torch.rand(())

    said = {
        "nothing": [],
        "draws": ["draws from the global stream of torch, which workers seed by chance: use self.np_random"],
        "switches": ["changes torch's dtype in its constructor: put it back"],
    }
    with torch.random.fork_rng(devices=()):
        torch.default_generator.seed()  # as its import does
        monkeypatch.delitem(sys.modules, "torch")
        assert inspect(Importing, 2).problems == said[does]
    assert torch.get_default_dtype() == torch.float32


@CHILDREN
def test_processes_that_are_left_are_said_and_ended() -> None:
    try:
        report = inspect(Leaving, 2)
        assert report.facts["processes"] == "begins 2"
        assert "leaves 2 of the processes that it begins: end them in close()" in report.problems
        assert [process.wait(10) for process in Leaving.begun] == [-signal.SIGKILL] * 2
        assert inspect(Clearing, 2).problems == []
        assert [process.wait(10) for process in Leaving.begun[2:]] == [-signal.SIGTERM] * 2
    finally:
        for process in Leaving.begun:
            process.kill()
            process.wait()


@pytest.mark.parametrize("env", [Fine, "CartPole-v1", "polyactor/TMaze-v0", "polyactor/LQR-v0", "MountainCar-v0"])
def test_what_is_fine_has_no_problems(env: Any) -> None:
    report = inspect(env, 2)
    assert (report.problems, report.facts["seeding"]) == ([], "the same twice, 100 steps of 2 environments")


def test_a_step_is_timed_apart_from_a_reset() -> None:
    class Slow(Fine):
        def reset(self, **given: Any) -> Any:
            time.sleep(2e-3)
            return super().reset(**given)

    facts = inspect(Slow, 2).facts
    assert "µs (median)" in facts["a step"]
    assert "ms (median)" in facts["a reset"]


def test_wrappers_and_arguments_are_inspected_too() -> None:
    report = inspect(Environment("FrozenLake-v1", ("map_name='8x8'",), (lambda env: env,)))
    assert report.facts["observation"].startswith("float32 [64]")
    with pytest.raises(EnvironmentUnsupported, match="returned a int; it must return one"):
        inspect(Environment("FrozenLake-v1", (), (lambda env: 3,)))  # type: ignore[arg-type,return-value]


class Masked(Fine):
    """Says in an entry of its observation which of two actions is legal, and takes no other."""

    def __init__(self) -> None:
        super().__init__()
        entries = {"action_mask": gymnasium.spaces.MultiBinary(2), "x": self.observation_space}
        self.observation_space = gymnasium.spaces.Dict(entries)

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        x, info = super().reset(**given)
        return self.with_mask(x), info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        assert self.mask[action]
        x, *others = super().step(action)
        return self.with_mask(x), *others

    def with_mask(self, x: Any) -> dict[str, Any]:
        self.mask = np.eye(2, dtype=np.int8)[self.np_random.integers(2)]
        return {"action_mask": self.mask, "x": x}


class Unseeded(Masked):
    """Draws its masks from a stream that no seed sets."""

    rng = np.random.default_rng(0)

    def with_mask(self, x: Any) -> dict[str, Any]:
        self.mask = np.eye(2, dtype=np.int8)[self.rng.integers(2)]
        return {"action_mask": self.mask, "x": x}


def test_masks_that_differ_are_said_and_no_illegal_action_is_replayed() -> None:
    (problem,) = inspect(Unseeded, 2).problems
    assert problem.startswith("not the same twice: with one seed ")


def test_the_size_of_each_entry_is_its_own() -> None:
    class Sizes(Fine):
        def __init__(self) -> None:
            super().__init__()
            image, far = gymnasium.spaces.Box(0, 255, (20, 20, 3), np.uint8), gymnasium.spaces.Box(-1e6, 1e6, (1,))
            self.observation_space = gymnasium.spaces.Dict(image=image, far=far)

        def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
            return self.seen(), super().reset(**given)[1]

        def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
            return self.seen(), *super().step(action)[1:]

        def seen(self) -> dict[str, Any]:
            return {"image": np.full((20, 20, 3), 9, np.uint8), "far": np.array([5e5], np.float32)}

    facts = inspect(Sizes, 2).facts
    assert facts["observation image"] == "uint8 [20, 20, 3], up to 9 in size"
    assert facts["observation vector"] == "float32 [1], up to 5e+05 in size; --normalize.observation scales them"


def test_masks_are_kept_to() -> None:
    report = inspect(Masked, 2)
    assert (report.problems, report.facts["seeding"]) == ([], "the same twice, 100 steps of 2 environments")
    assert report.facts["action"] == "Discrete(2), masked"
    assert inspect(Fine, 2).facts["action"] == "Discrete(2), without masks"


class Told(Fine):
    """Has a mission, in words, beside its numbers."""

    def __init__(self) -> None:
        super().__init__()
        entries = {"mission": gymnasium.spaces.Text(9), "x": self.observation_space}
        self.observation_space = gymnasium.spaces.Dict(entries)

    def reset(self, **given: Any) -> tuple[Any, dict[str, Any]]:
        x, info = super().reset(**given)
        return {"mission": "go", "x": x}, info

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        x, *others = super().step(action)
        return {"mission": "go", "x": x}, *others


def test_texts_that_are_left_out_are_said() -> None:
    assert inspect(Told, 2).facts["left out"] == "the texts mission, which no network reads"
    assert "left out" not in inspect(Fine, 2).facts


def test_the_verb_speaks_to_programs_too(capsys: pytest.CaptureFixture[str]) -> None:
    def answer(arguments: str) -> tuple[Any, dict[str, Any]]:
        with pytest.raises(SystemExit) as stop:
            cli.main(["check", *arguments.split(), "--json"])
        return stop.value.code, json.loads(capsys.readouterr().out)

    code, found = answer("--env FrozenLake-v1 --env-kwargs map_name=8x8")
    assert (code, found["fit"], found["problems"]) == (0, True, [])
    assert found["facts"]["torso"].startswith("mlp, of ")
    code, found = answer("--env FrozenLake-v1 --env-kwargs map_name=9x9")
    assert (code, found["fit"]) == (3, False)
    assert "could not be made with --env-kwargs map_name='9x9'" in found["problems"][0]
