"""The library and the number of threads for float32 matrix products on the CPU."""

from types import TracebackType
from typing import Self

import torch

_SMALL = 4e6
"""Floating point operations below which MKL on one thread is faster: oneDNN needs about ten microseconds to
start, and threads need time to synchronize."""


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
