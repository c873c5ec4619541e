"""Logits and labels -> figures of merit; pure functions."""

from dataclasses import dataclass

import torch
from torch.nn import functional

from mlp_dist.core.images import normalize
from mlp_dist.core.spec import ImageSpec

_BATCH = 2000


@dataclass(frozen=True)
class Evaluation:
    """`loss` is the mean cross entropy in nats; `confusion` counts (true class, predicted class), int64."""

    loss: float
    accuracy: float
    confusion: torch.Tensor


@torch.inference_mode()
def predict(model: torch.nn.Module, images: torch.Tensor, spec: ImageSpec) -> torch.Tensor:
    """Logits, float32 (N, classes), of uint8 images (N, C, H, W), N at least 1, on the model's device."""
    return torch.cat([model(normalize(batch, spec)) for batch in torch.split(images, _BATCH)])


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
