"""Which library multiplies two matrices on the CPU, and with how many threads."""

from types import TracebackType
from typing import Self

import torch

_SMALL = 4e6
"""Floating point operations of a product below which MKL on one thread is the faster: oneDNN needs some ten
microseconds to begin, and several threads need time to meet."""


class Products:
    """torch's global settings, set for each product by its size while this is entered.

    `precision` is the name under which large ones are made. The choice follows from the global batch alone,
    so any number of processes makes the same products in the same way.
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
        """From here on for products that are, or are not, large."""
        if large is not self._large:
            torch.set_float32_matmul_precision(self.precision if large else "highest")
            torch.set_num_threads(self._before[1] if large else 1)
            self._large = large
