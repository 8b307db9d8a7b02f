"""What is asked of an environment in this process has a deadline, whatever it is."""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import signal
import time
from typing import Any

import pytest

from polyactor.envs import env_spec, looked_at
from polyactor.envs.check import inspect
from polyactor.errors import EnvironmentUnsupported
from polyactor.system import notices
from polyactor.system.deadline import Unanswered, interrupting
from tests.helpers.runs import Quiet

LONG = 100.0


class SlowToMake(Quiet):
    def __init__(self) -> None:
        time.sleep(LONG)


class SlowToReset(Quiet):
    def reset(self, **given: Any) -> Any:
        time.sleep(LONG)


class SlowToStep(Quiet):
    def step(self, action: Any) -> Any:
        time.sleep(LONG)


class SlowToClose(Quiet):
    def close(self) -> None:
        time.sleep(LONG)


@pytest.mark.fault("P17")
@pytest.mark.parametrize(
    ("env", "where"),
    [
        (SlowToMake, "0.25 s, in its constructor"),
        (SlowToReset, "0.25 s, in its reset"),
        (SlowToStep, "0.05 s, in a step"),
    ],
)
def test_a_call_that_hangs_ends_the_check_with_its_name(env: type[Quiet], where: str) -> None:
    with pytest.raises(EnvironmentUnsupported, match=f"{env.__name__} gave no answer within {where}; --env-timeout"):
        inspect(env, seconds=0.05)


@pytest.mark.fault("P17")
def test_an_environment_that_hangs_when_it_is_made_is_not_looked_at_for_ever() -> None:
    with pytest.raises(EnvironmentUnsupported, match="in its constructor"):
        env_spec(SlowToMake, seconds=0.05)


@pytest.mark.fault("P17")
def test_many_that_hang_when_they_are_closed_cost_one_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr("polyactor.envs.serial_vector_env.PATIENCE", 0.2)
    start = time.monotonic()
    with notices.noticing(said.append), looked_at(SlowToClose, 8, seconds=0.5) as (envs, _):
        assert envs.num_envs == 8
    assert time.monotonic() - start < 2.0
    assert said == ["SlowToClose gave no answer within 0.5 s, in its close; --env-timeout allows more"]


def test_one_that_hangs_is_interrupted_though_nobody_can_be_told() -> None:
    def tell(event: str, sentence: str) -> None:
        raise OSError("no space left")

    def overdue() -> str | None:
        return None if done else "it hangs"

    done: list[bool] = []
    with (
        pytest.raises(Unanswered, match="it hangs"),
        interrupting(overdue, lambda: done.append(True), tell, every=0.01, trusting=1.0),
    ):
        time.sleep(LONG)


def test_a_signal_whose_handler_could_not_be_put_back_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(signal, "getsignal", lambda number: None)  # as of a library in C
    before = _signal.getsignal(signal.SIGURG)
    with interrupting(lambda: None, lambda: None, lambda *_: None, every=1.0, trusting=1.0):
        assert _signal.getsignal(signal.SIGURG) is before
