"""Update rules on one flat vector, and the vector they move.

A rule is data (its hyper-parameters) and one in-place step. Its statistics are plain tensors it is handed, so they
can live in shared memory, in a checkpoint, or one set per worker, and the rule does not know which.
"""

from polyactor.optim.rules import RULES, SGD, Adam, RMSprop, Rule

__all__ = ["RULES", "SGD", "Adam", "RMSprop", "Rule"]
