"""Tables of a training, as MLflow shows them: {"columns": [...], "data": [[...], ...]}, of JSON's values."""

from collections.abc import Sequence
from typing import Any

import torch

from mlp_dist.data.evaluate import Evaluation, confident_mistakes

Table = dict[str, list[Any]]

MOST = 100
"""Rows of a table of images."""


def class_table(evaluation: Evaluation, classes: Sequence[str]) -> Table:
    """A row a class; null where there is nothing to divide by, or no mistake.

    Accuracy is the share of the class's images that is answered rightly (recall), precision the share of its
    answers that is right; "confused with" is the most frequent wrong answer.
    """
    mistakes = evaluation.confusion.clone().fill_diagonal_(0)
    times, others = mistakes.max(dim=1)
    pairs = zip(times.tolist(), others.tolist(), strict=True)
    columns = {
        "class": list(classes),
        "images": evaluation.confusion.sum(dim=1).tolist(),
        "accuracy": _rounded(evaluation.class_accuracy),
        "precision": _rounded(evaluation.class_precision),
        "f1": _rounded(evaluation.class_f1),
        "confused with": [classes[other] if number else None for number, other in pairs],
        "times": times.tolist(),
    }
    return _table(columns)


def _rounded(shares: list[float | None]) -> list[float | None]:
    return [None if share is None else round(share, 4) for share in shares]


def mistakes_table(probabilities: torch.Tensor, labels: torch.Tensor, classes: Sequence[str]) -> Table:
    """A row a wrong answer, the most confident first, at most MOST; "image" counts the data set's from 0.

    `probabilities` are float (N, classes), `labels` int64 (N,).
    """
    rows = confident_mistakes(probabilities, labels, MOST)
    probabilities, labels = probabilities.cpu()[rows], labels.cpu()[rows]
    answers = probabilities.argmax(dim=1)
    columns = {
        "image": rows.tolist(),
        "true": [classes[label] for label in labels.tolist()],
        "predicted": [classes[answer] for answer in answers.tolist()],
        "probability": _probabilities(probabilities, answers),
        "probability of true": _probabilities(probabilities, labels),
    }
    return _table(columns)


def _probabilities(rows: torch.Tensor, classes: torch.Tensor) -> list[float]:
    return [round(value, 6) for value in rows.gather(1, classes[:, None]).flatten().tolist()]


def _table(columns: dict[str, list[Any]]) -> Table:
    return {"columns": list(columns), "data": [list(row) for row in zip(*columns.values(), strict=True)]}
