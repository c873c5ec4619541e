"""How exactly float32 matrices are multiplied, while training steps run."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch

_LOSSLESS = 1e-5
"""The largest error, relative to the largest product, of what is float32 for all that its name says. bfloat16
has some 3e-3, TensorFloat-32 some 5e-4, float32 less than 1e-6."""


@lru_cache
def settle(precision: str, device: torch.device) -> str:
    """The name that `precision`, one of MATMUL_PRECISIONS, comes to on `device`.

    `medium` only permits torch to compute in bfloat16. Where a CPU has no use for that it moves the products
    to oneDNN, in float32 and up to twice as fast as MKL; where it has (AMX, CUDA), auto is `highest`.
    """
    if precision != "auto":
        return precision
    return "medium" if matmul_error("medium", device) <= _LOSSLESS else "highest"


def matmul_error(precision: str, device: torch.device) -> float:
    """The error of a product of random 256 x 256 matrices, relative to its largest entry."""
    source = torch.Generator().manual_seed(0)
    left, right = (torch.randn(256, 256, generator=source).to(device) for _ in range(2))
    exact = left.double() @ right.double()
    with matmul_precision(precision):
        error = (left @ right - exact).abs().max() / exact.abs().max()
    return error.item()


@contextmanager
def matmul_precision(precision: str) -> Iterator[None]:
    """torch's global setting, for as long as the block runs."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
