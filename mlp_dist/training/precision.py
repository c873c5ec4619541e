"""The precision, library and number of threads of float32 matrix products during training."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Self

import torch

_LOSSLESS = 1e-5
"""Largest relative error that still counts as float32: bfloat16 has about 3e-3, TensorFloat-32 5e-4, float32
less than 1e-6."""

_SMALL = 4e6
"""Floating point operations below which MKL on one thread is faster: oneDNN needs about ten microseconds to
start, and threads need time to synchronize."""


@lru_cache
def resolve_matmul_precision(precision: str, device: torch.device) -> str:
    """Replace `auto` by the fastest setting of torch.set_float32_matmul_precision that loses no precision.

    `medium` permits bfloat16. CPUs without AMX don't use it: there `medium` selects oneDNN in float32, up to
    twice as fast as MKL. Elsewhere `auto` means `highest`.
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
    """Change torch's global setting inside the block."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision(precision)
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class Products:
    """While entered, sets torch's global settings before each product according to its size.

    `precision` applies to large products.
    """

    def __init__(self, precision: str) -> None:
        self.precision = precision
        self._large: bool | None = None

    @staticmethod
    def is_large(rows: int, fan_in: int, fan_out: int) -> bool:
        return 2 * rows * fan_in * fan_out > _SMALL

    def __enter__(self) -> Self:
        self._before = torch.get_float32_matmul_precision(), torch.get_num_threads()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        precision, num_threads = self._before
        torch.set_float32_matmul_precision(precision)
        torch.set_num_threads(num_threads)
        self._large = None

    def use(self, large: bool) -> None:
        if large is not self._large:
            torch.set_float32_matmul_precision(self.precision if large else "highest")
            torch.set_num_threads(self._before[1] if large else 1)
            self._large = large
