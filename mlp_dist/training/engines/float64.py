"""Gradients in float64, so that the trained weights don't depend on the number of processes.

In float32 the last bits of a sum depend on how a batch is split; sooner or later a ReLU flips and the weights
diverge. In float64 the differences are so small that nearly all gradients round to the same float32.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call


class Float64Gradients:
    """Runs a float32 module in float64 and sets the `grad` of its parameters, in float32.

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
