"""What a run writes survives, and what it reads cannot hurt: crashes, damage, full disks, and files made to harm."""

from __future__ import annotations

import builtins
import hashlib
import json
import os
import pickle
import random
import shutil
import signal
import stat
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import polyactor as pa
from polyactor.cli import main as cli
from polyactor.errors import CheckpointError, Diverged, OutOfResources, RunDirectoryError, UsageError
from polyactor.storage import atomic, checkpoint, run_directory
from polyactor.storage.checkpoint import MANIFEST, META, STATE, load, point, save
from polyactor.storage.metrics_log import MetricsLog, read_rows
from polyactor.training import trainer
from polyactor.training.checkpointing import Checkpointer, with_advice

SOURCE = Path(pa.__file__).parents[1]

# ---- A: a crash at any call --------------------------------------------------------------------------------------


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


# ---- B: any bit --------------------------------------------------------------------------------------------------


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


# ---- saving beside training --------------------------------------------------------------------------------------


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


# ---- one run, one process ----------------------------------------------------------------------------------------

HOLD = """
import sys, time
from pathlib import Path
from polyactor.storage.run_directory import claimed
with claimed(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(600)
"""


def digest(root: Path) -> str:
    """Of every name and byte."""
    tree = sorted(
        (str(path), hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in root.rglob("*")
        if path.is_dir() or stat.S_ISREG(path.stat().st_mode)
    )
    return hashlib.sha256(repr(tree).encode()).hexdigest()


@pytest.mark.fault("F6")
def test_a_second_process_is_refused_and_changes_nothing_and_a_killed_one_leaves_no_lock(
    trained: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    root = Path(shutil.copytree(trained, tmp_path / "run"))
    environment = os.environ | {"PYTHONPATH": str(SOURCE)}
    holder = subprocess.Popen([sys.executable, "-c", HOLD, root], env=environment, stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "mine\n"
        before = digest(root)
        for command in (["resume", str(root)], ["train", "a2c", "--env", "polyactor/Chain-v0", "--out", str(root)]):
            with pytest.raises(SystemExit) as stop:
                cli.main(command)
            said = capsys.readouterr().err
            assert stop.value.code == 5
            assert f"{root} is in use by process {holder.pid} on {os.uname().nodename} since 20" in said
            assert said.count("\n") == 1
        with pytest.raises(SystemExit) as stop:
            cli.main(["evaluate", str(root), "--games", "2"])  # looking is allowed
        assert stop.value.code == 0
        assert digest(root) == before
    finally:
        holder.kill()
        holder.communicate()
    assert (root / run_directory.LOCK).exists()
    assert pa.resume(root, steps=500, quiet=True).status == "done"
    assert not (root / run_directory.LOCK).exists()


@pytest.mark.fault("F6")
def test_one_of_many_that_start_at_once_gets_it(tmp_path: Path) -> None:
    """Whoever opened the file before its owner removed it must not hold a lock on nothing."""
    for _ in range(50):
        with run_directory.claimed(tmp_path):
            descriptor = run_directory._opened(tmp_path, create=True)
            os.close(descriptor)
            with pytest.raises(RunDirectoryError, match="in use"), run_directory.claimed(tmp_path):
                pass
    old = run_directory._opened(tmp_path, create=True)
    (tmp_path / run_directory.LOCK).unlink()
    with run_directory.claimed(tmp_path):
        run_directory._lock(old, tmp_path)  # the removed file's lock is free, and is nobody's claim
        with pytest.raises(RunDirectoryError, match="in use"):
            os.close(run_directory._locked(tmp_path))
    os.close(old)


def test_a_claim_sees_that_the_file_it_has_opened_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original, opened = run_directory._opened, [0]

    def slow(directory: Path, *, create: bool) -> int:
        descriptor = original(directory, create=create)
        opened[0] += 1
        if opened[0] == 1:
            (directory / run_directory.LOCK).unlink()  # its owner ended just now
        return descriptor

    monkeypatch.setattr(run_directory, "_opened", slow)
    with run_directory.claimed(tmp_path):
        assert opened[0] == 2
        another = original(tmp_path, create=False)
        with pytest.raises(RunDirectoryError, match="in use by process"):
            run_directory._lock(another, tmp_path)
        os.close(another)


@pytest.mark.parametrize(
    "said", [b"", b"{", b"[]", b'{"pid": "x"}', b"[" * 900, b'{"pid": 1, "host": "\\u001b[2J\\n"}']
)
def test_whatever_the_lock_says_the_sentence_is_one_line(said: bytes) -> None:
    assert run_directory._holder(said).isprintable()
    assert run_directory._holder(b'{"pid": 3, "host": "a\\u001b", "since": "b"}') == "process 3 on a? since b"


# ---- C: files made to harm ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pa.train("a2c", out=str(tmp_path_factory.mktemp("trained") / "run"), **CHAIN).path


@pytest.fixture(scope="module")
def exact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stopped half way, with environments, streams and replayed rollouts saved."""
    out = tmp_path_factory.mktemp("exact") / "run"
    replay = {"replay_capacity": 100, "replay_start": 10}
    pa.train("acer", scheme="sync", exact_resume=True, algorithm=replay, out=str(out), **CHAIN)
    return out


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return builtins.open, (str(self.sentinel), "w")


def resign(directory: Path) -> None:
    """Give a directory a manifest that fits what lies in it, as a forger would."""
    contents = {name: (directory / name).read_bytes() for name in (STATE, META)}
    (directory / MANIFEST).write_bytes(checkpoint._manifest(contents))


def forge(root: Path, change: Callable[[dict[str, torch.Tensor], dict[str, Any]], object]) -> None:
    """Save a checkpoint of the run with other contents, whole and signed, in place of all it has."""
    found = load(root)
    change(found.tensors, found.meta)
    shutil.rmtree(root / "checkpoints")
    save(root, found.tensors, found.meta, 400, tags=("last", "best"))


def peak() -> int:
    """Bytes, the most that were resident since `peak_anew`."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("VmHWM"))


def peak_anew() -> int:
    Path("/proc/self/clear_refs").write_text("5")
    return peak()


@pytest.fixture
def refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., str]:
    """Every verb that reads the run refuses it: one sentence, at once, with little memory, and nothing else changes."""
    (tmp_path / "outside").mkdir()
    (tmp_path / "outside" / "mine").write_text("mine")
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'sentinel')!r}, 'w')\ndef make(): raise SystemExit")
    monkeypatch.syspath_prepend(str(tmp_path))

    def refuse(root: Path, codes: tuple[int, ...] = (4,), verbs: tuple[str, ...] = ("resume", "evaluate")) -> str:
        size = sum(path.stat().st_size for path in root.rglob("*") if path.is_file())
        before, said = digest(root), ""
        for verb in verbs:
            start, memory = time.process_time(), peak_anew()  # of this process: others may keep the machine busy
            with pytest.raises(SystemExit) as stop:
                cli.main([verb, str(root), *["--quiet"] * (verb == "resume")])
            seconds, grown = time.process_time() - start, peak() - memory
            said = capsys.readouterr().err
            assert stop.value.code in codes, said
            assert said.startswith("polyactor: ")
            assert said.count("\n") == 1, said
            assert len(said) < 2_000
            assert seconds < 1.0, (verb, seconds)
            assert grown < 2 * size + (16 << 20), (verb, grown, size)
        assert digest(root) == before
        assert not (tmp_path / "sentinel").exists()
        assert "evil" not in sys.modules
        assert {path.name for path in (tmp_path / "outside").iterdir()} == {"mine"}
        return said

    return refuse


@pytest.fixture
def copy(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "run"))


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


def zip_bomb() -> bytes:
    return zlib.compress(bytes(1 << 24), 9)


def many_keys(count: int) -> bytes:
    entry = b'"%d":{"dtype":"F32","shape":[1],"data_offsets":[%d,%d]}'
    text = b"{" + b",".join(entry % (i, 4 * i, 4 * i + 4) for i in range(count)) + b"}"
    return len(text).to_bytes(8, "little") + text + bytes(4 * count)


OF_ONE = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
PAYLOADS: dict[str, Callable[[Path], bytes]] = {
    "pickle": lambda at: pickle.dumps(Bomb(at / "sentinel")),
    "zip bomb": lambda at: zip_bomb(),
    "deep JSON": lambda at: b"[" * 15_000,
    "deep objects": lambda at: b'{"a":' * 3_000,
    "nothing": lambda at: b"",
    "long digits": lambda at: b'{"checkpoint": ' + b"9" * 5_000 + b"}",
}
STATES: dict[str, Callable[[], bytes]] = {
    "header of 2^63 bytes": lambda: (2**63).to_bytes(8, "little") + b"{}",
    "header of -1 bytes": lambda: b"\xff" * 8 + b"{}",
    "huge shape": lambda: header({"model.a": OF_ONE | {"shape": [2**62]}}) + bytes(4),
    "huge shapes": lambda: header({"model.a": OF_ONE | {"shape": [2**31, 2**31, 2**31]}}) + bytes(4),
    "negative shape": lambda: header({"model.a": OF_ONE | {"shape": [-1]}}) + bytes(4),
    "overlapping": lambda: header(dict.fromkeys("ab", OF_ONE)) + bytes(4),
    "a hole": lambda: header({"a": OF_ONE, "b": OF_ONE | {"data_offsets": [8, 12]}}) + bytes(12),
    "beyond the end": lambda: header({"a": OF_ONE | {"data_offsets": [0, 2**40]}}) + bytes(4),
    "10^6 keys": lambda: many_keys(10**6),
    "10^5 dimensions": lambda: header({"a": OF_ONE | {"shape": [1] * 10**5}}) + bytes(4),
    "deep": lambda: (20_000).to_bytes(8, "little") + b"[" * 20_000,
}  # fmt: skip


@pytest.mark.fault("F4", "F8")
@pytest.mark.parametrize("name", [STATE, META, MANIFEST, "../last.json"])
@pytest.mark.parametrize("payload", PAYLOADS)
def test_a_payload_in_place_of_a_file(copy: Path, refused: Any, tmp_path: Path, name: str, payload: str) -> None:
    directory = load(copy).path
    (copy / "checkpoints" / "best.json").unlink()
    (directory / name).write_bytes(PAYLOADS[payload](tmp_path))
    if name in (STATE, META):
        resign(directory)
    refused(copy)


@pytest.mark.fault("F4", "F8")
@pytest.mark.parametrize("state", STATES)
def test_a_forged_state(copy: Path, refused: Any, state: str) -> None:
    (copy / "checkpoints" / "best.json").unlink()
    directory = load(copy).path
    (directory / STATE).write_bytes(STATES[state]())
    resign(directory)
    said = refused(copy)
    assert f"{STATE} is not a safetensors file" in said or (state == "10^5 dimensions" and "of another model" in said)


@pytest.mark.fault("F4", "F8")
@pytest.mark.parametrize("kind", ["link", "fifo", "device", "link to a device", "directory"])
@pytest.mark.parametrize("name", [STATE, META, MANIFEST, "../last.json"])
def test_what_is_no_regular_file(copy: Path, refused: Any, tmp_path: Path, name: str, kind: str) -> None:
    (copy / "checkpoints" / "best.json").unlink()
    file = load(copy).path / name
    data = file.read_bytes()
    file.unlink()
    if kind == "link":
        (tmp_path / "elsewhere").write_bytes(data)
        file.symlink_to(tmp_path / "elsewhere")
    elif kind == "fifo":
        os.mkfifo(file)
    elif kind == "link to a device":
        file.symlink_to("/dev/zero")
    elif kind == "directory":
        file.mkdir()
    else:
        try:
            os.mknod(file, 0o20666, os.makedev(1, 5))
        except PermissionError:
            pytest.skip("cannot make a device here")
    refused(copy)


@pytest.mark.fault("F4", "F8")
@pytest.mark.parametrize("name", ["../../outside", "/etc", "..", "000000000400/../../outside", "000000000400\x00"])
def test_a_pointer_or_a_manifest_that_leads_elsewhere(copy: Path, refused: Any, name: str) -> None:
    (copy / "checkpoints" / "best.json").unlink()
    pointer, directory = copy / "checkpoints" / "last.json", load(copy).path
    good = pointer.read_bytes()
    pointer.write_text(json.dumps({"checkpoint": name}))
    assert "does not name a checkpoint directory" in refused(copy)
    pointer.write_bytes(good)
    contents = {key: (directory / key).read_bytes() for key in (STATE, META)}
    (directory / MANIFEST).write_bytes(checkpoint._manifest({name: contents[STATE], META: contents[META]}))
    assert f"does not list {STATE}" in refused(copy)
    (directory / MANIFEST).write_bytes(checkpoint._manifest(contents | {name: b"more"}))
    load(copy)  # what we do not ask for is not touched


HOSTILE: dict[str, Any] = {
    "an environment of code": ("env", "evil:make", 2),
    "a registered environment of code": ("env", "evil:Env-v1", 2),
    "an algorithm of a file": ("algorithm", {"name": "evil.py:Boom"}, 2),
    "an algorithm of a file with heads unheard of": (
        "algorithm",
        {"name": "evil.py:Boom", "outputs": ["policy", "x"]},
        4,
    ),
    "an algorithm of a file with one head": ("algorithm", {"name": "evil.py:Boom", "outputs": ["policy"]}, 4),
    "an algorithm of a file with heads in heads": ("algorithm", {"name": "evil.py:Boom", "outputs": [[], [[]]]}, 4),
    "an algorithm of a file with heads by name": ("algorithm", {"name": "evil.py:Boom", "outputs": {"q": 1}}, 4),
    "an algorithm of a file with a number of heads": ("algorithm", {"name": "evil.py:Boom", "outputs": 2}, 4),
    "an optimizer of a file": ("optimizer", {"name": "evil.py:Boom"}, 4),
    "no environment": ("env", None, 4),
    "an environment that is a list": ("env", ["evil:make"], 4),
    "a name that is a list": ("scheme", {"name": ["sync"]}, 4),
    "steps without end": ("steps", 10**4000, 4),
    "steps as text": ("steps", "400", 4),
    "steps that are true": ("steps", True, 4),
    "a huge layer": ("model.hidden", [10**9, 10**9], 4),
    "a negative layer": ("model.hidden", [-1], 4),
    "a layer of text": ("model.hidden", ["64"], 4),
    "layers without end": ("model.hidden", [1] * 100_000, 4),
    "a huge memory": ("model.core_size", 10**9, 4),
    "another torso": ("model.torso", "a3c-cnn", 4),
    "a torso that is none": ("model.torso", {"a": 1}, 4),
    "a huge picture": ("atari.frame_size", 10**6, 4),
    "a learning rate of infinite size": ("optimizer.lr", 10**400, 4),
    "an unknown field": ("algorithm.evil", 1, 4),
    "a config that is a list": ("", [], 4),
    "a config that is nothing": ("", None, 4),
}


@pytest.mark.fault("F4", "F8")
@pytest.mark.parametrize("what", HOSTILE)
def test_a_config_made_to_harm(copy: Path, refused: Any, what: str) -> None:
    path, value, code = HOSTILE[what]

    def change(_: object, meta: dict[str, Any]) -> None:
        if path == "":
            meta["config"] = value
            return
        *outer, name = path.split(".")
        place = meta["config"] if not outer else meta["config"][outer[0]]
        place[name] = value
        if name == "core_size":
            place["core"] = "lstm"

    forge(copy, change)
    verbs = ("resume",) if path == "algorithm" else ("resume", "evaluate", "record")  # playing needs no algorithm
    said = refused(copy, (code,), verbs)
    if path == "env" and code == 2:
        assert said == (
            f"polyactor: the environment {value} is code: the module evil would be imported and run; "
            "if you trust it, add --trust-env (in Python: trust_env=True)\n"
        )


def test_an_environment_that_is_trusted_is_imported(copy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "kind_env.py").write_text("import gymnasium\ndef make(): return gymnasium.make('polyactor/Chain-v0')")
    monkeypatch.syspath_prepend(str(tmp_path))
    forge(copy, lambda _, meta: meta["config"].update(env="kind_env:make"))
    for read in (pa.load, lambda path: pa.resume(path, quiet=True)):
        with pytest.raises(UsageError, match="the module kind_env would be imported"):
            read(copy)
        assert "kind_env" not in sys.modules
    pa.load(copy, env="polyactor/Chain-v0")
    assert pa.resume(copy, env="polyactor/Chain-v0", quiet=True).status == "done"
    assert "kind_env" not in sys.modules
    forge(copy, lambda _, meta: meta["config"].update(env="kind_env:make"))
    assert pa.load(copy, trust_env=True).config.env == "kind_env:make"
    for verb in ("resume", "evaluate", "record"):
        with pytest.raises(SystemExit) as stop:
            cli.main([verb, str(copy), "--trust-env", *["--games=2"] * (verb == "evaluate")])
        assert stop.value.code in ((0, 3) if verb == "record" else (0,))  # Chain draws nothing
    assert pa.resume(copy, trust_env=True, quiet=True).status == "done"
    del sys.modules["kind_env"]


def test_a_run_of_ones_own_environment_evaluates_beside_training_unasked(tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "own_env.py").write_text("import gymnasium\ndef make(): return gymnasium.make('polyactor/Chain-v0')")
    monkeypatch.syspath_prepend(str(tmp_path))
    values = CHAIN | {"env": "own_env:make", "steps": 2_000, "evaluate_every": 500}
    run = pa.train("a2c", out=str(tmp_path / "run"), **values)
    assert "evaluation" in events(run.path)
    pa.train("a2c", out=str(tmp_path / "next"), init_from=str(run.path), **CHAIN)  # takes parameters, no environment
    del sys.modules["own_env"]


def drop(name: str) -> Callable[..., Any]:
    return lambda tensors, _: tensors.pop(name)


def put(name: str, tensor: torch.Tensor) -> Callable[..., Any]:
    return lambda tensors, _: tensors.__setitem__(name, tensor)


def keep(name: str, value: object) -> Callable[..., Any]:
    return lambda _, meta: meta.__setitem__(name, value)


WEIGHT = "model.policy.bias"
COUNTERS = torch.zeros(1, 7, dtype=torch.int64)
FORGED: dict[str, tuple[Callable[..., Any], tuple[str, ...]]] = {
    "NaN weights": (lambda tensors, _: tensors[WEIGHT].fill_(float("nan")), ("resume", "evaluate", "record")),
    "infinite statistics": (lambda t, _: t["optimizer.0.exp_avg_sq"].fill_(float("inf")), ("resume",)),
    "no weight": (drop(WEIGHT), ("resume", "evaluate")),
    "a weight of another shape": (put(WEIGHT, torch.zeros(7)), ("resume", "evaluate")),
    "a weight of another type": (put(WEIGHT, torch.zeros(2, dtype=torch.int64)), ("resume", "evaluate")),
    "a complex weight": (put(WEIGHT, torch.zeros(2, dtype=torch.complex64)), ("resume", "evaluate")),
    "no statistics": (drop("optimizer.0.step"), ("resume",)),
    "no counters": (drop("board.counters"), ("resume",)),
    "counters of numbers": (put("board.counters", COUNTERS.double()), ("resume",)),
    "flat counters": (put("board.counters", COUNTERS[0]), ("resume",)),
    "more counters": (put("board.counters", torch.zeros(1, 9, dtype=torch.int64)), ("resume",)),
    "counters of more workers": (put("board.counters", COUNTERS.repeat(3, 1)), ("resume",)),
    "counters below zero": (put("board.counters", COUNTERS - 1), ("resume",)),
    "counters without end": (put("board.counters", COUNTERS + 2**62), ("resume",)),
    "no means": (drop("board.means"), ("resume",)),
    "longer means": (put("board.means", torch.zeros(99, 2, dtype=torch.float64)), ("resume",)),
    "scores of text": (keep("scores", ["a"]), ("resume",)),
    "scores that are text": (keep("scores", "many"), ("resume",)),
    "a huge score": (keep("scores", [10**400]), ("resume",)),
    "no wall time": (keep("wall_s", None), ("resume",)),
    "games needed as text": (keep("games_needed", "100"), ("resume",)),
    "a best score of text": (keep("best_score_mean100", "x"), ("resume",)),
    "a best evaluation of text": (keep("best_evaluation", [1]), ("resume",)),
}  # fmt: skip


@pytest.mark.fault("F4", "F8")
@pytest.mark.parametrize("what", FORGED)
def test_a_checkpoint_made_to_harm(copy: Path, refused: Any, what: str) -> None:
    change, verbs = FORGED[what]
    assert "model.policy.bias" in load(copy).tensors
    forge(copy, change)
    refused(copy, verbs=verbs)
    if "model" in what or "weight" in what:
        with pytest.raises(CheckpointError):
            pa.load(copy)


@pytest.mark.fault("F4", "F8")
def test_every_carried_tensor_that_is_missing_or_of_another_kind_is_refused(
    exact: Path, refused: Any, tmp_path: Path
) -> None:
    names = sorted(name for name in load(exact).tensors if name.startswith("carried."))
    assert len(names) >= 10
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor | None]] = {
        "missing": lambda x: None,
        "of another type": lambda x: x.to(torch.float16 if x.dtype != torch.float16 else torch.int8),
        "of more dimensions": lambda x: x.unsqueeze(0).clone(),
        "empty": lambda x: x.new_zeros(0),
        "of random bytes": lambda x: torch.randint(0, 255, x.shape, dtype=torch.uint8),
    }
    count = 0
    for name in names:
        for what, change in changes.items():
            tensor = load(exact).tensors[name]
            if what == "of random bytes" and tensor.dtype != torch.uint8:
                continue
            root = Path(shutil.copytree(exact, tmp_path / f"{count}"))
            forge(root, lambda ts, _: ts.update({name: change(tensor)}) if change(tensor) is not None else ts.pop(name))  # noqa: B023
            with pytest.raises(CheckpointError):
                pa.resume(root, steps=600, quiet=True)
            shutil.rmtree(root)
            count += 1
    print(f"{count} forged tensors")
    forge(root := Path(shutil.copytree(exact, tmp_path / "none")), lambda ts, _: [ts.pop(name) for name in names])
    with pytest.raises(CheckpointError, match="cannot go on to the bit"):
        pa.resume(root, steps=600, quiet=True)
    assert pa.resume(root, steps=600, restart=True, quiet=True).status == "done"


@pytest.mark.fault("F4", "F8")
@pytest.mark.parametrize(
    "kind", ["longer", "shorter", "link", "linked folder", "rollouts without end", "fewer than none"]
)
def test_forged_replay_files(exact: Path, tmp_path: Path, kind: str) -> None:
    root = Path(shutil.copytree(exact, tmp_path / "run"))
    folder, outside = root / "replay" / "learner-0", tmp_path / "outside"
    file, counter = folder / "reward.bin", folder / "added.bin"
    data = file.read_bytes()
    if kind in ("longer", "shorter"):
        file.write_bytes(data + b"more" if kind == "longer" else data[:-4])
    elif kind == "link":
        outside.write_bytes(data)
        file.unlink()
        file.symlink_to(outside)
    elif kind == "linked folder":
        folder.rename(outside)
        folder.symlink_to(outside)
    else:
        counter.write_bytes((2**62 if kind == "rollouts without end" else -5).to_bytes(8, "little", signed=True))
    before = digest(tmp_path)
    with pytest.raises(CheckpointError, match=r"is a symbolic link|bytes where|replay files have"):
        pa.resume(root, steps=600, quiet=True)
    after = digest(tmp_path)
    assert outside.exists() == ("link" in kind)
    if "link" in kind:
        assert (outside if outside.is_file() else outside / "reward.bin").read_bytes() == data
    assert before != after  # the failure is noted in the run's own files


def test_links_in_a_run_directory_are_not_written_through(copy: Path, tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.write_text("mine")
    steps = load(copy).meta["agent_steps"]
    for name in (".summary.json.tmp", ".curve.png.tmp", ".replay.part.mp4", "checkpoints/.last.json.tmp"):
        (copy / name).symlink_to(outside)
    pa.resume(copy, steps=steps + 20, quiet=True)
    assert outside.read_text() == "mine"
    for name in ("metrics.jsonl", "events.jsonl", "run.lock"):
        (copy / name).unlink(missing_ok=True)
        (copy / name).symlink_to(outside)
        with pytest.raises(RunDirectoryError, match="cannot write"):
            pa.resume(copy, steps=steps + 40, quiet=True)
        (copy / name).unlink()
    (copy / "checkpoints").rename(tmp_path / "checkpoints")
    (copy / "checkpoints").symlink_to(tmp_path / "checkpoints")
    with pytest.raises(RunDirectoryError, match="checkpoints: it is a symbolic link"):
        pa.resume(copy, steps=steps + 60, quiet=True)
    assert outside.read_text() == "mine"


def test_deep_rows_do_not_stop_a_resume(copy: Path) -> None:
    with open(copy / "metrics.jsonl", "ab") as file:
        file.write(b"[" * 100_000 + b"\n" + pickle.dumps(Bomb(copy / "sentinel")).replace(b"\n", b"") + b"\n")
    with pytest.raises(RunDirectoryError, match="damaged"):  # the picture at the end reads them
        pa.resume(copy, quiet=True)
    assert not (copy / "sentinel").exists()
