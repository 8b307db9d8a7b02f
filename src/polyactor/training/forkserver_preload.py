"""The modules that the forkserver imports once, so that each worker process starts with them loaded."""

# ruff: noqa: E402
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes; the main one handles it

import gc

import polyactor.evaluation.evaluate
import polyactor.transport  # noqa: F401 - imports torch and all that a worker needs

gc.freeze()  # a garbage collection would otherwise write to shared pages, which copies them
