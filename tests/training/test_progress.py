"""What a person sees of a run while it goes on."""

from __future__ import annotations

import io
import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest

import polyactor as pa
from polyactor.settings.presets import PRESETS, base_config
from polyactor.training.progress import Progress, banner, farewell
from tests.helpers.policies import config_of
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


@pytest.mark.fault("F11")
def test_the_banner_says_that_a_total_is_reached() -> None:
    config = replace(base_config("a2c", env="CartPole-v1"), steps=400)
    done, left = (list(banner(config, Path("run"), "fp32", steps)) for steps in (424, 399))
    assert [*left[:1], "goes on from 424 steps: environments and random streams begin anew"] == done[:2]
    assert done[2:] == ["all 400 steps are done already: --steps N gives a larger total"]
    assert len(left) == 2


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


@pytest.mark.parametrize(
    ("skipped", "last"),
    [
        ({}, "curve, film, checkpoints and numbers are in runs/1"),
        ({"video_skipped": "it is dark"}, "curve, checkpoints and numbers are in runs/1; no film: it is dark"),
        (
            {"curve_skipped": "no paper", "video_cut": "it is long"},
            "film, checkpoints and numbers are in runs/1; no curve: no paper; the film is not a whole game: it is long",
        ),
    ],
)
def test_the_last_line_names_what_there_is_and_why_the_rest_is_not(skipped: dict[str, str], last: str) -> None:
    summary = {"score_mean100": 2.0, "agent_steps": 9_000, "wall_s": 61.0, "games": 3}
    lines = list(farewell("done", config_of("CartPole-v1"), summary, Path("runs/1"), skipped))
    assert lines == ["done: score 2.00 after 9,000 steps in 0:01:01", last]


@pytest.mark.fault("P13")
@pytest.mark.parametrize("stream", ["ascii", "none", "closed"])
def test_lines_need_no_terminal_that_can_show_them(stream: str, monkeypatch: pytest.MonkeyPatch) -> None:
    raw = io.BytesIO()
    shown = io.TextIOWrapper(raw, "ascii")
    monkeypatch.setattr(sys, "stdout", None if stream == "none" else shown)
    if stream == "closed":
        shown.close()
    with Progress("2 × 4", 10, quiet=False) as progress:
        progress.say("2 × 4 – done")
    if stream == "ascii":
        assert raw.getvalue() == b"2 ? 4 ? done\n"


@pytest.mark.parametrize(("envs", "said"), [(50, True), (4, False)])
def test_many_environments_are_announced_before_they_are_made(envs: int, said: bool) -> None:
    config = replace(base_config("pong-a3c-threads-9"), envs=envs, workers=4)
    lines = list(banner(config, Path("run"), "fp32", None))
    assert any("making 200 environments in this process" in line for line in lines) == said
