"""What ends a process is found out in a copy of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from polyactor.system.trial import fate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is tried elsewhere")


def never() -> bool:
    return False


def test_what_ends_a_process_is_named_and_no_exception_does() -> None:
    said: list[str] = []
    assert fate(os.abort, 5.0, never) == "SIGABRT"
    assert fate(lambda: os._exit(3), 5.0, never) == "exit code 3"
    assert fate(lambda: 1 // 0, 5.0, never) == ""
    assert fate(lambda: sys.exit(3), 5.0, never) == ""
    assert fate(lambda: said.append("here"), 5.0, never) == ""
    assert not said, "it was a copy of this process"


def test_work_without_end_is_ended_with_all_that_it_has_begun(tmp_path: Path) -> None:
    def hangs() -> None:
        (tmp_path / "pid").write_text(str(subprocess.Popen(["sleep", "100"]).pid))
        time.sleep(100)

    start = time.monotonic()
    assert fate(hangs, 0.2, never) == ""
    assert fate(hangs, 100.0, (tmp_path / "pid").exists) == ""
    assert time.monotonic() - start < 50
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
