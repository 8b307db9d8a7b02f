"""What the server that workers are forked from imports, once for all of them."""

# ruff: noqa: E402
import signal

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the run decides what it means

import gc

import polyactor.evaluation.evaluate
import polyactor.transport  # noqa: F401 - with torch and everything a worker needs

gc.freeze()  # a collection would else write to each page that is shared, and so copy it
