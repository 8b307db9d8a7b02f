"""Which cases of a test belong to the fast suite."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def mostly_slow(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """All cases; those that are not named belong to the slow suite."""
    cases = list(cases)
    assert set(fast) < set(cases), "the fast ones are some of them"
    return [pytest.param(case, marks=[] if case in fast else pytest.mark.slow) for case in cases]


TRANSPORTS = ["local", pytest.param("ray", marks=pytest.mark.slow)]
"""Values of `transported` with workers in processes of their own."""


def also_over_ray(cases: Iterable[Any], fast: Collection[Any]) -> list[Any]:
    """All schemes by name, each with the transport `local`, as `mostly_slow`; and a server and a learner over Ray."""
    local = [pytest.param(*case.values, "local", marks=case.marks) for case in mostly_slow(cases, fast)]
    return local + [pytest.param(name, "ray", marks=pytest.mark.slow) for name in ("server", "learner")]
