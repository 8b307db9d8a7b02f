"""Optimizers: update rules on one flat vector of parameters, and the layout of that vector.

A rule is a dataclass of hyper-parameters with one in-place step. The step is given the statistics as plain tensors,
which may be in shared memory, one set for all workers or one per worker.

* `rules`: SGD, RMSprop and Adam.
* `kfac`: K-FAC, the optimizer of ACKTR.
* `flat`: `State`, the vector with all parameters and running statistics.
"""

from polyactor.optim.kfac import KFAC
from polyactor.optim.rules import SGD, Adam, RMSprop, Rule

RULES: dict[str, type[Rule]] = {"sgd": SGD, "rmsprop": RMSprop, "adam": Adam, "kfac": KFAC}
"""The update rules by their names in ``--optimizer``."""

__all__ = ["KFAC", "RULES", "SGD", "Adam", "RMSprop", "Rule"]
