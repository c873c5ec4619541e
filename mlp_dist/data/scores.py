"""Figures of merit of logits (N, classes) and labels (N,), as NumPy arrays; torch is not imported."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]

NUM_BINS = 15


@dataclass(frozen=True)
class Evaluation:
    """`loss` is the mean cross entropy of the raw logits in nats; `confusion` counts (true class, predicted
    class), int64. `calibration` is the result of `calibration` for probabilities at `temperature`,
    `uncalibrated` for temperature 1.
    """

    loss: float
    accuracy: float
    confusion: Array
    calibration: Array
    uncalibrated: Array
    temperature: float

    @property
    def class_accuracy(self) -> list[float | None]:
        """The share of each class's images that are predicted correctly; None for a class without images."""
        return _ratios(self.confusion.diagonal(), self.confusion.sum(axis=1))

    @property
    def class_precision(self) -> list[float | None]:
        """The share of the predictions of each class that are correct; None for a class never predicted."""
        return _ratios(self.confusion.diagonal(), self.confusion.sum(axis=0))

    @property
    def class_f1(self) -> list[float | None]:
        """The harmonic mean of both; None for a class with neither images nor predictions."""
        either = self.confusion.sum(axis=0) + self.confusion.sum(axis=1)
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


def _expected_error(bins: Array) -> float:
    num_images, confidence, correct = bins.T
    return float(np.abs(confidence - correct).sum() / num_images.sum())


def _ratios(parts: Array, wholes: Array) -> list[float | None]:
    return [
        part / whole if whole else None for part, whole in zip(parts.tolist(), wholes.tolist(), strict=True)
    ]


def evaluate(logits: Array, labels: Array, *, temperature: float = 1.0) -> Evaluation:
    """Float logits (N, classes) and int64 labels (N,), N at least 1.

    Probabilities are softmax(logits / temperature), in float64.
    """
    num_images, num_classes = logits.shape
    pairs = labels * num_classes + logits.argmax(axis=1)
    confusion = np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)
    above = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    losses = np.log(np.exp(above).sum(axis=1)) - above[np.arange(num_images), labels]
    return Evaluation(
        loss=float(losses.mean()),
        accuracy=float(confusion.trace() / num_images),
        confusion=confusion,
        calibration=calibration(probabilities(logits, temperature), labels),
        uncalibrated=calibration(probabilities(logits), labels),
        temperature=temperature,
    )


def probabilities(logits: Array, temperature: float = 1.0) -> Array:
    """softmax(logits / temperature), float64 (N, classes), of float logits."""
    scaled = logits.astype(np.float64) / temperature
    powers = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    return np.asarray(powers / powers.sum(axis=1, keepdims=True))


def calibration(probabilities: Array, labels: Array) -> Array:
    """Number of images, summed confidence and number of correct predictions by confidence.

    Float64 (NUM_BINS, 3). Confidence is the largest probability; bins have equal width and include their
    upper end (Guo et al. 2017, "On Calibration of Modern Neural Networks", arXiv:1706.04599).
    `probabilities` are float64 (N, classes), `labels` int64 (N,).
    """
    confidence, is_correct = probabilities.max(axis=1), probabilities.argmax(axis=1) == labels
    bins = np.searchsorted(np.arange(1, NUM_BINS) / NUM_BINS, confidence)
    columns = (np.ones(len(labels)), confidence, is_correct)
    return np.stack([np.bincount(bins, column, NUM_BINS) for column in columns], axis=1)


def confident_mistakes(probabilities: Array, labels: Array, most: int) -> Array:
    """The rows of at most `most` wrong predictions, int64, the most confident first; ties keep their order.

    `probabilities` are float (N, classes), `labels` int64 (N,).
    """
    wrong = np.flatnonzero(probabilities.argmax(axis=1) != labels)
    order = np.argsort(-probabilities.max(axis=1)[wrong], kind="stable")
    return np.asarray(wrong[order[:most]])
