"""A run that has ended, and a copy to change."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import polyactor as pa
from tests.helpers.runs import train


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pa.Run:
    return train(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def copy(finished: pa.Run, tmp_path: Path) -> Path:
    return Path(shutil.copytree(finished.path, tmp_path / "run"))
