"""Makes the pictures and tables in a run's directory from the other files there, without torch and mlflow."""

import io
import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from pandas import DataFrame

from mlp_dist.console.progress import tell_beside
from mlp_dist.core.io import replacing_file
from mlp_dist.data.scores import Array, Evaluation, confident_mistakes, evaluate, probabilities
from mlp_dist.tracking import plots
from mlp_dist.tracking.run_dir import METRICS, PREDICTIONS, SAMPLES

MAX_ROWS = 100
"""Rows in the table of mistakes."""

PRODUCTS: dict[str, dict[str, Callable[[Any], Figure | DataFrame]]] = {
    SAMPLES: {"figures/samples.png": lambda run: plots.samples_grid(run.images, run.labels, run.classes)},
    PREDICTIONS: {
        "figures/learning_curves.png": lambda run: plots.learning_curves(
            [json.loads(line) for line in (run.directory / METRICS).read_text().splitlines()]
        ),
        "figures/confusion_matrix.png": lambda run: plots.confusion_matrix(run.test.confusion, run.classes),
        "figures/reliability.png": lambda run: plots.reliability_diagram(run.test),
        "figures/mistakes.png": lambda run: plots.predictions_grid(
            run.mistake_images, run.labels[run.mistakes], run.probabilities[run.mistakes], run.classes
        ),
        "tables/per_class.json": lambda run: per_class(run.test, run.classes),
        "tables/mistakes.json": lambda run: mistakes(run.probabilities, run.labels, run.classes),
    },
}
"""By source, the files made from it, and how."""


def draw(directory: Path) -> None:
    """Make the pictures and tables that are missing in a run's directory or older than their source.

    One that fails costs a warning on stderr, once in this process.
    """
    for source, products in PRODUCTS.items():
        changed = _changed(directory / source)
        stale = {directory / name: make for name, make in products.items()}
        stale = {path: make for path, make in stale.items() if _changed(path) < changed}
        with _warning(directory / source):
            run = _read(directory, source) if stale else None
            for path, make in stale.items():
                with _warning(path):
                    _save(make(run), path)


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else -1


def _read(directory: Path, source: str) -> SimpleNamespace:
    with np.load(directory / source, allow_pickle=False) as file:
        run = SimpleNamespace(directory=directory, **file)
    run.classes = run.classes.tolist()
    if source == PREDICTIONS:
        temperature = float(run.temperature)
        run.probabilities = probabilities(run.logits, temperature)
        run.test = evaluate(run.logits, run.labels, temperature=temperature)
    return run


@contextmanager
def _warning(path: Path) -> Iterator[None]:
    try:
        yield
    # A missing picture must not cost the run.
    except Exception as error:
        _warn(path, repr(error))


@cache
def _warn(path: Path, reason: str) -> None:
    tell_beside(f"warning: cannot draw {path.name}: {reason}")


def _save(product: Figure | DataFrame, path: Path) -> None:
    if isinstance(product, Figure):
        plots.save(product, path)
        return
    # The format of `mlflow.log_table`.
    with replacing_file(path) as temporary:
        product.to_json(temporary, orient="split", index=False)


def warm_up() -> None:
    """Draw a chart, so that fonts and the PNG writer are loaded before the first one is needed."""
    # It tells that it looks for fonts, once on each machine.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    plots.confusion_matrix([[1]], ["a"]).savefig(io.BytesIO(), format="png")


# MLflow's page groups a table's rows by the first column and compares runs by the second.


def per_class(test: Evaluation, classes: Sequence[str]) -> DataFrame:
    """One row per class: recall ("accuracy"), precision, F1 and the most frequent wrong prediction.

    A value without a denominator is missing, as is "confused with" for a class without mistakes.
    """
    wrong = test.confusion - np.diag(test.confusion.diagonal())
    columns = {
        "class": classes,
        "accuracy": test.class_accuracy,
        "precision": test.class_precision,
        "f1": test.class_f1,
        "images": test.confusion.sum(axis=1),
        "confused with": [classes[row.argmax()] if row.any() else None for row in wrong],
        "times": wrong.max(axis=1),
    }
    return DataFrame(columns).round(4)


def mistakes(probabilities: Array, labels: Array, classes: Sequence[str]) -> DataFrame:
    """One row per mistake, the most confident first, at most MAX_ROWS; "image" is its index in the test set.

    `probabilities` are float (N, classes), `labels` int64 (N,).
    """
    rows = confident_mistakes(probabilities, labels, MAX_ROWS)
    true, predicted = labels[rows], probabilities[rows].argmax(axis=1)
    columns = {
        "image": rows,
        "predicted": [classes[label] for label in predicted],
        "true": [classes[label] for label in true],
        "probability": probabilities[rows, predicted],
        "probability of true": probabilities[rows, true],
    }
    return DataFrame(columns).round(6)
