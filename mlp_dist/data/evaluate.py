"""Logits and labels -> figures of merit; pure functions."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from mlp_dist.core.bundle import to_probabilities
from mlp_dist.core.image import normalize
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.image_set import ImageSet
from mlp_dist.data.stored import StoredSet
from mlp_dist.data.streaming import fetched

NUM_BINS = 15
_BATCH = 2000


@dataclass(frozen=True)
class Evaluation:
    """`loss` is the mean cross entropy in nats, of the logits as they are; `confusion` counts (true class,
    predicted class), int64. `calibration` is what `calibration` returns, of the answers at `temperature`;
    `uncalibrated` the same at 1. All are on the CPU.
    """

    loss: float
    accuracy: float
    confusion: torch.Tensor
    calibration: torch.Tensor
    uncalibrated: torch.Tensor
    temperature: float

    @property
    def class_accuracy(self) -> list[float | None]:
        """The share of each class's images that is answered rightly; None of a class without images."""
        return _shares(self.confusion.diagonal(), self.confusion.sum(dim=1))

    @property
    def class_precision(self) -> list[float | None]:
        """The share of the answers of each class that is right; None of a class that is never the answer."""
        return _shares(self.confusion.diagonal(), self.confusion.sum(dim=0))

    @property
    def class_f1(self) -> list[float | None]:
        """The harmonic mean of both; None of a class that has neither images nor answers."""
        either = self.confusion.sum(dim=0) + self.confusion.sum(dim=1)
        return _shares(2 * self.confusion.diagonal(), either)

    @property
    def ece(self) -> float:
        """The expected calibration error: how far a bin's confidence and accuracy lie apart, in the mean over
        all images (Naeini et al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning").
        """
        return _expected_error(self.calibration)

    @property
    def uncalibrated_ece(self) -> float:
        return _expected_error(self.uncalibrated)


def _expected_error(bins: torch.Tensor) -> float:
    num_images, confidence, correct = bins.unbind(dim=1)
    return ((confidence - correct).abs().sum() / num_images.sum()).item()


def _shares(parts: torch.Tensor, wholes: torch.Tensor) -> list[float | None]:
    return [
        part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)
    ]


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


def evaluate(logits: torch.Tensor, labels: torch.Tensor, *, temperature: float = 1.0) -> Evaluation:
    """Logits (N, classes) and labels (N,), N at least 1; the answers are softmax(logits / temperature)."""
    num_images, num_classes = logits.shape
    pairs = labels * num_classes + logits.argmax(dim=1)
    confusion = torch.bincount(pairs, minlength=num_classes**2).view(num_classes, num_classes).cpu()
    return Evaluation(
        loss=functional.cross_entropy(logits.double(), labels).item(),
        accuracy=confusion.trace().item() / num_images,
        confusion=confusion,
        calibration=calibration(to_probabilities(logits, temperature), labels),
        uncalibrated=calibration(to_probabilities(logits), labels),
        temperature=temperature,
    )


def calibration(probabilities: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """How many images there are by the confidence of their answer, and how many of these answers are right.

    Float64 (NUM_BINS, 3) on the CPU: images, the sum of their confidence, which is the largest probability,
    and right answers, in bins of equal width, each with its upper end (Guo et al. 2017, "On Calibration of
    Modern Neural Networks", arXiv:1706.04599). `probabilities` are float64 (N, classes), `labels` int64 (N,).
    """
    confidence, answers = (each.cpu() for each in probabilities.max(dim=1))
    ends = torch.arange(1, NUM_BINS, dtype=torch.float64) / NUM_BINS
    correct = (answers == labels.cpu()).double()
    columns = torch.stack([torch.ones_like(confidence), confidence, correct], dim=1)
    return columns.new_zeros(NUM_BINS, 3).index_add_(0, torch.bucketize(confidence, ends), columns)


def confident_mistakes(probabilities: torch.Tensor, labels: torch.Tensor, most: int) -> torch.Tensor:
    """The rows of at most `most` wrong answers, the most confident first; equal ones keep their order.

    Int64 on the CPU. `probabilities` are float (N, classes), `labels` int64 (N,).
    """
    confidence, answers = (each.cpu() for each in probabilities.max(dim=1))
    wrong = (answers != labels.cpu()).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)[:most]]
