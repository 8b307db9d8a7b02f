"""Who ends a worker ends what it has begun, and nobody else's processes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from polyactor.system.child_processes import end_noted, end_worker, noted, noting
from tests.helpers.living import alive
from tests.helpers.programs import program
from tests.helpers.waiting import nap, until

pytestmark = pytest.mark.skipif(
    not Path("/proc/thread-self/children").exists(), reason="the kernel does not list children"
)
LASTS = ["sleep", "600"]
GROUP = """
import os, subprocess, sys, time
os.setpgid(0, 0)
begun = [subprocess.Popen(["sleep", "600"]), subprocess.Popen(["sleep", "600"], process_group=0)]
begun += [subprocess.Popen(["sleep", "600"], start_new_session=True)]
orphan = subprocess.run(["sh", "-c", "sleep 600 >&- & echo $!"], stdout=subprocess.PIPE, text=True).stdout
print(*[each.pid for each in begun], orphan.strip(), flush=True)
time.sleep(600)
"""
EXITS = """
import subprocess, sys
from polyactor.system.child_processes import noting
other = subprocess.Popen(["sleep", "600"])
with noting(set()):
    begun = subprocess.Popen(["sh", "-c", "sleep 600 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    grandchild = begun.stdout.readline().strip()
print(other.pid, begun.pid, grandchild, flush=True)
"""
LATER = """
import subprocess, sys, threading
from polyactor.system.child_processes import Beginnings
def begin(found):
    found.append(subprocess.Popen(["sleep", "600"]))
def helped(found):
    helper = threading.Thread(target=begin, args=[found])
    helper.start()
    helper.join()
theirs, begun = [], []
if sys.argv[1] == "alone":
    begin(theirs)
    helped(theirs)
else:
    go, done = threading.Event(), threading.Event()
    threading.Thread(target=lambda: (go.wait(), begin(theirs), done.set())).start()
both = Beginnings(), Beginnings()
(begin if sys.argv[1] == "alone" else len)(begun)
(helped if sys.argv[1] == "alone" else len)(begun)
if sys.argv[1] != "alone":
    go.set()
    done.wait()
both[0].end()
if sys.argv[1] == "alone":
    begin(begun)  # the other is noted at the end of the process
    both[1].note()
both[1].end()
begin(theirs)
both[0].end()
print(*[each.pid for each in begun], flush=True)
print(*[each.pid for each in theirs], flush=True)
"""
STOPS = """
import os, subprocess, sys
from polyactor.system.child_processes import stopping_too
os.setpgid(0, 0)
worker = subprocess.Popen(["sleep", "600"], start_new_session=True)
with stopping_too(lambda: [worker.pid, 0, os.getpid()]):
    print(worker.pid, flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def sleeper() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(LASTS) as process:
        yield process
        process.kill()


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@pytest.mark.fault("P14")
@pytest.mark.parametrize("killed_before", [False, True])
def test_with_a_worker_its_group_ends(killed_before: bool, tmp_path: Path, sleeper: subprocess.Popen[bytes]) -> None:
    with program(tmp_path / "worker.py", GROUP) as worker:
        assert worker.stdout is not None
        child, grouped, apart, orphan = map(int, worker.stdout.readline().split())
        try:
            if killed_before:  # what leads a group of its own is found by who began it, who lives no more
                worker.kill()
                worker.wait()
            end_worker(worker.pid)
            assert worker.wait() == -signal.SIGKILL
            ends = (child, orphan) if killed_before else (child, orphan, grouped, apart)
            until(lambda: not any(map(alive, ends)), nap)
            assert alive(apart) == alive(grouped) == killed_before
        finally:
            for pid in filter(alive, (apart, grouped)):
                os.kill(pid, signal.SIGKILL)
    assert sleeper.poll() is None


def test_a_process_that_leads_no_group_is_no_worker(sleeper: subprocess.Popen[bytes]) -> None:
    end_worker(sleeper.pid)
    end_worker(0)
    assert sleeper.poll() is None


@pytest.mark.fault("P14")
def test_what_an_environment_has_begun_ends_with_the_program(tmp_path: Path) -> None:
    with program(tmp_path / "run.py", EXITS) as run:
        assert run.stdout is not None
        other, begun, grandchild = map(int, run.stdout.readline().split())
        try:
            assert run.wait(60) == 0
            until(lambda: not alive(begun) and not alive(grandchild), nap)
            assert alive(other)
        finally:
            os.kill(other, signal.SIGKILL)


@pytest.mark.fault("P14")
@pytest.mark.parametrize("program_is", ["alone", "threaded"])
def test_what_begins_in_any_call_or_thread_ends_with_a_program_that_has_none_of_its_own(
    program_is: str, tmp_path: Path
) -> None:
    with program(tmp_path / "run.py", LATER, program_is) as run:
        assert run.stdout is not None
        begun, theirs = (list(map(int, run.stdout.readline().split())) for _ in range(2))
        try:
            assert run.wait(60) == 0
            until(lambda: not any(map(alive, begun)), nap, 10)
            assert all(map(alive, theirs))
            assert (len(begun), len(theirs)) == ((3, 3) if program_is == "alone" else (0, 2))
        finally:
            for pid in filter(alive, (*begun, *theirs)):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.fault("P14")
def test_what_fails_ends_what_it_has_begun_and_nothing_else(sleeper: subprocess.Popen[bytes]) -> None:
    begun, kept = [], set[int]()

    def fail() -> None:
        with noting(kept):
            begun.append(subprocess.Popen(LASTS))
            raise OSError("no licence")

    with pytest.raises(OSError, match="no licence"):
        fail()
    assert begun[0].wait(10) == -signal.SIGKILL
    assert not kept
    with noting(kept):
        begun.append(subprocess.Popen(LASTS))
    assert kept == {begun[1].pid}
    assert kept <= noted
    end_noted(kept | {sleeper.pid + 10**6, os.getppid()})  # no children of this process
    assert begun[1].wait(10) == -signal.SIGKILL
    assert not kept & noted
    assert sleeper.poll() is None


def test_workers_stop_and_go_on_with_the_run(tmp_path: Path) -> None:
    """At Ctrl-Z, which a terminal sends to the run's own process group alone."""
    with program(tmp_path / "run.py", STOPS) as run:
        assert run.stdout is not None
        worker = int(run.stdout.readline())
        try:
            for _ in range(2):
                run.send_signal(signal.SIGTSTP)
                until(lambda: state(run.pid) == state(worker) == "T", nap)
                run.send_signal(signal.SIGCONT)
                until(lambda: state(run.pid) != "T" and state(worker) != "T", nap)
        finally:
            os.kill(worker, signal.SIGKILL)


def test_elsewhere_than_on_linux_nothing_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("polyactor.system.child_processes.children", set)
    monkeypatch.setattr("polyactor.system.child_processes._processes", dict)
    kept = set[int]()
    with noting(kept):
        process = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True)
    end_noted()
    assert process.poll() is None
    end_worker(process.pid)
    assert process.wait(10) == -signal.SIGKILL
    assert not kept


SIGNALLED = """
import subprocess, time
from polyactor.system.child_processes import ended_by_signal, noting
with ended_by_signal(), noting(set()):
    begun = subprocess.Popen(["sleep", "600"])
with ended_by_signal():
    print(begun.pid, flush=True)
    time.sleep(600)
"""


@pytest.mark.fault("P14")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_what_an_environment_has_begun_ends_with_a_program_that_a_signal_ends(
    number: signal.Signals, tmp_path: Path
) -> None:
    with program(tmp_path / "run.py", SIGNALLED) as run:
        assert run.stdout is not None
        begun = int(run.stdout.readline())
        run.send_signal(number)
        assert run.wait(60) == -number
        until(lambda: not alive(begun), nap)
