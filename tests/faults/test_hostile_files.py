"""Files made to harm are refused in a sentence, at once and without being run."""

from __future__ import annotations

import builtins
import json
import os
import pickle
import shutil
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import polyactor as pa
from polyactor.cli import main as cli
from polyactor.errors import CheckpointError, RunDirectoryError, UsageError
from polyactor.storage import checkpoint
from polyactor.storage.checkpoint import MANIFEST, META, STATE, load, save
from polyactor.storage.metrics_log import read_rows
from tests.helpers.directories import digest


def tensors(value: int) -> dict[str, torch.Tensor]:
    return {"theta": torch.full((3,), float(value)), "count": torch.tensor(value)}


def events(root: Path) -> list[str]:
    return [event["event"] for event in read_rows(root / "events.jsonl")]


CHAIN = {"env": "polyactor/Chain-v0", "steps": 400, "envs": 2, "seed": 1, "quiet": True, "checkpoint_every": 0.0}


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
            said = said[said.index("polyactor: ") :] if said.startswith("playing") else said  # the games are announced
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
    entry = b'"%d":{"dtype":"F10","shape":[1],"data_offsets":[%d,%d]}'
    text = b"{" + b",".join(entry % (i, 4 * i, 4 * i + 4) for i in range(count)) + b"}"
    return len(text).to_bytes(8, "little") + text + bytes(4 * count)


OF_ONE = {"dtype": "F10", "shape": [1], "data_offsets": [0, 4]}
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
            f"polyactor: this run names code, which would be imported and run: the environment {value}; "
            "if you trust it, add --trust-code (in Python: trust_code=True)\n"
        )


def test_an_environment_that_is_trusted_is_imported(copy: Path, tmp_path: Path, monkeypatch: Any) -> None:
    (tmp_path / "kind_env.py").write_text("import gymnasium\ndef make(): return gymnasium.make('polyactor/Chain-v0')")
    monkeypatch.syspath_prepend(str(tmp_path))
    forge(copy, lambda _, meta: meta["config"].update(env="kind_env:make"))
    for read in (pa.load, lambda path: pa.resume(path, quiet=True)):
        with pytest.raises(UsageError, match="would be imported and run: the environment kind_env:make;"):
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
    for i, name in enumerate(names):
        for what in {"missing", list(changes)[i % len(changes)], "of random bytes"}:
            change = changes[what]
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
    assert pa.resume(copy, quiet=True).status == "done"
    said = (copy / "events.jsonl").read_text()
    assert '"curve_skipped"' in said  # it reads them
    assert "damaged" in said
    assert not (copy / "sentinel").exists()
