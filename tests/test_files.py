"""Files of the user are imported by their path, and the working directory stays."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from polyactor.files import load_file, same_directory


def test_a_file_is_run_once_and_again_when_it_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "types.py"  # as an installed module is called
    file.write_text("import types\nname, runs = types.__name__, []\n")
    monkeypatch.chdir(tmp_path)
    first = load_file(Path("types.py"))
    assert first is load_file(file)
    assert first.name == "types"
    assert sys.modules["types"] is not first
    file.write_text("name = 'changed since'\n")
    assert load_file(file).name == "changed since"


def test_two_files_of_one_name_are_two_modules_and_one_that_fails_is_none(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "game.py").write_text(f"where = {folder!r}\n")
    assert [load_file(tmp_path / folder / "game.py").where for folder in ("one", "two", "one")] == ["one", "two", "one"]
    (tmp_path / "broken.py").write_text("1 / 0\n")
    before = set(sys.modules)
    with pytest.raises(ZeroDivisionError):
        load_file(tmp_path / "broken.py")
    assert set(sys.modules) == before


def test_the_working_directory_is_put_back_even_if_it_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with suppress(KeyError), same_directory():
        os.chdir(tmp_path)
        raise KeyError
    assert Path.cwd() == tmp_path / "here"
    (tmp_path / "here").rmdir()
    with same_directory():
        os.chdir(tmp_path)
    with pytest.raises(FileNotFoundError):
        Path.cwd()


@pytest.mark.fault("F9")
def test_a_file_imports_its_neighbours_and_leaves_the_working_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    before = Path.cwd()
    (tmp_path / "of_a_neighbour.py").write_text("name = 'found'\n")
    (tmp_path / "game.py").write_text("import os\nfrom of_a_neighbour import name\nos.chdir('/')\n")
    assert load_file(tmp_path / "game.py").name == "found"
    assert Path.cwd() == before
    del sys.modules["of_a_neighbour"]
