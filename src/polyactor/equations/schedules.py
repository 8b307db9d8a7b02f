"""Schedules of coefficients over the progress of a run."""

from __future__ import annotations


def anneal(start: float, end: float | None, progress: float) -> float:
    """Interpolate linearly from start to end by the progress of a run in [0, 1]; without an end, return start."""
    return start if end is None else start + (end - start) * min(1.0, progress)
