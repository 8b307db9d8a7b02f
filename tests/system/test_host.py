"""What is said of the host: versions, processor, memory."""

from __future__ import annotations

import errno
import json
import subprocess
import sys
from pathlib import Path

import pytest

from polyactor.system.host import cpu_name, resident_mb, versions
from tests.helpers.programs import environment


def test_versions_and_cpu_name_without_importing_torch() -> None:
    script = (
        "import json, sys, polyactor.system.host as m; v = m.versions(); assert 'torch' not in sys.modules\n"
        "print(json.dumps([v, m.cpu_name()]))"
    )
    done = subprocess.run([sys.executable, "-c", script], env=environment(), capture_output=True, text=True, timeout=60)
    found, name = json.loads(done.stdout)
    assert list(found) == ["python", "torch", "gymnasium", "polyactor"]
    assert found["python"] == ".".join(str(part) for part in sys.version_info[:3])
    assert found["torch"][0].isdigit()
    assert name == cpu_name() != ""


def test_a_process_that_uses_mujoco_says_which(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mujoco", sys)
    monkeypatch.setattr("importlib.metadata.version", lambda package: f"{package} 1")
    assert versions()["mujoco"] == "mujoco 1"


def test_a_version_that_cannot_be_read_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(package: str) -> str:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr("importlib.metadata.version", fails)
    assert versions()["torch"] is None


def test_resident_mb_sums_a_process_and_all_it_started() -> None:
    holds = "print(flush=True); input(); block = b'x' * (64 << 20); print(flush=True); input()"
    starts = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {holds!r}])"
    child = subprocess.Popen(
        [sys.executable, "-c", starts], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1
    )
    assert child.stdin is not None
    assert child.stdout is not None
    try:
        child.stdout.readline()
        before = resident_mb(child.pid)
        child.stdin.write("\n")
        child.stdout.readline()
        assert 50 < resident_mb(child.pid) - before < 78  # who starts or ends meanwhile shares Python's own pages
    finally:
        child.communicate("\n", timeout=30)
    assert resident_mb(child.pid) == 0


@pytest.mark.skipif(not Path("/proc/self/smaps_rollup").exists(), reason="other systems do not say what is shared")
def test_resident_mb_counts_shared_memory_once() -> None:
    forks = "import mmap, os; m = mmap.mmap(-1, 64 << 20); m.write(b'x' * (64 << 20)); pid = os.fork(); "
    forks += "m.seek(0); m.read(64 << 20); print(flush=True); input() if pid else os.read(0, 1)"
    child = subprocess.Popen([sys.executable, "-c", forks], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    try:
        child.stdout.readline()
        child.stdout.readline()
        assert 64 < resident_mb(child.pid) < 100
    finally:
        child.kill()
        child.communicate(timeout=30)
