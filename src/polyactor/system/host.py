"""Facts about this machine: versions of packages, the processor's name, and the memory that processes use."""

from __future__ import annotations

import math
import platform
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from importlib import metadata
from pathlib import Path


def versions() -> dict[str, str | None]:
    """Return the versions of Python, torch, gymnasium and polyactor without importing them; None if not installed.

    That of MuJoCo is among them where this process uses it, since the same policy scores otherwise with another one.
    """
    found: dict[str, str | None] = {"python": platform.python_version()}
    for package in ("torch", "gymnasium", "polyactor", *(["mujoco"] if "mujoco" in sys.modules else [])):
        try:
            found[package] = metadata.version(package)
        except (metadata.PackageNotFoundError, OSError):  # the latter where no more files can be opened
            found[package] = None
    return found


def cpu_name() -> str:
    """Return the name of the processor as the operating system gives it; never empty."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() == "model name" and value.strip():
                return value.strip()
    return platform.processor() or platform.machine() or "unknown"


def resident_mb(process: int) -> float:
    """Return the resident memory of a process and all its descendants in MiB, or NaN if the system cannot say.

    On Linux a page shared by n processes counts 1/n for each of them (PSS), elsewhere it counts in full for each. A
    process that has ended counts 0.
    """
    if Path("/proc/self/smaps_rollup").exists():
        parents = {int(folder.name): _parent(folder) for folder in Path("/proc").glob("[0-9]*")}
        return sum(_proportional_kib(pid) for pid in _family(process, parents)) / 2**10
    try:
        command = ["ps", "-A", "-o", "pid=,ppid=,rss="]
        lines = subprocess.run(command, capture_output=True, text=True, timeout=5).stdout.splitlines()
        table = {pid: (parent, kib) for pid, parent, kib in (map(int, line.split()) for line in lines)}
        family = _family(process, {pid: parent for pid, (parent, _) in table.items()})
        return sum(table[pid][1] for pid in family if pid in table) / 2**10
    except (OSError, ValueError, subprocess.SubprocessError):
        return math.nan


def _family(process: int, parents: Mapping[int, int]) -> list[int]:
    """Return the ids of a process and all its descendants, given the parent of every process."""
    found = [process]
    for pid in found:  # grows while it is read
        found += [child for child, parent in parents.items() if parent == pid]
    return found


def _parent(folder: Path) -> int:
    with suppress(OSError):
        return int((folder / "stat").read_text(errors="replace").rpartition(")")[2].split()[1])
    return 0


def _proportional_kib(pid: int) -> int:
    with suppress(OSError):
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
        return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return 0
