"""Flags: their help, and what their values mean."""

from __future__ import annotations

import itertools
import re
from collections.abc import Callable
from typing import Any

import pytest

from polyactor.algorithms.base import Algorithm
from polyactor.cli import main as cli
from polyactor.cli.flags import read_config
from polyactor.fields import kind, walk
from polyactor.models.spec import ModelSpec

TRAIN = "train a2c --env CartPole-v1"


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("command", [f"{TRAIN}", "train pong-a3c-server-3", "train acer --env Pendulum-v1"])
def test_help_is_in_groups_and_knows_every_flag(
    columns: int, command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    with pytest.raises(SystemExit):
        cli.main([*command.split(), "--help"])
    said = capsys.readouterr().out
    assert max(map(len, said.splitlines())) <= columns
    lines = [line.strip("│╭╰─╮╯ ") for line in said.splitlines()]
    starts = [n for n, line in enumerate(lines) if re.fullmatch(r"\w+ options", line)]
    boxes = {lines[n].split()[0]: lines[n + 1 : end] for n, end in zip(starts, [*starts[1:], None], strict=True)}
    assert list(boxes) == ["run", "model", "algorithm", "scheme", "optimizer", "environment", "faults"]
    for setting in walk(read_config(command.split()[1:])):
        if setting.path != "env":
            box = boxes[setting.group]
            (at,) = [n for n, line in enumerate(box) if re.match(rf"--{setting.flag}( |,|$)", line)]
            after = itertools.takewhile(lambda line: not line.startswith("--"), box[at + 1 :])
            told = re.sub(r"^[^ ]*} ", "", re.split(r"\((?:default|repeatable)", " ".join(after))[0])
            assert len(told) > 8, f"--{setting.flag} is not explained"


def test_none_means_no_value_only_where_there_may_be_none():
    flags = ["--model.core", "none", "--scheme.lock=none", "--optimizer.max-grad-norm", "none", "--stop-at=None"]
    config = read_config(["tmaze-a3c-lstm", *flags])
    assert (config.model.core, config.scheme.lock) == ("none", "none")
    assert config.optimizer.max_grad_norm is None
    assert config.stop_at is None


def test_a_type_in_words() -> None:
    assert kind(Algorithm) == "an Algorithm"
    assert kind(ModelSpec | None) == "a ModelSpec or none"
    assert kind(str | Callable[[], Any]) == "a text or a function"
