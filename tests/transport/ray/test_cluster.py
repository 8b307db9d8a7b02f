"""A cluster of one's own is alone and leaves nothing; others are joined only where they tell friend from foe."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

module = pytest.importorskip("polyactor.transport.ray.cluster", reason="ray is not installed")

import polyactor as pa  # noqa: E402
from polyactor.config import RayOptions  # noqa: E402
from polyactor.errors import ClusterFailed, UsageError  # noqa: E402
from polyactor.system.cluster_token import VARIABLE  # noqa: E402
from polyactor.system.guardian import guarded  # noqa: E402
from tests.helpers.living import alive  # noqa: E402
from tests.helpers.runs import events, program, until  # noqa: E402

Record = Callable[[str, object], None]
LISTENS = "0A"
"""The state of a socket in /proc/net/tcp."""
FLAGS = "--env CartPole-v1 --transport ray --workers 2 --envs 2 --steps 100000000 --quiet"
HEAD = """
import sys, time, ray
ray.init(address="local", num_cpus=1, include_dashboard=False, log_to_driver=False, logging_level="ERROR",
         object_store_memory=100 << 20, _temp_dir=sys.argv[1])
print(ray.get_runtime_context().gcs_address, flush=True)
time.sleep(600)
"""


def family(folder: Path) -> list[int]:
    """The processes of a cluster of a run's own, by what their environment says of their token."""
    found = []
    for entry in filter(str.isdigit, os.listdir("/proc")):
        try:
            environ = Path(f"/proc/{entry}/environ").read_bytes().split(b"\0")
        except OSError:
            continue
        if f"POLYACTOR_TEST={folder}".encode() in environ:
            found.append(int(entry))
    return [pid for pid in found if alive(pid)]


def listening(pids: list[int]) -> set[str]:
    """The addresses that processes listen on, in hexadecimal as the kernel writes them."""
    inodes = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").iterdir():
            try:
                inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
            except OSError:
                continue
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, = line.split()  # fmt: skip
            if state == LISTENS and line.split()[9] in inodes:
                found.add(local.rpartition(":")[0])
    return found


@contextmanager
def training(folder: Path, *flags: str) -> Iterator[subprocess.Popen[str]]:
    """A run over a cluster of its own, both of whose workers have begun."""
    flags = (*FLAGS.split(), "--out", str(folder), *flags)
    os.environ["POLYACTOR_TEST"] = str(folder)
    try:
        with program("-m", "polyactor", "train", "a3c-server", *flags) as process:
            yield process
    finally:
        del os.environ["POLYACTOR_TEST"]


def begun(folder: Path) -> bool:
    return (folder / "events.jsonl").exists() and len(events(folder, "worker_started")) == 2


@pytest.mark.slow
@pytest.mark.fault("P5", "P11")
def test_a_run_that_is_killed_leaves_none_of_its_processes(tmp_path: Path, record_property: Record) -> None:
    folder = tmp_path / "run"
    with training(folder) as process:
        until(lambda: begun(folder), process, deadline=120.0)
        assert len(family(folder)) >= 8  # Ray's helpers, two workers, the guardian, the run
        assert listening(family(folder)) <= {"0100007F", "0000000000000000FFFF00000100007F"}
        named = [line for pid in family(folder) for line in Path(f"/proc/{pid}/environ").read_text().split("\0")]
        (token,) = {Path(line.partition("=")[2]) for line in named if line.startswith(VARIABLE)}
        assert token.stat().st_mode & 0o777 == 0o600
        assert token.parent.stat().st_mode & 0o777 == 0o700
        secret = token.read_text()
        for pid in family(folder):
            assert secret.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes()
        assert all(secret not in path.read_text(errors="replace") for path in folder.rglob("*.json*"))
        process.send_signal(signal.SIGKILL)
        start = time.monotonic()
        while family(folder) or token.parent.exists():
            left = [Path(f"/proc/{pid}/cmdline").read_text()[:200] for pid in family(folder)]
            assert time.monotonic() < start + 20.0, (left, list(token.parent.rglob("*"))[:20])
            time.sleep(0.05)
        record_property("over Ray, s until no process is left", time.monotonic() - start)


@pytest.mark.slow
@pytest.mark.fault("M2")
def test_a_lost_head_ends_the_run_saved_and_it_goes_on_elsewhere(tmp_path: Path, record_property: Record) -> None:
    folder = tmp_path / "run"
    with training(folder) as process:
        until(lambda: begun(folder), process, deadline=120.0)
        time.sleep(2.0)  # for some updates
        (head,) = [pid for pid in family(folder) if b"gcs_server" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(head, signal.SIGKILL)
        start = time.monotonic()
        assert process.wait(60.0) == 8
        record_property("until it has ended with 8, s", time.monotonic() - start)
        assert process.stderr is not None
        said = process.stderr.read()
        assert "the cluster is lost" in said
        assert f"go on with: polyactor resume {folder}" in said
        end = time.monotonic() + 20.0
        while family(folder):
            assert time.monotonic() < end, [Path(f"/proc/{pid}/cmdline").read_bytes() for pid in family(folder)]
            time.sleep(0.05)
    for elsewhere in ((), ("--transport", "local")):  # on a new cluster, and on this machine without one
        steps = events(folder, "checkpoint_saved")[-1]["path"]
        more = ("--steps", str(int(steps) + 500), "--quiet", *elsewhere)
        with program("-m", "polyactor", "resume", str(folder), *more) as process:
            assert process.wait(120.0) == 0


@pytest.fixture(scope="module")
def heads(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """Two clusters: one asks for a token, the other accepts everybody."""
    folder = tmp_path_factory.mktemp("heads")
    tokens = {name: folder / name for name in ("right", "wrong")}
    for name, path in tokens.items():
        path.touch(0o600)
        path.write_text(name * 16)
    short = Path(f"/tmp/pa-test-{os.getpid()}")  # names of sockets must be short
    with guarded(VARIABLE, str(tokens["right"]), str(short)):
        children = {}
        for name, mode in (("asks", "token"), ("open", "disabled")):
            environ = os.environ | {VARIABLE: str(tokens["right"]), "RAY_AUTH_MODE": mode, module.LOOPBACK: "0"}
            command = [sys.executable, "-c", HEAD, str(short / name)]
            children[name] = subprocess.Popen(command, env=environ, stdout=subprocess.PIPE, text=True)
        try:
            yield tokens | {name: child.stdout.readline().strip() for name, child in children.items() if child.stdout}
        finally:
            for child in children.values():
                child.kill()
                child.wait()
                assert child.stdout is not None
                child.stdout.close()


@pytest.mark.slow
@pytest.mark.fault("M4")
@pytest.mark.parametrize(
    ("head", "token", "why"),
    [
        ("asks", "right", ""),
        ("asks", "wrong", "does not accept the token"),
        ("open", "right", "accepts everybody"),
    ],
)
def test_a_cluster_off_this_machine_must_tell_friend_from_foe(
    head: str, token: str, why: str, heads: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "off_this_machine", lambda address: True)
    monkeypatch.setenv(VARIABLE, str(heads[token]))
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    start = time.monotonic()
    if not why:
        assert module._tested(heads[head]) == heads[head]
    else:
        with pytest.raises(ClusterFailed, match=why) as caught:
            module._tested(heads[head])
        assert heads[token].read_text() not in str(caught.value)
    print(f"{why or 'joined'} after {time.monotonic() - start:.1f} s")


def test_a_run_in_another_thread_is_refused_while_one_has_joined() -> None:
    said: list[UsageError] = []

    def join() -> None:
        with pytest.raises(UsageError, match="another thread of this program trains over Ray") as caught:
            module.joined(RayOptions(), workers=1, room=0).__enter__()
        said.append(caught.value)

    with module._joining:
        thread = threading.Thread(target=join)
        thread.start()
        thread.join()
    assert said


@pytest.mark.parametrize(
    ("by_token", "by_all", "mode", "why"),
    [
        ("ANSWERED", "REFUSED", "token", ""),
        ("ANSWERED", "ANSWERED", "disabled", ""),  # a token of another cluster's may well lie here
        ("REFUSED", "ANSWERED", "disabled", ""),
        ("REFUSED", "REFUSED", "", "does not accept the token /nowhere, where there is none"),
        ("SILENT", "SILENT", "", "is no Ray cluster that can be joined"),
    ],
)
def test_a_cluster_of_this_machine_is_joined_as_it_wants(
    by_token: str, by_all: str, mode: str, why: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    answers = {"token": by_token, "disabled": by_all}
    monkeypatch.setenv(VARIABLE, "/nowhere")
    monkeypatch.setattr(module, "_heed_variables", lambda: None)
    monkeypatch.setattr(module.probe, "starts", lambda place, mode: mode)
    monkeypatch.setattr(module.probe, "answer", lambda mode: getattr(module.probe, answers[mode], None))
    with socket.create_server(("127.0.0.1", 0)) as head, module._own_variables():
        place = f"127.0.0.1:{head.getsockname()[1]}"
        with pytest.raises(ClusterFailed, match=why) if why else nullcontext():
            assert module._tested(place) == place
            assert os.environ["RAY_AUTH_MODE"] == mode


@pytest.mark.fault("M4")
def test_where_nobody_listens_that_is_said_before_there_is_a_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_heed_variables", lambda: None)  # a cluster of other tests has been joined by them
    monkeypatch.setattr(module.ray, "is_initialized", lambda: False)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    where: dict[str, Any] = {"transport": "ray", "ray": {"address": place}, "out": str(tmp_path / "run")}
    with pytest.raises(ClusterFailed, match=f"--ray.address {place}: nothing answers there"):
        pa.train("a3c-server", env="CartPole-v1", workers=1, quiet=True, **where)
    assert not list(tmp_path.iterdir())


def test_where_a_cluster_of_this_machine_was_looked_for_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
        monkeypatch.setattr(module.services, "canonicalize_bootstrap_address_or_die", lambda _: place)
        with pytest.raises(ClusterFailed, match=f"--ray.address auto: nothing answers at {place}: "):
            module._tested("auto")


def test_the_callers_variables_are_put_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_heed_variables", lambda: None)  # a cluster of other tests has been joined by them
    monkeypatch.delenv("PYTHONBREAKPOINT", raising=False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    monkeypatch.setenv(module.NICENESS, "7")
    before = {name: value for name, value in os.environ.items() if name.startswith("RAY_")}
    with module._own_variables():
        os.environ |= {"RAY_SOMETHING": "1", "PYTHONBREAKPOINT": "of Ray"}
        del os.environ[module.NICENESS]
        assert os.environ["RAY_AUTH_MODE"] == "token"
    assert {name: value for name, value in os.environ.items() if name.startswith("RAY_")} == before
    assert "PYTHONBREAKPOINT" not in os.environ


def test_what_is_begun_during_a_run_does_not_end_with_its_cluster(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only what Ray begins bears the mark of the guardian, and a signal is the run's also while Ray begins."""
    begun: list[str | None] = []
    before = signal.getsignal(signal.SIGTERM)

    def begins(_: str, arguments: dict[str, Any]) -> None:
        begun.append(os.environ.get(VARIABLE))
        Path(arguments["_temp_dir"]).mkdir(0o777)  # as Ray does
        assert Path(arguments["_temp_dir"]).parent.stat().st_mode & 0o777 == 0o700
        module.utils.set_sigterm_handler(signal.SIG_IGN)
        begun.append(None if signal.getsignal(signal.SIGTERM) is before else "of Ray")
        assert arguments["num_cpus"] == 3  # Ray starts as many processes

    monkeypatch.setattr(module.ray, "is_initialized", lambda: False)
    for name, instead in (("_init", begins), ("_leave", lambda: None), ("_heed_variables", lambda: None)):
        monkeypatch.setattr(module, name, instead)
    monkeypatch.setattr(module.ray, "get_runtime_context", lambda: SimpleNamespace(gcs_address="127.0.0.1:1"))
    monkeypatch.delenv(VARIABLE, raising=False)
    with module.joined(RayOptions(cpus=1e6), workers=3, room=0) as cluster:
        assert VARIABLE not in os.environ
        assert cluster.cpus == 1.0
    mark, handler = begun
    assert mark is not None
    assert handler is None
    assert not Path(mark).exists()


SIGNALLED = """
import os, signal, threading
from ray._private import worker
from polyactor.config import RayOptions
from polyactor.transport.ray.cluster import joined

connect = worker.connect

def connected(*given, **named):
    done = threading.Event()

    def ends():  # again and again while Ray's C++ code begins
        while not done.wait(0.002):
            os.kill(os.getpid(), signal.SIGTERM)

    thread = threading.Thread(target=ends)
    thread.start()
    connect(*given, **named)
    done.set()
    thread.join()

worker.connect = connected
heard = set()
signal.signal(signal.SIGTERM, lambda *_: heard.add("heard"))
with joined(RayOptions(), workers=1, room=0):
    print(*heard, "joined", flush=True)
"""


@pytest.mark.slow
def test_a_signal_while_ray_begins_is_the_runs() -> None:
    done = subprocess.run([sys.executable, "-c", SIGNALLED], capture_output=True, text=True, timeout=120.0)
    assert (done.returncode, done.stdout.split()) == (0, ["heard", "joined"]), done.stderr[-1000:]


@pytest.mark.slow
def test_in_a_thread_ray_says_nothing_of_signals() -> None:
    code = (
        SIGNALLED.partition("connect = ")[0]
        + """
def join():
    with joined(RayOptions(), workers=1, room=0):
        print("joined", flush=True)
thread = threading.Thread(target=join)
thread.start()
thread.join()
"""
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120.0)
    assert (done.stdout.split(), done.stderr) == (["joined"], "")


def test_a_head_that_refuses_is_lost_and_one_that_answers_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK_EVERY", 0.02)
    monkeypatch.setattr(module, "REFUSED_FOR", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as head:
        cluster = module.Cluster(f"127.0.0.1:{head.getsockname()[1]}", cpus=1.0)
        time.sleep(0.2)
        assert cluster.lost() == ""
    end = time.monotonic() + 10.0
    while not cluster.lost():
        assert time.monotonic() < end
        time.sleep(0.01)
    assert "has not answered" in cluster.lost()
    assert RayOptions().lease < module.SILENT_FOR < 60.0  # the second is Ray's
