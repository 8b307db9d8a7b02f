"""Where a run lives: a directory of its own, never one that is taken."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from polyactor.checkpoint import writing
from polyactor.config import Config
from polyactor.errors import RunDirectoryError


def run_directory(config: Config) -> Path:
    """Where the run will live.

    Raises:
        RunDirectoryError: there is something already, or nothing can be made there.
    """
    if config.out is not None:
        directory = Path(config.out)
    else:
        env = str(config.env).rpartition("/")[2].rpartition(":")[2]
        stem = f"{config.preset or 'run'}-{env}-{datetime.now():%Y%m%d-%H%M%S}"
        directory = Path("runs") / stem
        for n in range(2, 1000):
            if not directory.exists():
                break
            directory = Path("runs") / f"{stem}-{n}"
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise RunDirectoryError(
            f"--out {directory} is taken: choose another directory, or go on with: polyactor resume {directory}"
        )
    parent = next(p for p in (directory, *directory.absolute().parents) if p.exists())
    if not os.access(parent, os.W_OK):
        raise RunDirectoryError(f"--out {directory} cannot be made: {parent} is not writable")
    return directory


def new_directory(directory: Path) -> None:
    """Make it."""
    with writing(directory):
        directory.mkdir(parents=True, exist_ok=True)
