"""Global state of this process that an environment or a run may change: kept as it was, and put back.

Random streams, signal handlers, environment variables, and the switches of NumPy and torch. This module does not import
torch, and touches torch's state only where torch has been imported.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what `signal` wraps, at 40 times the cost
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from time import monotonic
from typing import Any

import numpy as np

from polyactor.system.deadline import Halted

GUARDED = tuple(
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP", "SIGURG", "SIGCHLD") if hasattr(signal, name)
)
"""Signals by which a run is stopped, its workers are ended and its environments interrupted."""


@contextmanager
def sleeping_threads() -> Iterator[None]:
    """Let idle threads of torch sleep where it is imported inside, here and in new processes, unless told otherwise.

    A thread that spins for the next pass has the core that an emulator needs.
    """
    name = "OMP_WAIT_POLICY"
    given = name in os.environ
    os.environ.setdefault(name, "PASSIVE")
    try:
        yield
    finally:
        if not given:
            os.environ.pop(name, None)


class Handlers:
    """The handlers of `GUARDED` as they are now, which `put_back` installs again.

    Python can install handlers in the main thread only, so that in other threads this does nothing.
    """

    def __init__(self) -> None:
        here = threading.current_thread() is threading.main_thread()
        found = {int(number): _signal.getsignal(number) for number in (GUARDED if here else ())}
        self.kept = {number: handler for number, handler in found.items() if handler is not None}

    def put_back(self) -> None:
        """Install the handlers again."""
        for number, handler in self.kept.items():
            _signal.signal(number, handler)


def interruptible() -> bool:
    """Return whether Ctrl-C raises `KeyboardInterrupt` in this thread: not where a run or nobody heeds the signal."""
    handler = signal.getsignal(signal.SIGINT)
    ours = handler == signal.SIG_IGN or str(getattr(handler, "__module__", None)).startswith("polyactor.")
    return threading.current_thread() is threading.main_thread() and not ours


LOOK_EVERY = 0.05
"""Seconds after which handlers are installed again even if Python has not seen others: a library's C code may have."""


def attention(stopped: Callable[[], bool]) -> Callable[[], None]:
    """Return a function to call after each answer of an environment; it puts back the handlers that are installed now.

    Args:
        stopped: whether the run is asked to stop; the function then raises `Halted`.
    """
    handlers, due = Handlers(), 0.0
    installed = _signal.getsignal  # does not see what a library's C code has installed
    interrupt, terminate = int(signal.SIGINT), int(signal.SIGTERM)
    first, second = handlers.kept.get(interrupt), handlers.kept.get(terminate)
    mine = bool(handlers.kept)

    def attend() -> None:  # called at each step of a run
        nonlocal due
        if mine and (monotonic() > due or installed(interrupt) is not first or installed(terminate) is not second):
            handlers.put_back()
            due = monotonic() + LOOK_EVERY
        if stopped():
            raise Halted

    return attend


def streams() -> dict[str, Any]:
    """Return the states of the global random streams, by the names under which code draws from them."""
    states = {"random": random.getstate(), "numpy.random": np.random.get_state(legacy=False)}
    torch = sys.modules.get("torch")
    return states if torch is None else states | {"torch": torch.get_rng_state()}


def moved(before: Mapping[str, Any]) -> list[str]:
    """Return the names of the global random streams that have been drawn from or seeded since `before`."""
    now = streams()
    if "torch" in now and "torch" not in before:  # it has been imported since
        torch = sys.modules["torch"]
        before = {**before, "torch": torch.Generator("cpu").manual_seed(torch.initial_seed()).get_state()}
    return [name for name, state in before.items() if repr(_plain(now[name])) != repr(_plain(state))]


def _plain(state: Any) -> Any:
    """Return the state of a stream as values whose `repr` is the whole of them."""
    if isinstance(state, dict):
        return {name: _plain(value) for name, value in state.items()}
    return state.tolist() if hasattr(state, "tolist") else state


def _set(states: Mapping[str, Any]) -> None:
    random.setstate(states["random"])
    np.random.set_state(states["numpy.random"])
    if "torch" in states:
        sys.modules["torch"].set_rng_state(states["torch"])


class _Block:
    """An open `kept_streams` block, and what it will put back."""

    def __init__(self) -> None:
        self.before = streams()


_blocks: list[_Block] = []
_lock = threading.Lock()


@contextmanager
def kept_streams(seed: int | None = None) -> Iterator[None]:
    """Put the global random streams back after the with block, and seed them for what is inside.

    Threads share the streams. Of blocks that overlap, the last to end puts back what was before all of them.

    Args:
        seed: a number of 32 bits; None leaves the streams as they are.
    """
    with _lock:
        _blocks.append(block := _Block())
        if seed is not None:
            random.seed(seed)
            np.random.seed(seed)
            if (torch := sys.modules.get("torch")) is not None:
                torch.random.default_generator.manual_seed(seed)  # `torch.manual_seed` would seed GPUs, too
    try:
        yield
    finally:
        with _lock:
            i = _blocks.index(block)
            if i == len(_blocks) - 1:
                _set(block.before)
            else:
                _blocks[i + 1].before = block.before
            del _blocks[i]


@contextmanager
def kept_switches() -> Iterator[None]:
    """Put handlers of signals, NumPy's error handling and torch's switches back after the with block.

    Of torch these are the grad mode, autocast, and the default dtype and device; where it is imported inside, they
    become what they are in a new process.
    """
    handlers, errors, torch = Handlers(), np.geterr(), sys.modules.get("torch")
    switches = [] if torch is None else _switches(torch, new=False)
    try:
        yield
    finally:
        handlers.put_back()
        np.seterr(**errors)
        if torch is None and "torch" in sys.modules:
            switches = _switches(sys.modules["torch"], new=True)
        for switch, before in switches:
            switch(before)


def _switches(torch: Any, *, new: bool) -> list[tuple[Callable[[Any], object], Any]]:
    """Return what sets each of torch's switches, and its value: the present one, or that in a new process."""
    switches: list[tuple[Callable[[Any], object], Any]] = [
        (torch.set_default_dtype, torch.float32 if new else torch.get_default_dtype()),
        (partial(_set_device, torch), torch.device("cpu") if new else torch.get_default_device()),
        (partial(torch.set_autocast_enabled, "cpu"), not new and torch.is_autocast_enabled("cpu")),
    ]
    if not torch.is_inference_mode_enabled():
        switches.append((torch.set_grad_enabled, new or torch.is_grad_enabled()))
    return switches


def _set_device(torch: Any, device: Any) -> None:
    """Set torch's default device, without which it computes faster than with the CPU for one."""
    if torch.get_default_device() != device:
        torch.set_default_device(None if device.type == "cpu" else device)


_set_here: list[dict[str, str | None]] = []
"""For each open `environment_variables` block, the values from before it."""


@contextmanager
def environment_variables(**values: str) -> Iterator[None]:
    """Set environment variables of this process inside the with block.

    Of blocks in several threads that overlap, the last to end puts back what was before all of them.
    """
    with _lock:
        _set_here.append(before := {name: os.environ.get(name) for name in values})
        os.environ.update(values)
    try:
        yield
    finally:
        with _lock:
            i = next(i for i, block in enumerate(_set_here) if block is before)
            later = _set_here[i + 1 :]
            del _set_here[i]
            for name, value in before.items():
                after = next((block for block in later if name in block), None)
                if after is not None:
                    after[name] = value
                else:
                    os.environ.pop(name, None) if value is None else os.environ.update({name: value})
