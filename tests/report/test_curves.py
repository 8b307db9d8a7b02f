"""The figure says what the files say."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import matplotlib.figure
import pytest
from matplotlib.image import imread

from polyactor.errors import UsageError
from polyactor.report.curves import curve

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def figures(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The figures drawn, to look into."""
    drawn: list[Any] = []

    class Watched(matplotlib.figure.Figure):
        def __init__(self, *arguments: Any, **options: Any) -> None:
            super().__init__(*arguments, **options)
            drawn.append(self)

    monkeypatch.setattr(matplotlib.figure, "Figure", Watched)
    return drawn


def make(root: Path, name: str, *, total: int = 1000, lags: dict[str, float] | None = None, **config: Any) -> Path:
    run = root / name
    run.mkdir()
    rows = [
        {"agent_steps": total * i // 10, "wall_s": 60.0 * i, "score_mean100": float(i)}
        | {key: lag * i for key, lag in (lags or {}).items()}
        for i in range(1, 11)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    if config:
        (run / "config.json").write_text(json.dumps(config))
    return run


def lines(panel: Any) -> dict[str, tuple[list[float], list[float]]]:
    return {
        line.get_label(): (list(line.get_xdata()), list(line.get_ydata()))
        for line in panel.lines
        if not line.get_label().startswith("_")
    }


def legend(figure: Any) -> list[str]:
    return [text.get_text() for text in figure.legends[0].get_texts()]


def test_one_run_over_steps_and_minutes(tmp_path: Path, figures: list[Any]) -> None:
    config = {"preset": "a3c", "algorithm": {"name": "a2c"}, "scheme": "hogwild", "env": "CartPole-v1", "seed": 0}
    out = tmp_path / "new" / "curve.png"
    assert curve([make(tmp_path, "run", **config, stop_at=8.5)], out) == out
    height, width, _ = imread(out).shape
    assert (width, height) == (1600, 640)
    (figure,) = figures
    steps, minutes = figure.axes
    label = "a3c · hogwild · seed 0"
    assert lines(steps)[label] == ([100.0 * i for i in range(1, 11)], [float(i) for i in range(1, 11)])
    assert lines(minutes)[label] == ([float(i) for i in range(1, 11)], [float(i) for i in range(1, 11)])
    assert lines(steps)["stop at 8.5"][1] == [8.5, 8.5]
    assert legend(figure) == [label, "stop at 8.5"]
    assert figure.get_suptitle() == "CartPole-v1"
    assert (steps.get_xlabel(), minutes.get_xlabel()) == ("agent steps", "wall time (minutes)")


def test_several_runs_differ_in_the_legend_and_large_steps_are_millions(tmp_path: Path, figures: list[Any]) -> None:
    same = {"algorithm": "ppo", "scheme": {"name": "sync"}, "env": {"id": "A-v0"}, "seed": 1}
    runs = [
        make(tmp_path, "one", **same, total=2_000_000),
        make(tmp_path, "two", **same),
        make(tmp_path, "three", **(same | {"env": "B-v0"})),
        make(tmp_path, "four"),
    ]
    curve(runs, tmp_path / "curve.png")
    (figure,) = figures
    assert legend(figure) == [
        "ppo · sync · A-v0 · seed 1 (one)",
        "ppo · sync · A-v0 · seed 1 (two)",
        "ppo · sync · B-v0 · seed 1",
        "four",
    ]
    assert figure.get_suptitle() == "A-v0, B-v0"
    assert figure.axes[0].get_xlabel() == "agent steps (millions)"
    assert lines(figure.axes[0])["ppo · sync · A-v0 · seed 1 (one)"][0][-1] == 2.0


def curves(panel: Any) -> list[tuple[str, str, list[float]]]:
    """Colour, line style and heights of the lines that have a curve, without the pale ones behind them."""
    return [
        (line.get_color(), line.get_linestyle(), list(line.get_ydata()))
        for line in panel.lines
        if line.get_alpha() is None and len(line.get_ydata())
    ]


def test_both_lags_of_every_run_have_a_panel_in_the_runs_colours(tmp_path: Path, figures: list[Any]) -> None:
    config = {"algorithm": "a2c", "env": "A-v0"}
    still = make(tmp_path, "still", lags={"policy_lag": 0, "gradient_staleness": 0}, scheme="sync", **config)
    async_ = make(tmp_path, "async", lags={"policy_lag": 2, "gradient_staleness": 0.5}, scheme="hogwild", **config)
    unmeasured = make(tmp_path, "unmeasured", scheme="foreign", **config)
    curve([still, async_, unmeasured], tmp_path / "curve.png")
    (figure,) = figures
    scores, _, lags = figure.axes
    (blue, _, _), (red, _, _), _ = curves(scores)
    assert curves(lags) == [
        (blue, "-", [0.0] * 10),
        (red, "-", [2.0 * i for i in range(1, 11)]),
        (blue, "--", [0.0] * 10),  # matplotlib's word for every pattern of dashes
        (red, "--", [0.5 * i for i in range(1, 11)]),
    ]
    assert lags.get_ylim()[0] < 0  # the zeros can be seen
    assert lags.get_ylim()[1] > 20  # and so can the highest
    assert (lags.get_xlabel(), lags.get_ylabel()) == ("agent steps", "updates behind")
    assert [text.get_text() for text in lags.get_legend().get_texts()] == ["policy lag", "gradient staleness"]
    assert legend(figure) == ["a2c · sync", "a2c · hogwild", "a2c · foreign"]


def test_lags_that_are_all_0_are_said_in_words_and_unmeasured_ones_not_at_all(
    tmp_path: Path, figures: list[Any]
) -> None:
    both, one, none = (
        make(tmp_path, "both", lags={"policy_lag": 0, "gradient_staleness": 0}),
        make(tmp_path, "one", lags={"gradient_staleness": 0}),
        make(tmp_path, "none"),
    )
    for run in (both, one, none):
        curve([run], tmp_path / "curve.png")
    assert [len(figure.axes) for figure in figures] == [2, 2, 2]
    assert [legend(figure)[1:] for figure in figures] == [
        ["policy lag, gradient staleness: 0 throughout"],
        ["gradient staleness: 0 throughout"],
        [],
    ]


def test_a_lag_is_smoothed_and_shown_pale_as_reported(tmp_path: Path, figures: list[Any]) -> None:
    run = make(tmp_path, "run")
    reported = [float(i % 2) for i in range(200)]
    rows = [
        {"agent_steps": i + 1, "wall_s": i, "score_mean100": 0, "policy_lag": lag} for i, lag in enumerate(reported)
    ]
    (run / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    curve([run], tmp_path / "curve.png")
    pale, line, *_ = (list(line.get_ydata()) for line in figures[0].axes[2].lines)
    assert pale == reported
    assert len(line) == 200
    assert all(0.4 < lag < 0.6 for lag in line[5:-5])


def test_evaluations_come_from_rows_and_events(tmp_path: Path, figures: list[Any]) -> None:
    run = make(tmp_path, "run")
    with open(run / "metrics.jsonl", "a") as file:
        file.write('{"agent_steps": 1100, "wall_s": 660, "evaluation_score": 12}\n{"agent_st')
    (run / "events.jsonl").write_text(
        '{"event": "worker_lost"}\n{"event": "evaluated", "agent_steps": 250, "evaluation_score": 7}\n'
    )
    curve([run], tmp_path / "curve.png")
    points = [
        sorted(tuple(point) for collection in panel.collections for point in collection.get_offsets().tolist())
        for panel in figures[0].axes
    ]
    assert points == [[(250, 7), (1100, 12)], [(2, 7), (11, 12)]]
    assert legend(figures[0]) == ["run", "evaluation"]


def test_rows_that_a_resumed_run_wrote_anew_replace_the_lost_ones(tmp_path: Path, figures: list[Any]) -> None:
    run = make(tmp_path, "run")
    with open(run / "metrics.jsonl", "a") as file:
        for steps in (800, 950):
            file.write(json.dumps({"agent_steps": steps, "wall_s": steps, "score_mean100": 50}) + "\n")
    curve([run], tmp_path / "curve.png")
    steps, scores = lines(figures[0].axes[0])["run"]
    assert steps == [100, 200, 300, 400, 500, 600, 700, 800, 950]
    assert scores == [1, 2, 3, 4, 5, 6, 7, 50, 50]


def test_nothing_to_plot_is_one_sentence(tmp_path: Path) -> None:
    run = make(tmp_path, "run")
    cases = {
        "name at least one run": [],
        "does not exist": [run, tmp_path / "nowhere"],
        "has no rows yet": [make(tmp_path, "empty")],
        "no game has finished": [make(tmp_path, "unscored")],
    }
    (tmp_path / "empty" / "metrics.jsonl").write_text("")
    (tmp_path / "unscored" / "metrics.jsonl").write_text('{"agent_steps": 5, "score_mean100": null}\n')
    for match, runs in cases.items():
        with pytest.raises(UsageError, match=match) as caught:
            curve(runs, tmp_path / "curve.png")
        assert "\n" not in str(caught.value)
    assert not (tmp_path / "curve.png").exists()


def test_missing_columns_odd_configs_and_one_row_still_plot(tmp_path: Path, figures: list[Any]) -> None:
    run = make(tmp_path, "run")
    (run / "metrics.jsonl").write_text('{"agent_steps": 5, "score_mean100": 1}\n')
    for config in ("[]", "{", '{"seed": null, "preset": [], "stop_at": "x", "env": {"name": null}}'):
        (run / "config.json").write_text(config)
        curve([run], tmp_path / "curve.png")
    assert [legend(figure) for figure in figures] == [["run"]] * 3


@pytest.mark.fault("S1")
@pytest.mark.parametrize("name", ["\udcc3\udcbc", "a$b_$c", "wide\u3000space"])
def test_any_name_that_a_path_may_have_is_drawn(name: str, tmp_path: Path) -> None:
    run = make(tmp_path, "run", preset=name, env=f"/{name}/file.py:E")
    assert curve([run], tmp_path / "curve.png").exists()


def test_pyplot_and_its_global_state_stay_out(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from polyactor.report.curves import curve\n"
        "assert 'matplotlib' not in sys.modules\n"
        "curve([Path(sys.argv[1])], Path(sys.argv[2]))\n"
        "assert not {'torch', 'matplotlib.pyplot'} & set(sys.modules)\n"
    )
    command = [sys.executable, "-c", script, str(make(tmp_path, "run")), str(tmp_path / "curve.png")]
    done = subprocess.run(command, env={"PYTHONPATH": ":".join(sys.path)}, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
