"""The script of the program, which a worker process imports as far as its first run, since it may register or patch.

`multiprocessing` would import all of it, in which a script without ``if __name__ == "__main__":`` trains again; and it
cannot start a process where the script is no file, as on standard input.
"""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from multiprocessing import spawn
from typing import Any

from polyactor.errors import Command, UsageError, shown

_hiding = threading.Lock()
_importing = False
_process: int | None = None  # the one in which runs have begun


class RunAgain(Command):
    """A script that a worker imports has come to the place where it trains: its import ends here."""


def refuse_run() -> None:
    """Return where a run may begin.

    Raises:
        RunAgain: this process is a worker that imports the script.
        UsageError: this process was forked from one that has trained; torch would wait for threads it no longer has.
    """
    global _process
    if _importing:
        raise RunAgain
    if _process not in (None, os.getpid()):
        raise UsageError(
            "this process was forked from one that has trained, and torch cannot compute in it: start it by spawn or "
            "forkserver, as with multiprocessing.get_context('spawn')"
        )
    _process = os.getpid()


def whereabouts() -> dict[str, Any]:
    """Return how `import_script` finds this program's script: its path or module, or nothing where it is no file."""
    found = {name: value for name, value in spawn.get_preparation_data("").items() if name.startswith("init_main")}
    return {name: value for name, value in found.items() if name != "init_main_from_path" or os.path.isfile(value)}


@contextmanager
def hidden_script() -> Iterator[None]:
    """Keep `multiprocessing` from importing the script in processes that are started inside the with block."""
    main = sys.modules["__main__"]
    with _hiding:
        seen = {name: getattr(main, name) for name in ("__file__", "__spec__") if hasattr(main, name)}
        try:
            for name in seen:
                setattr(main, name, None)
            yield
        finally:
            for name, value in seen.items():
                setattr(main, name, value)


def import_script(found: Mapping[str, Any]) -> str:
    """Import the script that `whereabouts` found as far as its first run; return why that failed, or nothing.

    A failure need not matter: environments and algorithms that the script defines are sent to workers whole.
    """
    global _importing
    _importing = True
    try:
        spawn.prepare(dict(found))
    except RunAgain:
        pass
    except (Exception, SystemExit) as error:
        path = next(iter(found.values()))
        return f"a worker could not import {path}: {type(error).__name__}: {shown(error)}"
    finally:
        _importing = False
    return ""
