"""The modules that the forkserver imports once, so that each worker process starts with them loaded."""

# ruff: noqa: E402
import signal

for number in (signal.SIGINT, signal.SIGHUP):  # Ctrl-C and the end of a terminal reach all; the main process heeds them
    signal.signal(number, signal.SIG_IGN)

import gc

import polyactor.evaluation.evaluate
import polyactor.transport  # noqa: F401 - imports torch and all that a worker needs

gc.freeze()  # a garbage collection would otherwise write to shared pages, which copies them
