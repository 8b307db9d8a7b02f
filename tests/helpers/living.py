"""Whether a process lives."""

from __future__ import annotations

from pathlib import Path


def alive(pid: int) -> bool:
    """Running; a zombie that nobody has waited for is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
