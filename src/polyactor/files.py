"""A user's files and directory: importing a Python file by its path, and leaving the working directory as it was."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import cloudpickle

from polyactor.errors import one_line, suggestion

_LOADED: dict[str, tuple[int, int]] = {}
"""By module: when its file was last changed, and the size of it then."""


def load_file(path: Path) -> ModuleType:
    """Import a Python file under a name of its own, because it may be called like an installed module.

    The file runs again only after it was changed, and can import its neighbours. Exceptions that it raises are passed
    on; the working directory stays as it is.

    Raises:
        OSError: the file cannot be read.
        ImportError: it is no Python file.
    """
    path = path.absolute()
    name = f"polyactor_file_{path.stem}_{zlib.crc32(str(path).encode(errors='surrogateescape')):08x}"
    state = path.stat()
    if name in sys.modules and _LOADED.get(name) == (state.st_mtime_ns, state.st_size):
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"{path} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickling look their module up here
    if str(path.parent) not in sys.path:  # as of a script, but last: its neighbours hide no installed module
        sys.path.append(str(path.parent))
    try:
        with same_directory():
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    cloudpickle.register_pickle_by_value(module)  # workers cannot import it by name
    _LOADED[name] = state.st_mtime_ns, state.st_size
    return module


@contextmanager
def same_directory() -> Iterator[None]:
    """Put the working directory back at the end of the with block, inside which an environment may change it."""
    before = os.open(os.curdir, getattr(os, "O_PATH", os.O_RDONLY))
    try:
        yield
    finally:
        os.fchdir(before)
        os.close(before)


def code(name: str) -> object:
    """Return what ``file.py:name`` or ``module:name`` names; its file or module is imported, which runs it.

    Raises:
        ImportError: there is no such file, module or name, or it raises an exception; the message says so.
    """
    home, _, wanted = name.rpartition(":")
    try:
        with same_directory():
            if home.endswith(".py"):
                if not os.path.isfile(home):
                    raise ImportError(f"there is no file {one_line(home)}")
                module = load_file(Path(home))
            else:
                # A console script has no entry of sys.path for the current directory, where users keep their modules.
                if os.getcwd() not in sys.path and "" not in sys.path:
                    sys.path.append(os.getcwd())
                module = importlib.import_module(home)
            found = getattr(module, wanted, None)
    except ModuleNotFoundError as error:
        missing = error.name is not None and (home == error.name or home.startswith(f"{error.name}."))
        why = f"there is no module {one_line(home)}" if missing else f"{one_line(home)} could not be imported: {error}"
        raise ImportError(why) from error
    except ImportError:
        raise
    except (Exception, SystemExit) as error:  # a script may parse arguments, or end, where it is imported
        why = f"{type(error).__name__}: {one_line(error)}"
        raise ImportError(f"{one_line(home)} could not be imported: {why}") from error
    if found is None:
        own = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        raise ImportError(f"{one_line(home)} has no {one_line(wanted)}{suggestion(wanted, own)}")
    return found
