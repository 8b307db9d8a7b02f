"""The transport over Ray: workers are actors on the nodes of a cluster, and the main role is in this process.

* `cluster`: joins a cluster, or begins one on this machine, and notices when it is lost.
* `post`: the pool of workers, and the thread that sends orders and takes letters in.
* `letters`: what travels.
* `remote`: the worker on its node.
* `nodes`: what the nodes are good for, for ``polyactor check``.

No other package imports ray.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import ExitStack
from dataclasses import replace

from polyactor.agent.parts import Parts, precision
from polyactor.agent.sharing import Sharing
from polyactor.shared.exchange import Exchange
from polyactor.shared.slot_queue import WakeUp
from polyactor.transport.main_role import supervised
from polyactor.transport.ray.cluster import joined
from polyactor.transport.ray.post import Post
from polyactor.transport.supervisor import Supervisor
from polyactor.transport.watchdog import Tell, untold


def run_roles(parts: Parts, tell: Tell = untold) -> Generator[None, None, None]:
    """Start the workers on the nodes, run the scheme's main role in this process, and stop the workers at the end.

    Args:
        parts: the parts of the run.
        tell: called when a worker starts, is lost or is replaced.

    Raises:
        ClusterFailed: the cluster cannot be joined, was lost, or has a node that cannot play its part.
    """
    images = parts.spec.bytes
    config = replace(
        parts.config, precision=precision(parts.config, images=images)
    )  # each node's CPU would choose anew
    parts, counters = replace(parts, config=config), parts.counters
    with ExitStack() as stack:
        wake_up = WakeUp()
        roles = stack.enter_context(config.scheme.roles(parts, Sharing(parts, wake_up=wake_up)))
        exchange = roles.shared
        assert isinstance(exchange, Exchange), "a scheme whose workers may be elsewhere exchanges what fills slots"
        cluster = stack.enter_context(joined(config.ray, roles.workers, _room(parts, exchange)))
        for worker in range(roles.workers):
            counters.heartbeats.begin(worker)
            counters.leave(worker)  # a worker elsewhere changes no state here, so no pause waits for it
        post = Post(parts, exchange, wake_up, cluster, tell)
        stack.callback(post.stop)
        stack.callback(counters.stop)
        yield from supervised(roles, Supervisor(post, config, counters, roles, tell))


def _room(parts: Parts, exchange: Exchange) -> int:
    """Return twice the bytes that may be on their way at once: all slots, and two versions of θ."""
    slots = exchange.slots.workers * exchange.slots.slots
    payload = sum(tensor.nbytes for tensor in exchange.places.place(0, 0).tensors())
    return int(2 * (slots * payload + 2 * parts.state.vector.nbytes))
