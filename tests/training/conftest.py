"""A copy of a run that has ended, to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import polyactor as pa


@pytest.fixture
def copy(finished: pa.Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.path, tmp_path / "run"))
