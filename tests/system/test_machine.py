"""What the machine at hand has."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyactor.system import machine


def test_memory_is_the_machines_or_what_a_container_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = tmp_path / "memory.max", tmp_path / "memory.limit_in_bytes"
    monkeypatch.setattr(machine, "CONTAINER_LIMITS", files)
    whole = machine.memory_mb()
    assert whole > 256
    files[0].write_text("max\n")
    assert machine.memory_mb() == whole
    files[1].write_text(f"{100 * 2**20}\n")
    assert machine.memory_mb() == 100
