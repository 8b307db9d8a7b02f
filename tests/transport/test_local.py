"""Runs whose workers are processes or threads of this machine end by themselves and leave nothing."""

from __future__ import annotations

import multiprocessing
import os
import signal
from typing import Any

import pytest
import torch

from polyactor.errors import WorkerFailed
from polyactor.schemes import Sync
from polyactor.shared.counters import Counter
from polyactor.system.machine import torch_threads
from tests.helpers.servers import SCHEMES, B, T, W, config_of, go_on, training


@pytest.mark.parametrize("name", SCHEMES)
def test_it_ends_by_itself_and_counts_what_it_learned_from(name: str) -> None:
    config = config_of(SCHEMES[name], steps=2_000)
    with training(config) as (run, state, counters):
        start = state.theta.clone()
        for _ in run:
            pass
        # A round of a learner is W rollouts; workers under a server each finish what they had begun.
        assert 2_000 <= counters.steps <= 2_000 + 2 * W * T * B
        assert not torch.equal(start, state.theta)
        played = counters.table[:, Counter.GAMES] > 0
        assert played.all() if name in ("server-mean", "learner") else played.any()  # who begins late may play none
        assert not counters.table[:, Counter.SKIPPED].any()
    assert multiprocessing.active_children() == []


@pytest.mark.parametrize("transported", ["local", "inline"])
@pytest.mark.parametrize("name", ["sync", "server", "learner"])
def test_a_run_that_is_closed_leaves_torch_its_threads(name: str, transported: Any) -> None:
    schemes = {**SCHEMES, "sync": Sync()}
    config = config_of(schemes[name], workers=1, transport=transported)
    with torch_threads(2):
        with training(config) as (run, _, counters):
            go_on(run, counters, updates=3)
        del run
        assert torch.get_num_threads() == 2


@pytest.mark.parametrize("name", ["server", "learner"])
def test_a_killed_worker_is_named_and_the_rest_let_go(name: str) -> None:
    with training(config_of(SCHEMES[name], restarts=0)) as (run, state, counters):
        go_on(run, counters, 5)
        victim = next(child for child in multiprocessing.active_children() if child.name == "polyactor-worker-1")
        assert victim.pid is not None
        os.kill(victim.pid, signal.SIGKILL)
        with pytest.raises(WorkerFailed, match="worker 1 was killed by signal 9"):
            go_on(run, counters, 10**9, deadline=20.0)
        assert bool(torch.isfinite(state.vector).all())
    assert multiprocessing.active_children() == []
