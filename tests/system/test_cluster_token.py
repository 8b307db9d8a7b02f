"""Whoever can be reached from elsewhere has a token, which nobody else can read."""

from __future__ import annotations

from pathlib import Path

import pytest

from polyactor.errors import UsageError
from polyactor.system.cluster_token import VARIABLE, off_this_machine, refuse_without_token


@pytest.mark.parametrize("address", ["127.0.0.1:6379", "127.3.2.1:1", "localhost:6379", "[::1]:6379"])
def test_this_machine_alone(address: str) -> None:
    assert not off_this_machine(address)


@pytest.mark.parametrize("address", ["10.0.0.1:6379", "head:6379", "0.0.0.0:6379", "[fe80::1]:6379", "127.0.0.1.x:1"])
def test_other_machines(address: str) -> None:
    assert off_this_machine(address)


def test_a_token_is_needed_and_kept_secret(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    token = tmp_path / "token"
    monkeypatch.setenv(VARIABLE, str(token))
    refuse_without_token("127.0.0.1:6379")
    for _ in range(2):
        with pytest.raises(
            UsageError, match=r"--ray.address head:6379 is not allowed without a token: write one to .*0600"
        ):
            refuse_without_token("head:6379")
        token.touch(0o600)  # an empty one is none
    token.write_text("secret")
    token.chmod(0o644)
    with pytest.raises(UsageError, match="others can read the token") as caught:
        refuse_without_token("head:6379")
    assert "secret" not in str(caught.value)
    token.chmod(0o600)
    refuse_without_token("head:6379")
