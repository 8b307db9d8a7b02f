"""What a new worker process takes over from the run's own: environment variables, registered ids, the script."""

from __future__ import annotations

import faulthandler
import multiprocessing.util
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from polyactor.envs.registrations import register, registrations
from polyactor.system.machine import settle
from polyactor.system.script import import_script, whereabouts
from polyactor.system.streams import print_without_fail


@dataclass(frozen=True)
class Surroundings:
    """The surroundings of the process that makes them, to be sent to another one.

    Attributes:
        environ: the environment variables.
        registered: the registered Gymnasium ids.
        script: where the program's script is.
        litter: the temporary folder of multiprocessing.
    """

    environ: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    registered: Mapping[str, bytes] = field(default_factory=registrations)
    script: Mapping[str, Any] = field(default_factory=whereabouts)
    litter: str = field(default_factory=multiprocessing.util.get_temp_dir)

    def take_over(self) -> str:
        """Make this process, which is new, a worker; return why the script could not be imported, or nothing."""
        os.environ.clear()  # the fork server's
        os.environ.update(self.environ)
        for number in (signal.SIGINT, signal.SIGHUP):  # they reach the whole group; the run decides what they mean
            signal.signal(number, signal.SIG_IGN)
        faulthandler.enable()
        print_without_fail()
        failure = import_script(self.script)
        settle()  # after the script, which may seed the global random streams
        register(self.registered)
        return failure
