"""What the server that workers are forked from imports, once for all of them."""

import gc

import polyactor.evaluate
import polyactor.transport  # noqa: F401 - with torch and everything a worker needs

gc.freeze()  # a collection would else write to each page that is shared, and so copy it
