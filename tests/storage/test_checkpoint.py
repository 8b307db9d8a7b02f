"""A checkpoint loads whole or not at all, whatever happened to it and whenever the save was cut short."""

from __future__ import annotations

import builtins
import errno
import hashlib
import json
import os
import pickle
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from safetensors.torch import save as serialize

from polyactor.errors import CheckpointError, OutOfResources, RunDirectoryError
from polyactor.storage import checkpoint
from polyactor.storage.checkpoint import META, STATE, exists, load, newest_good, point, save

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")


def tensors(value: int) -> dict[str, torch.Tensor]:
    return {"theta": torch.full((3,), float(value)), "count": torch.tensor(value)}


def write(root: Path, value: int, steps: int | None = None, **options: Any) -> Path:
    return save(root, tensors(value), {"value": value}, value if steps is None else steps, **options)


def value_of(path: Path, tag: str = "last") -> int:
    """Which save this is; fails if the two files are not of the same one."""
    found = load(path, tag=tag)
    assert found.tensors["theta"].tolist() == [found.meta["value"]] * 3
    assert found.tensors["count"].item() == found.meta["value"]
    return int(found.meta["value"])


def names(root: Path) -> list[str]:
    return sorted(entry.name for entry in (root / "checkpoints").iterdir())


def resign(directory: Path) -> None:
    """Give a directory a manifest that fits what lies in it, as a forger would."""
    contents = {name: (directory / name).read_bytes() for name in (STATE, META)}
    (directory / "manifest.json").write_bytes(checkpoint._manifest(contents))


def test_round_trip_keeps_every_dtype_shape_and_bit(tmp_path: Path) -> None:
    flat = torch.arange(12, dtype=torch.float32)
    given = {
        "float32": torch.tensor([0.1, -0.0, float("nan"), float("inf")]),
        "float64": torch.tensor([[1 / 3]], dtype=torch.float64),
        "int64": torch.tensor([-(2**63), 2**63 - 1]),
        "uint8": torch.arange(256, dtype=torch.uint8).reshape(4, 64),
        "bool": torch.tensor([True, False]),
        "bfloat16": torch.tensor([1.5], dtype=torch.bfloat16),
        "scalar": torch.tensor(7, dtype=torch.int64),
        "empty": torch.zeros(0, 3),
        "view": flat[2:5],
        "another view of the same memory": flat[3:9],
        "transposed": flat.reshape(3, 4).T,
        "with gradient": torch.ones(2, requires_grad=True),
    }
    meta = {"counters": {"agent_steps": 2**53 + 1}, "score": -20.7, "name": "Pöng", "none": None, "list": [1, [2]]}
    path = save(tmp_path, given, meta, 1234)
    assert path == tmp_path / "checkpoints" / "000000001234"
    for found in (load(tmp_path), load(path)):
        assert found.path == path
        assert found.meta == meta
        assert set(found.tensors) == set(given)
        for name, tensor in given.items():
            assert found.tensors[name].dtype == tensor.dtype
            assert found.tensors[name].shape == tensor.shape
            assert torch.equal(found.tensors[name].nan_to_num(99), tensor.nan_to_num(99)), name
    found.tensors["float32"].zero_()  # its own memory, writable


def test_saved_tensors_are_copies(tmp_path: Path) -> None:
    state = torch.zeros(3)
    save(tmp_path, {"a": state}, {}, 1)
    state.fill_(1)
    assert load(tmp_path).tensors["a"].tolist() == [0, 0, 0]


@pytest.mark.fault("F3")
def test_every_flipped_bit_is_detected(tmp_path: Path) -> None:
    pointer, path = tmp_path / "checkpoints" / "last.json", tmp_path / "copied elsewhere"
    shutil.copytree(write(tmp_path, 1), path)
    flips = 0
    for file, loaded in [(file, path) for file in path.iterdir()] + [(pointer, tmp_path)]:
        good = file.read_bytes()
        for position in range(len(good)):
            for bit in range(8):
                bad = bytearray(good)
                bad[position] ^= 1 << bit
                file.write_bytes(bad)
                with pytest.raises(CheckpointError):
                    load(loaded)
                flips += 1
        file.write_bytes(good)
    assert flips > 4000
    assert value_of(tmp_path) == value_of(path) == 1


@pytest.mark.fault("F3")
@pytest.mark.parametrize("name", ["state.safetensors", "meta.json", "manifest.json", "../last.json"])
def test_truncated_longer_missing_and_odd_files_are_refused(tmp_path: Path, name: str) -> None:
    write(tmp_path, 1)
    file = write(tmp_path, 2) / name
    good = file.read_bytes()
    for bad in (b"", good[:1], good[: len(good) // 2], good[:-3], good + b"x", good + good, b"\0" * 20_000):
        file.write_bytes(bad)
        with pytest.raises(CheckpointError, match=file.name):
            load(tmp_path)
    if name in (STATE, META):
        file.write_bytes(good[:-3])
        with pytest.raises(
            CheckpointError, match=f"truncated: {len(good) - 3} bytes where the manifest says {len(good)}"
        ):
            load(tmp_path)
    file.unlink()
    with pytest.raises(CheckpointError, match=rf"{file.name} is missing"):
        load(tmp_path)
    file.mkdir()
    with pytest.raises(CheckpointError, match="not a regular file"):
        load(tmp_path)
    file.rmdir()
    os.mkfifo(file)  # opening it for reading would wait for a writer
    with pytest.raises(CheckpointError, match="not a regular file"):
        load(tmp_path)
    file.unlink()
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_bytes(good)
    file.symlink_to(elsewhere)
    with pytest.raises(CheckpointError, match="symbolic link"):
        load(tmp_path)


@pytest.mark.fault("F3")
def test_the_message_names_the_file_the_fault_and_the_newest_good_checkpoint(tmp_path: Path) -> None:
    old, new = write(tmp_path, 1), write(tmp_path, 2)
    data = bytearray((new / STATE).read_bytes())
    data[-1] ^= 1
    (new / STATE).write_bytes(data)
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    message = str(caught.value)
    assert message == (
        f"{new / STATE} is damaged: its SHA-256 is not the one in manifest.json (newest good checkpoint: {old})"
    )
    assert newest_good(tmp_path) == old
    assert value_of(old) == 1
    (old / META).unlink()
    with pytest.raises(CheckpointError) as caught:
        load(tmp_path)
    assert "newest good" not in str(caught.value)
    assert newest_good(tmp_path) is None


def test_newest_good_orders_by_number_and_by_repeated_save(tmp_path: Path) -> None:
    for value in range(1, 12):
        newest = write(tmp_path, value, steps=5)
    assert newest.name == "000000000005.11"
    assert newest_good(tmp_path) == newest


@pytest.mark.parametrize(
    "content",
    [
        {"checkpoint": "../../outside"},
        {"checkpoint": ".."},
        {"checkpoint": "/etc"},
        {"checkpoint": "000000000001/../../../outside"},
        {"checkpoint": "000000000001\n"},
        {"checkpoint": "\u0660" * 11 + "\u0661"},  # digits too, in Unicode
        {"checkpoint": ""},
        {"checkpoint": 1},
        {"checkpoint": None},
        {},
        ["000000000001"],
    ],
)
def test_a_pointer_is_a_plain_name(tmp_path: Path, content: object) -> None:
    root = tmp_path / "run"
    write(root, 1)
    outside = write(tmp_path / "other", 2)
    outside.rename(tmp_path / "outside")
    (root / "checkpoints" / "last.json").write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"last\.json is damaged"):
        load(root)


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, sentinel: Path) -> None:
        self.sentinel = sentinel

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str, str]]:
        return builtins.open, (str(self.sentinel), "w")


def header(entries: object) -> bytes:
    text = json.dumps(entries).encode()
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    "state",
    [
        "pickle",
        "torch",
        b"",
        (2**63).to_bytes(8, "little") + b"{}",
        (2**40).to_bytes(8, "little") + b"{}",
        header({"a": {"dtype": "F10", "shape": [2**62], "data_offsets": [0, 4]}}) + bytes(4),
        header({"a": {"dtype": "F10", "shape": [-1], "data_offsets": [0, 4]}}) + bytes(4),
        header({"a": {"dtype": "F10", "shape": [1], "data_offsets": [0, 2**40]}}) + bytes(4),
        header({"a": {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}}) + bytes(1),  # torch has no such type
        header({"a": {"dtype": "F99", "shape": [1], "data_offsets": [0, 4]}}) + bytes(4),
        header({n: {"dtype": "F10", "shape": [1], "data_offsets": [0, 4]} for n in "ab"}) + bytes(4),
    ],
)
def test_a_forged_state_with_a_matching_manifest_is_refused_and_not_run(tmp_path: Path, state: object) -> None:
    path, sentinel = write(tmp_path, 1), tmp_path / "sentinel"
    if state == "pickle":
        state = pickle.dumps(Bomb(sentinel))
    if state == "torch":
        torch.save(Bomb(sentinel), path / STATE)
    else:
        assert isinstance(state, bytes)
        (path / STATE).write_bytes(state)
    resign(path)
    with pytest.raises(CheckpointError, match=rf"{STATE} is not a safetensors file"):
        load(tmp_path)
    assert not sentinel.exists()


@pytest.mark.parametrize(
    "meta", [b"[" * 400_000, b"[1]", b"{", b"\xff", b"9" * 5000, b"{}" + b" " * checkpoint.MAX_META_BYTES]
)
def test_a_forged_meta_with_a_matching_manifest_is_refused(tmp_path: Path, meta: bytes) -> None:
    path = write(tmp_path, 1)
    (path / META).write_bytes(meta)
    resign(path)
    with pytest.raises(CheckpointError):
        load(tmp_path)


def test_nothing_is_parsed_before_its_hash_matches(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path, 1)
    (path / STATE).write_bytes(serialize({"theta": torch.zeros(3), "count": torch.tensor(0)}))
    for parser in ("_parse_state", "_parse_meta"):
        monkeypatch.setattr(checkpoint, parser, lambda *_: pytest.fail("parsed"))
    with pytest.raises(CheckpointError, match="SHA-256"):
        load(tmp_path)


@pytest.mark.fault("F7")
def test_a_newer_format_asks_for_an_upgrade(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 2)
    write(tmp_path, 1)
    monkeypatch.undo()
    with pytest.raises(CheckpointError, match=r"format 2, made by polyactor .* reads up to 1: please upgrade"):
        load(tmp_path)


def test_what_is_no_checkpoint_is_refused_in_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(pickle.dumps({}))
    (tmp_path / "empty").mkdir()
    (tmp_path / "foreign").mkdir()
    (tmp_path / "foreign" / "manifest.json").write_text('{"files": {}}')
    for name, match in {
        "model.pt": "is not a directory",
        "nowhere": "does not exist",
        "empty": "neither a run directory",
        "foreign": "not the manifest of a polyactor checkpoint",
    }.items():
        with pytest.raises(CheckpointError, match=match) as caught:
            load(tmp_path / name)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"best\.json is missing"):
        load(write(tmp_path / "run", 1).parents[1], tag="best")
    with pytest.raises(CheckpointError, match="cannot name"):
        load(tmp_path / "run", tag="../last")


def test_exists(tmp_path: Path) -> None:
    assert not exists(tmp_path)
    path = write(tmp_path, 1)
    assert exists(tmp_path)
    assert exists(path)
    assert not exists(tmp_path, tag="best")


def test_prune_keeps_what_is_pointed_at_and_the_previous_last(tmp_path: Path) -> None:
    write(tmp_path, 1, tags=("last", "best"))
    for value in (2, 3, 4):
        write(tmp_path, value)
    assert names(tmp_path) == ["000000000001", "000000000003", "000000000004", "best.json", "last.json"]
    assert value_of(tmp_path) == 4
    assert value_of(tmp_path, "best") == 1
    write(tmp_path, 5, tags=("best",))
    assert "000000000003" in names(tmp_path)  # still the one before last
    assert value_of(tmp_path) == 4
    assert value_of(tmp_path, "best") == 5
    write(tmp_path, 6, tags=("last", "best"))
    assert names(tmp_path) == ["000000000004", "000000000006", "best.json", "last.json"]


def test_point_moves_one_pointer_and_what_it_names_is_kept(tmp_path: Path) -> None:
    write(tmp_path, 1, tags=("last", "candidate", "best"))
    write(tmp_path, 2, tags=("last", "candidate"))
    point(tmp_path, "best", at="candidate")
    for value in (3, 4, 5):
        write(tmp_path, value)
    assert [value_of(tmp_path, tag) for tag in ("last", "candidate", "best")] == [5, 2, 2]
    with pytest.raises(CheckpointError, match=r"nothing\.json is missing"):
        point(tmp_path, "best", at="nothing")
    with pytest.raises(ValueError, match="tag"):
        point(tmp_path, "../best", at="last")
    assert value_of(tmp_path, "best") == 2


def test_prune_leaves_strangers_alone_and_stops_at_a_pointer_it_cannot_read(tmp_path: Path) -> None:
    write(tmp_path, 1, tags=("best",))
    (tmp_path / "checkpoints" / "notes").mkdir()
    (tmp_path / "checkpoints" / "best.json").write_text("{")
    for value in (2, 3, 4):
        write(tmp_path, value)
    assert names(tmp_path) == [f"{n:012d}" for n in (1, 2, 3, 4)] + ["best.json", "last.json", "notes"]


def test_the_same_step_twice(tmp_path: Path) -> None:
    assert write(tmp_path, 1, steps=7) != write(tmp_path, 2, steps=7)
    assert value_of(tmp_path) == 2
    write(tmp_path, 3, steps=7)
    assert value_of(tmp_path) == 3
    assert names(tmp_path) == ["000000000007.2", "000000000007.3", "last.json"]


@pytest.mark.parametrize(
    "meta", [{"score": float("nan")}, {"a": torch.zeros(1)}, {"a": "x" * checkpoint.MAX_META_BYTES}]
)
def test_meta_that_cannot_be_read_back_is_refused_before_anything_is_written(tmp_path: Path, meta: Any) -> None:
    write(tmp_path, 1)
    before = names(tmp_path)
    with pytest.raises((TypeError, ValueError)):
        save(tmp_path, tensors(2), meta, 2)
    assert names(tmp_path) == before
    assert value_of(tmp_path) == 1
    for options in ({"steps": -1}, {"tags": ("../x",)}):
        with pytest.raises(ValueError, match="steps"):
            write(tmp_path, 2, **options)  # type: ignore[arg-type]


def test_everything_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    log: list[str] = []

    def note(function: Callable[..., Any], say: Callable[..., str]) -> Callable[..., Any]:
        return lambda *arguments: (log.append(say(*arguments)), function(*arguments))[1]

    monkeypatch.setattr(os, "fsync", note(os.fsync, lambda fd: f"sync {Path(os.readlink(f'/proc/self/fd/{fd}')).name}"))
    monkeypatch.setattr(os, "rename", note(os.rename, lambda _, to: f"name {Path(to).name}"))
    monkeypatch.setattr(os, "replace", note(os.replace, lambda _, to: f"name {Path(to).name}"))
    write(tmp_path, 1)
    saving = f".saving-{os.getpid()}"
    assert log[1:] == [
        *(f"sync {name}" for name in (STATE, META, "manifest.json", saving)),
        *("name 000000000001", "sync checkpoints"),
        *("sync .last.json.tmp", "name last.json", "sync checkpoints"),
    ]


# ---- cut short -------------------------------------------------------------------------------------------------

CALLS = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir")
"""Audit events of the calls that change a directory; `fsync` has none and is counted apart."""


def save_and_die_at(k: int, root: Path, steps: int) -> bool:
    """Save in a child that is gone, with no chance to clean up, just before its k-th call. Whether it finished."""
    child = os.fork()
    if child == 0:
        try:
            count, sync = 0, os.fsync

            def tick(event: str) -> None:
                nonlocal count
                count += 1
                if count == k:
                    os._exit(9)

            def audit(event: str, arguments: tuple[Any, ...]) -> None:
                if event in CALLS and (event != "open" or str(root) in str(arguments[0])):
                    tick(event)

            def dying_sync(descriptor: int) -> None:
                tick("fsync")
                sync(descriptor)

            os.fsync = dying_sync
            sys.addaudithook(audit)
            write(root, 2, steps, tags=("last", "best"))
            os._exit(0)
        finally:
            os._exit(1)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert code in (0, 9)
    return code == 0


@pytest.mark.slow
@pytest.mark.fault("F1")
@pytest.mark.parametrize("steps", [pytest.param(2, id="next step"), pytest.param(1, id="same step again")])
def test_killed_at_any_call_of_a_save_leaves_the_old_or_the_new(tmp_path: Path, steps: int) -> None:
    torch.set_num_threads(1)  # a forked child must not look for its parent's thread pool
    outcomes, finished, k = [], False, 0
    while not finished:
        k += 1
        root = tmp_path / str(k)
        write(root, 0, steps=0)
        write(root, 1, steps=1, tags=("last", "best"))
        finished = save_and_die_at(k, root, steps)
        outcomes.append((value_of(root), value_of(root, "best")))
        write(root, 3)  # and the next save works and clears up
        assert value_of(root) == 3
        assert not [name for name in names(root) if name.startswith(".saving")]
    assert k > 20
    assert [o for i, o in enumerate(outcomes) if i == 0 or o != outcomes[i - 1]] == [(1, 1), (2, 1), (2, 2)]


@pytest.mark.fault("F1")
def test_killed_during_the_first_save_leaves_nothing_or_the_new(tmp_path: Path) -> None:
    finished, k = False, 0
    while not finished:
        k += 1
        root = tmp_path / str(k)
        finished = save_and_die_at(k, root, 2)
        if exists(root):
            assert value_of(root) == 2
        else:
            with pytest.raises(CheckpointError):
                load(root)
    assert exists(root)


@pytest.mark.parametrize(
    ("number", "kind"),
    [(errno.ENOSPC, OutOfResources), (errno.EFBIG, OutOfResources), (errno.EROFS, RunDirectoryError)],
)
@pytest.mark.parametrize("call", ["os.fsync", "os.rename", "os.replace", "os.mkdir", "builtins.open", "os.open"])
def test_a_failing_call_gives_one_sentence_and_keeps_the_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str, number: int, kind: type[Exception]
) -> None:
    module, name = {"os": os, "builtins": builtins}[call.split(".")[0]], call.split(".")[1]
    real = getattr(module, name)
    calls, failing_call = 0, 0

    def relevant(path: object, *arguments: object, **_: object) -> bool:
        if name == "open":  # for writing, or a directory to be forced to disk
            return bool(arguments) and arguments[0] in ("xb", os.O_RDONLY | os.O_DIRECTORY)
        return name != "mkdir" or ".saving-" in str(path)  # the folder's own is allowed to fail: it is there

    def failing(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += relevant(*arguments, **options)
        if calls == failing_call and relevant(*arguments, **options):
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    while calls >= failing_call:
        calls, failing_call = 0, failing_call + 1
        root = tmp_path / f"{failing_call}"
        write(root, 0, steps=0)
        write(root, 1, tags=("last", "best"))
        before = files(root)
        with monkeypatch.context() as patch:
            patch.setattr(module, name, failing)
            message = ""
            try:
                write(root, 2, tags=("last", "best"))
            except kind as error:
                message = str(error)
        sentence = f"cannot write {root / 'checkpoints'}: {os.strerror(number)}"
        assert message == (sentence if calls >= failing_call else "")
        if calls >= failing_call:
            old, new = value_of(root), value_of(root, "best")
            assert (old, new) in [(1, 1), (2, 1), (2, 2)]
            if old == 1:  # nothing moved: not a byte has changed, not a file is left over
                after = files(root)
                assert all(before[file] == data for file, data in after.items())
                assert {file.parent.name for file in after} == {"checkpoints", "000000000000", "000000000001"}
    assert failing_call > 1
    assert value_of(root) == value_of(root, "best") == 2


def files(root: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in root.rglob("*") if file.is_file()}


@pytest.mark.fault("F5")
def test_a_file_where_the_run_directory_should_be(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot write .*run"):
        write(tmp_path / "run", 1)


@pytest.mark.fault("F2")
def test_a_full_disk(tmp_path: Path) -> None:
    """The real thing, where the machine lets us mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    if os.geteuid() != 0 or os.system(f"mount -t tmpfs -o size=256k none {disk} 2>/dev/null") != 0:
        pytest.skip("cannot mount a small filesystem here")
    try:
        path = write(disk, 1)
        hashes = {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}
        with pytest.raises(OutOfResources, match="No space left on device"):
            save(disk, {"big": torch.zeros(100_000)}, {}, 2)
        assert hashes == {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.iterdir()}
        assert names(disk) == ["000000000001", "last.json"]
        assert value_of(disk) == 1
        assert value_of(write(disk, 3)) == 3
    finally:
        os.system(f"umount {disk}")
