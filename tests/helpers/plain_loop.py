"""A training loop of torch's own parts, the reference for the trainer's options."""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torch.optim import lr_scheduler
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from mlp_dist.core.image import normalize
from mlp_dist.data.arrays import Dataset, ImageSet
from mlp_dist.data.augment import deform
from mlp_dist.data.batches import AUGMENTATION, DROPOUT, epoch_order, generator, split_validation

Parameters = Iterable[nn.Parameter]


@dataclass(frozen=True, kw_only=True)
class PlainLoop:
    """One process and one nn.Sequential; the order of images and the random draws are the package's."""

    optimizer: Callable[[Parameters], torch.optim.Optimizer]
    scheduler: Callable[[torch.optim.Optimizer], lr_scheduler.LRScheduler] | None = None
    loss: nn.CrossEntropyLoss
    max_norm: float | None = None
    dropout: float = 0.0
    shift: int = 0
    deform: float = 0.0
    restyle: float = 0.0
    adversarial: float = 0.0
    average: float | None = None
    autocast: torch.dtype | None = None

    def run(
        self, model: nn.Sequential, data: Dataset, *, val_size: int, batch_size: int, epochs: int
    ) -> dict[str, Any]:
        """Trains `model`; what is evaluated in the end, and each epoch's record."""
        optimizer = self.optimizer(model.parameters())
        scheduler = self.scheduler(optimizer) if self.scheduler else None
        average = None
        if self.average is not None:
            average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(self.average))
        train, val = split_validation(data.train, val_size)
        history: list[dict[str, Any]] = []
        step = 0
        for epoch in range(epochs):
            losses, correct = [], 0
            for indices in epoch_order(len(train), seed=0, epoch=epoch).split(batch_size):
                rate = optimizer.param_groups[0]["lr"]
                batch = train[indices]
                inputs = normalize(self._moved(batch.images, step), data.image).requires_grad_()
                if self.adversarial:
                    functional.cross_entropy(self._logits(model, inputs, step), batch.labels).backward()
                    mean, std = data.image.mean[0], data.image.std[0]
                    assert inputs.grad is not None
                    moved = inputs + inputs.grad.sign() * self.adversarial / std
                    inputs = moved.detach().clamp((0 - mean) / std, (1 - mean) / std)
                logits = self._logits(model, inputs, step)
                loss = self.loss(logits, batch.labels)
                optimizer.zero_grad()
                loss.backward()
                if self.max_norm is not None:
                    nn.utils.clip_grad_norm_(model.parameters(), self.max_norm)
                optimizer.step()
                if scheduler:
                    scheduler.step()
                if average:
                    average.update_parameters(model)
                losses.append((loss.item(), len(batch)))
                correct += int((logits.argmax(1) == batch.labels).sum())
                step += 1
            evaluated = average.module if average else model
            history.append(
                {
                    "train_loss": sum(loss * number for loss, number in losses) / len(train),
                    "train_accuracy": correct / len(train),
                    "learning_rate": rate,
                    "losses": losses,
                    **_evaluation("val", evaluated, val, data),
                    **_evaluation("test", evaluated, data.test, data),
                }
            )
        return {"evaluated": evaluated.state_dict(), "history": history}

    def _logits(self, model: nn.Sequential, values: torch.Tensor, step: int) -> torch.Tensor:
        layer = 0
        with torch.autocast("cpu", self.autocast) if self.autocast else nullcontext():
            for module in model:
                values = module(values)
                if self.dropout and isinstance(module, nn.ReLU):
                    drawn = torch.rand(values.shape, generator=generator(0, DROPOUT, step, layer))
                    values = values * (drawn >= self.dropout) / (1 - self.dropout)
                    layer += 1
        return values.float()

    def _moved(self, images: torch.Tensor, step: int) -> torch.Tensor:
        if self.deform:
            of_all = {"batch_size": len(images), "positions": slice(None)}
            return deform(images, self.deform, self.restyle, seed=0, step=step, **of_all)  # type: ignore[arg-type]
        if not (far := self.shift):
            return images
        moves = torch.randint(-far, far + 1, (len(images), 2), generator=generator(0, AUGMENTATION, step))
        padded = functional.pad(images.float(), (far, far, far, far), mode="replicate").to(images.dtype)
        height, width = images.shape[-2:]
        cut = [
            image[:, far - down : far - down + height, far - right : far - right + width]
            for image, (down, right) in zip(padded, moves.tolist(), strict=True)
        ]
        return torch.stack(cut)


@torch.no_grad()
def _evaluation(name: str, model: nn.Module, part: ImageSet, data: Dataset) -> dict[str, float]:
    logits = model(normalize(part.images, data.image))
    return {
        f"{name}_loss": functional.cross_entropy(logits, part.labels).item(),
        f"{name}_accuracy": (logits.argmax(1) == part.labels).double().mean().item(),
    }
