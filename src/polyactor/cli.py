"""The command line: flags to a config, and a call of the library. Nothing heavy is imported before flags are right."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from polyactor.errors import PolyactorError, UsageError, WorkerFailed, one_line, suggestion
from polyactor.flags import HELP, read_config, small_flags, take, take_auto

STOPPED_AND_SAVED = 75
USAGE = """\
usage: polyactor VERB ...

  train PRESET --env ID [flags]   train; `polyactor train a3c --env CartPole-v1 --help` lists the flags
  resume RUN [--steps N] [--algorithm FILE:CLASS] [--restart] [--trust-env] [--quiet]
                                  go on with a run; N is the new total
  evaluate RUN [--games N] [--seed S] [--tag best|last] [--trust-env]
                                  whole games with the trained policy, greedy and sampled
  record RUN [--out FILE] [--seed S] [--greedy] [--tag best|last] [--trust-env]
                                  one game as an mp4
  plot RUN... [--out FILE]        learning curves over steps and over wall time
  compare RUN...                  the same, and a table
  presets [NAME]                  every name that train takes, or one of them in full
  check --env ID                  is this environment fit for training?
  bench [PRESET] [--env ID] [--seconds S] [--schemes A,B,…]
                                  speed on this machine, against the environments alone
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and exit with the documented code."""
    args = list(sys.argv[1:] if argv is None else argv)
    # Before torch is loaded: its threads would spin between two passes, on the cores that the emulators need then.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        code = run(args)
        sys.stdout.flush()
        sys.exit(code)
    except PolyactorError as error:
        for note in getattr(error, "__notes__", ()):  # where a worker raised it
            print(note, file=sys.stderr)
        # Words of a file or a path go no further than into the line; a worker's traceback has lines of its own.
        said = error if isinstance(error, WorkerFailed) else one_line(error, most=100_000)
        print(f"polyactor: {said}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever read has read enough; what is left must not be tried again at the exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)


def run(args: list[str]) -> int:
    """Run a verb; returns the exit code."""
    if not args or args[0] in ("-h", "--help", "help"):
        print(USAGE, end="")
        return 0
    verb, rest = args[0], args[1:]
    if verb in ("-V", "--version"):
        from importlib.metadata import version

        print(f"polyactor {version('polyactor')}")
        return 0
    if verb not in VERBS:
        raise UsageError(f"there is no verb '{verb}'{suggestion(verb, VERBS)}: choose from {', '.join(VERBS)}")
    return VERBS[verb](rest)


def _train(args: list[str]) -> int:
    wanted, args = take_auto(args)
    config = read_config(args)
    from polyactor.auto import chosen
    from polyactor.config import check
    from polyactor.envs import check_env
    from polyactor.rundir import run_directory

    check_env(config.env)
    run_directory(config)
    (config,), reasons = chosen([config], wanted)
    check(config)
    from polyactor.nursery import open_nursery

    if config.transport == "local" and not config.scheme.single:
        open_nursery()  # it imports torch while we do
    from polyactor.training import train

    return _report(train(config, reasons))


def _report(run: Any) -> int:
    return STOPPED_AND_SAVED if run.status == "stopped" else 0


def _resume(args: list[str]) -> int:
    kinds = {"steps": int, "algorithm": str, "restart": bool, "trust-env": bool, "quiet": bool}
    usage = "resume RUN [--steps N] [--algorithm FILE:CLASS] [--restart] [--trust-env] [--quiet]"
    options = small_flags(args, kinds, usage)
    from polyactor.training import resume

    path = _run(options)
    given = {name.replace("-", "_"): value for name, value in options.items() if name in kinds}
    return _report(resume(path, **given))


def _evaluate(args: list[str]) -> int:
    kinds = {"games": int, "seed": int, "tag": str, "trust-env": bool}
    options = small_flags(args, kinds, "evaluate RUN [--games N] [--seed S] [--tag best|last] [--trust-env]")
    from polyactor.evaluate import evaluate
    from polyactor.policy import read

    config, tensors = read(_run(options), options.get("tag"), trust_env=options["trust-env"])
    games, seed, cores = options.get("games", 100), options.get("seed", 0), len(os.sched_getaffinity(0))
    for deterministic in (True, False):
        print(evaluate(config, tensors, games=games, deterministic=deterministic, seed=seed, threads=cores), flush=True)
    return 0


def _record(args: list[str]) -> int:
    kinds = {"out": Path, "seed": int, "greedy": bool, "tag": str, "trust-env": bool}
    options = small_flags(args, kinds, "record RUN [--out FILE] [--seed S] [--greedy] [--tag best|last] [--trust-env]")
    from polyactor.policy import read
    from polyactor.record import record

    path = _run(options)
    config, tensors = read(path, options.get("tag"), trust_env=options["trust-env"])
    out = options.get("out", path / "replay.mp4")
    score = record(config, tensors, out, deterministic=options.get("greedy", False), seed=options.get("seed", 0))
    print(f"{out}: a game of score {score:g}")
    return 0


def _plot(args: list[str]) -> int:
    options = small_flags(args, {"out": Path}, "plot RUN... [--out FILE]")
    from polyactor.plot import curve

    runs = [Path(run) for run in options["runs"]]
    print(curve(runs, options.get("out", runs[0] / "curve.png")))
    return 0


def _compare(args: list[str]) -> int:
    options = small_flags(args, {"out": Path}, "compare RUN... [--out FILE]")
    from polyactor.compare import compare
    from polyactor.plot import curve

    runs = [Path(run) for run in options["runs"]]
    compare(runs)
    print(curve(runs, options.get("out", Path("compare.png"))))
    return 0


def _presets(args: list[str]) -> int:
    name = args[0] if args and not args[0].startswith("-") else None
    small_flags(args if name is None else args[1:], {}, "presets [NAME]", runs=False)
    from polyactor.presets import show

    show(name)
    return 0


def _check(args: list[str]) -> int:
    options = small_flags(args, {"env": str}, "check --env ID", runs=False)
    if "env" not in options:
        raise UsageError("check needs --env, such as: polyactor check --env CartPole-v1")
    from polyactor.envs.inspect import inspect

    print(inspect(options["env"]))
    return 0


def _bench(args: list[str]) -> int:
    from polyactor.schemes import SCHEMES

    if HELP.intersection(args):
        print("usage: polyactor bench [PRESET] [--env ID] [--seconds S] [--schemes A,B,…], and flags of train:\n")
    wanted, args = take_auto(args)
    seconds, args = take(args, "seconds")
    schemes, args = take(args, "schemes")
    if not args or args[0].startswith("-"):
        elsewhere = any(arg.partition("=")[0] == "--env" for arg in args)
        args = ["a3c" if elsewhere else "pong-a3c", *args]
    options = small_flags(["--seconds", seconds or "15"], {"seconds": float}, "bench [PRESET]", runs=False)
    names = [read_config(args).scheme.name] if schemes is None else schemes.split(",")
    for name in names:
        if name not in SCHEMES:
            raise UsageError(f"--schemes {schemes} is not allowed: each must be one of {', '.join(SCHEMES)}")
    from polyactor.auto import chosen
    from polyactor.config import check

    configs, reasons = chosen([read_config([*args, "--scheme", name]) for name in names], wanted)
    for config in configs:
        check(config)
    from polyactor.bench import bench

    for reason in reasons:
        print(reason)
    bench(configs, seconds=options["seconds"])
    return 0


def _run(options: dict[str, Any]) -> Path:
    if len(options["runs"]) != 1:
        raise UsageError(f"one run directory is needed, not {len(options['runs'])}")
    return Path(options["runs"][0])


VERBS: dict[str, Callable[[list[str]], int]] = {
    "train": _train,
    "resume": _resume,
    "evaluate": _evaluate,
    "record": _record,
    "plot": _plot,
    "compare": _compare,
    "presets": _presets,
    "check": _check,
    "bench": _bench,
}
