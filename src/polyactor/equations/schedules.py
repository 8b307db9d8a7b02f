"""Schedules of coefficients over the progress of a run."""

from __future__ import annotations


def anneal(start: float, end: float | None, progress: float) -> float:
    """Linear from start to end over progress in [0, 1]; constant when there is no end."""
    return start if end is None else start + (end - start) * min(1.0, progress)
