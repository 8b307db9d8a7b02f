"""A run directory belongs to one process."""

from __future__ import annotations

import functools
import os
import re
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium
import pytest

import polyactor as pa
from polyactor.cli import main as cli
from polyactor.errors import RunDirectoryError
from polyactor.settings.presets import base_config
from polyactor.storage import run_directory
from tests.helpers.directories import digest
from tests.helpers.living import alive
from tests.helpers.programs import program

SOURCE = Path(pa.__file__).parents[1]
CHAIN = {"env": "polyactor/Chain-v0", "steps": 400, "envs": 2, "seed": 1, "quiet": True, "checkpoint_every": 0.0}
HOLD = """
import sys, time
from pathlib import Path
from polyactor.storage.run_directory import claimed
with claimed(Path(sys.argv[1])):
    print("mine", flush=True)
    time.sleep(600)
"""


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


FORKS = """
import os, sys, time
from pathlib import Path
from polyactor.storage.run_directory import claimed
with claimed(Path(sys.argv[1])):
    if not (ends := os.fork()):
        sys.exit()
    os.waitpid(ends, 0)
    if not os.fork():
        print(os.getpid(), flush=True)  # its copy of the lock is closed by now
    time.sleep(600)
"""


@pytest.mark.fault("F6")
def test_what_an_environment_has_forked_neither_holds_nor_ends_a_lock(tmp_path: Path) -> None:
    with program(tmp_path / "run.py", FORKS, tmp_path) as run:
        assert run.stdout is not None
        forked = int(run.stdout.readline())
        try:
            with pytest.raises(RunDirectoryError, match=f"in use by process {run.pid}"):
                run_directory.refuse_taken(tmp_path)
            run.kill()
            run.wait()
            with run_directory.claimed(tmp_path):
                assert alive(forked)
        finally:
            os.kill(forked, signal.SIGKILL)


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


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pa.train("a2c", out=str(tmp_path_factory.mktemp("trained") / "run"), **CHAIN).path


@pytest.mark.fault("D16")
@pytest.mark.parametrize(
    ("preset", "env", "name"),
    [
        ("a2c", "ALE/Pong-v5", "a2c-Pong-v5"),
        ("a2c", "games:Lake-v0", "a2c-Lake-v0"),
        ("a2c", "/home/somebody/my games/lake.py:flat", "a2c-flat"),
        ("a2c", lambda: None, "a2c-lambda"),
        ("a2c", functools.partial(gymnasium.make, "ALE/Pong-v5"), "a2c-make"),
        ("a2c", functools.partial, "a2c-partial"),
        ("../mine.py:Mine", "CartPole-v1", "Mine-CartPole-v1"),
        ("my \n'run'", "CartPole-v1", "my-run-CartPole-v1"),
        ("", "CartPole-v1", "run-CartPole-v1"),
    ],
)
def test_a_name_can_be_typed_and_lies_in_runs(
    preset: str, env: Any, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    config = replace(base_config("a2c", env="CartPole-v1"), preset=preset, env=env)
    found = run_directory.run_directory(config)
    assert found.parent == tmp_path / "runs"
    assert re.sub(r"-\d{8}-\d{6}$", "", found.name) == name


def test_a_directory_that_is_gone_is_no_place_for_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    with pytest.raises(RunDirectoryError, match="the working directory does not exist"):
        run_directory.run_directory(replace(base_config("a2c", env="CartPole-v1"), out="run"))
