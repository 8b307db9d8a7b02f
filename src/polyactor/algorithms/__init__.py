"""Algorithms: a frozen dataclass of hyper-parameters with a loss, each in one module and without processes.

* `base`: `Algorithm`, and what it may ask of a model and of a replay buffer.
* `a2c`: advantage actor-critic, the loss of A2C and A3C.
* `ppo`: proximal policy optimisation.
* `vtrace`: V-trace, the loss of IMPALA.
* `acer`: actor-critic with experience replay.
"""

from polyactor.algorithms.a2c import A2C
from polyactor.algorithms.acer import ACER
from polyactor.algorithms.base import Algorithm
from polyactor.algorithms.ppo import PPO
from polyactor.algorithms.vtrace import VTrace

ALGORITHMS: dict[str, type[Algorithm]] = {"a2c": A2C, "acer": ACER, "ppo": PPO, "vtrace": VTrace}

__all__ = ["A2C", "ACER", "ALGORITHMS", "PPO", "Algorithm", "VTrace"]
