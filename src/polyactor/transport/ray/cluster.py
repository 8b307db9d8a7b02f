"""Joining a cluster, or beginning one on this machine, and noticing when it is lost."""

from __future__ import annotations

import os
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from typing import Any

import ray
from ray._private import ray_constants, services, utils
from ray._private import worker as driver
from ray._private.authentication.authentication_utils import is_token_auth_enabled
from ray._raylet import AuthenticationTokenLoader, Config

from polyactor.config import RayOptions
from polyactor.errors import ClusterFailed, UsageError, one_line
from polyactor.system.cluster_token import VARIABLE, off_this_machine, refuse_without_token, token_path
from polyactor.system.guardian import guarded
from polyactor.system.process_state import kept_switches
from polyactor.transport.ray import probe

LEAST_STORE = 100 << 20
"""Bytes of the object store of a cluster on this machine; Ray takes no fewer than 75 MiB."""
LOOK_EVERY = 1.0
"""Seconds between two looks at the head node, and after which it counts as silent in one of them."""
REFUSED_FOR, SILENT_FOR = 3.0, 40.0
"""Seconds after which a head that refuses connections, or that is silent, is lost. Ray itself ends this process 60 s
after the head is gone, without a word."""
SHUT_WITHIN = 5.0
"""Seconds that leaving a cluster may take; it may never end where the head is gone."""
PATIENCE = 3.0
"""Seconds in which the head must accept a connection."""
LOOPBACK, NICENESS = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER", "RAY_worker_niceness"
"""Variables of Ray. With 0 the first makes it use 127.0.0.1 alone, whatever its name says, and the second gives workers
the priority of other processes, and not the lowest."""
OF_RAY = ("RAY_", "PYTHONBREAKPOINT")
"""What the names of environment variables that Ray reads or sets begin with."""
PASSED_ON = ("OMP_WAIT_POLICY", "POLYACTOR_FAIL")
"""Environment variables of the run that its workers on other machines have, too; those of this one inherit all."""
PATIENT = {"RAY_grpc_keepalive_timeout_ms": "120000"}
"""With Ray's own 20 s a worker whose link is cut for as long hangs up, and is lost before the lease is over."""

_joining = threading.RLock()  # held by the thread whose run has joined a cluster, until it has left it


class Cluster(AbstractContextManager["Cluster"]):
    """The cluster that this process has joined.

    A thread looks at the head node again and again, until the context is left.

    Args:
        address: host:port of the head node.
        cpus: cores of a node that a worker takes.
    """

    def __init__(self, address: str, cpus: float) -> None:
        self.cpus = cpus
        host, _, port = address.rpartition(":")
        self.address, self.place = address, (host.strip("[]"), int(port))
        self.asks = is_token_auth_enabled()
        """Whether it asks for a token."""
        self.over, self.why = threading.Event(), ""
        self.thread = threading.Thread(target=self._look, name="polyactor-cluster", daemon=True)
        self.thread.start()

    def __exit__(self, *_: object) -> None:
        self.over.set()
        self.thread.join(2 * LOOK_EVERY)

    def lost(self) -> str:
        """Return why the cluster is lost, or an empty string while it is not."""
        return self.why

    def _look(self) -> None:
        answered = time.monotonic()
        while not self.over.wait(LOOK_EVERY) and not self.why:
            looked, patience = time.monotonic(), SILENT_FOR
            try:
                socket.create_connection(self.place, timeout=LOOK_EVERY).close()
                answered = time.monotonic()
            except ConnectionRefusedError:
                patience = REFUSED_FOR
            except OSError:
                pass
            if looked - answered > patience:
                self.why = f"its head at {self.address} has not answered for {looked - answered:.0f} s"


def refuse_unreachable(options: RayOptions) -> None:
    """Refuse a cluster that cannot be joined; one on this machine that begins with the run always can.

    Raises:
        ClusterFailed: there is no cluster, it does not accept the token, or it accepts everybody.
        UsageError: a run in another thread has joined a cluster, or there is no token for one off this machine.
    """
    with _alone() as stack:
        if options.address != "local" and not ray.is_initialized():
            stack.callback(_heed_variables)
            with _own_variables():
                _tested(options.address)


@contextmanager
def joined(options: RayOptions, workers: int, room: int) -> Iterator[Cluster]:
    """Join the cluster of the options inside the with block; one that this process has joined already is taken.

    Args:
        options: the address of the cluster, and the cores that a worker takes.
        workers: W.
        room: bytes that are on their way at once, for which a cluster on this machine is given memory.

    Raises:
        ClusterFailed: there is no cluster, it does not accept the token, or it accepts everybody.
        UsageError: a run in another thread has joined a cluster, or there is no token for one off this machine.
    """
    with _alone() as stack:
        if ray.is_initialized():
            stack.close()  # the caller's cluster may have several runs
            with Cluster(ray.get_runtime_context().gcs_address, options.cpus) as cluster:
                yield cluster
            return
        stack.callback(_heed_variables)  # the caller's, as they are put back
        for place, name, ours in QUIETLY:
            stack.callback(setattr, place, name, getattr(place, name))
            setattr(place, name, ours)
        cpus = 1.0 if options.address == "local" else options.cpus
        with _own_variables():
            if options.address == "local":
                arguments = _begun(stack, workers, room)
            else:
                variables = PATIENT | {name: os.environ[name] for name in PASSED_ON if name in os.environ}
                arguments = {"address": _tested(options.address), "runtime_env": {"env_vars": variables}}
                if not off_this_machine(arguments["address"]):
                    _on_loopback(stack)
            with kept_switches():  # Ray's C++ code handles SIGTERM
                _init(options.address, arguments)
        stack.callback(_leave)
        yield stack.enter_context(Cluster(ray.get_runtime_context().gcs_address, cpus))


@contextmanager
def _alone() -> Iterator[ExitStack]:
    """Give a stack, until which is closed no other thread may join a cluster.

    Raises:
        UsageError: a run in another thread has joined a cluster.
    """
    if not _joining.acquire(blocking=False):
        raise UsageError(
            "--transport ray is not allowed here: another thread of this program trains over Ray, which is in one "
            "cluster at a time; train one after the other, or in processes of their own"
        )
    with ExitStack() as stack:
        stack.callback(_joining.release)
        yield stack


def _init(address: str, arguments: dict[str, Any]) -> None:
    """Join or begin the cluster at an address; on a busy machine its own may take longer than the 30 s that Ray waits.

    Raises:
        ClusterFailed: it cannot be joined, or twice not be begun.
    """
    for last in (False, True) if address == "local" else (True,):
        try:
            ray.init(log_to_driver=False, configure_logging=False, logging_level="ERROR", **arguments)
            return
        except Exception as error:  # of many classes
            ray.shutdown()
            if last:
                raise ClusterFailed(f"--ray.address {address} is not reached: {one_line(error)}") from None


@contextmanager
def _own_variables() -> Iterator[None]:
    """Set the variables of Ray for a run inside the with block, and put back all of the caller's after it.

    Ray reads them while it joins or begins a cluster. What else this process begins during the run must not have them:
    it is not Ray's, and would bear the mark of what ends with the cluster.
    """
    before = {name: value for name, value in os.environ.items() if name.startswith(OF_RAY)}
    os.environ |= {"RAY_AUTH_MODE": "token", "RAY_USAGE_STATS_ENABLED": "0"}
    os.environ.pop("RAY_AUTH_TOKEN", None)  # it would go before the file
    _heed_variables()
    try:
        yield
    finally:
        for name in [name for name in os.environ if name.startswith(OF_RAY)]:
            del os.environ[name]
        os.environ |= before


def _heed_variables() -> None:
    """Let Ray read its variables anew, which it does once in a process."""
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _begun(stack: ExitStack, workers: int, room: int) -> dict[str, Any]:
    """Return the arguments with which Ray begins a cluster on this machine, which nobody else can reach or use.

    Its processes end with this one, however that ends, and leave no file. It has one core for each worker, whatever
    ``--ray.cpus`` says, since Ray starts a process for each core.
    """
    folder = Path(tempfile.mkdtemp(prefix="pa-ray-", dir="/tmp"))  # Ray's sockets have long names in it
    token = folder / "token"
    descriptor = os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_hex(32))
    stack.enter_context(guarded(VARIABLE, str(token), str(folder)))
    os.environ |= {VARIABLE: str(token), NICENESS: "0"}
    _heed_variables()
    _on_loopback(stack)
    return {
        "address": "local",
        "num_cpus": workers,
        "include_dashboard": False,
        "object_store_memory": max(LEAST_STORE, room),
        "_temp_dir": str(folder / "ray"),  # which Ray opens to everybody, sockets and all; the folder it leaves closed
    }


def _on_loopback(stack: ExitStack) -> None:
    """Let Ray use 127.0.0.1 for this machine, until the stack is closed, and no address that others can reach."""
    os.environ[LOOPBACK] = "0"
    stack.callback(setattr, ray_constants, "ENABLE_RAY_CLUSTER", ray_constants.ENABLE_RAY_CLUSTER)
    ray_constants.ENABLE_RAY_CLUSTER = False  # this process has read the variable already


def _tested(address: str) -> str:
    """Return host:port of the head of a cluster that accepts our token and nobody else.

    Raises:
        ClusterFailed: there is none, or it accepts other tokens or everybody.
        UsageError: it can be reached from other machines, and there is no token.
    """
    place = address
    try:
        if address == "auto":
            place = services.canonicalize_bootstrap_address_or_die("auto")
        host, _, port = place.rpartition(":")
        socket.create_connection((host.strip("[]"), int(port)), timeout=PATIENCE).close()
    except (OSError, ValueError) as error:  # a ConnectionError where no cluster runs here
        where = "there" if place == address else f"at {place}"
        raise ClusterFailed(f"--ray.address {address}: nothing answers {where}: {one_line(error)}") from None
    refuse_without_token(place)
    asked = {mode: probe.starts(place, mode) for mode in ("token", "disabled")}
    answers = {mode: probe.answer(asking) for mode, asking in asked.items()}
    if answers["disabled"] == probe.ANSWERED:
        if off_this_machine(place):
            raise ClusterFailed(
                f"the cluster at {place} accepts everybody, who can then run code on all of its nodes: "
                "start it with RAY_AUTH_MODE=token (docs/ray.md)"
            )
        os.environ["RAY_AUTH_MODE"] = "disabled"
        _heed_variables()
    elif answers["token"] == probe.REFUSED:
        there = "" if token_path().is_file() else ", where there is none"
        raise ClusterFailed(
            f"the cluster at {place} does not accept the token {token_path()}{there}: use the same on all nodes"
        )
    elif answers["token"] is None:
        raise ClusterFailed(f"--ray.address {address}: what answers at {place} is no Ray cluster that can be joined")
    return place


def _unsaid(*_: object, **__: object) -> None:
    """Do nothing, in place of Ray."""


QUIETLY: tuple[tuple[Any, str, Any], ...] = (
    (driver, "print_to_stdstream", _unsaid),
    (driver.logger, "warning", _unsaid),
    (utils, "set_sigterm_handler", _unsaid),
    (ray_constants, "RAY_DISABLE_FAILURE_SIGNAL_HANDLER", True),
)
"""What of Ray is otherwise in a run: it prints nothing of lost workers, which events tell, nor of threads, and leaves
SIGTERM to the run; its handler in C++ would end this process, with a trace, while a cluster begins."""


def _leave() -> None:
    """Leave the cluster, or end it if this process has begun it; where it is lost, that may never return."""
    leaving = threading.Thread(target=ray.shutdown, name="polyactor-leave", daemon=True)
    leaving.start()
    leaving.join(SHUT_WITHIN)
