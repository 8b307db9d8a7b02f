"""What a person sees of a run while it goes on."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest

import polyactor as pa
from polyactor.settings.presets import PRESETS
from polyactor.training.progress import Progress
from tests.helpers.runs import B, T, program


@pytest.mark.parametrize("words", ["KeyError: [/obs/state]", "list[int] in runs/[exp]/1", "[bold]not bold[/bold]"])
def test_words_of_others_are_shown_as_they_are(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    with Progress("a run", 100, quiet=False) as progress:
        progress.say(words)
    assert capsys.readouterr().out == words + "\n"


@pytest.mark.parametrize(("env", "known"), [(None, True), ("polyactor/Chain-v0", False)])
def test_the_banner_says_what_to_expect_of_a_preset(
    env: str | None, known: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pa.train("cartpole-a2c", env=env, steps=200, out=str(tmp_path / "run"))
    said = capsys.readouterr().out
    assert (f"to expect, as measured on two cores: {PRESETS['cartpole-a2c'].measured}" in said) == known


def test_a_run_outlives_whoever_read_its_output(tmp_path: Path) -> None:
    out = tmp_path / "run"
    flags = f"--env polyactor/Chain-v0 --steps 2000 --workers 1 --envs {B} --rollout {T} --out {out}"
    with program("-m", "polyactor", "train", "a2c", *flags.split()) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.wait(60) == 0
        said = process.stderr.read().splitlines()
    assert [line for line in said if "still at work" not in line] == []  # which a busy machine may make it say
    assert json.loads((out / "summary.json").read_text())["status"] == "done"


def test_lines_that_nobody_reads_are_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    row = dict.fromkeys(("agent_steps", "games", "steps_per_s"), 1) | dict.fromkeys(
        ("score_mean100", "gradient_staleness")
    )
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "w") as gone:
        monkeypatch.setattr(sys, "stdout", gone)
        progress = Progress("", 10, quiet=False)
        progress.next_line = 0.0
        progress.show(row, new=False)
        progress.say("done")
        monkeypatch.undo()
