"""One file each: hyper-parameters and the equation. They know nothing of processes."""

from polyactor.algorithms.a2c import A2C
from polyactor.algorithms.acer import ACER
from polyactor.algorithms.base import Algorithm
from polyactor.algorithms.ppo import PPO
from polyactor.algorithms.vtrace import VTrace

ALGORITHMS: dict[str, type[Algorithm]] = {"a2c": A2C, "acer": ACER, "ppo": PPO, "vtrace": VTrace}

__all__ = ["A2C", "ACER", "ALGORITHMS", "PPO", "Algorithm", "VTrace"]
