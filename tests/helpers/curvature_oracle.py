"""Curvlinops' K-FAC of a small network with a convolution, over what tests/properties/test_parity.py left.

A program, run in an interpreter of its own, as tests/helpers/oracles.py is.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class Small(nn.Sequential):
    """A torso for images ``[2, 6, 6]``."""

    def __init__(self, space: Any) -> None:
        super().__init__(nn.Conv2d(2, 3, 2, 2, 1), nn.Tanh(), nn.Flatten(), nn.Linear(48, 5), nn.Tanh())


def fisher(network: nn.Module, loss: Any, x: Tensor, y: Tensor) -> Tensor:
    """The empirical Fisher matrix of all parameters in their order, each layer's block A ⊗ G."""
    from curvlinops import KFACLinearOperator

    parameters = list(network.parameters())
    operator = KFACLinearOperator(
        network, loss, parameters, [(x, y)], fisher_type="empirical", separate_weight_and_bias=False
    )
    return operator @ torch.eye(sum(parameter.numel() for parameter in parameters))


def main(source: Path, sink: Path) -> None:
    """Every network in `source` to its Fisher matrix in `sink`."""
    torch.set_default_dtype(torch.float64)
    case = {name: torch.from_numpy(array) for name, array in np.load(source).items()}
    answers = {}
    for name, outputs, loss in (("policy", 4, nn.CrossEntropyLoss()), ("value", 1, nn.MSELoss())):
        network = nn.Sequential(Small(None), nn.Linear(5, outputs))
        for i, parameter in enumerate(network.parameters()):
            parameter.data = case[f"{name}.{i}"]
        answers[name] = fisher(network, loss, case["x"], case[f"{name}.target"]).numpy()
    np.savez(sink, **answers)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
