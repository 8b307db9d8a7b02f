"""What an environment changes in its process is put back."""

from __future__ import annotations

import os
import random
import signal

import numpy as np
import pytest
import torch

from polyactor.system.deadline import Halted
from polyactor.system.process_state import (
    GUARDED,
    attention,
    environment_variables,
    kept_streams,
    kept_switches,
    moved,
    streams,
)


def draw() -> tuple[float, float, float]:
    return random.random(), float(np.random.rand()), float(torch.rand(()))


@pytest.mark.fault("P15")
def test_seeded_streams_give_the_same_numbers_and_are_put_back() -> None:
    before, drawn = streams(), []
    for _ in range(2):
        with kept_streams(5):
            drawn.append(draw())
        assert not moved(before)
    with kept_streams(6):
        drawn.append(draw())
    with kept_streams(5):  # as a score is confirmed in the midst of a run
        first = draw()
        with kept_streams(6):
            draw()
        second = draw()
    with kept_streams(5):
        assert (first, second) == (draw(), draw())
    assert drawn[0] == drawn[1]
    assert drawn[0] != drawn[2]


@pytest.mark.fault("P15")
def test_of_blocks_that_overlap_the_last_puts_back_what_was_before_all() -> None:
    """Runs in threads end in any order."""
    before = streams()
    first, second = kept_streams(1), kept_streams(2)
    for block in (first, second):
        block.__enter__()
    for block in (first, second):
        draw()
        block.__exit__(None, None, None)
    assert not moved(before)


@pytest.mark.fault("P15")
def test_who_draws_is_named_and_put_back() -> None:
    before = streams()
    with kept_streams():
        np.random.seed(0)
        assert moved(before) == ["numpy.random"]
        torch.rand(())
        random.random()
        assert moved(before) == ["random", "numpy.random", "torch"]
    assert not moved(before)


@pytest.mark.fault("P15")
def test_switches_of_numpy_and_torch_and_handlers_are_put_back() -> None:
    handlers = [signal.getsignal(number) for number in GUARDED]
    errors = np.geterr()
    with kept_switches():
        np.seterr(all="raise")
        torch.set_default_dtype(torch.float64)
        torch.set_default_device("meta")
        torch.set_autocast_enabled("cpu", True)
        torch.set_grad_enabled(False)
        for number in GUARDED:
            signal.signal(number, signal.SIG_IGN)
    assert np.geterr() == errors
    assert torch.get_default_dtype() == torch.float32
    assert torch.get_default_device().type == "cpu"
    assert not torch.is_autocast_enabled("cpu")
    assert torch.is_grad_enabled()
    assert [signal.getsignal(number) for number in GUARDED] == handlers


@pytest.mark.fault("P15")
@pytest.mark.parametrize("number", GUARDED)
def test_a_handler_is_put_back_after_an_answer(number: int) -> None:
    with kept_switches():
        signal.signal(number, heard := lambda number, frame: None)
        attend = attention(lambda: False)
        signal.signal(number, signal.SIG_IGN)
        attend()
        assert signal.getsignal(number) is heard


def test_a_run_that_is_asked_to_stop_asks_no_environment_any_more() -> None:
    with pytest.raises(Halted):
        attention(lambda: True)()


def test_environment_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POLYACTOR_ONE", "before")
    monkeypatch.delenv("POLYACTOR_TWO", raising=False)
    with environment_variables(POLYACTOR_ONE="in", POLYACTOR_TWO="in"):
        assert (os.environ["POLYACTOR_ONE"], os.environ["POLYACTOR_TWO"]) == ("in", "in")
    assert os.environ["POLYACTOR_ONE"] == "before"
    assert "POLYACTOR_TWO" not in os.environ


@pytest.mark.fault("P15")
def test_environment_variables_of_blocks_that_overlap_are_those_of_before_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("POLYACTOR_ONE", raising=False)
    first, second = environment_variables(POLYACTOR_ONE="1"), environment_variables(POLYACTOR_ONE="2")
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert os.environ["POLYACTOR_ONE"] == "2"
    second.__exit__(None, None, None)
    assert "POLYACTOR_ONE" not in os.environ
    with environment_variables(POLYACTOR_ONE="1"):
        with environment_variables(POLYACTOR_ONE="2"):
            assert os.environ["POLYACTOR_ONE"] == "2"
        assert os.environ["POLYACTOR_ONE"] == "1"
