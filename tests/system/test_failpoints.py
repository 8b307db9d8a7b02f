"""Points at which a worker can be told to fail."""

from __future__ import annotations

import pytest

from polyactor.errors import UsageError
from polyactor.system import failpoints


def test_fail_points_say_what_is_allowed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(failpoints.VARIABLE, "lunch=kill@1")
    with pytest.raises(UsageError, match="POLYACTOR_FAIL lunch=kill@1 is not allowed"):
        failpoints.arm()
    monkeypatch.delenv(failpoints.VARIABLE)
    failpoints.arm()
    failpoints.hit("update")
