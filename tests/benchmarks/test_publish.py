"""Every figure of docs/results.md and of its pages comes from a summary that is kept in results/."""

from __future__ import annotations

import json
import re
from pathlib import Path
from types import ModuleType

import pytest

from polyactor.settings.presets import PRESETS
from tests.helpers.scripts import script

ROOT = Path(__file__).parents[2]
DEFINED = {
    "torch 2.13.0": "pinned in requirements.lock",
    "last 100": "what a score is the mean of",
    "100 fresh": "games that confirm a score",
    "to a mean of 18": "the target of Pong, in the tables' commands",
    "of a game is 21": "a rule of Pong",
    "Seeds 1 and 2": "the folders named behind it",
    "1,000,000 steps": "a flag in the command below it",
    "with 2 workers": "a flag in the command below it",
    "3 seeds": "a flag in the command below it",
    "corridor of 10": "the preset's environment",
    "than\n0.5": "the chance of a guess between two",
    "500,000 steps": "the preset's steps",
}
"""Numbers that nobody measured, with where each is from."""


@pytest.fixture
def publish(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    return script("publish", monkeypatch)


def test_the_tables_are_those_of_the_kept_summaries(publish: ModuleType) -> None:
    text = publish.PAGE.read_text()
    assert set(publish.TABLES) == {name for _, name, _ in publish.MARKED.findall(text)}
    assert publish.written(text) == text, "run: python benchmarks/publish.py"


def test_there_is_no_other_number(publish: ModuleType) -> None:
    text = publish.MARKED.sub("", publish.PAGE.read_text())
    text = re.sub(r"```.*?```|`[^`]*`|\]\([^)]*\)", "", text, flags=re.DOTALL)
    for known in DEFINED:
        assert known in text, known
        text = text.replace(known, "")
    names = r"A[23]C|bf16|fp32|-v\d|AVX512-BF16"
    assert re.findall(r"[^.\n]*\d[^.\n]*", re.sub(names, "", text)) == []


def test_a_changed_summary_is_a_changed_table(
    publish: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = publish.PAGE.read_text()
    kept = tmp_path / "cartpole-a2c" / "seed-1"
    kept.mkdir(parents=True)
    summary = json.loads((publish.RESULTS / "cartpole-a2c" / "seed-1" / "summary.json").read_text())
    (kept / "summary.json").write_text(json.dumps(summary | {"target_at_steps": 123_456}))
    monkeypatch.setitem(publish.TABLES, "small", publish.small)
    real = publish.summaries

    def summaries(*folders: str) -> list[object]:
        if folders == ("cartpole-a2c",):
            return [json.loads((kept / "summary.json").read_text())]
        return list(real(*folders))

    monkeypatch.setattr(publish, "summaries", summaries)
    assert "123,456" in publish.written(text)


def test_each_row_that_is_through_has_its_page_and_is_told_by_presets(publish: ModuleType) -> None:
    for name in publish.finished():
        assert (publish.PAGES / f"{name}.md").read_text() == publish.page(name), "run: python benchmarks/publish.py"
        assert (publish.PAGES / f"{name}.png").is_file()
        if name in PRESETS:
            assert PRESETS[name].measured == publish.measured(name)
    pages = {path.stem for path in publish.PAGES.glob("*.md")} if publish.PAGES.is_dir() else set()
    assert pages == set(publish.finished())


def test_published_curves_are_points_in_order(publish: ModuleType) -> None:
    kept = json.loads((publish.RESULTS / "published.json").read_text())
    assert kept["source"]
    for curves in kept["curves"].values():
        for points in curves.values():
            assert [x for x, _ in points] == sorted({x for x, _ in points})
    ours = publish.published_curves("BreakoutNoFrameskip-v4", "a2c")
    assert list(ours) == ["openai/baselines a2c, mean of 6"]
    assert publish.published_curves("CartPole-v1", "a2c") == {}
