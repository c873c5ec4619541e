"""Logits and labels -> figures of merit; pure functions."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from mlp_dist.core.images import normalize
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.dataset import ImageSet
from mlp_dist.data.stored import StoredSet
from mlp_dist.data.streaming import fetched

_BATCH = 2000


@dataclass(frozen=True)
class Evaluation:
    """`loss` is the mean cross entropy in nats; `confusion` counts (true class, predicted class), int64."""

    loss: float
    accuracy: float
    confusion: torch.Tensor


@torch.inference_mode()
def predict(model: torch.nn.Module, images: torch.Tensor | ImageSet, spec: ImageSpec) -> torch.Tensor:
    """Logits, float32 (N, classes), of uint8 images (N, C, H, W), N at least 1, on the model's device."""
    if isinstance(images, ImageSet):
        return torch.cat([model(normalize(part.images, spec)) for part in _in_batches(images)])
    return torch.cat([model(normalize(batch, spec)) for batch in torch.split(images, _BATCH)])


@torch.inference_mode()
def loss_and_correct(model: torch.nn.Module, part: ImageSet, spec: ImageSpec) -> torch.Tensor:
    """Summed cross entropy in nats and number of right answers, float64 (2,), on the model's device.

    For any number of images, also on disk, in the memory that a few thousand take.
    """
    totals = [
        _loss_and_correct(model(normalize(each.images, spec)), each.labels) for each in _in_batches(part)
    ]
    device = next(model.parameters()).device
    return torch.stack([torch.zeros(2, dtype=torch.float64, device=device), *totals]).sum(dim=0)


def _loss_and_correct(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    loss = functional.cross_entropy(logits, labels, reduction="sum").double()
    return torch.stack([loss, (logits.argmax(dim=1) == labels).sum().double()])


def _in_batches(part: ImageSet) -> Iterator[ImageSet]:
    if not isinstance(part, StoredSet):
        return (part[start : start + _BATCH] for start in range(0, len(part), _BATCH))
    positions = (torch.arange(start, min(start + _BATCH, len(part))) for start in range(0, len(part), _BATCH))
    return fetched(part, positions)


def evaluate(logits: torch.Tensor, labels: torch.Tensor) -> Evaluation:
    """Logits (N, classes) and labels (N,), N at least 1."""
    num_images, num_classes = logits.shape
    pairs = labels * num_classes + logits.argmax(dim=1)
    confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).cpu()
    return Evaluation(
        loss=functional.cross_entropy(logits.double(), labels).item(),
        accuracy=confusion.trace().item() / num_images,
        confusion=confusion,
    )
