"""What a run writes can be read at any moment, and after any crash."""

from __future__ import annotations

import errno
import gc
import json
import math
import os
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from polyactor.errors import OutOfResources, RunDirectoryError
from polyactor.storage import metrics_log
from polyactor.storage.metrics_log import MetricsLog, read_rows
from polyactor.system.host import versions
from tests.helpers.programs import environment

KEYS = (
    "agent_steps updates games games_per_worker wall_s steps_per_s score_mean100 score_last length_mean100 policy_lag "
    "gradient_staleness grad_norm entropy value_loss policy_loss learning_rate rss_mb"
)


def strict(line: str) -> dict[str, Any]:
    """JSON as the standard has it: no NaN."""
    row: dict[str, Any] = json.loads(line, parse_constant=lambda name: pytest.fail(name))
    return row


def scalars(directory: Path, tag: str) -> list[tuple[int, float]]:
    counters = EventAccumulator(str(directory))
    counters.Reload()
    return [(point.step, point.value) for point in counters.Scalars(tag)]


def test_a_row_is_one_line_of_strict_json_in_the_order_given(tmp_path: Path) -> None:
    values: dict[str, Any] = {key: number + 0.5 for number, key in enumerate(KEYS.split())}
    values |= {"agent_steps": 640, "games_per_worker": [3, 4], "score_last": None}
    values |= {"entropy": math.nan, "grad_norm": math.inf, "value_loss": np.float32(0.25), "updates": np.int64(2**60)}
    with MetricsLog(tmp_path) as log:
        log.row(values)
        (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()  # already there: nothing waits for close
    row = strict(line)
    assert list(row) == KEYS.split()
    assert row["games_per_worker"] == [3, 4]
    assert row["entropy"] is row["grad_norm"] is row["score_last"] is None
    assert row["value_loss"] == 0.25
    assert row["updates"] == 2**60
    assert read_rows(tmp_path / "metrics.jsonl") == [row]


def test_a_row_without_agent_steps_writes_nothing(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log, pytest.raises(KeyError, match="agent_steps"):
        log.row({"entropy": 1.0})
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_tensorboard_reads_the_scalars_against_agent_steps(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for steps in (100, 200):
            log.row({"agent_steps": steps, "entropy": steps / 400, "grad_norm": math.nan, "games_per_worker": [1]})
            assert scalars(tmp_path, "entropy")[-1] == (steps, steps / 400)  # on disk before close
    assert scalars(tmp_path, "entropy") == [(100, 0.25), (200, 0.5)]
    counters = EventAccumulator(str(tmp_path))
    counters.Reload()
    assert counters.Tags()["scalars"] == ["entropy"]


def test_tensorboard_of_a_resumed_run_replaces_what_was_lost(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for steps in (100, 200, 300):
            log.row({"agent_steps": steps, "entropy": 1.0})
    with MetricsLog(tmp_path, append=True) as log:
        for steps in (200, 300):
            log.row({"agent_steps": steps, "entropy": 2.0})
    assert scalars(tmp_path, "entropy") == [(100, 1.0), (200, 2.0), (300, 2.0)]


def test_an_event_has_time_name_reason_and_fields(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        log.event("worker_lost", "signal 9", worker=1, path=tmp_path, loss=math.nan)
        log.event("stopping")
    first, second = (strict(line) for line in (tmp_path / "events.jsonl").read_text().splitlines())
    assert list(first) == ["time", "event", "reason", "worker", "path", "loss"]
    assert first["event"] == "worker_lost"
    assert first["reason"] == "signal 9"
    assert first["path"] == str(tmp_path)
    assert first["loss"] is None
    assert second["reason"] == ""
    assert abs(datetime.fromisoformat(second["time"]) - datetime.now(UTC)) < timedelta(minutes=1)


def test_summary_is_replaced_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with MetricsLog(tmp_path) as log:
        log.summary({"status": "stopped", "score_mean100": math.nan, "versions": versions()})
        assert strict((tmp_path / "summary.json").read_text())["score_mean100"] is None

        def full(*_: object) -> None:
            raise OSError(errno.ENOSPC, "No space left on device")

        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", full)
            with pytest.raises(OutOfResources, match=r"cannot write .*summary\.json: No space"):
                log.summary({"status": "done"})
        assert strict((tmp_path / "summary.json").read_text())["status"] == "stopped"
        assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("torn", [b"", b'{"agent_steps": 3', b'{"agent_steps": 3}', b"\xff\x00"])
def test_append_drops_half_a_line_and_readers_do_not_see_it(tmp_path: Path, torn: bytes) -> None:
    with MetricsLog(tmp_path) as log:
        log.row({"agent_steps": 1})
        log.row({"agent_steps": 2})
        log.event("stopping")
    for name in ("metrics.jsonl", "events.jsonl"):
        with open(tmp_path / name, "ab") as file:
            file.write(torn)
    assert [row["agent_steps"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2]
    with MetricsLog(tmp_path, append=True) as log:
        log.row({"agent_steps": 4})
        log.event("checkpoint_saved")
    assert [row["agent_steps"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 4]
    assert [row["event"] for row in read_rows(tmp_path / "events.jsonl")] == ["stopping", "checkpoint_saved"]


def test_append_to_a_file_that_is_half_a_line_or_not_there(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"agent')
    with MetricsLog(tmp_path, append=True) as log:
        log.row({"agent_steps": 1})
    assert read_rows(tmp_path / "metrics.jsonl") == [{"agent_steps": 1}]


def test_a_new_run_does_not_overwrite_the_rows_of_another(tmp_path: Path) -> None:
    with MetricsLog(tmp_path):
        pass
    with MetricsLog(tmp_path) as log:  # nothing was reported: nothing is lost
        log.row({"agent_steps": 1})
    with pytest.raises(RunDirectoryError, match="already has rows of another run"):
        MetricsLog(tmp_path)
    assert read_rows(tmp_path / "metrics.jsonl") == [{"agent_steps": 1}]


def test_read_rows_of_nothing_and_of_a_damaged_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    assert read_rows(path) == []
    path.write_text("")
    assert read_rows(path) == []
    for line in ("{", "[1]", ""):
        path.write_text(f'{{"a": 1}}\n{line}\n{{"a": 2}}\n')
        with pytest.raises(RunDirectoryError, match=r"metrics\.jsonl is damaged: line 2 is not a JSON object"):
            read_rows(path)


def test_a_disk_that_fills_up_in_mid_line_leaves_whole_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    with MetricsLog(tmp_path) as log:
        log.row({"agent_steps": 1, "entropy": 1.0})
        calls: list[int] = []

        def fills_up(descriptor: int, data: bytes) -> int:
            calls.append(descriptor)
            if len(calls) > 1:
                raise OSError(errno.ENOSPC, "No space left on device")
            return real(descriptor, data[:5])

        with monkeypatch.context() as patch:
            patch.setattr(metrics_log.os, "write", fills_up)
            log.row({"agent_steps": 2, "entropy": 1.0})
        assert (tmp_path / "metrics.jsonl").read_text() == '{"agent_steps": 1, "entropy": 1.0}\n'
        assert scalars(tmp_path, "entropy") == [(1, 1.0)]
        log.row({"agent_steps": 3, "entropy": 1.0})
    assert [row["agent_steps"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1, 2, 3]
    assert [step for step, _ in scalars(tmp_path, "entropy")] == [1, 2, 3]


def full(*_: object) -> int:
    raise OSError(errno.ENOSPC, "No space left on device")


def test_what_waits_for_room_comes_in_order_and_the_oldest_goes_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metrics_log, "MOST_WAITING", 5)
    with MetricsLog(tmp_path) as log:
        log.row({"agent_steps": 0, "entropy": 0.0})
        with monkeypatch.context() as patch:
            patch.setattr(metrics_log.os, "write", full)
            for step in range(1, 9):
                log.row({"agent_steps": step, "entropy": 0.0})
            log.event("stopping")
        assert len(read_rows(tmp_path / "metrics.jsonl")) == 1
        log.row({"agent_steps": 9, "entropy": 0.0})
    assert [row["agent_steps"] for row in read_rows(tmp_path / "metrics.jsonl")] == [0, 5, 6, 7, 8, 9]
    assert [step for step, _ in scalars(tmp_path, "entropy")] == [0, 5, 6, 7, 8, 9]
    events = read_rows(tmp_path / "events.jsonl")
    assert [event["event"] for event in events] == ["stopping", "lines_dropped", "lines_dropped"]
    assert [(event["file"], event["lines"]) for event in events[1:]] == [("metrics.jsonl", 4), ("TensorBoard", 4)]


def test_what_waits_is_written_at_the_end_if_there_is_room_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with MetricsLog(tmp_path) as log, monkeypatch.context() as patch:
        patch.setattr(metrics_log.os, "write", full)
        log.row({"agent_steps": 1, "entropy": 0.0})
        patch.undo()
    assert [row["agent_steps"] for row in read_rows(tmp_path / "metrics.jsonl")] == [1]
    with MetricsLog(tmp_path / "b") as log, monkeypatch.context() as patch:
        patch.setattr(
            metrics_log.os, "write", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error"))
        )
        with pytest.raises(RunDirectoryError, match="Input/output error"):  # a disk that is broken is not waited for
            log.row({"agent_steps": 1, "entropy": 0.0})
        patch.undo()


def test_rows_after_the_checkpoint_are_dropped_since_they_come_again(tmp_path: Path) -> None:
    with MetricsLog(tmp_path) as log:
        for steps in (100, 200, 300):
            log.row({"agent_steps": steps})
        log.event("checkpoint_saved")
    with open(tmp_path / "metrics.jsonl", "a") as file:
        file.write('{"agent_steps": 40')
    with MetricsLog(tmp_path, append=True, steps=200) as log:
        assert log.taken_back == 1
        log.row({"agent_steps": 250})
    assert [row["agent_steps"] for row in read_rows(tmp_path / "metrics.jsonl")] == [100, 200, 250]
    assert [event["event"] for event in read_rows(tmp_path / "events.jsonl")] == ["checkpoint_saved"]
    before = (tmp_path / "metrics.jsonl").stat().st_ino
    with MetricsLog(tmp_path, append=True, steps=250) as log:
        assert log.taken_back == 0
    assert (tmp_path / "metrics.jsonl").stat().st_ino == before  # nothing to drop: not written anew


def test_a_link_or_a_pipe_in_place_of_the_rows_is_not_written_through(tmp_path: Path) -> None:
    elsewhere = tmp_path / "elsewhere"
    elsewhere.write_text("mine")
    for name in ("metrics.jsonl", "events.jsonl"):
        for make in (lambda path: path.symlink_to(elsewhere), os.mkfifo):
            run = tmp_path / f"{name}-{make.__name__}"
            run.mkdir()
            make(run / name)
            with pytest.raises(RunDirectoryError, match="cannot write"):
                MetricsLog(run, append=True, steps=1)
    assert elsewhere.read_text() == "mine"


def test_killed_while_writing_leaves_whole_lines(tmp_path: Path) -> None:
    script = (
        "import os, signal, sys, threading; from pathlib import Path\n"
        "from polyactor.storage.metrics_log import MetricsLog\n"
        "log = MetricsLog(Path(sys.argv[1]))\n"
        "threading.Timer(0.2, lambda: os.kill(os.getpid(), signal.SIGKILL)).start()\n"
        "step = 0\n"
        "while True: step += 1; log.row({'agent_steps': step, 'games_per_worker': [step] * 50})\n"
    )
    code = subprocess.run([sys.executable, "-c", script, tmp_path], env=environment(), timeout=60).returncode
    assert code == -9
    data = (tmp_path / "metrics.jsonl").read_bytes()
    rows = read_rows(tmp_path / "metrics.jsonl")
    assert data.endswith(b"\n")
    assert [row["agent_steps"] for row in rows] == list(range(1, len(rows) + 1))
    assert rows


def test_a_directory_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(RunDirectoryError, match=r"cannot write .*run"):
        MetricsLog(tmp_path / "run")


def test_close_twice_and_no_descriptor_left_open(tmp_path: Path) -> None:
    gc.collect()  # what earlier tests left open is not to be closed meanwhile
    before = len(os.listdir("/proc/self/fd"))
    log = MetricsLog(tmp_path)
    assert len(os.listdir("/proc/self/fd")) == before + 3
    log.close()
    log.close()
    assert len(os.listdir("/proc/self/fd")) == before
