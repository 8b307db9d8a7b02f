"""What is in a directory."""

from __future__ import annotations

import hashlib
import stat
from pathlib import Path


def digest(root: Path) -> str:
    """Of every name and byte."""
    tree = sorted(
        (str(path), hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else "")
        for path in root.rglob("*")
        if path.is_dir() or stat.S_ISREG(path.stat().st_mode)
    )
    return hashlib.sha256(repr(tree).encode()).hexdigest()
