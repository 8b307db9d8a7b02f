"""The verbs that evaluate, show or measure. Nothing slow is imported before the flags are known to be right."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from polyactor.cli.flags import HELP, MADE_OF, env_timeout, read_config, small_flags, take, take_auto, take_several
from polyactor.errors import EnvironmentUnsupported, PolyactorError, UsageError
from polyactor.fields import replace_at
from polyactor.system.child_processes import ended_by_signal
from polyactor.system.notices import heard, noticing, to_stderr

if TYPE_CHECKING:
    from polyactor.config import Config
    from polyactor.envs import Environment, EnvSpec

EVALUATING = {"evaluate.envs": int, "evaluate.max-steps": int, "evaluate.stuck-after": int, "evaluate.timeout": float}
"""Flags of ``train`` that hold for the games of other verbs, too, and the type of each."""

PLACING = {"transport": str, "ray.address": str, "ray.cpus": float, "ray.lease": float, "ray.wire": str}
"""Flags of ``train`` that say where workers are, and the type of each; a run may be resumed elsewhere."""

TRUSTING = {"trust-code": bool, "trust-env": bool}
"""Flags that allow the import of code which a run's config names; the second is older, of environments alone."""


def _evaluate(args: list[str]) -> int:
    """Play whole games with a run's policy, greedy and sampled, and print the scores: ``polyactor evaluate``."""
    kinds = {"games": int, "seed": int, "tag": str, **TRUSTING, **EVALUATING}
    usage = "evaluate RUN [--games N] [--seed S] [--tag best|last] [--trust-code]"
    options = small_flags(args, kinds, f"{usage} [{'] ['.join(f'--{flag} N' for flag in EVALUATING)}]")
    from polyactor.evaluation.evaluate import evaluate
    from polyactor.evaluation.policy import read

    config, tensors = read(the_run(options), options.get("tag"), **_trusted(options))
    config = _evaluating(config, options)
    games, seed, cores = options.get("games", 100), options.get("seed", 0), len(os.sched_getaffinity(0))
    _say(f"playing {games} game{'s' * (games != 1)} greedy, then as many sampled, {config.evaluate.timeout:g} s each")
    for deterministic in (True, False):
        played = evaluate(config, tensors, games=games, deterministic=deterministic, seed=seed, threads=cores)
        print(played, flush=True)
    return 0


def _evaluating(config: Config, options: dict[str, Any]) -> Config:
    """Return a run's config with the options ``--evaluate.…`` in place of its own."""
    for flag in EVALUATING:
        if flag in options:
            config = replace_at(config, flag.replace("-", "_"), options[flag])
    return config


def _trusted(options: dict[str, Any]) -> dict[str, Any]:
    """Return what a run's reader is told of the code that may be imported, as `read` takes it."""
    from polyactor.settings.trust import vouched_for

    return {"trust_code": options["trust-code"], "given": vouched_for(options["trust-env"])}


def _say(line: str) -> None:
    """Print a line about what goes on, apart from the results."""
    print(line, file=sys.stderr, flush=True)
    heard()


def _record(args: list[str]) -> int:
    """Record one game of a run's policy as an mp4: ``polyactor record``."""
    kinds = {"out": Path, "seed": int, "greedy": bool, "tag": str, **TRUSTING, **EVALUATING}
    usage = "record RUN [--out FILE] [--seed S] [--greedy] [--tag best|last] [--trust-code]"
    options = small_flags(args, kinds, f"{usage} [{'] ['.join(f'--{flag} N' for flag in EVALUATING)}]")
    from polyactor.evaluation.policy import read
    from polyactor.report.video import record
    from polyactor.storage.atomic import writing

    path = the_run(options)
    config, tensors = read(path, options.get("tag"), **_trusted(options))
    config, out = _evaluating(config, options), options.get("out", path / "replay.mp4")
    how = {"deterministic": options.get("greedy", False), "seed": options.get("seed", 0)}
    _say(f"playing a game for the film, {config.evaluate.timeout:g} s at most")
    with writing(out):  # also what the encoder complains of
        film = record(config, tensors, out, **how)
    print(f"{out}: a game of score {film.score:g}{film.cut and f', not to its end: {film.cut}'}")
    return 0


def _plot(args: list[str]) -> int:
    """Draw the learning curves of runs: ``polyactor plot``."""
    options = small_flags(args, {"out": Path}, "plot RUN... [--out FILE]")
    from polyactor.report.curves import curve

    runs = [Path(run) for run in options["runs"]]
    print(curve(runs, options.get("out", runs[0] / "curve.png")))
    return 0


def _compare(args: list[str]) -> int:
    """Print a table of runs and draw their learning curves: ``polyactor compare``."""
    options = small_flags(args, {"out": Path}, "compare RUN... [--out FILE]")
    from polyactor.report.compare import compare
    from polyactor.report.curves import curve

    runs = [Path(run) for run in options["runs"]]
    compare(runs)
    print(curve(runs, options.get("out", Path("compare.png"))))
    return 0


def _presets(args: list[str]) -> int:
    """Print all methods and presets, or one of them in full: ``polyactor presets``."""
    name = args[0] if args and not args[0].startswith("-") else None
    small_flags(args if name is None else args[1:], {}, "presets [NAME]", runs=False)
    from polyactor.cli.list_presets import show

    show(name)
    return 0


def _check(args: list[str]) -> int:
    """Check whether an environment is fit for training, and print what a run would meet: ``polyactor check``."""
    usage = (
        "check --env ID [--env-wrapper NAME…] [--env-kwargs NAME=VALUE…] [--env-resize H W] [--env-timeout SECONDS] "
        f"[--json] [{'] ['.join(f'--{flag} X' for flag in PLACING)}]"
    )
    several, args = take_several(args)
    options = small_flags(args, {"env": str, "env-timeout": float, "json": bool, **PLACING}, usage, runs=False)
    if "env" not in options:
        raise UsageError("check needs --env, such as: polyactor check --env CartPole-v1")
    from polyactor.envs import Environment
    from polyactor.envs.check import DEADLINE, inspect

    env = Environment(options["env"], *(several.get(setting, ()) for setting in MADE_OF.values()))
    try:
        report = inspect(env, seconds=options.get("env-timeout", DEADLINE))
        report.facts |= _network(env, report.spec) | _machines(env, report.spec, options)
    except PolyactorError as error:
        if options["json"]:
            print(json.dumps({"environment": options["env"], "fit": False, "problems": [str(error)]}))
        raise
    print(json.dumps(report.plain()) if options["json"] else report)
    return 0


def _network(env: Environment, spec: EnvSpec) -> dict[str, str]:
    """Return in words the network that A3C would have in an environment.

    Raises:
        EnvironmentUnsupported: there is none that fits.
    """
    from polyactor.report.network import network
    from polyactor.settings.presets import base_config

    try:
        return network(base_config("a3c", env=env.source, look=lambda *_, **__: spec), spec)
    except UsageError as error:
        raise EnvironmentUnsupported(f"{error}") from None


def _machines(env: Environment, spec: EnvSpec, options: dict[str, Any]) -> dict[str, str]:
    """Return in words what the machines are like that ``--transport`` would place workers of a server on."""
    if not options.keys() & PLACING.keys():
        return {}
    from polyactor.envs import resolved
    from polyactor.settings.check import settled
    from polyactor.settings.presets import base_config
    from polyactor.transport import facts

    source, *wrappers = (resolved(str(each)) for each in (env.source, *env.wrappers))  # a node has another directory
    config = replace(
        base_config("a3c-server", env=source, look=lambda *_, **__: spec),
        env_kwargs=env.arguments,
        env_wrappers=tuple(wrappers),
        env_resize=env.resize,
    )
    for flag in (PLACING.keys() | {"env-timeout"}) & options.keys():
        config = replace_at(config, flag.replace("-", "_"), options[flag])
    return facts(settled(config), spec)


def _bench(args: list[str]) -> int:
    """Measure the speed of training on this machine, and print it: ``polyactor bench``."""
    from polyactor.api import prepare
    from polyactor.envs import Specs
    from polyactor.schemes import SCHEMES

    if HELP.intersection(args):
        print("usage: polyactor bench [PRESET] [--env ID] [--seconds S] [--schemes A,B,…], and flags of train:\n")
    look, (auto, args) = Specs(env_timeout(args)), take_auto(args)
    seconds, args = take(args, "seconds")
    schemes, args = take(args, "schemes")
    if not args or args[0].startswith("-"):
        other_env = any(arg.partition("=")[0] == "--env" for arg in args)
        args = ["a3c" if other_env else "pong-a3c", *args]
    options = small_flags(["--seconds", seconds or "15"], {"seconds": float}, "bench [PRESET]", runs=False)
    names = [read_config(args, look).scheme.name] if schemes is None else schemes.split(",")
    for name in names:
        if name not in SCHEMES:
            raise UsageError(f"--schemes {schemes} is not allowed: each must be one of {', '.join(SCHEMES)}")
    configs = [read_config([*args, "--scheme", name], look) for name in names]
    ready = prepare(configs, auto, look, kept=False)
    from polyactor.report.speed import bench

    for reason in ready[0].reasons:
        print(reason)
    bench([run.config for run in ready], seconds=options["seconds"])
    return 0


@contextmanager
def noticed(args: list[str]) -> Iterator[None]:
    """Open a context in which a verb with these arguments is never silent for long, but with ``--quiet``.

    If a signal ends the verb there, no process that its environments have begun is left.
    """
    with ended_by_signal(), noticing(None if "--quiet" in args else to_stderr):
        yield


def the_run(options: dict[str, Any]) -> Path:
    """Return the run directory of a verb that takes exactly one. Raises `UsageError` for another number."""
    if len(options["runs"]) != 1:
        raise UsageError(f"one run directory is needed, not {len(options['runs'])}")
    return Path(options["runs"][0])


LOOKING: dict[str, Callable[[list[str]], int]] = {
    "evaluate": _evaluate,
    "record": _record,
    "plot": _plot,
    "compare": _compare,
    "presets": _presets,
    "check": _check,
    "bench": _bench,
}
