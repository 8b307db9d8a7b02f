"""Equations of actor-critic methods as functions of tensors ``[T, B]``, without models, processes or environments.

* `distributions`: policies, with their samples, log-probabilities, entropies and divergences.
* `losses`: the terms that losses are made of.
* `returns`: n-step returns, generalised advantage estimation, V-trace and Retrace.
* `schedules`: coefficients that change over a run.
* `trust_region`: natural gradients and the line search along them.
"""

from polyactor.equations import losses, returns

__all__ = ["losses", "returns"]
