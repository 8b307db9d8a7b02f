"""Actor-critic with experience replay (Wang et al. 2017): the loss, its two critics, and its trust regions."""

from polyactor.algorithms.acer.acer import ACER

__all__ = ["ACER"]
