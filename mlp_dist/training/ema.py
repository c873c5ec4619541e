"""The exponential moving average of a model's weights."""

from typing import Any

import torch
from torch import nn


class MovingAverage:
    """Of the parameters of `module`, as torch's AveragedModel with get_ema_multi_avg_fn makes it.

    The first update copies the parameters; each later one makes the average decay * average +
    (1 - decay) * parameters, in their dtype. `decay` is at least 0 and below 1.
    """

    def __init__(self, module: nn.Module, decay: float) -> None:
        self.module, self.decay = module, decay
        self.num_updates = 0
        self._average: dict[str, torch.Tensor] = {}

    @torch.no_grad()
    def update(self) -> None:
        """To be called after each step."""
        if self.num_updates:
            torch._foreach_lerp_(list(self._average.values()), list(self.module.parameters()), 1 - self.decay)
        else:
            self._average = {
                name: parameter.detach().clone() for name, parameter in self.module.named_parameters()
            }
        self.num_updates += 1

    def averaged(self) -> dict[str, torch.Tensor]:
        """The module's state_dict with the average in place of its parameters, which it is before any update.

        Not copied: the next update changes it.
        """
        return {**self.module.state_dict(), **self._average}

    def state_dict(self) -> dict[str, Any]:
        """`num_updates`, and `average`: the parameters' names -> tensors, copied; none before any update."""
        average = {name: tensor.clone() for name, tensor in self._average.items()}
        return {"num_updates": self.num_updates, "average": average}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what `state_dict` gave; the tensors go to the devices of the parameters.

        Raises ValueError where it is another model's average.
        """
        parameters, average = dict(self.module.named_parameters()), state["average"]
        shapes = {name: parameter.shape for name, parameter in parameters.items()}
        if state["num_updates"] and shapes != {name: tensor.shape for name, tensor in average.items()}:
            raise ValueError(f"the average is of {sorted(average)}, not of the model's {sorted(parameters)}")
        self.num_updates = state["num_updates"]
        self._average = {
            name: average[name].to(parameter.device, parameter.dtype, copy=True)
            for name, parameter in parameters.items()
            if name in average
        }
