"""The token with which the members of a Ray cluster know each other, in a file that only its owner can read."""

from __future__ import annotations

import ipaddress
import os
from pathlib import Path

from polyactor.errors import UsageError, one_line

VARIABLE = "RAY_AUTH_TOKEN_PATH"
"""The environment variable that names the file, which is ``~/.ray/auth_token`` otherwise."""
SHARED = 0o077
"""Permissions that a token file must not give: to its group and to others."""


def token_path() -> Path:
    """Return the path of the token file, whether there is one or not."""
    return Path(os.environ.get(VARIABLE) or "~/.ray/auth_token").expanduser()


def off_this_machine(address: str) -> bool:
    """Return whether host:port may be reached from other machines; names other than localhost count as such."""
    host = address.rpartition(":")[0].strip("[]")
    try:
        return not ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host != "localhost"


def refuse_without_token(address: str) -> None:
    """Refuse an address off this machine where there is no token, or others can read it.

    Args:
        address: host:port of a cluster's head, or a word for a cluster of this machine.

    Raises:
        UsageError: there is no token file, or it has another mode than 0600.
    """
    if ":" not in address or not off_this_machine(address):
        return
    path, said = token_path(), f"--ray.address {one_line(address, most=80)} is not allowed"
    if not path.is_file() or not path.stat().st_size:
        raise UsageError(
            f"{said} without a token: write one to {path} (mode 0600) on each node, which {VARIABLE} may name, and "
            "start the cluster with RAY_AUTH_MODE=token (docs/ray.md)"
        )
    if path.stat().st_mode & SHARED:
        raise UsageError(f"{said}: others can read the token {path}; make it yours alone: chmod 600 {path}")
