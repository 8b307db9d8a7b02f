"""Asks the head of a cluster for its id, in a process of its own: Ray itself takes 20 s to say that a token is wrong.

It is run as a script, and imports nothing but Ray.
"""

from __future__ import annotations

import os
import subprocess
import sys

ANSWERED, REFUSED = 0, 3
"""Exit codes: the head answered, or it did not accept the token."""
SECONDS = 30.0
"""Seconds that the process may take, most of them for its imports on a busy machine."""


def starts(address: str, mode: str) -> subprocess.Popen[bytes]:
    """Start to ask the head at host:port, with the token of this process's environment or, as "disabled", without."""
    command = [sys.executable, "-P", __file__, address]
    environ = os.environ | {"RAY_AUTH_MODE": mode}
    return subprocess.Popen(command, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def answer(asking: subprocess.Popen[bytes]) -> int | None:
    """Return `ANSWERED` or `REFUSED`, or None if there was no answer within `SECONDS`."""
    try:
        code = asking.wait(SECONDS)
    except subprocess.TimeoutExpired:
        asking.kill()
        asking.wait()
        return None
    return code if code in (ANSWERED, REFUSED) else None


if __name__ == "__main__":
    from ray._raylet import GcsClient
    from ray.exceptions import AuthenticationError

    try:
        GcsClient(address=sys.argv[1])
    except AuthenticationError:
        sys.exit(REFUSED)
