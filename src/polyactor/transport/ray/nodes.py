"""What the nodes of a cluster are good for: their versions and speed, and the link to them."""

from __future__ import annotations

import statistics
import time
from contextlib import ExitStack
from typing import Any, NamedTuple

import numpy as np
import ray
from numpy.typing import NDArray
from ray.exceptions import RayError
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from polyactor.agent.parts import Parts
from polyactor.agent.sharing import Sharing
from polyactor.config import Config
from polyactor.data.wire import decode, encode, size
from polyactor.envs import AtariOptions, Environment, EnvSpec, draw, looked_at
from polyactor.errors import in_brief
from polyactor.shared.slot_queue import WakeUp
from polyactor.transport.ray.cluster import joined
from polyactor.transport.ray.letters import differing, own_versions

ENVS, STEPPED = 8, 1.0
"""Environments that a node steps, and for how many seconds."""
CALLS, BYTES, WITHIN = 20, 8_000_000, 60.0
"""Empty calls whose median is the latency, bytes that are sent there and back, and seconds that all may take."""


class Look:
    """A process on one node, which says what it is like there."""

    def differing(self, run: dict[str, str | None]) -> str:
        """Return the versions that differ from the run's."""
        return differing(own_versions(), run)

    def speed(self, env: Environment, atari: AtariOptions, seconds: float) -> float:
        """Return the steps per second of environments alone, random actions, in one process."""
        with looked_at(env, ENVS, seconds=seconds, atari=atari) as (envs, asked):
            asked.asked(-1, None)
            envs.reset(0)
            asked.answered()
            rng, steps, start = np.random.default_rng(0), 0, time.perf_counter()
            while time.perf_counter() - start < STEPPED:
                envs.step(draw(envs.action_space, ENVS, rng, envs.action_mask))
                asked.answered()
                steps += ENVS
            return steps / (time.perf_counter() - start)

    def echo(self, sent: NDArray[Any] | None) -> NDArray[Any] | None:
        """Return what was sent."""
        return sent


class Load(NamedTuple):
    """What one gradient of a worker costs the run.

    Attributes:
        steps: the agent steps that it is of.
        up: its bytes.
        down: bytes of θ and the running statistics.
        seconds: seconds of one core in which the run takes it in and applies it.
    """

    steps: int
    up: int
    down: int
    seconds: float


def facts(config: Config, spec: EnvSpec) -> dict[str, str]:
    """Return in words what the cluster of a config is like, by node.

    Raises:
        ClusterFailed: the cluster cannot be joined.
    """
    load = _load(config, spec)
    with joined(config.ray, config.workers, room=0) as cluster:
        asks = "asked for" if cluster.asks else "not asked for: it can be reached from this machine alone"
        found = {"cluster": f"{cluster.address}; tokens are {asks}"}
        for node in [node for node in ray.nodes() if node["Alive"]]:
            strategy = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            look = ray.remote(num_cpus=0, scheduling_strategy=strategy)(Look).remote()
            name = f"node {node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
            try:
                found[name] = _node(look, node["Resources"].get("CPU", 0.0), config, load)
            except RayError as error:
                raised = getattr(error, "cause", None) or error  # what was raised there, without Ray's own lines
                found[name] = f"cannot run polyactor: {in_brief(raised)}"
    return found


def _node(look: Any, cores: float, config: Config, load: Load) -> str:
    """Return in words what one node is like."""
    if words := ray.get(look.differing.remote(own_versions()), timeout=WITHIN):
        return f"unfit: it has {words}"
    rate = ray.get(look.speed.remote(config.environment, config.atari, config.env_timeout), timeout=WITHIN)
    empty = statistics.median(_seconds(look, None) for _ in range(CALLS))
    sent = ray.put(np.zeros(BYTES, np.uint8))
    _seconds(look, sent)  # the object is there from now on, so that the next call is of its way back alone
    speed = BYTES / max(1e-6, _seconds(look, sent) - empty)
    letters = rate / load.steps
    link = speed / (max(load.up, load.down) * letters)
    return (
        f"{cores:g} cores, {rate:,.0f} steps/s on each, {1e3 * empty:.1f} ms and {speed / 1e6:,.0f} MB/s to the run; "
        f"that link carries {link:,.0f} workers of param-server, and the run's core {1 / (load.seconds * letters):,.0f}"
    )


def _seconds(look: Any, sent: Any) -> float:
    """Return the seconds until an echo is here."""
    start = time.perf_counter()
    ray.get(look.echo.remote(sent), timeout=WITHIN)
    return time.perf_counter() - start


def _load(config: Config, spec: EnvSpec) -> Load:
    """Return what one gradient of a worker costs, by taking some in."""
    parts, times = Parts.fresh(config, spec), list[float]()
    with ExitStack() as stack:
        roles = stack.enter_context(config.scheme.roles(parts, Sharing(parts, wake_up=WakeUp())))
        place, updater = roles.shared[1].place(0, 0), parts.updater(0)
        letter = encode(place.named(), config.ray.wire)
        for _ in range(CALLS):
            start = time.perf_counter()
            decode(letter, place.named())
            updater.apply(place.gradients("mean"))
            times.append(time.perf_counter() - start)
    down = size(encode(parts.state.layout.split(parts.state.vector), config.ray.wire))
    return Load(config.rollout * config.envs, size(letter), down, statistics.median(times))
