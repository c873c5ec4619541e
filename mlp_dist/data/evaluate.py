"""Logits and labels -> figures of merit, and the temperature that calibrates a model; pure functions."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch.nn import functional

from mlp_dist.core.bundle import to_probabilities
from mlp_dist.core.image import normalize
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.arrays import ImageSet, StoredSet
from mlp_dist.data.batches import prefetch

NUM_BINS = 15
COLDEST, HOTTEST = 0.05, 20.0
_BATCH = 2000

_HALVINGS = 40
"""Of the range of the temperature's logarithm, which leaves one part in 10^11."""


@dataclass(frozen=True)
class Evaluation:
    """`loss` is the mean cross entropy of the raw logits in nats; `confusion` counts (true class, predicted
    class), int64. `calibration` is the result of `calibration` for probabilities at `temperature`,
    `uncalibrated` for temperature 1. All are on the CPU.
    """

    loss: float
    accuracy: float
    confusion: torch.Tensor
    calibration: torch.Tensor
    uncalibrated: torch.Tensor
    temperature: float

    @property
    def class_accuracy(self) -> list[float | None]:
        """The share of each class's images that are predicted correctly; None for a class without images."""
        return _ratios(self.confusion.diagonal(), self.confusion.sum(dim=1))

    @property
    def class_precision(self) -> list[float | None]:
        """The share of the predictions of each class that are correct; None for a class never predicted."""
        return _ratios(self.confusion.diagonal(), self.confusion.sum(dim=0))

    @property
    def class_f1(self) -> list[float | None]:
        """The harmonic mean of both; None for a class with neither images nor predictions."""
        either = self.confusion.sum(dim=0) + self.confusion.sum(dim=1)
        return _ratios(2 * self.confusion.diagonal(), either)

    @property
    def ece(self) -> float:
        """Expected calibration error: |confidence - accuracy| of a bin, averaged over all images (Naeini et
        al. 2015, "Obtaining Well Calibrated Probabilities Using Bayesian Binning").
        """
        return _expected_error(self.calibration)

    @property
    def uncalibrated_ece(self) -> float:
        return _expected_error(self.uncalibrated)


def _expected_error(bins: torch.Tensor) -> float:
    num_images, confidence, correct = bins.unbind(dim=1)
    return ((confidence - correct).abs().sum() / num_images.sum()).item()


def _ratios(parts: torch.Tensor, wholes: torch.Tensor) -> list[float | None]:
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


def evaluate(logits: torch.Tensor, labels: torch.Tensor, *, temperature: float = 1.0) -> Evaluation:
    """Logits (N, classes) and labels (N,), N at least 1; probabilities are softmax(logits / temperature)."""
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
    """Number of images, summed confidence and number of correct predictions by confidence.

    Float64 (NUM_BINS, 3) on the CPU. Confidence is the largest probability; bins have equal width and include
    their upper end (Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599).
    `probabilities` are float64 (N, classes), `labels` int64 (N,).
    """
    confidence, answers = (each.cpu() for each in probabilities.max(dim=1))
    ends = torch.arange(1, NUM_BINS, dtype=torch.float64) / NUM_BINS
    correct = (answers == labels.cpu()).double()
    columns = torch.stack([torch.ones_like(confidence), confidence, correct], dim=1)
    return columns.new_zeros(NUM_BINS, 3).index_add_(0, torch.bucketize(confidence, ends), columns)


def confident_mistakes(probabilities: torch.Tensor, labels: torch.Tensor, most: int) -> torch.Tensor:
    """The rows of at most `most` wrong predictions, the most confident first; ties keep their order.

    Int64 on the CPU. `probabilities` are float (N, classes), `labels` int64 (N,).
    """
    confidence, answers = (each.cpu() for each in probabilities.max(dim=1))
    wrong = (answers != labels.cpu()).nonzero().flatten()
    return wrong[confidence[wrong].argsort(descending=True, stable=True)[:most]]


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
