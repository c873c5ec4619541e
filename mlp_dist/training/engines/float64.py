"""Gradients computed in float64, so that the number of processes does not show in the weights.

In float32 the last bits of a sum over a batch depend on how the batch was shared out, and those of a product
on how many rows it has. Sooner or later a ReLU turns over for it, and the weights part by a thousandth. In
float64 the same differences are so small that, but for one in millions, they round to the same float32.
"""

from collections.abc import Callable

import torch
from torch import nn
from torch.func import functional_call


class Float64Gradients:
    """Runs a module of float32 parameters in float64, and gives the parameters their `grad`, in float32.

    Call it in the module's place, then backward on what was computed from the outputs; the gradients of
    several such calls add up until `write`. Between one `write` and the next call the parameters may change.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = module
        self._parameters = dict(module.named_parameters())
        self._doubles = {
            name: parameter.detach().double().requires_grad_() for name, parameter in self._parameters.items()
        }
        self._current = False

    def __call__(self, inputs: torch.Tensor) -> torch.Tensor:
        """The module's outputs for `inputs` of any floating type, in float64."""
        if not self._current:
            with torch.no_grad():
                torch._foreach_copy_(list(self._doubles.values()), list(self._parameters.values()))
            self._current = True
        outputs: torch.Tensor = functional_call(self.module, self._doubles, (inputs.double(),))
        return outputs

    def write(self, *, scale: float, reduce: Callable[[torch.Tensor], object] | None = None) -> None:
        """Make each parameter's `grad` the sum of its gradients since the last `write`, times `scale`.

        `reduce` is given all sums in one float64 tensor of one dimension, and adds those of the other
        processes in place. Raises RuntimeError where a parameter has no gradient.
        """
        sums = []
        for name, double in self._doubles.items():
            if double.grad is None:
                raise RuntimeError(f"{name} has no gradient: backward comes before write")
            sums.append(double.grad)
            double.grad = None
        if reduce is not None:
            flat = torch.cat([part.flatten() for part in sums])
            reduce(flat)
            split: tuple[torch.Tensor, ...] = torch.split(flat, [part.numel() for part in sums])
            sums = [part.view_as(like) for part, like in zip(split, sums, strict=True)]
        for parameter, part in zip(self._parameters.values(), sums, strict=True):
            parameter.grad = part.mul_(scale).to(parameter.dtype)
        self._current = False
