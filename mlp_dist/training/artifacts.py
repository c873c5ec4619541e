"""Data for the figures and tables of a run: NumPy arrays, and tables in MLflow's JSON format.

A table is {"columns": [...], "data": [[...], ...]}. Images are on the CPU, other tensors on any device.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlp_dist.data.arrays import ImageSet
from mlp_dist.data.evaluate import Evaluation, confident_mistakes

MAX_TILES = 20
"""Images, or units, in a figure."""

MAX_ROWS = 100
"""Rows in the table of mistakes."""

Array = NDArray[Any]
Table = dict[str, list[Any]]


def first_images(images: ImageSet, *rows: torch.Tensor) -> tuple[Array, ...]:
    """The first images, their labels, and their rows of each further tensor."""
    return _take(images, torch.arange(min(MAX_TILES, len(images))), *rows)


def mistakes(images: ImageSet, probabilities: torch.Tensor) -> tuple[Array, ...]:
    """Misclassified images, their labels and probabilities; the most confident mistake first.

    `probabilities` are float (N, classes).
    """
    return _take(images, confident_mistakes(probabilities, images.labels, MAX_TILES), probabilities)


def _take(images: ImageSet, index: torch.Tensor, *rows: torch.Tensor) -> tuple[Array, ...]:
    part = images[index]
    return tuple(map(to_numpy, (part.images, part.labels, *(each.cpu()[index] for each in rows))))


def largest_units(weights: torch.Tensor) -> tuple[Array, Array]:
    """The rows of float weights (units, inputs) with the largest norms, float32, and their indices, int64."""
    weights = weights.detach().float()
    units = weights.norm(dim=1).argsort(descending=True, stable=True)[:MAX_TILES]
    return to_numpy(weights[units]), to_numpy(units)


def to_numpy(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.detach().cpu())


def class_table(evaluation: Evaluation, classes: Sequence[str]) -> Table:
    """One row per class: recall ("accuracy"), precision, F1 and the most frequent wrong prediction.

    A value without a denominator is null, as is "confused with" for a class without mistakes.
    """
    confusion = evaluation.confusion
    times, others = confusion.clone().fill_diagonal_(0).max(dim=1)
    pairs = zip(times.tolist(), others.tolist(), strict=True)
    return _table(
        {
            "class": list(classes),
            "images": confusion.sum(dim=1).tolist(),
            "accuracy": _rounded(evaluation.class_accuracy),
            "precision": _rounded(evaluation.class_precision),
            "f1": _rounded(evaluation.class_f1),
            "confused with": [classes[other] if number else None for number, other in pairs],
            "times": times.tolist(),
        }
    )


def _rounded(shares: list[float | None]) -> list[float | None]:
    return [None if share is None else round(share, 4) for share in shares]


def mistakes_table(probabilities: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]) -> Table:
    """One row per mistake, the most confident first, at most MAX_ROWS; "image" is its index in the data set.

    `probabilities` are float (N, classes), `labels` int64 (N,).
    """
    rows = confident_mistakes(probabilities, labels, MAX_ROWS)
    probabilities, labels = probabilities.cpu()[rows], labels.cpu()[rows]
    predicted = probabilities.argmax(dim=1)
    return _table(
        {
            "image": rows.tolist(),
            "true": [classes[label] for label in labels.tolist()],
            "predicted": [classes[label] for label in predicted.tolist()],
            "probability": _probabilities(probabilities, predicted),
            "probability of true": _probabilities(probabilities, labels),
        }
    )


def _probabilities(rows: torch.Tensor, classes: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in rows.gather(1, classes[:, None]).flatten().tolist()]


def _table(columns: dict[str, list[Any]]) -> Table:
    return {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
