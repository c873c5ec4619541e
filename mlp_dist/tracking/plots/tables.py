"""Tables in MLflow's JSON format: {"columns": [...], "data": [[...], ...]}.

MLflow's page groups rows by the first column and compares runs by the second.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from mlp_dist.data.scores import Array, Evaluation, confident_mistakes

MAX_ROWS = 100
"""Rows in the table of mistakes."""

Table = dict[str, list[Any]]


def per_class(evaluation: Evaluation, classes: Sequence[str]) -> Table:
    """One row per class: recall ("accuracy"), precision, F1 and the most frequent wrong prediction.

    A value without a denominator is null, as is "confused with" for a class without mistakes.
    """
    wrong = evaluation.confusion - np.diag(evaluation.confusion.diagonal())
    times = wrong.max(axis=1).tolist()
    ratios = (evaluation.class_accuracy, evaluation.class_precision, evaluation.class_f1)
    rounded = ([None if value is None else round(value, 4) for value in column] for column in ratios)
    others = [
        classes[other] if most else None for other, most in zip(wrong.argmax(axis=1), times, strict=True)
    ]
    names = ("class", "accuracy", "precision", "f1", "images", "confused with", "times")
    return _table(names, classes, *rounded, evaluation.confusion.sum(axis=1).tolist(), others, times)


def mistakes(probabilities: Array, labels: Array, classes: Sequence[str]) -> Table:
    """One row per mistake, the most confident first, at most MAX_ROWS; "image" is its index in the test set.

    `probabilities` are float (N, classes), `labels` int64 (N,).
    """
    rows = confident_mistakes(probabilities, labels, MAX_ROWS)
    true, predicted = labels[rows], probabilities[rows].argmax(axis=1)
    return _table(
        ("image", "predicted", "true", "probability", "probability of true"),
        rows.tolist(),
        [classes[label] for label in predicted],
        [classes[label] for label in true],
        probabilities[rows, predicted].round(6).tolist(),
        probabilities[rows, true].round(6).tolist(),
    )


def _table(names: Sequence[str], *columns: Sequence[Any]) -> Table:
    return {"columns": list(names), "data": [list(row) for row in zip(*columns, strict=True)]}
