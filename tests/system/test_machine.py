"""What the machine at hand has."""

from __future__ import annotations

import errno
import os
import threading
from pathlib import Path

import pytest
import torch

from polyactor.errors import OutOfResources
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


@pytest.mark.fault("P10")
def test_files_that_may_not_be_large_enough_are_a_want_of_shared_memory() -> None:
    said = f"unable to resize file </torch_1> to the right size: {os.strerror(errno.EFBIG)} (27)"
    with pytest.raises(OutOfResources, match="ulimit -f"), machine.shared_memory():
        raise RuntimeError(said)


def test_threads_of_torch_are_put_back_when_blocks_overlap() -> None:
    """A prediction in one thread begins while a run in another has set its own number, and ends after it."""
    begun, over, found = threading.Event(), threading.Event(), list[int]()

    def predict() -> None:
        with machine.torch_threads(1):
            begun.set()
            assert over.wait(10)
        found.append(torch.get_num_threads())

    with machine.torch_threads(3):
        thread = threading.Thread(target=predict)
        with machine.torch_threads(2):
            thread.start()
            assert begun.wait(10)
    over.set()
    thread.join()
    newcomer = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    newcomer.start()
    newcomer.join()
    assert found == [torch.get_num_threads()] * 2
