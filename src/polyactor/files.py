"""A user's files and directory: importing a Python file by its path, and leaving the working directory as it was."""

from __future__ import annotations

import importlib
import importlib.util
import os
import sys
import traceback
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import cloudpickle

from polyactor.errors import in_brief, one_line, suggestion

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
    if not home or not wanted:
        raise ImportError("it must be file.py:name or module:name")
    module = imported(home)
    found = named(module, wanted, home)
    if found is None:
        raise ImportError(f"{one_line(home)} has no {one_line(wanted)}{suggestion(wanted, callables(module))}")
    return found


def imported(home: str) -> ModuleType:
    """Import a module by its name, or a file by its path, which runs it; the working directory stays as it is.

    Raises:
        ImportError: there is none, or it raises an exception; the message is the reason, in one line.
    """
    file = home.endswith(".py")
    if file and not os.path.isfile(home):
        raise ImportError(f"there is no file {one_line(home)}")
    if not file and (home.startswith(".") or "/" in home):
        raise ImportError(f"there is no module {one_line(home)}; a file ends with .py")
    try:
        with same_directory():
            if file:
                return load_file(Path(home))
            # A console script has no entry of sys.path for the current directory, where users keep their modules.
            if os.getcwd() not in sys.path and "" not in sys.path:
                sys.path.append(os.getcwd())
            return importlib.import_module(home)
    except RAISED as error:
        missing = error.name if isinstance(error, ModuleNotFoundError) else None
        if missing is not None and (home == missing or home.startswith(f"{missing}.")):
            why = f"there is no module {one_line(home)}; it must be installed or in this directory"
            raise ImportError(why) from error
        raise _failed(home, error) from error


def named(module: ModuleType, name: str, home: str) -> object | None:
    """Return what a module has by a name, which may have dots; None where there is no such thing.

    Raises:
        ImportError: the module imports it only now, and that raises an exception.
    """
    found: object = module
    try:
        for part in name.split("."):
            found = getattr(found, part, None)
    except RAISED as error:
        raise _failed(f"{home}:{name}", error) from error
    return found


def callables(module: ModuleType) -> list[str]:
    """Return the public names of a module's functions and classes, also of those that it imports late."""
    own = vars(module)
    return [name for name in dir(module) if not name.startswith("_") and callable(own.get(name, callables))]


RAISED = (Exception, SystemExit)
"""What importing may raise: a script may parse arguments, or end, where it is imported."""


def _failed(what: str, error: BaseException) -> ImportError:
    """Return the error that says why something could not be imported, with the line of the user's own file."""
    frames, file = traceback.extract_tb(error.__traceback__), os.path.abspath(what)
    lines = [frame.lineno for frame in frames if frame.filename == file]
    where = f" (line {lines[-1]})" if lines else ""
    return ImportError(f"{one_line(what)} could not be imported: {in_brief(error)}{where}")
