"""Another machine's rounding, on this one: a library's sums come in an order that depends on the operands' shapes.

MKL on an Intel CPU adds up what a dense layer gives for 8 images in another order than for the same images among 24; on
an AMD CPU it happens not to. With ``pytest --other-sums`` the last bits of whatever a library sums here are a function
of the operation and of the shapes and layouts of its operands, in this process and in the workers it starts, in every
thread. So a test that asks for equal bits of two operations that are not the same fails everywhere.
"""

from __future__ import annotations

import warnings
import zlib
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import pytest
import torch
from torch import Tensor

from polyactor.transport import processes

SUMS = (
    *("mm", "addmm", "bmm", "baddbmm", "mv", "addmv", "dot"),
    *("mm.out", "addmm.out", "bmm.out", "baddbmm.out", "addmv.out"),
    *("convolution", "convolution_backward"),
    *("sum", "sum.dim_IntList", "mean", "mean.dim", "linalg_vector_norm", "_softmax", "_log_softmax"),
    *("addcmul", "addcmul_", "addcdiv", "addcdiv_"),
    *("exp", "log", "tanh", "sigmoid"),
)
"""Of ATen: sums of rounded numbers, in an order that is a library's own affair; products that are added with or without
a rounding between; functions that may be computed otherwise in a vector's lanes than in what is left over."""
RARE = 1 / 1024
"""Of a bf16 result's numbers, so many at most are rounded to a neighbour: more than another order of sums would."""
EXACT = 64
"""Whole multiples of 1 / this are left alone."""
KEPT: list[Any] = []
"""What must live as long as the process: the operations are torch's again without it."""


@lru_cache(maxsize=256)
def factors(seed: int, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    """``[*shape]`` 1 + k ε with k in {−2, …, 2}; of bf16, which is summed in float32, few are the neighbour's."""
    generator = torch.Generator().manual_seed(seed)
    k = torch.randint(-2, 3, shape, generator=generator)
    if dtype != torch.bfloat16:
        return 1 + k.to(dtype) * torch.finfo(dtype).eps
    rare = torch.rand(shape, generator=generator) < RARE
    return 1 + 0.75 * torch.finfo(dtype).eps * k.sign() * rare


def disturbed(result: Any, seed: int) -> None:
    """Round in another way, in place; what may be a sum of few bits stays, for that is exact in any order."""
    if not isinstance(result, Tensor):
        for i, part in enumerate(result or ()):
            disturbed(part, seed + i)
    elif result.is_floating_point() and result.device.type == "cpu":
        exact = result * EXACT == (result * EXACT).round()
        result.copy_(result.where(exact, result * factors(seed, tuple(result.shape), result.dtype)))


def seed_of(name: str, args: tuple[Any, ...]) -> int:
    """Of an operation on operands of such shapes and layouts."""
    seen = [(each.shape, each.stride()) if isinstance(each, Tensor) else None for each in args]
    return zlib.crc32(f"{name} {seen}".encode())


def disturb() -> None:
    """Let every operation of `SUMS` on the CPU round in another way from now on."""
    if KEPT:
        return
    library = torch.library.Library("aten", "IMPL")
    KEPT.append(library)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that an operation has another kernel now
        for name in SUMS:
            library.impl(name, other(name), "CPU", with_keyset=True, allow_override=True)


def other(name: str) -> Callable[..., Any]:
    """An operation of ATen whose last bits are its operands' shapes'."""
    kernel = torch.library.get_kernel(f"aten::{name}", "CPU")

    def operation(keys: Any, *args: Any, **options: Any) -> Any:
        result = kernel.call_boxed(keys, *args, **options)
        disturbed(result, seed_of(name, args))
        return result

    return operation


class Disturbed:
    """A worker's function, in a process that rounds in another way, too."""

    def __init__(self, target: Callable[..., None]) -> None:
        self.target = target

    def __call__(self, *args: Any) -> None:
        disturb()
        self.target(*args)


def disturb_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the processes of every pool round as this one does."""
    start = processes._started
    monkeypatch.setattr(processes, "_started", lambda i, target, args: start(i, Disturbed(target), args))
