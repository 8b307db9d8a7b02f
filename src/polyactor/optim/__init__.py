"""Optimizers: update rules on one flat vector of parameters, and the layout of that vector.

A rule is a dataclass of hyper-parameters with one in-place step. The step is given the statistics as plain tensors,
which may be in shared memory, one set for all workers or one per worker.

* `rules`: SGD, RMSprop and Adam.
* `flat`: `State`, the vector with all parameters and running statistics.
"""

from polyactor.optim.rules import RULES, SGD, Adam, RMSprop, Rule

__all__ = ["RULES", "SGD", "Adam", "RMSprop", "Rule"]
