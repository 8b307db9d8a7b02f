"""Whatever bears the mark ends with the process that began it, however that ends."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from polyactor.system.guardian import guarded, remove
from tests.helpers.living import alive
from tests.helpers.runs import program

PROGRAM = """
import os, subprocess, sys, time
from polyactor.system.guardian import guarded

with guarded("MARK", sys.argv[1], sys.argv[2]):
    os.environ["MARK"] = sys.argv[1]
    inner = "import subprocess, time; print(subprocess.Popen(['sleep', '60']).pid, flush=True); time.sleep(60)"
    child = subprocess.Popen([sys.executable, "-c", inner], start_new_session=True)
    print(child.pid, flush=True)
    time.sleep(60)
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_nothing_is_left_of_a_process_that_is_killed(number: signal.Signals, tmp_path: Path) -> None:
    folder = tmp_path / "litter"
    folder.mkdir()
    with program("-c", PROGRAM, f"{tmp_path}", str(folder)) as process:
        assert process.stdout is not None
        pids = [int(process.stdout.readline()) for _ in range(2)]
        assert all(map(alive, pids))
        os.kill(process.pid, number)
        process.wait()
        end = time.monotonic() + 20.0
        while any(map(alive, pids)) or folder.exists():
            assert time.monotonic() < end
            time.sleep(0.02)


def test_at_the_end_it_ends_what_is_left_and_nobody_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "litter"
    folder.mkdir()
    (tmp_path / "shutil.py").write_text("raise RuntimeError('not Python's own')")
    monkeypatch.chdir(tmp_path)
    other = subprocess.Popen(["sleep", "60"], env={**os.environ, "MARK": "other"})
    with guarded("MARK", str(folder), str(folder)):
        mine = subprocess.Popen(["sleep", "60"], env={**os.environ, "MARK": str(folder)})
        assert mine.poll() is None
    assert mine.wait(10.0) == -signal.SIGKILL
    assert other.poll() is None
    assert not folder.exists()
    other.kill()
    other.wait()


def test_a_title_that_hides_the_mark_hides_nobody(tmp_path: Path) -> None:
    """Ray's processes give themselves titles, which overwrite a part of their environment, now this and now that."""
    folder = tmp_path / "litter"
    folder.mkdir()
    began = []
    for title, place in (("ray::Agent", folder), ("ray::Agent", tmp_path), ("sleep", folder)):
        with (place / "log").open("w") as log:
            began.append(subprocess.Popen([title, "60"], executable=shutil.which("sleep"), stdout=log))
    with guarded("MARK", str(folder), str(folder)):
        assert all(each.poll() is None for each in began)
    mine, elsewhere, other = began
    assert mine.wait(10.0) == -signal.SIGKILL
    for each in (elsewhere, other):
        assert each.poll() is None
        each.kill()
        each.wait()


def test_a_folder_that_is_still_written_to_is_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, removed = tmp_path / "litter", shutil.rmtree
    folder.mkdir()

    def meanwhile(path: str, ignore_errors: bool) -> None:
        monkeypatch.setattr(shutil, "rmtree", removed)
        (folder / "late").touch()  # after the others have been removed, so that the folder is not

    monkeypatch.setattr(shutil, "rmtree", meanwhile)
    remove(str(folder))
    assert not folder.exists()
