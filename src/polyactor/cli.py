"""The command line: flags to a config, and a call of the library. Nothing heavy is imported before flags are right."""

from __future__ import annotations

import contextlib
import difflib
import io
import os
import re
import sys
import typing
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Any, NoReturn

from polyactor.errors import PolyactorError, UsageError, suggestion

STOPPED_AND_SAVED = 75
USAGE = """\
usage: polyactor VERB ...

  train PRESET --env ID [flags]   train; `polyactor train a3c --env CartPole-v1 --help` lists the flags
  resume RUN [--steps N]          go on with a run; N is the new total
  evaluate RUN [--games N]        whole games with the trained policy, greedy and sampled
  record RUN [--out FILE]         one game as an mp4
  plot RUN... [--out FILE]        learning curves over steps and over wall time
  compare RUN...                  the same, and a table
  presets [NAME]                  every name that train takes, or one of them in full
  check --env ID                  is this environment fit for training?
  bench [PRESET] [--seconds S] [--schemes A,B,…]
                                  speed on this machine, against the environments alone
"""


READ_FIRST = """\
Read first, since they decide which flags there are:
--env ID (any Gymnasium id, module:Env-v0 or module:callable), --scheme sync|hogwild|param-server|actor-learner,
--optimizer sgd|rmsprop|adam.
"""
SHORT = {"--max-lag": "--scheme.max-lag", "--max-staleness": "--scheme.max-staleness"}
"""Flags with a short name."""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a verb and exit with the documented code."""
    args = list(sys.argv[1:] if argv is None else argv)
    try:
        sys.exit(run(args))
    except PolyactorError as error:
        print(f"polyactor: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:
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
    config = read_config(args)
    from polyactor.config import check
    from polyactor.envs import check_env
    from polyactor.rundir import run_directory

    check(config)
    check_env(config.env)
    run_directory(config)
    from polyactor.training import train

    return _report(train(config))


def read_config(args: list[str]) -> Any:
    """The config that a preset and flags describe.

    Preset, algorithm, scheme, optimizer and environment are read first, since they decide which other flags exist.
    """
    from polyactor.config import Config
    from polyactor.presets import base_config

    name, args = _positional(
        args, "train needs a preset or an algorithm, such as: polyactor train a3c --env CartPole-v1"
    )
    first: dict[str, str] = {}
    for flag in ("env", "scheme", "optimizer"):
        first_value, args = _take(args, flag)
        if first_value is not None:
            first[flag] = first_value
    base = base_config(name, **first)
    return _parse(Config, base, args, f"polyactor train {name}", READ_FIRST)


def _parse(cls: type[Any], default: Any, args: list[str], prog: str, description: str) -> Any:
    """tyro's parse, its complaints as one sentence."""
    import tyro

    known = _flags(default)
    args = [SHORT.get(name, name) + equals + value for name, equals, value in (arg.partition("=") for arg in args)]
    for arg in args:
        flag = arg.split("=")[0]
        if arg.startswith("--") and flag[2:].replace("_", "-") not in known and flag != "--help":
            near = difflib.get_close_matches(flag[2:], known, n=1, cutoff=0.5)
            hint = f" (did you mean '--{near[0]}'?)" if near else ""
            raise UsageError(f"there is no flag {flag}{hint}")
    args = _with_none(args, optional=[flag for flag, optional in known.items() if optional])
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(
                cls, default=default, args=args, prog=prog, description=description, config=(tyro.conf.SuppressFixed,)
            )
    except SystemExit as stop:
        if stop.code in (0, None):
            raise
        raise UsageError(_one_sentence(complaint.getvalue())) from None


def _one_sentence(box: str) -> str:
    """What tyro says in a box, in one line."""
    text = re.sub(r"[╭╮╰╯│─]+|Value error", " ", box)
    text = re.split(r"Argument helptext|For full helptext|Got errors", text)[0]
    return " ".join(text.split()) or "the flags were not understood"


def _with_none(args: list[str], optional: Collection[str]) -> list[str]:
    """``none`` as tyro spells it, where it means no value (and not the lock or the core of that name)."""
    flag, spelled = "", []
    for arg in args:
        name, equals, value = arg.partition("=")
        if arg.startswith("--"):
            flag = name[2:].replace("_", "-")
        said = value if equals and arg.startswith("--") else arg
        is_none = said.lower() == "none" and flag in optional
        spelled.append(arg.removesuffix(said) + "None" if is_none else arg)
    return spelled


def _flags(part: Any, prefix: str = "") -> dict[str, bool]:
    """Every flag, and whether it may be none."""
    known: dict[str, bool] = {}
    hints = typing.get_type_hints(type(part))
    for f in fields(part):
        flag = prefix + f.name.replace("_", "-")
        value = getattr(part, f.name)
        known |= (
            _flags(value, f"{flag}.") if is_dataclass(value) else {flag: type(None) in typing.get_args(hints[f.name])}
        )
        if isinstance(value, bool):
            known[f"{prefix}no-{f.name.replace('_', '-')}"] = False
    return known


def _take(args: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The value of ``--flag value`` or ``--flag=value``, and the other arguments."""
    value, rest = None, []
    waiting = iter(args)
    for arg in waiting:
        if arg == f"--{flag}":
            value = next(waiting, None)
            if value is None:
                raise UsageError(f"--{flag} needs a value")
        elif arg.startswith(f"--{flag}="):
            value = arg.partition("=")[2]
        else:
            rest.append(arg)
    return value, rest


def _positional(args: list[str], needed: str) -> tuple[str, list[str]]:
    if not args or args[0].startswith("-"):
        raise UsageError(needed)
    return args[0], args[1:]


def _report(run: Any) -> int:
    return STOPPED_AND_SAVED if run.status == "stopped" else 0


def _resume(args: list[str]) -> int:
    kinds = {"steps": int, "algorithm": str, "quiet": bool}
    options = _options(args, kinds, "resume RUN [--steps N] [--algorithm FILE:CLASS] [--quiet]")
    from polyactor.training import resume

    path = _run(options)
    return _report(resume(path, **{name: value for name, value in options.items() if name in kinds}))


def _evaluate(args: list[str]) -> int:
    kinds = {"games": int, "seed": int, "tag": str}
    options = _options(args, kinds, "evaluate RUN [--games N] [--seed S] [--tag best|last]")
    from polyactor.evaluate import evaluate
    from polyactor.policy import read

    config, tensors = read(_run(options), options.get("tag"))
    games, seed, cores = options.get("games", 100), options.get("seed", 0), len(os.sched_getaffinity(0))
    for deterministic in (True, False):
        print(evaluate(config, tensors, games=games, deterministic=deterministic, seed=seed, threads=cores), flush=True)
    return 0


def _record(args: list[str]) -> int:
    kinds = {"out": Path, "seed": int, "greedy": bool, "tag": str}
    options = _options(args, kinds, "record RUN [--out FILE] [--seed S] [--greedy] [--tag best|last]")
    from polyactor.policy import read
    from polyactor.record import record

    path = _run(options)
    config, tensors = read(path, options.get("tag"))
    out = options.get("out", path / "replay.mp4")
    score = record(config, tensors, out, deterministic=options.get("greedy", False), seed=options.get("seed", 0))
    print(f"{out}: a game of score {score:g}")
    return 0


def _plot(args: list[str]) -> int:
    options = _options(args, {"out": Path}, "plot RUN... [--out FILE]")
    from polyactor.plot import curve

    runs = [Path(run) for run in options["runs"]]
    print(curve(runs, options.get("out", runs[0] / "curve.png")))
    return 0


def _compare(args: list[str]) -> int:
    options = _options(args, {"out": Path}, "compare RUN... [--out FILE]")
    from polyactor.compare import compare
    from polyactor.plot import curve

    runs = [Path(run) for run in options["runs"]]
    compare(runs)
    print(curve(runs, options.get("out", Path("compare.png"))))
    return 0


def _presets(args: list[str]) -> int:
    name = args[0] if args and not args[0].startswith("-") else None
    _options(args if name is None else args[1:], {}, "presets [NAME]", runs=False)
    from polyactor.presets import show

    show(name)
    return 0


def _check(args: list[str]) -> int:
    options = _options(args, {"env": str}, "check --env ID", runs=False)
    if "env" not in options:
        raise UsageError("check needs --env, such as: polyactor check --env CartPole-v1")
    from polyactor.envs.inspect import inspect

    print(inspect(options["env"]))
    return 0


def _bench(args: list[str]) -> int:
    seconds, args = _take(args, "seconds")
    schemes, args = _take(args, "schemes")
    args = args or ["pong-a3c"]
    options = _options(["--seconds", seconds or "15"], {"seconds": float}, "bench [PRESET]", runs=False)
    names = schemes.split(",") if schemes else [read_config(args).scheme.name]
    configs = [read_config([*args, "--scheme", name]) for name in names]
    from polyactor.bench import bench
    from polyactor.config import check

    for config in configs:
        check(config)
    bench(configs, seconds=options["seconds"])
    return 0


def _options(
    args: list[str], kinds: Mapping[str, Callable[[str], Any]], usage: str, *, runs: bool = True
) -> dict[str, Any]:
    """Flags of the small verbs: ``--name value``, or ``--name`` alone for a bool; what is left are run directories."""
    options: dict[str, Any] = {}
    if "--help" in args or "-h" in args:
        print(f"usage: polyactor {usage}")
        sys.exit(0)
    for name, kind in kinds.items():
        if kind is bool:
            options[name], args = f"--{name}" in args, [arg for arg in args if arg != f"--{name}"]
            continue
        value, args = _take(args, name)
        if value is not None:
            try:
                options[name] = kind(value)
            except ValueError:
                raise UsageError(f"--{name} {value} is not allowed: it must be {ARTICLES[kind]}") from None
            if kind in (int, float) and not 0 <= options[name] < float("inf"):
                raise UsageError(f"--{name} {value} is not allowed: it must be at least 0")
    for arg in args:
        if arg.startswith("-"):
            raise UsageError(f"there is no flag {arg}{suggestion(arg, [f'--{name}' for name in kinds])}: {usage}")
    if args and not runs:
        raise UsageError(f"'{args[0]}' is one word too many: polyactor {usage}")
    if runs and not args:
        raise UsageError(f"a run directory is needed: polyactor {usage}")
    return options | {"runs": args}


def _run(options: dict[str, Any]) -> Path:
    if len(options["runs"]) != 1:
        raise UsageError(f"one run directory is needed, not {len(options['runs'])}")
    return Path(options["runs"][0])


ARTICLES: dict[Any, str] = {int: "a whole number", float: "a number"}
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
