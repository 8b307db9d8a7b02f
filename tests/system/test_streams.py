"""Programs without a terminal, with one that is gone, and with one that lacks characters."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from polyactor.errors import EnvironmentUnsupported
from polyactor.system.console import Lasting
from polyactor.system.streams import Replacing, lasting_streams
from tests.helpers.programs import environment


def polyactor(arguments: str, redirected: str, cwd: Path, **variables: str) -> subprocess.CompletedProcess[bytes]:
    command = f'exec "{sys.executable}" -m polyactor {arguments} {redirected}'
    return subprocess.run(["sh", "-c", command], cwd=cwd, env=environment() | variables, capture_output=True)


def test_characters_that_an_encoding_lacks_are_replaced() -> None:
    raw = io.BytesIO()
    stream = Replacing(io.TextIOWrapper(raw, "ascii"))
    stream.write("4 × 2 – \udcff")
    stream.flush()
    assert raw.getvalue() == b"4 ? 2 ? ?"


class Failing(io.StringIO):
    def __init__(self, error: Exception) -> None:
        super().__init__()
        self.error = error

    def write(self, text: str) -> int:
        raise self.error


def test_a_stream_that_fails_is_given_up_unless_its_failure_is_wanted() -> None:
    for error in (OSError(5, "Input/output error"), ValueError("I/O operation on closed file."), BrokenPipeError()):
        stream: Any = Replacing(Failing(error))
        assert stream.write("a word") == 6
    with pytest.raises(BrokenPipeError):
        Replacing(Failing(BrokenPipeError()), passing=(BrokenPipeError,)).write("a word")


class Odd(io.StringIO):
    encoding = "cp65001x"  # type: ignore[assignment]


class Bare:
    """An object of the user's, which lacks all methods but one, and says so in its own way."""

    def write(self, text: str) -> None:
        raise RuntimeError("the widget is gone")

    def __getattr__(self, name: str) -> Any:
        raise LookupError(name)


@pytest.mark.fault("P13")
def test_an_object_of_the_users_for_a_stream_costs_lines_only(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdout", Bare())
    with lasting_streams():
        Lasting().print("a line")
    stream: Any = Replacing(Bare())  # type: ignore[arg-type]
    print("a line", file=stream, flush=True)
    assert (stream.encoding, stream.isatty(), hasattr(stream, "mode")) == ("utf-8", False, False)
    assert stream.failure == "the widget is gone"
    odd = Odd()
    monkeypatch.setattr("sys.stdout", odd)
    Lasting().print("a line")
    assert odd.getvalue() == "a line\n"


def test_what_interrupts_a_write_is_no_failure_of_the_stream() -> None:
    with pytest.raises(EnvironmentUnsupported):
        Replacing(Failing(EnvironmentUnsupported())).write("a word")


@pytest.mark.fault("P13")
@pytest.mark.parametrize(
    ("redirected", "said"),
    [(">&-", b""), ("0<&- >&- 2>&-", b""), (">/dev/full", b"polyactor: what was printed could not be written")],
)
def test_the_exit_code_is_that_of_the_work_whatever_takes_its_output(
    redirected: str, said: bytes, tmp_path: Path
) -> None:
    done = polyactor("--version", redirected, tmp_path)
    assert (done.returncode, done.stderr[: len(said) or None]) == (0, said)
    assert polyactor("frobnicate", redirected, tmp_path).returncode == 2


@pytest.mark.fault("P13")
def test_a_closed_stream_is_no_place_for_a_file_of_the_run(tmp_path: Path) -> None:
    """A library in C prints to file descriptors 1 and 2, whatever they are."""
    look = "import os, sys; from polyactor.system.streams import occupy_descriptors as f; f(); f(); "
    look += "found = os.open('found', os.O_CREAT | os.O_WRONLY); os.write(1, b'noise'); os.write(2, b'noise'); "
    look += "os.write(found, str(found).encode())"
    subprocess.run(["sh", "-c", f'exec "{sys.executable}" -c "{look}" 0<&- >&- 2>&-'], cwd=tmp_path, env=environment())
    assert int((tmp_path / "found").read_text()) > 2


FLAGS = "--env polyactor/Chain-v0 --steps 500 --workers 1 --envs 2 --out run"


@pytest.mark.slow
@pytest.mark.fault("P13")
@pytest.mark.parametrize("preset", ["a2c", "a3c"])
def test_a_run_without_any_stream_ends_as_others_do(preset: str, tmp_path: Path) -> None:
    assert polyactor(f"train {preset} {FLAGS}", "0<&- >&- 2>&-", tmp_path).returncode == 0
    assert json.loads((tmp_path / "run" / "summary.json").read_text())["status"] == "done"
    for name in ("metrics.jsonl", "events.jsonl"):
        assert all(json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines())


@pytest.mark.slow
@pytest.mark.fault("P13")
def test_every_verb_prints_where_a_terminal_knows_ascii_alone(tmp_path: Path) -> None:
    posix = {"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0", "PYTHONIOENCODING": "ascii"}
    verbs = [
        f"train a3c {FLAGS}", "resume run --steps 800", "evaluate run --games 2", "plot run", "compare run",
        "presets", "presets pong-a3c", "check --env polyactor/Chain-v0", "train a2c --help", "--help",
        "bench a2c --env polyactor/Chain-v0 --seconds 1",
    ]  # fmt: skip
    for verb in verbs:
        for redirected in ("", ">&- 2>&-"):
            again = " --out run2" if verb.startswith("train a3c") and redirected else ""
            done = polyactor(verb + again, redirected, tmp_path, **posix)
            said = re.sub(
                rb"(?m)^(playing .* each|polyactor: .*, (\d+ s after the start|after \d+ s))\n", b"", done.stderr
            )
            assert (done.returncode, said) == (0, b""), verb
            assert done.stdout or redirected


@pytest.mark.fault("P13")
def test_an_error_whose_reader_has_left_keeps_its_code(tmp_path: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "polyactor", "frobnicate"]
    done = subprocess.run(command, cwd=tmp_path, env=environment(), stdout=subprocess.PIPE, stderr=writer)
    os.close(writer)
    assert done.returncode == 2


def test_what_an_environment_prints_never_fails_and_its_streams_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    broken: Any = Failing(BrokenPipeError())
    monkeypatch.setattr(sys, "stdout", broken)
    with lasting_streams():
        print("a new game")
        sys.stdout = io.StringIO()
    assert sys.stdout is broken


PRINTS = """
from tests.helpers.runs import Quiet
class Talks(Quiet):
    def reset(self, **given):
        print("a new game", flush=True)
        return super().reset(**given)
"""


@pytest.mark.slow
@pytest.mark.fault("P13")
@pytest.mark.parametrize("method", ["a2c", "a3c"])
def test_a_run_outlives_the_reader_of_what_its_environments_print(method: str, tmp_path: Path) -> None:
    (tmp_path / "talks.py").write_text(PRINTS)
    run = f"-m polyactor train {method} --env talks.py:Talks --steps 6000 --out run"
    command = f'{{ "{sys.executable}" {run}; echo $? > code; }} | true'
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env=environment())
    assert (tmp_path / "code").read_text() == "0\n"
