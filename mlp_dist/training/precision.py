"""The precision of training: matrix products in float32, their library and threads; gradients in float64."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from types import TracebackType
from typing import Self

import torch
from torch import nn
from torch.func import functional_call

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


class Float64Gradients:
    """Runs a float32 module in float64 and sets the `grad` of its parameters, in float32.

    In float32 the last bits of a sum depend on how a batch is split; sooner or later a ReLU flips and the
    weights diverge. In float64 the differences are so small that nearly all gradients round to the same
    float32, so the trained weights don't depend on the number of processes.

    Call it like the module and run backward on the result; gradients accumulate until `write`. Parameters may
    change only between a `write` and the next call.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._parameters = dict(module.named_parameters())
        self._doubles = {
            name: parameter.detach().double().requires_grad_() for name, parameter in self._parameters.items()
        }
        self._is_current = False

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        if not self._is_current:
            with torch.no_grad():
                for name, double in self._doubles.items():
                    double.copy_(self._parameters[name])
            self._is_current = True
        outputs: torch.Tensor = functional_call(self.module, self._doubles, (inputs.double(),))
        return outputs

    def write(
        self, *, scale: float, reduce: Callable[[torch.Tensor], torch.Tensor] = lambda sums: sums
    ) -> None:
        """Set each parameter's `grad` to its accumulated gradient times `scale`.

        `reduce` sums a float64 tensor (num_parameters,) over all processes.
        """
        doubles = self._doubles.values()
        sums = reduce(torch.cat([double.grad.flatten() for double in doubles if double.grad is not None]))
        sizes = [double.numel() for double in doubles]
        for parameter, double, part in zip(
            self._parameters.values(), doubles, torch.split(sums * scale, sizes), strict=True
        ):
            parameter.grad, double.grad = part.view_as(parameter).to(parameter.dtype), None
        self._is_current = False
