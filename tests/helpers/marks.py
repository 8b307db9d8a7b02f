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
