"""Training steps by autograd and Accelerate: any model, option, device and number of processes."""

from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional

from mlp_dist.core import layers
from mlp_dist.core.errors import UsageError
from mlp_dist.core.image import normalize
from mlp_dist.data.arrays import ImageSet
from mlp_dist.data.augment import adversarial, augment
from mlp_dist.data.batches import DROPOUT, generator, shares
from mlp_dist.training.precision import Float64Gradients, matmul_precision
from mlp_dist.training.state import RunContext, TrainState

ACTIVATIONS = (
    *(nn.ReLU, nn.LeakyReLU, nn.PReLU, nn.ELU, nn.CELU, nn.SELU, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.Hardtanh, nn.Hardswish, nn.Sigmoid, nn.Softplus, nn.Softsign, nn.Tanh, layers.ReLU),
)
"""The modules whose outputs are hidden units."""


class Part(NamedTuple):
    """A part of a process's share of a global batch; `positions` are its rows in that batch."""

    images: torch.Tensor
    labels: torch.Tensor
    positions: slice


class AcceleratedEngine:
    """Takes one step at a time, each process with its share of the global batch."""

    steps_at_once = 1

    def __init__(self, state: TrainState, context: RunContext, accelerator: Accelerator) -> None:
        self.state, self.context, self.accelerator = state, context, accelerator
        self.config = config = state.config
        self.dropout = Dropout(
            state.model, config.dropout, num_features=context.data.image.num_features, seed=config.seed
        )
        self.in_float64 = config.gradient_dtype == "float64"
        # CUDA graphs reuse the memory of their outputs: gradients must be added to memory outside of them.
        self.uses_graphs = config.compile and accelerator.device.type == "cuda"
        model: Any = state.model
        if self.in_float64:
            model = Float64Gradients(state.model)
        elif config.compile:
            # Static shapes, so that the kernels for one batch size don't depend on the sizes before it.
            mode = "reduce-overhead" if self.uses_graphs else None
            model = torch.compile(state.model, dynamic=False, mode=mode)
        if self.uses_graphs:
            for parameter in state.model.parameters():
                parameter.grad = torch.zeros_like(parameter)
        self.model: Any = model if self.in_float64 else accelerator.prepare(model)
        self.optimizer: Any = accelerator.prepare(state.optimizer)

    def train(self, step: int, sizes: Sequence[int], images: ImageSet) -> torch.Tensor:
        totals, start = [], 0
        with matmul_precision(self.context.matmul_precision):
            for number, size in enumerate(sizes, start=step):
                stop = start + len(range(self.context.rank, size, self.context.world_size))
                totals.append(self.train_step(number, size, images[slice(start, stop)]))
                start = stop
        return torch.stack(totals)

    def train_step(self, step: int, batch_size: int, images: ImageSet) -> torch.Tensor:
        """Forward, loss, backward, clip, step; returns (summed loss, number correct), float64 (2,)."""
        config, accelerator, parts = self.config, self.accelerator, self._parts(batch_size, images)
        totals = torch.zeros(2, dtype=torch.float64, device=accelerator.device)
        # DDP averages over the processes, whose shares may differ in size.
        scale = 1.0 if self.in_float64 else accelerator.num_processes / batch_size
        self.state.set_learning_rate(step)
        for part in parts:
            self.dropout.at(step, batch_size=batch_size, positions=part.positions)
            inputs = self._inputs(part, step, batch_size)
            if self.uses_graphs:
                torch.compiler.cudagraph_mark_step_begin()  # type: ignore[no-untyped-call]
            # The gradients are reduced over all processes after the last part.
            with nullcontext() if part is parts[-1] else accelerator.no_sync(self.model):
                logits = self.model(inputs)
                loss = self._loss(logits, part.labels)
                accelerator.backward(loss * scale)
            totals += torch.stack([loss.detach().double(), (logits.argmax(dim=1) == part.labels).sum()])
        if self.in_float64:
            self.model.write(scale=1 / batch_size, reduce=accelerator.reduce)
        if config.clip_norm is not None:
            accelerator.clip_grad_norm_(self.state.model.parameters(), config.clip_norm)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=not self.uses_graphs)
        if self.state.average is not None:
            self.state.average.update_parameters(self.state.model)
        return totals

    def _parts(self, batch_size: int, images: ImageSet) -> list[Part]:
        """This process's share in `accumulation_steps` parts, some maybe empty."""
        rank, world_size, parts = self.context.rank, self.context.world_size, self.config.accumulation_steps
        positions = shares(batch_size, rank=rank, world_size=world_size, parts=parts)
        sizes = [len(range(batch_size)[each]) for each in positions]
        pairs = zip(torch.split(images.images, sizes), torch.split(images.labels, sizes), strict=True)
        return [Part(*pair, each) for pair, each in zip(pairs, positions, strict=True)]

    def _loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        smoothing = self.config.label_smoothing
        return functional.cross_entropy(logits, labels, reduction="sum", label_smoothing=smoothing)

    def _inputs(self, part: Part, step: int, batch_size: int) -> torch.Tensor:
        """The part's images, augmented and normalized: float32 (N, num_features)."""
        config, image = self.config, self.context.data.image
        images = augment(part.images, config, step=step, batch_size=batch_size, positions=part.positions)
        inputs = normalize(images, image)
        if config.adversarial:
            loss = partial(self._input_loss, part.labels)
            inputs = adversarial(inputs, loss, config.adversarial, image)
        return inputs

    def _input_loss(self, labels: torch.Tensor, inputs: torch.Tensor) -> torch.Tensor:
        """The summed loss without DDP, which would wait for the parameters' gradients."""
        model = self.model if self.in_float64 else self.state.model
        with self.accelerator.autocast():
            return self._loss(model(inputs), labels)


class Dropout:
    """Dropout (Srivastava et al. 2014) that drops the same units on any number of processes.

    It is added after each activation module of a model, (B, num_features) -> (B, classes).

    During training a hidden value becomes 0 with probability `p`, from 0 to below 1, and is otherwise scaled
    by 1 / (1 - p), as in torch.nn.Dropout; in eval mode the model is unchanged, and so is its state_dict.

    Raises UsageError for a model without activation modules, or with one that is used twice.
    """

    def __init__(self, model: nn.Module, p: float, *, num_features: int, seed: int) -> None:
        self.p, self.seed = p, seed
        self._drawn_for: tuple[int, int] | None = None
        self._drawn: list[torch.Tensor] = []
        self._masks = _add_masks(model, num_features) if p else []

    def at(self, step: int, *, batch_size: int, positions: torch.Tensor | slice) -> list[torch.Tensor]:
        """Set the masks for the next forward pass; returns them, float32 (N, width) of each hidden layer.

        `positions` are the rows' positions in the global batch of `batch_size`: int64 (N,) on the model's
        device, or a slice. The dropped units are a function of the seed, the step, the layer and the position
        alone; they differ between CPU and GPU.
        """
        # The parts of an accumulated batch share its draws.
        if self._drawn_for != (step, batch_size):
            self._drawn = [self._draw(step, batch_size, layer) for layer in range(len(self._masks))]
            self._drawn_for = (step, batch_size)
        chosen = [drawn[positions] for drawn in self._drawn]
        for mask, values in zip(self._masks, chosen, strict=True):
            mask.values = values
        return chosen

    def _draw(self, step: int, batch_size: int, layer: int) -> torch.Tensor:
        mask, source = self._masks[layer], generator(self.seed, DROPOUT, step, layer)
        if mask.device.type != "cpu":
            source = torch.Generator(mask.device).manual_seed(source.initial_seed())
        drawn = torch.rand(batch_size, *mask.shape, generator=source, device=mask.device)
        return drawn.ge_(self.p).mul_(1 / (1 - self.p))


class _Mask:
    """A forward hook that multiplies activations (N, *shape) by `values`, float32 (N, *shape)."""

    def __init__(self, activations: torch.Tensor) -> None:
        self.shape, self.device = activations.shape[1:], activations.device
        self.values: torch.Tensor | None = None

    def __call__(self, module: nn.Module, _: Any, activations: torch.Tensor) -> torch.Tensor:
        if not module.training:
            return activations
        if self.values is None:
            raise RuntimeError("call Dropout.at before the model")
        # Keeps autocast's dtype.
        return (activations * self.values).to(activations.dtype)


def _add_masks(model: nn.Module, num_features: int) -> list[_Mask]:
    """Add a mask to each activation module, in the order of the forward pass."""
    found: list[tuple[nn.Module, _Mask]] = []
    hooks = [
        module.register_forward_hook(lambda module, _, outputs: found.append((module, _Mask(outputs))))
        for module in model.modules()
        if isinstance(module, ACTIVATIONS)
    ]
    was_training, parameter = model.training, next(model.parameters())
    with torch.no_grad():
        model.eval()(torch.zeros(1, num_features, device=parameter.device))
        model.train(was_training)
    for hook in hooks:
        hook.remove()
    num_matrices = sum(parameter.dim() > 1 for parameter in model.parameters())
    if len({module for module, _ in found}) < max(len(found), num_matrices > 1):
        raise UsageError(
            "dropout needs a module of its own for each activation, such as nn.ReLU(), and this kind of "
            "model has none or uses one twice: leave --dropout out, or change core/kinds.py"
        )
    for module, mask in found:
        module.register_forward_hook(mask)
    return [mask for _, mask in found]
