"""A signal saves the run and ends it; a second one ends it at once."""

from __future__ import annotations

import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest

import polyactor as pa
from polyactor.evaluation.policy import make_trained
from polyactor.settings.presets import base_config
from polyactor.shared.counters import Counter, SharedCounters
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import read_rows
from polyactor.training.signals import Stop, stop_signals
from tests.helpers import waiting
from tests.helpers.marks import mostly_slow
from tests.helpers.programs import environment
from tests.helpers.runs import SOURCE, B, Quiet, T, events, program, train, until


@pytest.mark.fault("P6")
def test_a_signal_ends_the_film_of_a_run_that_is_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = make_trained

    def asked(*given: Any) -> Any:
        assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "done"
        os.kill(os.getpid(), signal.SIGTERM)
        return original(*given)

    monkeypatch.setattr("polyactor.report.video.make_trained", asked)
    run = train(tmp_path / "run", steps=500)
    assert run.status == "done"
    assert events(run.path, "video_skipped")[0]["reason"] == "a signal asked for the end"
    assert not (run.path / "replay.mp4").exists()


@pytest.mark.fault("P6")
@pytest.mark.parametrize("preset", mostly_slow(["a2c", "a3c"], fast=["a3c"]))
@pytest.mark.parametrize("asked", mostly_slow([signal.SIGTERM, signal.SIGHUP], fast=[signal.SIGTERM]))
def test_a_signal_saves_and_exits_75_and_resume_goes_on(tmp_path: Path, preset: str, asked: signal.Signals) -> None:
    out = tmp_path / "run"
    flags = f"--env polyactor/Chain-v0 --steps 1000000 --workers 1 --envs {B} --rollout {T} --quiet --out {out}"
    with program("-m", "polyactor", "train", preset, *flags.split()) as process:
        until(lambda: bool(read_rows(out / "metrics.jsonl")), process)
        process.send_signal(asked)
        assert process.wait(30) == 75
        assert process.stdout is not None
        assert process.stderr is not None
        assert (process.stdout.read(), process.stderr.read()) == ("", "")
    summary = json.loads((out / "summary.json").read_text())
    assert summary["status"] == "stopped"
    assert 5_000 <= summary["agent_steps"] < 1_000_000
    saved = checkpoint.load(out)
    assert int(saved.tensors["board.counters"][0, Counter.STEPS]) == summary["agent_steps"]
    run = pa.resume(out, steps=summary["agent_steps"] + 200, quiet=True)
    assert run.status == "done"
    assert summary["agent_steps"] + 200 <= run.summary["agent_steps"] < summary["agent_steps"] + 200 + T * B


STUBBORN = """
import time, gymnasium, numpy as np
from gymnasium import spaces
from pathlib import Path

class Env(gymnasium.Env):
    observation_space = spaces.Box(-1, 1, (1,), np.float32)
    action_space = spaces.Discrete(2)
    steps = 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.steps += 1
        while self.steps > 20:  # never answers again, but is alive
            with open("beats", "a") as file:
                file.write(".")
            time.sleep(0.01)
        return np.zeros(1, np.float32), 0.0, False, False, {}
"""


@pytest.mark.fault("P6")
@pytest.mark.parametrize(
    ("second", "code"), [pytest.param(signal.SIGINT, 130, marks=pytest.mark.slow), (signal.SIGTERM, 143)]
)
def test_a_second_signal_ends_it_at_once(tmp_path: Path, second: signal.Signals, code: int) -> None:
    (tmp_path / "stubborn.py").write_text(STUBBORN)
    beats = tmp_path / "beats"

    def beat() -> int:
        return beats.stat().st_size if beats.exists() else 0

    flags = "--env stubborn:Env --envs 1 --rollout 5 --quiet --out run"
    with program("-m", "polyactor", "train", "a2c", *flags.split(), cwd=tmp_path) as process:
        until(lambda: beat() > 0, process)
        process.send_signal(signal.SIGTERM)
        seen = beat()
        until(lambda: beat() > seen + 5, process)  # the first was taken note of, and did not end it
        process.send_signal(second)
        assert process.wait(10) == code


@pytest.mark.fault("P17")
def test_what_a_stopping_run_waits_for_is_said_at_once() -> None:
    config, counters = base_config("a2c", env="CartPole-v1"), SharedCounters(1)
    counters.heartbeats.heartbeat(0).asked(3, np.int64(1))
    said, spoken = list[str](), threading.Event()

    def say(sentence: str) -> None:
        said.append(sentence)
        spoken.set()

    with stop_signals(config, counters, say) as stop:
        assert not stop.asked
        os.kill(os.getpid(), signal.SIGINT)
        assert spoken.wait(5)
    assert stop.asked
    assert counters.stopped()()
    assert said == ["stopping after this step; environment 3 has not answered, in step 0, after the action 1"]


def listening() -> AbstractContextManager[Stop]:
    return stop_signals(base_config("a2c", env="CartPole-v1"), SharedCounters(1), [].append)


class Interrupts(Quiet):
    """Raises what Ctrl-C raises, as a wrapper of a simulator may that is lost, in step, reset and render."""

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"]}
    render_mode = "rgb_array"
    count = 0

    def step(self, action: Any) -> Any:
        Interrupts.count += 1
        if Interrupts.count % 150 == 0:
            raise KeyboardInterrupt
        return super().step(action)

    def render(self) -> Any:
        raise KeyboardInterrupt


@pytest.mark.fault("P3", "P6")
def test_an_interrupt_of_an_environments_own_costs_its_game(tmp_path: Path) -> None:
    run = train(tmp_path / "run", env=Interrupts, steps=500)
    assert run.status == "done"
    assert "raised KeyboardInterrupt" in events(run.path, "env_error")[0]["reason"]
    assert "KeyboardInterrupt" in events(run.path, "video_skipped")[0]["reason"]


@pytest.mark.fault("P6", "P14")
def test_what_an_environment_has_forked_ends_by_sigterm_and_leaves_ctrl_c_to_the_run() -> None:
    with listening() as stop:
        if not (forked := os.fork()):
            time.sleep(60)
            os._exit(0)
        for _ in range(2):
            os.kill(forked, signal.SIGINT)
            time.sleep(0.05)
        assert os.waitpid(forked, os.WNOHANG) == (0, 0)
        os.kill(forked, signal.SIGTERM)
        waiting.until(lambda: bool(os.waitid(os.P_PID, forked, os.WEXITED | os.WNOHANG | os.WNOWAIT)), waiting.nap, 5)
        assert os.waitpid(forked, 0)[1] == signal.SIGTERM
        assert not stop()


@pytest.mark.fault("P6")
def test_a_terminal_that_is_closed_asks_twice_and_ends_nothing_at_once() -> None:
    """The shell sends SIGHUP to its jobs, and the kernel to the group in the foreground."""
    with listening() as stop:
        assert not stop()
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGHUP)
        assert stop()
    assert signal.getsignal(signal.SIGHUP) is signal.SIG_DFL


@pytest.mark.fault("P6")
def test_a_run_under_nohup_hears_no_terminal() -> None:
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with listening() as stop:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not stop()
    finally:
        signal.signal(signal.SIGHUP, before)


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.fault("P6")
@pytest.mark.parametrize("preset", ["a3c", "appo"])
def test_a_closed_terminal_costs_a_run_no_worker(preset: str, tmp_path: Path) -> None:
    """All processes of the terminal get the signal, and printing fails from then on."""
    pid, terminal = pty.fork()
    if pid == 0:
        flags = "--env polyactor/Chain-v0 --workers 2 --steps 100000000 --checkpoint-every 1 --out run"
        os.chdir(tmp_path)
        os.environ["PYTHONPATH"] = str(SOURCE)
        os.execv(sys.executable, [sys.executable, "-m", "polyactor", "train", preset, *flags.split()])
    rows = tmp_path / "run" / "metrics.jsonl"
    waiting.until(
        lambda: rows.exists() and bool(read_rows(rows)),
        lambda: select.select([terminal], [], [], 0.1)[0] and os.read(terminal, 4096),
    )
    os.close(terminal)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 75
    assert not events(tmp_path / "run", "worker_lost")
    assert checkpoint.load(tmp_path / "run").meta["agent_steps"] > 0


@pytest.mark.alone
@pytest.mark.slow
@pytest.mark.fault("P6")
def test_a_signal_is_heeded_while_threads_make_many_emulators(tmp_path: Path) -> None:
    """ale-py's constructor holds the interpreter; each of the other threads was about to call it, too."""
    pytest.importorskip("ale_py")
    events_file = tmp_path / "run" / "events.jsonl"

    def started() -> bool:
        return events_file.exists() and bool(events_file.stat().st_size)

    with program("-m", "polyactor", "train", "pong-a3c-threads-9", "--out", str(tmp_path / "run")) as process:
        until(started, process)
        start = time.monotonic()
        make = "from polyactor.envs import make_envs; make_envs('ALE/Pong-v5', 50)"
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 75
        took = time.monotonic() - start
        assert process.stderr is not None
        assert process.stderr.read() == ""
    start = time.monotonic()
    subprocess.run([sys.executable, "-c", make], check=True, env=environment(), capture_output=True)
    assert took < time.monotonic() - start + 4.0


def test_signals_whose_handlers_could_not_be_put_back_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    before = signal.getsignal(signal.SIGTERM)
    with monkeypatch.context() as patch:
        patch.setattr(signal, "getsignal", lambda number: None)  # as of a library in C
        context = listening()
        context.__enter__()
    assert signal.getsignal(signal.SIGTERM) is before
    context.__exit__(None, None, None)
