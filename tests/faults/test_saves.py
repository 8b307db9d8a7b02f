"""What a run writes survives crashes, damage and full disks."""

from __future__ import annotations

import builtins
import json
import os
import random
import shlex
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import polyactor as pa
from polyactor.errors import CheckpointError, Diverged, OutOfResources, RunDirectoryError
from polyactor.storage import atomic, checkpoint
from polyactor.storage.checkpoint import load, point, save
from polyactor.storage.metrics_log import MetricsLog, read_rows
from polyactor.storage.run_directory import refuse_taken
from polyactor.training import trainer
from polyactor.training.checkpointing import Checkpointer, with_advice


class Crash(BaseException):
    """The machine is gone: nothing after it reaches the disk, no clean-up either."""


class Disk:
    """Stands between `files` and the system, and dies at the k-th call.

    Args:
        crash_at: k; 0 never.
        lose: also lose what was not forced to disk: contents of files, and the newest names.
    """

    def __init__(self, crash_at: int, lose: random.Random | None) -> None:
        self.crash_at, self.lose, self.calls, self.dead = crash_at, lose, 0, False
        self.unsynced: dict[int, Path] = {}
        self.undo: list[Callable[[], None]] = []

    def tick(self) -> None:
        if not self.dead:
            self.calls += 1
            self.dead = self.calls == self.crash_at
        if self.dead:
            raise Crash

    def run(self, action: Callable[[], object]) -> bool:
        """Whether it finished."""
        patch = pytest.MonkeyPatch()
        real = {name: getattr(os, name) for name in ("fsync", "rename", "replace", "mkdir", "unlink", "rmdir")}

        def simple(name: str) -> Callable[..., Any]:
            return lambda *args, **options: (self.tick(), real[name](*args, **options))[1]

        def fsync(descriptor: int) -> None:
            self.tick()
            real["fsync"](descriptor)
            self.unsynced.pop(os.fstat(descriptor).st_ino, None)
            if os.path.isdir(f"/proc/self/fd/{descriptor}"):
                self.undo.clear()

        def rename(old: Any, new: Any) -> None:
            self.tick()
            real["rename"](old, new)
            self.undo.append(lambda: real["rename"](new, old))

        def replace_(old: Any, new: Any) -> None:
            self.tick()
            before = Path(new).read_bytes() if Path(new).exists() else None
            real["replace"](old, new)
            self.undo.append(lambda: Path(new).write_bytes(before) if before else real["unlink"](new))

        def open_(path: Any, mode: str) -> Any:
            if mode != "rb":  # reading changes nothing
                self.tick()
            file = builtins.open(path, mode)  # noqa: SIM115
            return file if mode == "rb" else File(self, file)

        def write_bytes(path: Path, data: bytes) -> None:
            with open_(path, "wb") as file:
                file.write(data)

        for name in ("mkdir", "unlink", "rmdir"):
            patch.setattr(os, name, simple(name))
        for name, own in {"fsync": fsync, "rename": rename, "replace": replace_}.items():
            patch.setattr(os, name, own)
        patch.setattr(atomic, "open", open_, raising=False)
        patch.setattr(Path, "write_bytes", write_bytes)
        try:
            action()
        except Crash:
            assert self.dead
        finally:
            patch.undo()
        if self.dead and self.lose is not None:
            for undo in reversed(self.undo[self.lose.randint(0, len(self.undo)) :]):
                undo()
            for path in [p for root in {p.parents[1] for p in self.unsynced.values()} for p in root.rglob("*")]:
                if path.is_file() and path.stat().st_ino in self.unsynced:
                    os.truncate(path, self.lose.randint(0, path.stat().st_size))
        return not self.dead


class File:
    """A file whose writes count, and can be cut in the middle."""

    def __init__(self, disk: Disk, file: Any) -> None:
        self.disk, self.file = disk, file
        disk.unsynced[os.fstat(file.fileno()).st_ino] = Path(file.name)

    def write(self, data: bytes) -> None:
        try:
            self.disk.tick()
        except Crash:
            self.file.write(data[: len(data) // 2])
            raise
        self.file.write(data)

    def flush(self) -> None:
        self.disk.tick()
        self.file.flush()

    def fileno(self) -> int:
        return int(self.file.fileno())

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        self.file.close()


def tensors(value: int) -> dict[str, torch.Tensor]:
    return {"theta": torch.full((3,), float(value)), "count": torch.tensor(value)}


def write(root: Path, value: int, steps: int, tags: tuple[str, ...] = ("last",)) -> Path:
    return save(root, tensors(value), {"value": value}, steps, tags=tags)


def value_of(root: Path, tag: str) -> int | None:
    """Which save this is, byte for byte; None where there is none."""
    try:
        found = load(root, tag=tag)
    except CheckpointError:
        assert not checkpoint.exists(root, tag=tag)
        return None
    value = int(found.meta["value"])
    for name, data in checkpoint._contents(tensors(value), {"value": value}).items():
        assert (found.path / name).read_bytes() == data
    return value


def tidy(root: Path) -> None:
    """Checkpoints and pointers, nothing half done, and no checkpoint that nobody needs."""
    names = {path.name for path in (root / "checkpoints").iterdir()}
    saved = {name for name in names if checkpoint._NAME.fullmatch(name)}
    assert names - saved <= {"last.json", "best.json"}
    assert len(saved) <= 3  # last, the one before, best


@pytest.mark.fault("F1")
@pytest.mark.parametrize("lose", [False, True], ids=["process", "machine"])
def test_a_crash_at_every_call_of_every_save_leaves_the_old_or_the_new(tmp_path: Path, lose: bool) -> None:
    """Saves of new steps, of the same step again, of other tags, and pointers; `best` and `last` each on its own."""
    both, story = ("last", "best"), [(1, ("last",)), (2, ("last", "best")), (2, ("last",)), (3, ("best",)), (4, ())]
    points = 0
    for number, (steps, tags) in enumerate(story):
        k, finished = 0, False
        while not finished:
            k += 1
            root = tmp_path / f"{number}-{k}"
            for value, (earlier, theirs) in enumerate(story[:number], start=1):
                write(root, value, earlier, theirs)
            old = {tag: value_of(root, tag) for tag in both}
            disk = Disk(k, random.Random(k) if lose else None)
            if tags:
                new = dict.fromkeys(tags, number + 1)
                finished = disk.run(lambda: write(root, number + 1, steps, tags))  # noqa: B023
            else:
                new = {"best": old["last"] or 0}
                finished = disk.run(lambda: point(root, "best", at="last"))  # noqa: B023
            points += not finished
            for tag in both:
                allowed = {new.get(tag, old[tag])} if finished else {old[tag], new.get(tag, old[tag])}
                assert value_of(root, tag) in allowed, (number, k, tag)
            write(root, 99, 5)
            assert value_of(root, "last") == 99
            tidy(root)
            shutil.rmtree(root)
    print(f"{points} crash points")
    assert points > 90


class Store(RuleBasedStateMachine):
    """Any order of saves, pointers and crashes, against a model of two pointers."""

    @initialize()
    def begin(self) -> None:
        self.root = Path(os.environ["POLYACTOR_TEST_STORE"]) / str(time.monotonic_ns())
        self.value, self.model = 0, dict[str, int | None](last=None, best=None)

    def do(self, action: Callable[[], object], new: dict[str, int | None], crash_at: int, lose: int | None) -> None:
        disk = Disk(crash_at, None if lose is None else random.Random(lose))
        finished = disk.run(action)
        for tag, old in self.model.items():
            found, wanted = value_of(self.root, tag), new.get(tag, old)
            assert found == wanted if finished else found in (old, wanted)
            self.model[tag] = found

    @rule(
        steps=st.integers(0, 3),
        tags=st.sampled_from([("last",), ("last", "best"), ("best",)]),
        crash_at=st.integers(0, 60),
        lose=st.none() | st.integers(0, 1000),
    )
    def save(self, steps: int, tags: tuple[str, ...], crash_at: int, lose: int | None) -> None:
        self.value += 1
        value = self.value
        self.do(lambda: write(self.root, value, steps, tags), dict.fromkeys(tags, value), crash_at, lose)

    @rule(crash_at=st.integers(0, 8), lose=st.none() | st.integers(0, 1000))
    def point(self, crash_at: int, lose: int | None) -> None:
        if self.model["last"] is not None:
            new = {"best": self.model["last"]}
            self.do(lambda: point(self.root, "best", at="last"), new, crash_at, lose)

    @rule()
    def save_in_peace(self) -> None:
        self.save(steps=2, tags=("last",), crash_at=0, lose=None)
        tidy(self.root)

    @invariant()
    def nothing_has_changed_by_itself(self) -> None:
        assert {tag: value_of(self.root, tag) for tag in self.model} == self.model

    def teardown(self) -> None:
        shutil.rmtree(self.root, ignore_errors=True)


@pytest.mark.fault("F1")
@pytest.mark.parametrize("stories", [15, pytest.param(60, marks=pytest.mark.slow)])
def test_any_order_of_saves_and_crashes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stories: int) -> None:
    monkeypatch.setenv("POLYACTOR_TEST_STORE", str(tmp_path))
    Store.TestCase.settings = settings(max_examples=stories, stateful_step_count=12, deadline=None, derandomize=True)
    Store.TestCase().runTest()


@pytest.mark.fault("F1")
@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
def test_killed_twenty_times_while_it_saves_in_a_loop(tmp_path: Path) -> None:
    torch.set_num_threads(1)  # a forked child must not look for its parent's thread pool
    rng, values = random.Random(0), [0]
    save(tmp_path, {"theta": torch.zeros(50_000)}, {"value": 0}, 0)
    for _ in range(20):
        hears, says = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                value = values[-1]
                while True:
                    value += 1
                    save(tmp_path, {"theta": torch.full((50_000,), float(value))}, {"value": value}, value // 3)
                    os.write(says, b"1")
            finally:
                os._exit(1)
        os.close(says)
        os.read(hears, 1)  # it has saved once
        time.sleep(rng.uniform(0.0, 0.06))
        os.kill(child, signal.SIGKILL)
        os.close(hears)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL
        found = load(tmp_path)
        assert bool((found.tensors["theta"] == found.meta["value"]).all())
        values.append(found.meta["value"])
    print(values)
    assert values == sorted(values)
    assert values[-1] >= 20
    write(tmp_path, 99, values[-1])
    tidy(tmp_path)


@pytest.mark.fault("F3")
def test_a_flipped_bit_of_a_pointer_is_refused_or_names_another_whole_checkpoint_of_the_run(tmp_path: Path) -> None:
    """A pointer has no hash: what it may name is checked. Of 232 flips 1 leads from step 3 to the step 1 there is."""
    write(tmp_path, 1, 1)
    write(tmp_path, 3, 3)
    file = tmp_path / "checkpoints" / "last.json"
    good, other = file.read_bytes(), 0
    for bit in range(8 * len(good)):
        bad = bytearray(good)
        bad[bit // 8] ^= 1 << bit % 8
        file.write_bytes(bad)
        try:
            load(tmp_path)
        except CheckpointError:
            continue
        assert value_of(tmp_path, "last") == 1
        other += 1
    assert other == 1


@pytest.fixture
def run(tmp_path: Path) -> Iterator[tuple[Path, MetricsLog, list[str]]]:
    """A run directory with a checkpoint of step 1, its log, and what was said."""
    root = tmp_path / "run"
    with MetricsLog(root) as log:
        save(root, {"model.w": torch.zeros(3)}, {}, 1)
        yield root, log, []


def events(root: Path) -> list[str]:
    return [event["event"] for event in read_rows(root / "events.jsonl")]


@pytest.mark.fault("D3")
@pytest.mark.parametrize("name", ["model.w", "optimizer.0.square_avg"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_are_not_finite_are_not_saved(run: Any, name: str, value: float) -> None:
    root, log, said = run
    checkpointer, before = Checkpointer(root, log, said.append), load(root).path
    bad = {"model.w": torch.zeros(3), "board.metrics": torch.full((1,), value), name: torch.tensor([0.0, value])}
    assert checkpointer.save(bad, {}, 2, tags=("last",)) is None
    assert load(root).path == before
    assert events(root) == ["checkpoint_refused"]
    assert said == [f"not saved: {name} is not finite after 2 steps"]
    with pytest.raises(Diverged, match=f"^{name} is not finite after 2 steps, so it was not saved$"):
        checkpointer.save(bad, {}, 2, tags=("last",), final=True)
    assert checkpointer.save(bad | {name: torch.zeros(2)}, {}, 3, tags=("last",)) == load(root).path != before


@pytest.mark.fault("F2")
@pytest.mark.parametrize(("number", "kind"), [(28, OutOfResources), (30, RunDirectoryError)])
def test_two_saves_in_a_row_may_fail(run: Any, monkeypatch: pytest.MonkeyPatch, number: int, kind: Any) -> None:
    root, log, said = run
    checkpointer = Checkpointer(root, log, said.append)

    def failing(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    def attempt(*, final: bool = False) -> Path | None:
        return checkpointer.save({"model.w": torch.ones(3)}, {}, 2, tags=("last",), final=final)

    with monkeypatch.context() as patch:
        patch.setattr(os, "rename", failing)
        assert attempt() is None
        patch.setattr(os, "replace", failing)
        assert not checkpointer.point("best", at="last")
    assert len(said) == 2
    assert all("training goes on" in line for line in said)
    assert attempt() is not None  # which starts the count anew
    monkeypatch.setattr(os, "rename", failing)
    assert attempt() is attempt() is None
    with pytest.raises(kind, match="cannot write"):
        attempt()
    assert events(root) == ["save_failed"] * 2 + ["checkpoint_saved"] + ["save_failed"] * 3
    with pytest.raises(kind, match="cannot write"):
        Checkpointer(root, log, said.append).save({}, {}, 3, tags=("last",), final=True)


def test_an_error_says_once_where_to_go_on_from(tmp_path: Path) -> None:
    assert with_advice("it broke", tmp_path) == "it broke"
    path = write(tmp_path, 1, 1)
    said = with_advice("it broke", tmp_path)
    assert said == f"it broke; last checkpoint: {path}, go on with: polyactor resume {tmp_path}"
    assert with_advice(said, tmp_path) == said
    assert with_advice("worker 0 raised: x\nTraceback\n", tmp_path).splitlines()[-1].startswith("last checkpoint: ")


def test_the_command_that_resumes_is_one_for_a_shell(tmp_path: Path) -> None:
    directory = tmp_path / "it's mine; (2)"
    write(directory, 1, 1)
    with pytest.raises(RunDirectoryError) as taken:
        refuse_taken(directory)
    for said in (str(taken.value), with_advice("it broke", directory)):
        assert shlex.split(said.partition("go on with: ")[2]) == ["polyactor", "resume", str(directory)]


CHAIN = {"env": "polyactor/Chain-v0", "steps": 400, "envs": 2, "seed": 1, "quiet": True, "checkpoint_every": 0.0}


@pytest.mark.fault("F2")
def test_a_run_on_a_disk_that_is_full_for_a_while_ends_well(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real, calls = os.replace, [0]

    def full(old: Any, new: Any) -> None:
        calls[0] += "last.json" in str(new)
        if 3 < calls[0] <= 5 and "last.json" in str(new):
            raise OSError(28, os.strerror(28))
        real(old, new)

    monkeypatch.setattr(os, "replace", full)
    run = pa.train("a2c", out=str(tmp_path / "run"), **CHAIN)
    assert run.status == "done"
    assert [name for name in events(run.path) if "save" in name][2:7] == [
        "checkpoint_saved", "save_failed", "save_failed", "checkpoint_saved", "checkpoint_saved"
    ]  # fmt: skip
    assert load(run.path).meta["agent_steps"] == run.summary["agent_steps"]


@pytest.mark.fault("F2")
def test_a_run_on_a_disk_that_stays_full_stops_at_the_third_and_names_the_last_good_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, calls = os.rename, [0]

    def full(old: Any, new: Any) -> None:
        calls[0] += 1
        if calls[0] > 2:
            raise OSError(28, os.strerror(28))
        real(old, new)

    monkeypatch.setattr(os, "rename", full)
    out = tmp_path / "run"
    with pytest.raises(OutOfResources) as caught:
        pa.train("a2c", out=str(out), **CHAIN)
    assert calls[0] == 5
    last = load(out).path
    assert str(caught.value).endswith(f"; last checkpoint: {last}, go on with: polyactor resume {out}")
    assert str(caught.value).count("last checkpoint") == 1
    assert events(out)[-1] == "failed"
    assert json.loads((out / "summary.json").read_text())["status"] == "failed"


@pytest.mark.fault("D3")
def test_a_run_whose_parameters_are_not_finite_keeps_the_last_good_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    original, looks = trainer._Training._take_in, [0]

    def look(self: Any) -> bool:
        looks[0] += 1
        if looks[0] == 4:
            self.state.theta[0] = float("nan")
        return original(self)

    monkeypatch.setattr(trainer._Training, "_take_in", look)
    out = tmp_path / "run"
    with pytest.raises(Diverged, match=r"not finite.*; last checkpoint: ") as caught:
        pa.train("a2c", out=str(out), **CHAIN)
    assert caught.value.exit_code == 6
    assert not checkpoint.not_finite(load(out).tensors)
    assert events(out).count("checkpoint_saved") == 3
    assert "checkpoint_refused" in events(out)


def test_rows_of_a_resumed_run_increase_and_it_says_where_it_goes_on(trained: Path, tmp_path: Path) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "run"))
    steps = load(root).meta["agent_steps"]
    with open(root / "metrics.jsonl", "a") as file:  # of a run that was killed after its last checkpoint
        for later in (1, 2, 3):
            file.write(json.dumps(read_rows(root / "metrics.jsonl")[-1] | {"agent_steps": steps + later}) + "\n")
    pa.resume(root, steps=steps + 100, quiet=True)
    rows = [row["agent_steps"] for row in read_rows(root / "metrics.jsonl")]
    assert rows == sorted(set(rows))
    (resumed,) = [event for event in read_rows(root / "events.jsonl") if event["event"] == "resumed"]
    assert (resumed["agent_steps"], resumed["rows_dropped"]) == (steps, 3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pa.train("a2c", out=str(tmp_path_factory.mktemp("trained") / "run"), **CHAIN).path
