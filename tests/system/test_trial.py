"""What ends a process is found out in a copy of it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from polyactor.system.trial import fate

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="nothing is tried elsewhere")


WITHOUT_END = """
import subprocess, sys, time
from pathlib import Path
from polyactor.system import trial
from polyactor.system.trial import fate
pid = Path(sys.argv[1])
def hangs(pid):
    pid.write_text(str(subprocess.Popen(["sleep", "100"]).pid))
    time.sleep(100)
assert fate(lambda: hangs(pid.with_name("brief")), 0.2, lambda: False) == ""
assert fate(lambda: hangs(pid), 100.0, lambda: pid.exists() and pid.read_text() != "") == ""
trial.lead_group = lambda: time.sleep(100)  # it is ended before it gets that far
assert fate(lambda: None, 100.0, lambda: True) == ""
"""


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
    """In a process of its own: a copy of this one, in which threads of other tests may hold locks, may not get far."""
    subprocess.run([sys.executable, "-c", WITHOUT_END, str(tmp_path / "pid")], check=True, timeout=50)
    status = Path(f"/proc/{(tmp_path / 'pid').read_text()}/stat")
    assert not status.exists() or status.read_text().rpartition(")")[2].split()[0] == "Z"
