"""Predictions of a model for images, and the temperature that calibrates it; pure functions."""

import math
from collections.abc import Iterator

import torch
from torch.nn import functional

from mlp_dist.core.image import normalize
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.arrays import ImageSet, StoredSet
from mlp_dist.data.batches import prefetch

COLDEST, HOTTEST = 0.05, 20.0
_BATCH = 2000

_HALVINGS = 40
"""Of the range of the temperature's logarithm, which leaves one part in 10^11."""


@torch.inference_mode()
def predict(model: torch.nn.Module, images: torch.Tensor | ImageSet, spec: ImageSpec) -> torch.Tensor:
    """Logits, float32 (N, classes), of uint8 images (N, C, H, W), N at least 1, on the model's device."""
    if isinstance(images, ImageSet):
        return torch.cat([model(normalize(part.images, spec)) for part in _in_batches(images)])
    return torch.cat([model(normalize(batch, spec)) for batch in torch.split(images, _BATCH)])


@torch.inference_mode()
def loss_and_correct(model: torch.nn.Module, part: ImageSet, spec: ImageSpec) -> torch.Tensor:
    """Summed cross entropy in nats and number of correct predictions, float64 (2,), on the model's device.

    The memory needed does not depend on the number of images.
    """
    totals = torch.zeros(2, dtype=torch.float64, device=next(model.parameters()).device)
    for batch in _in_batches(part):
        logits = model(normalize(batch.images, spec))
        loss = functional.cross_entropy(logits, batch.labels, reduction="sum").double()
        totals += torch.stack([loss, (logits.argmax(dim=1) == batch.labels).sum().double()])
    return totals


def _in_batches(part: ImageSet) -> Iterator[ImageSet]:
    if not isinstance(part, StoredSet):
        return (part[start : start + _BATCH] for start in range(0, len(part), _BATCH))
    return prefetch(part, torch.split(torch.arange(len(part)), _BATCH))


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature T from COLDEST to HOTTEST that minimizes the cross entropy of softmax(logits / T).

    Temperature scaling (Guo et al. 2017, arXiv:1706.04599) changes no prediction. Computed in float64 on the
    CPU from logits (N, classes), float, and labels (N,), int64, of images that the model was not trained on;
    1.0 if there are none, or if the logits of each image are all equal. Each label is taken to be wrong with
    probability 1 / (N + 1) (after Platt 1999, "Probabilistic Outputs for Support Vector Machines"), which
    limits the confidence of a model that predicts all N correctly.
    """
    logits, labels = logits.detach().cpu().double(), labels.cpu()
    if len(logits) == 0 or bool((logits == logits[:, :1]).all()):
        return 1.0
    chance = 1 / (len(logits) + 1)
    given = logits.gather(1, labels[:, None]).squeeze(1)
    wanted = ((1 - chance) * given + chance * logits.mean(dim=1)).mean().item()
    low, high = math.log(COLDEST), math.log(HOTTEST)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        # The loss is convex in 1 / T; its derivative is this mean less `wanted`.
        expected = (torch.softmax(logits / math.exp(middle), dim=1) * logits).sum(dim=1).mean().item()
        low, high = (middle, high) if expected > wanted else (low, middle)
    return math.exp((low + high) / 2)


def model_temperature(model: torch.nn.Module, images: ImageSet, spec: ImageSpec) -> float:
    """`fit_temperature` on the model's logits for `images`, on its device; 1.0 if there are no images."""
    return fit_temperature(predict(model, images, spec), images.labels) if len(images) else 1.0
