"""What several test files share: the golden vectors, a made-up rollout, and a run that has ended."""

from __future__ import annotations

import json
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces

import polyactor as pa
from polyactor.data import CoreState, Rollout
from tests.helpers.faults import Found, write
from tests.helpers.other_sums import disturb, disturb_workers
from tests.helpers.runs import train

FOUND = pytest.StashKey[dict[str, Found]]()
"""What tests of faults have found in this session."""


SLOW_MAY_TAKE = 3600
"""Seconds, of a test that is marked slow; pyproject.toml says it for the others."""


def pytest_configure() -> None:
    """Hear signals that whoever began this ignores, and passes on: SIGHUP under nohup, SIGINT in the background."""
    for each, handler in ((signal.SIGHUP, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
        if signal.getsignal(each) == signal.SIG_IGN:
            signal.signal(each, handler)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """More time for what learns or soaks; and a page about all faults is not written of some tests."""
    everywhere = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not config.getoption("keyword")
    if config.getoption("--write-faults") and not everywhere:
        raise pytest.UsageError("--write-faults writes the page of all faults: give it no paths and no -k")
    for item in items:
        if item.get_closest_marker("slow"):
            item.add_marker(pytest.mark.timeout(SLOW_MAY_TAKE))


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tensors here are small: more threads only make sums depend on the machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session", autouse=True)
def _other_sums(request: pytest.FixtureRequest) -> Iterator[None]:
    """With --other-sums: a library's sums round in another way for other shapes, here and in workers."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        if request.config.getoption("--other-sums"):
            disturb()
            disturb_workers(monkeypatch)
        yield


@pytest.fixture(autouse=True)
def _handlers() -> Iterator[None]:
    """No test leaves a signal to another handler: whether Ctrl-C raises is what later tests depend on."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    yield
    left = {number: signal.getsignal(number) for number in before}
    for number, handler in before.items():
        signal.signal(number, handler)
    assert left == before


@pytest.fixture(scope="session")
def golden() -> Callable[[str], tuple[dict[str, Any], dict[str, Any]]]:
    """Inputs and outputs of a golden case, computed in float64 by independent numpy code."""
    cases = json.loads((Path(__file__).parent / "vectors.json").read_text())["cases"]
    return lambda name: (cases[name]["inputs"], cases[name]["outputs"])


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> pa.Run:
    """A run that has ended, to be looked at; who changes it takes a copy."""
    return train(tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture(scope="session")
def cluster() -> Iterator[None]:
    """A Ray cluster on this machine, which all runs of the session use."""
    pytest.importorskip("ray", reason="ray is not installed: pip install 'polyactor[ray]'")
    from polyactor.config import RayOptions
    from polyactor.transport.ray.cluster import joined

    with joined(RayOptions(), workers=4, room=0):
        yield


@pytest.fixture(autouse=True)
def _cluster_where_it_is_transported_over_ray(request: pytest.FixtureRequest) -> None:
    """Let a case whose `transported` is Ray have the cluster."""
    callspec = getattr(request.node, "callspec", None)
    if callspec is not None and callspec.params.get("transported") == "ray":
        request.getfixturevalue("cluster")


@pytest.fixture(scope="session")
def make_rollout() -> Callable[..., Rollout]:
    return _make_rollout


def _make_rollout(
    t: int,
    b: int,
    *,
    observation: tuple[int, ...] = (3,),
    actions: spaces.Space[Any] | None = None,
    core_state: CoreState = (),
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    end: float = 0.2,
) -> Rollout:
    """Random numbers in the NEXT_STEP convention; every row begins an episode, and `end` is the chance of a last step.

    Half of the ends terminate, half truncate. Fake rows carry reward 0 and an action nobody asked for.
    """
    rng = np.random.default_rng(seed)
    actions = actions or spaces.Discrete(2)
    actions.seed(seed)
    is_first, terminated = np.zeros((t + 1, b), bool), np.zeros((t, b), bool)
    is_first[0], ended = True, np.zeros(b, bool)
    for row in range(t):
        is_first[row + 1] = ended  # what follows a fake row
        done = (rng.random(b) < end) & ~ended
        terminated[row] = done & (rng.random(b) < 0.5)
        ended = done
    mask = ~is_first[1:]
    action = np.stack([np.stack([np.asarray(actions.sample()) for _ in range(b)]) for _ in range(t)])
    return Rollout(
        observation=torch.from_numpy(rng.normal(size=(t + 1, b, *observation))).to(dtype),
        is_first=torch.from_numpy(is_first),
        action=torch.from_numpy(action).to(dtype if isinstance(actions, spaces.Box) else torch.int64),
        reward=torch.from_numpy(rng.normal(size=(t, b)) * mask).to(dtype),
        terminated=torch.from_numpy(terminated),
        behavior_log_prob=torch.zeros(t, b, dtype=dtype),
        core_state=core_state,
        version=torch.zeros(b, dtype=torch.int64),
    )


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--write-docs", action="store_true", help="put what slow tests measure into the pages of docs/")
    parser.addoption("--other-sums", action="store_true", help="round a library's sums by its operands' shapes")
    parser.addoption("--write-faults", action="store_true", help="write docs/faults.md; run with -m fault")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[Any]:
    report = yield
    if report.when == "call" or report.outcome == "skipped":
        for mark in item.iter_markers("fault"):
            for name in mark.args:
                found = item.config.stash.setdefault(FOUND, {}).setdefault(name, Found())
                found.add(item.nodeid.partition("::")[2], report.outcome, item.user_properties)
    return report


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    whole = exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) and not session.config.option.collectonly
    if session.config.getoption("--write-faults") and whole:
        write(Path(__file__).parents[1] / "docs" / "faults.md", session.config.stash.get(FOUND, {}))
