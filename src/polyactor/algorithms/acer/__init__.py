"""Actor-critic with experience replay (Wang et al. 2017).

* `acer`: the loss, and the fresh and replayed batches.
* `critics`: targets and policy-gradient weights, for discrete actions and for a Box.
* `trust_regions`: ways to hold the policy near another one.
"""

from polyactor.algorithms.acer.acer import ACER

__all__ = ["ACER"]
