"""Transports run the roles of a scheme: workers in processes or threads of their own, or all roles taking turns.

* `local`: starts each worker in a process (or thread) and runs the scheme's main role in this process.
* `inline`: runs all roles in this process, taking turns.
* `ray`: starts each worker on a node of a Ray cluster; the only package that imports ray.
* `processes`, `threads`: the pools of workers that `local` starts.
* `main_role`: runs the main role of a scheme while a supervisor looks after the workers.
* `supervisor`: replaces workers that die or hang.
* `last_words`: the error of a worker on its way to the run.
* `watchdog`: interrupts environments of this process that hang.
* `pause`: context managers inside which all workers wait.
"""

from __future__ import annotations

from collections.abc import Generator

from polyactor.agent.parts import Parts
from polyactor.config import TRANSPORTS, Config
from polyactor.envs import EnvSpec
from polyactor.transport import inline, local
from polyactor.transport.pause import paused, still
from polyactor.transport.watchdog import Tell, untold


def _over_ray(parts: Parts, tell: Tell = untold) -> Generator[None, None, None]:
    from polyactor.transport.ray import run_roles  # imports ray

    return run_roles(parts, tell)


RUNNERS = {"local": local.run_roles, "inline": inline.run_roles, "ray": _over_ray}
"""The function of each transport that runs the roles; `polyactor.config.TRANSPORTS` says what each transport can do."""


def refuse_unreachable(config: Config) -> None:
    """Refuse machines that cannot be reached, before there is anything of a run.

    Raises:
        ClusterFailed: they cannot be reached, or not trusted.
    """
    if TRANSPORTS[config.transport].elsewhere:
        from polyactor.transport.ray import cluster  # imports ray

        cluster.refuse_unreachable(config.ray)


def facts(config: Config, spec: EnvSpec) -> dict[str, str]:
    """Return in words what the machines are like that workers would be on, by machine; empty for this one alone.

    Raises:
        UsageError: the transport cannot place these workers.
        ClusterFailed: the machines cannot be reached.
    """
    about = TRANSPORTS[config.transport]
    about.fits(config)
    if not about.elsewhere:
        return {}
    from polyactor.transport.ray import nodes  # imports ray

    return nodes.facts(config, spec)


def run(parts: Parts, tell: Tell = untold) -> Generator[None, None, None]:
    """Train. The generator yields whenever the caller may read the counters and the state; closing it ends the run.

    Args:
        parts: the parts of the run.
        tell: called with each event: workers that start, are lost or are replaced, and environments that hang.
    """
    config = parts.config
    return RUNNERS["inline" if config.scheme.single else config.transport](parts, tell)


__all__ = ["RUNNERS", "facts", "paused", "refuse_unreachable", "run", "still"]
