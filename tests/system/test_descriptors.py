"""Too few file descriptors are said before anything is started."""

from __future__ import annotations

import os
import resource
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import polyactor as pa
from polyactor.errors import OutOfResources
from polyactor.system.descriptors import few_descriptors, require_descriptors

SENTENCE = "too few file descriptors: a process may have 40 of them here"


@pytest.fixture
def _forty(tmp_path: Path) -> Iterator[None]:
    """As by ``ulimit -n 40``."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (40, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.fault("P12")
@pytest.mark.usefixtures("_forty")
def test_a_run_of_many_workers_is_refused_before_it_has_a_directory(tmp_path: Path) -> None:
    with pytest.raises(OutOfResources, match=SENTENCE):
        pa.train("a3c", env="polyactor/Chain-v0", workers=16, envs=1, out=str(tmp_path / "run"), quiet=True)
    assert not list(tmp_path.iterdir())
    require_descriptors(0, others=1)


def use_all(opened: ExitStack) -> None:
    while True:
        opened.callback(os.close, os.dup(0))


@pytest.mark.usefixtures("_forty")
def test_an_error_about_them_names_the_way_out() -> None:
    with ExitStack() as opened, pytest.raises(OutOfResources, match=SENTENCE), few_descriptors():
        use_all(opened)
    with pytest.raises(OutOfResources, match=SENTENCE), few_descriptors():
        raise RuntimeError("unable to open shared memory object </torch_1>: Too many open files (24)")
    with pytest.raises(FileNotFoundError), few_descriptors():
        raise FileNotFoundError(2, "No such file")
