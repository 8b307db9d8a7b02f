"""The entry point of the command line. Nothing slow is imported before the flags are known to be right."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any, NoReturn

from polyactor.cli.flags import HELP, KEEPS, env_timeout, read_config, small_flags, take_auto
from polyactor.cli.verbs import LOOKING, PLACING, TRUSTING, noticed, the_run
from polyactor.errors import PolyactorError, UsageError, WorkerFailed, one_line, suggestion
from polyactor.system.interpreter import leave, no_exit
from polyactor.system.streams import standard_streams

STOPPED_AND_SAVED = 75
"""The exit code of a run that a signal stopped and that can be resumed."""
USAGE = """\
usage: polyactor VERB ...

  train PRESET --env ID [flags]   train; `polyactor train a3c --env CartPole-v1 --help` lists the flags
  resume RUN [--steps N] [--algorithm FILE:CLASS] [--callback FILE:CLASS …] [--restart] [--trust-code] [--quiet]
                                  go on with a run; N is the new total
  evaluate RUN [--games N] [--seed S] [--tag best|last] [--trust-code] [--evaluate.timeout S …]
                                  whole games with the trained policy, greedy and sampled
  record RUN [--out FILE] [--seed S] [--greedy] [--tag best|last] [--trust-code]
                                  one game as an mp4
  plot RUN... [--out FILE]        learning curves over steps and over wall time
  compare RUN...                  the same, and a table
  presets [NAME]                  every name that train takes, or one of them in full
  check --env ID [--env-wrapper NAME…] [--env-kwargs NAME=VALUE…] [--env-resize H W]
                                  is this environment fit for training?
  bench [PRESET] [--env ID] [--seconds S] [--schemes A,B,…]
                                  speed on this machine, against the environments alone
"""


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """Run a verb, print its error if it has one, and exit with the documented code."""
    # Set before torch is loaded: its idle threads must not spin on cores that the emulators need.
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    with standard_streams():
        try:
            code = run(list(sys.argv[1:] if argv is None else argv))
        except PolyactorError as error:
            for note in getattr(error, "__notes__", ()):  # traceback of a worker
                print(note, file=sys.stderr)
            # Text from a file or path may not break the line; a worker's traceback keeps its lines.
            said = error if isinstance(error, WorkerFailed) else one_line(error, most=100_000)
            print(f"polyactor: {said}", file=sys.stderr)
            code = error.exit_code
        except KeyboardInterrupt:
            code = 130
        except BrokenPipeError:  # the reader has left
            code = 0
    leave(code)


def run(args: list[str]) -> int:
    """Run the verb that the arguments name, and return the exit code."""
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
    with noticed(rest), nullcontext() if HELP.intersection(rest) else no_exit():
        return VERBS[verb](rest)


def _train(args: list[str]) -> int:
    """Train a new run: ``polyactor train``."""
    auto, args = take_auto(args)
    from polyactor.api import prepare
    from polyactor.envs import Specs

    look = Specs(env_timeout(args))
    (ready,) = prepare([read_config(args, look)], auto, look)
    from polyactor.training.trainer import train

    return _exit_code(train(ready.config, ready.spec, ready.reasons, ready.callbacks))


def _exit_code(run: Any) -> int:
    """Return the exit code of a finished run."""
    return STOPPED_AND_SAVED if run.status == "stopped" else 0


def _resume(args: list[str]) -> int:
    """Resume a run: ``polyactor resume``."""
    kinds = {"steps": int, "algorithm": str, "callback": list, "restart": bool, "quiet": bool, **TRUSTING, **PLACING}
    usage = "resume RUN [--steps N] [--algorithm FILE:CLASS] [--callback NAME …] [--restart] [--trust-code] [--quiet]"
    options = small_flags(args, kinds, f"{usage} [{'] ['.join(f'--{flag} X' for flag in PLACING)}]", others=KEEPS)
    from polyactor.training.trainer import resume

    path, callbacks = the_run(options), options.pop("callback", None)
    ray = {name.removeprefix("ray."): options.pop(name) for name in PLACING if name in options and "." in name}
    given = {name.replace("-", "_"): value for name, value in options.items() if name in kinds}
    return _exit_code(resume(path, callbacks=callbacks, ray=ray, **given))


VERBS: dict[str, Callable[[list[str]], int]] = {"train": _train, "resume": _resume, **LOOKING}
