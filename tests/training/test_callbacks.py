"""Callbacks: what they are told, what they change, and what becomes of a run when they fail."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest
import torch

import polyactor as pa
from polyactor.algorithms import A2C
from polyactor.algorithms.base import Model
from polyactor.cli import main as cli
from polyactor.data import Batch, Metrics
from polyactor.errors import CheckpointError, UsageError
from polyactor.evaluation.policy import load
from polyactor.schemes import ActorLearner, Hogwild, ParamServer, Sync
from polyactor.storage import checkpoint
from polyactor.storage.metrics_log import read_rows
from polyactor.system import notices
from polyactor.training import trainer
from polyactor.training.run import RunHandle
from tests.helpers.marks import mostly_slow
from tests.helpers.runs import Quiet, events, train


@pytest.fixture(autouse=True)
def _no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainer, "keepsakes", lambda *_, **__: [])  # they take as long as all the rest


@dataclass(frozen=True)
class Telling(A2C):
    """A2C whose rows say which coefficient its workers had."""

    metrics: ClassVar[tuple[str, ...]] = (*A2C.metrics, "coefficient")

    def loss(self, model: Model, batch: Batch, average: Model | None = None) -> tuple[torch.Tensor, Metrics]:
        total, metrics = super().loss(model, batch, average)
        return total, {**metrics, "coefficient": torch.tensor(self.entropy_coef, dtype=torch.float64)}


class Change(pa.Callback):
    """Changes two coefficients at the third row, and stops when a row has nothing but them."""

    def __init__(self) -> None:
        self.rows = 0

    def on_report(self, run: RunHandle, row: Mapping[str, Any]) -> None:
        self.rows += 1
        if self.rows == 3:
            run.set("algorithm.entropy-coef", 0.375)
            run.set("optimizer.lr", 0.0)
        if (row["coefficient"], row["learning_rate"]) == (0.375, 0.0):
            run.stop("all workers have the new values")
        elif self.rows == 60:
            run.stop("a worker has not")


class Raise:
    def on_report(self, run: RunHandle, row: Mapping[str, Any]) -> None:
        raise ValueError("a mistake\nof many lines")


PLACES = {
    "sync": (Sync(), "local"),
    "hogwild, inline": (Hogwild(), "inline"),
    "param-server, inline": (ParamServer(), "inline"),
    "actor-learner, inline": (ActorLearner(), "inline"),
    "hogwild": (Hogwild(), "local"),
    "hogwild, threads": (Hogwild(workers_as="thread"), "local"),
    "param-server": (ParamServer(), "local"),
    "actor-learner": (ActorLearner(), "local"),
}


@pytest.mark.parametrize("place", mostly_slow(PLACES, list(PLACES)[:5]))
def test_under_every_scheme_a_change_is_seen_and_an_error_is_survived(place: str, tmp_path: Path) -> None:
    scheme, transport = PLACES[place]
    apart = transport == "local" and not scheme.single  # then the run looks at its workers from time to time alone
    steps, workers = 100_000 if apart else 8_000, 1 if scheme.single else 2
    run = train(
        tmp_path / "run", env=Quiet, scheme=scheme, transport=transport, workers=workers, steps=steps,
        algorithm=Telling(entropy_coef=0.125), optimizer={"lr": 1e-3}, callbacks=[Raise, Change],
    )  # fmt: skip
    assert run.status == json.loads((run.path / "summary.json").read_text())["status"] == "callback"
    assert run.summary["agent_steps"] < steps
    rows = read_rows(run.path / "metrics.jsonl")
    assert all((row["coefficient"], row["learning_rate"]) == (0.125, 1e-3) for row in rows[:3])
    assert (rows[-1]["coefficient"], rows[-1]["learning_rate"]) == (0.375, 0.0)

    (failed,) = events(run.path, "callback_failed")
    assert failed["reason"] == "Raise.on_report raised ValueError: a mistake; Raise is left out from now on"
    assert "in on_report" in failed["traceback"]
    told = [(event["path"], event["before"], event["value"]) for event in events(run.path, "setting_changed")]
    assert told == [("algorithm.entropy_coef", 0.125, 0.375), ("optimizer.lr", 1e-3, 0.0)]
    (stopping,) = events(run.path, "stopping")
    assert stopping["reason"] == "the callback Change asked for the end: all workers have the new values"

    assert json.loads((run.path / "config.json").read_text())["optimizer"]["lr"] == 1e-3
    kept = checkpoint.load(run.path)
    assert kept.meta["changes"] == {"algorithm.entropy_coef": 0.375, "optimizer.lr": 0.0}
    assert kept.meta["agent_steps"] == run.summary["agent_steps"]


class Log:
    """Notes what it is told, into a list that it may share with others."""

    def __init__(self, name: str, notes: list[tuple[str, str, Any]]) -> None:
        self.name, self.notes = name, notes

    def on_start(self, run: RunHandle) -> None:
        self.notes.append((self.name, "start", run.steps))

    def on_report(self, run: RunHandle, row: Mapping[str, Any]) -> None:
        assert row["agent_steps"] <= run.row["agent_steps"] == run.steps
        self.notes.append((self.name, "report", row["agent_steps"]))

    def on_checkpoint(self, run: RunHandle, path: Path) -> None:
        assert checkpoint.load(path).meta["agent_steps"] == int(path.name)
        self.notes.append((self.name, "checkpoint", path.name))

    def on_evaluation(self, run: RunHandle, event: Mapping[str, Any]) -> None:
        self.notes.append((self.name, "evaluation", event["evaluation_score"]))

    def on_event(self, run: RunHandle, event: Mapping[str, Any]) -> None:
        self.notes.append((self.name, "event", event["event"]))

    def on_end(self, run: RunHandle, status: str) -> None:
        assert (run.path / "summary.json").exists()
        self.notes.append((self.name, "end", status))


def test_all_are_told_in_the_order_given(tmp_path: Path) -> None:
    notes: list[tuple[str, str, Any]] = []
    bare = SimpleNamespace(on_end=lambda run, status: notes.append(("bare", "end", run.spec.action_space.n)))
    run = train(tmp_path / "run", env=Quiet, stop_at=5.0, callbacks=[Log("one", notes), bare, Log("two", notes)])
    assert run.status == "reached"
    one = [(what, value) for name, what, value in notes if name == "one"]
    assert [(what, value) for name, what, value in notes if name == "two"] == one
    assert [name for name, *_ in notes[-3:]] == ["one", "bare", "two"]
    assert notes[-2] == ("bare", "end", 2)
    assert one[:2] == [("start", 0), ("event", "started")]
    assert [value for what, value in one if what == "event"] == [
        e["event"] for e in read_rows(run.path / "events.jsonl")
    ]
    rows = [row["agent_steps"] for row in read_rows(run.path / "metrics.jsonl")]
    assert [value for what, value in one if what == "report"] == rows
    (score,) = [value for what, value in one if what == "evaluation"]
    assert score == run.summary["confirmation_score"]
    (last,) = [value for what, value in one if what == "checkpoint"]
    assert last == checkpoint.load(run.path).path.name
    assert one[-1] == ("end", "reached")


@pytest.mark.slow
def test_an_evaluation_of_another_process_is_told(tmp_path: Path) -> None:
    notes: list[tuple[str, str, Any]] = []
    run = train(tmp_path / "run", env=Quiet, evaluate_every=4_000, steps=8_000, callbacks=[Log("one", notes)])
    told = [value for _, what, value in notes if what == "evaluation"]
    assert told == [event["evaluation_score"] for event in events(run.path, "evaluation")]
    assert told


class Unspeakable(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


@pytest.mark.parametrize(
    "error", [SystemExit(3), AssertionError(), KeyError("x"), Unspeakable()], ids=lambda e: type(e)
)
def test_whatever_is_raised_costs_the_callback_alone(error: BaseException, tmp_path: Path) -> None:
    notes: list[tuple[str, str, Any]] = []

    class Wrong:
        def on_start(self, run: RunHandle) -> None:
            raise error

        def on_end(self, run: RunHandle, status: str) -> None:
            notes.append(("wrong", "end", status))

    run = train(tmp_path / "run", env=Quiet, steps=400, callbacks=[Wrong(), Log("other", notes)])
    assert run.status == "done"
    assert [note for note in notes if note[1] == "end"] == [("other", "end", "done")]
    (failed,) = events(run.path, "callback_failed")
    assert failed["reason"].startswith(f"{Wrong.__qualname__}.on_start raised {type(error).__name__}")


def test_a_keyboard_interrupt_stops_the_run_as_a_signal_does(tmp_path: Path) -> None:
    class Interrupt:
        def on_report(self, run: RunHandle, row: Mapping[str, Any]) -> None:
            raise KeyboardInterrupt

    run = train(tmp_path / "run", env=Quiet, callbacks=[Interrupt()])
    assert run.status == "stopped"
    assert run.summary["agent_steps"] < 4_000
    assert checkpoint.load(run.path).meta["agent_steps"] == run.summary["agent_steps"]


def test_a_run_that_fails_tells_its_callbacks_that_it_ends(tmp_path: Path) -> None:
    class Broken(Quiet):
        def step(self, action: Any) -> Any:
            raise OSError("no licence left")

    notes: list[tuple[str, str, Any]] = []
    with pytest.raises(pa.PolyactorError, match="no licence left"):
        train(tmp_path / "run", env=Broken, callbacks=[Log("one", notes)])
    assert notes[-2:] == [("one", "event", "failed"), ("one", "end", "failed")]


def test_what_a_callback_may_not_change_is_said_in_its_event(tmp_path: Path) -> None:
    class Wrong:
        def on_start(self, run: RunHandle) -> None:
            run.set("envs", 8)

    run = train(tmp_path / "run", env=Quiet, steps=400, callbacks=[Wrong()])
    (failed,) = events(run.path, "callback_failed")
    assert "UsageError: --envs cannot be changed during a run" in failed["reason"]
    assert checkpoint.load(run.path).meta["changes"] == {}


def test_a_run_that_waits_for_a_callback_says_so(tmp_path: Path) -> None:
    said = []

    class Long:
        def on_start(self, run: RunHandle) -> None:
            said.append(notices._terminal.notice())

    train(tmp_path / "run", env=Quiet, steps=400, callbacks=[Long()])
    assert said == [f"waiting for the callback {Long.__qualname__}.on_start, after 0 s"]


def test_an_annealed_coefficient_is_changed_at_the_start_of_its_schedule(tmp_path: Path) -> None:
    class Half:
        def on_report(self, run: RunHandle, row: Mapping[str, Any]) -> None:
            if row["agent_steps"] >= 400:
                run.set("optimizer.lr", 0.5)
                assert run.config.optimizer.lr == 0.5

    run = train(tmp_path / "run", env=Quiet, steps=800, optimizer={"lr": 1.0, "lr_end": 0.0}, callbacks=[Half()])
    (event,) = events(run.path, "setting_changed")
    at = event["agent_steps"]
    assert event["reason"].endswith(f"from 1 to 0.5, annealed to {0.5 * (1 - at / 800):.6g} at this step")
    assert read_rows(run.path / "metrics.jsonl")[-1]["learning_rate"] < 0.05


def test_what_is_changed_while_the_run_ends_is_in_its_checkpoint(tmp_path: Path) -> None:
    class Late:
        def on_event(self, run: RunHandle, event: Mapping[str, Any]) -> None:
            if event["event"] == "stopping":
                run.set("optimizer.max_grad_norm", None)

    run = train(tmp_path / "run", env=Quiet, steps=400, callbacks=[Late()])
    assert checkpoint.load(run.path).meta["changes"] == {"optimizer.max_grad_norm": None}


def test_a_change_takes_the_place_of_values_by_worker(tmp_path: Path) -> None:
    class Alike:
        def on_report(self, run: RunHandle, row: Mapping[str, Any]) -> None:
            run.set("algorithm.entropy_coef", 0.25)  # as the config has it; the workers have not

    run = train(
        tmp_path / "run", env=Quiet, steps=4_000, scheme="hogwild", transport="inline", workers=2, callbacks=[Alike()],
        algorithm=Telling(entropy_coef=0.25), per_worker=("algorithm.entropy-coef=.5,1",),
    )  # fmt: skip
    rows = read_rows(run.path / "metrics.jsonl")
    assert rows[0]["coefficient"] >= 0.5
    assert rows[-1]["coefficient"] == 0.25
    assert len(events(run.path, "setting_changed")) == 1


# ---- files and names ---------------------------------------------------------------------------------------------

WATCH = """
from pathlib import Path
Path(__file__).with_name("mark").write_text("imported")

class Watch:
    def on_report(self, run, row):
        run.set("optimizer.lr", 0.25)

class Nothing:
    def on_reports(self, run, row):
        pass

class Broken:
    def __init__(self):
        raise ValueError("needs a licence")
"""


@pytest.fixture
def file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of callbacks, in the working directory."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my.py").write_text(WATCH)
    return tmp_path / "my.py"


def command(*args: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        cli.main(args)
    code = stopped.value.code
    assert isinstance(code, int)
    return code


TRAIN = ("train", "a2c", "--env", "CartPole-v1", "--steps", "400", "--out", "run", "--quiet")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("other.py:Watch", "--callback {here}/other.py:Watch is not allowed: there is no file {here}/other.py"),
        ("my.py:Wotch", "my.py:Wotch is not allowed: {here}/my.py has no Wotch (did you mean 'Watch'?)"),
        ("my.py:Nothing", "Nothing has none of on_start, on_report, on_checkpoint"),
        ("my.py:Nothing", "only on_reports (did you mean 'on_report'?)"),
        ("my.py:Broken", "Broken cannot be made: ValueError: needs a licence"),
        ("raises.py:Watch", "raises.py could not be imported: NameError: name 'nothing' is not defined (line 1)"),
        ("ends.py:Watch", "ends.py could not be imported: SystemExit: 0 (line 1)"),
        ("no_such_module:Watch", "no_such_module:Watch is not allowed: there is no module no_such_module; it must be"),
        ("Watch", "--callback Watch is not allowed: it must be file.py:name or module:name"),
        ("my.py", "--callback my.py is not allowed: it must be file.py:name or module:name"),
    ],
)
def test_a_wrong_name_is_one_sentence_before_any_file(
    name: str, said: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file.with_name("raises.py").write_text("nothing")
    file.with_name("ends.py").write_text("import sys; sys.exit(0)")
    assert command(*TRAIN, "--callback", name) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert said.format(here=file.parent) in line
    assert not Path("run").exists()


@pytest.mark.parametrize("wrong", ["my.py:Watch", 3, [3], [Log]])
def test_what_is_no_list_of_callbacks_is_one_sentence(wrong: Any, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="callback"):
        train(tmp_path / "run", callbacks=wrong)
    assert not (tmp_path / "run").exists()


def test_files_and_objects_are_named_in_the_config(file: Path) -> None:
    assert command(*TRAIN, "--callback", "my.py:Watch", f"--callback={file}:Watch") == 0
    assert json.loads(Path("run", "config.json").read_text())["callbacks"] == [f"{file}:Watch"] * 2
    assert len(events(Path("run"), "setting_changed")) == 1

    mixed = ["my.py:Watch", Change, Log("one", []), SimpleNamespace(on_end=print)]
    run = train(file.with_name("mixed"), env=Quiet, steps=400, callbacks=mixed)
    named = json.loads((run.path / "config.json").read_text())["callbacks"]
    assert named == [f"{file}:Watch", f"{__name__}:Change", "<Log>", "<SimpleNamespace>"]


# ---- resuming ----------------------------------------------------------------------------------------------------


def test_a_resumed_run_has_the_changed_values_and_asks_for_its_callbacks(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Code of a config is run by nobody unless it is trusted, and an object is never left out in silence."""
    mark = file.with_name("mark")
    assert command(*TRAIN, "--callback", "my.py:Watch") == 0
    mark.unlink()
    for name in [name for name in sys.modules if name.startswith("polyactor_file_my_")]:
        del sys.modules[name]
    assert command("resume", "run", "--steps", "800") == 2
    assert re.search(
        r"would be imported and run: the callback \S+my.py:Watch; if you trust it", capsys.readouterr().err
    )
    load("run")
    assert command("evaluate", "run", "--games", "1") == 0
    assert not mark.exists()

    rows = len(read_rows(Path("run", "metrics.jsonl")))
    assert command("resume", "run", "--steps", "800", "--callback", "none") == 0
    assert "goes on with what callbacks have changed: --optimizer.lr 0.25" in capsys.readouterr().out
    assert not mark.exists()
    more = read_rows(Path("run", "metrics.jsonl"))[rows:]
    assert {row["learning_rate"] for row in more} == {0.25}
    assert json.loads(Path("run", "config.json").read_text())["callbacks"] == []

    assert command("resume", "run", "--steps", "1200", "--callback", "my.py:Watch", "--quiet") == 0
    assert mark.exists()
    assert pa.resume("run", steps=1_600, trust_code=True, quiet=True).status == "done"
    assert checkpoint.load(Path("run")).meta["changes"] == {"optimizer.lr": 0.25}

    pa.resume("run", steps=2_000, callbacks=[Log("one", [])], quiet=True)
    with pytest.raises(
        UsageError,
        match=r"the callback of this run was an object that has no name to import it by, <Log>: hand it over again",
    ):
        pa.resume("run", steps=2_400, trust_code=True)
    notes: list[tuple[str, str, Any]] = []
    pa.resume("run", steps=2_400, callbacks=[Log("one", notes)], quiet=True)
    assert notes[0][:2] == ("one", "start")
    assert notes[0][2] >= 2_000


@pytest.mark.parametrize(
    "changes", [3, ["optimizer.lr"], {"optimizer.lr": "x"}, {"envs": 2}, {"algorithm.entropy_coef": 7.0}, {"a\n": 1}]
)
def test_changes_that_no_run_keeps_are_refused(changes: Any, finished: pa.Run, tmp_path: Path) -> None:
    saved = checkpoint.load(finished.path)
    checkpoint.save(tmp_path, saved.tensors, saved.meta | {"changes": changes}, 4_000)
    with pytest.raises(CheckpointError, match="the checkpoint's changes are not what a run keeps") as caught:
        pa.resume(tmp_path, steps=5_000)
    assert str(caught.value).isprintable()
