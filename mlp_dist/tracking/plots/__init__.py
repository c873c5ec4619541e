"""Pictures and tables of a run, drawn from the files in its directory; torch and mlflow are not imported."""

import io
import json
import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias

import numpy as np
from matplotlib.figure import Figure

from mlp_dist.console.progress import tell_beside
from mlp_dist.core.io import replacing_file
from mlp_dist.data.scores import evaluate, probabilities
from mlp_dist.tracking.plots import pictures, tables
from mlp_dist.tracking.plots.pictures import predictions_grid, samples_grid
from mlp_dist.tracking.run_dir import METRICS, PREDICTIONS, SAMPLES, write_json

__all__ = ["draw", "predictions_grid", "samples_grid", "save", "warm_up"]

_Make: TypeAlias = Callable[[Any], Figure | tables.Table | None]

PRODUCTS: dict[str, dict[str, _Make]] = {
    SAMPLES: {"figures/samples.png": lambda run: samples_grid(run.images, run.labels, run.classes)},
    PREDICTIONS: {
        "figures/learning_curves.png": lambda run: pictures.learning_curves(_history(run.directory)),
        "figures/confusion_matrix.png": lambda run: pictures.confusion_matrix(run.confusion, run.classes),
        "figures/reliability.png": lambda run: pictures.reliability_diagram(run.test.calibration),
        "figures/mistakes.png": lambda run: predictions_grid(*run.wrong),
        "figures/first_layer.png": lambda run: run.first_layer and pictures.first_layer(*run.first_layer),
        "tables/per_class.json": lambda run: tables.per_class(run.test, run.classes),
        "tables/mistakes.json": lambda run: tables.mistakes(run.probabilities, run.labels, run.classes),
    },
}
"""By source, the files made from it, and how; None if the source lacks what a file would show."""

_tried: set[tuple[Path, int]] = set()
"""Files that were not made, and the modification time of their source."""


def draw(directory: Path) -> None:
    """Make the pictures and tables that are missing in a run's directory or older than their source.

    One that fails costs a warning on stderr, and is tried again by this process when the source has changed.
    """
    for source, products in PRODUCTS.items():
        changed = _changed(directory / source)
        stale = {directory / name: make for name, make in products.items()}
        stale = {path: make for path, make in stale.items() if _changed(path) < changed}
        stale = {path: make for path, make in stale.items() if (path, changed) not in _tried}
        _tried.update((path, changed) for path in stale)
        with _warning(source):
            run = _read(directory, source) if stale else None
            for path, make in stale.items():
                with _warning(path.name):
                    _save(make(run), path, changed)


def _changed(path: Path) -> int:
    return path.stat().st_mtime_ns if path.exists() else -1


def _read(directory: Path, source: str) -> SimpleNamespace:
    with np.load(directory / source, allow_pickle=False) as file:
        run = SimpleNamespace(directory=directory, **file)
    run.classes = run.classes.tolist()
    if source == PREDICTIONS:
        temperature, rows = float(run.temperature), run.mistakes
        run.probabilities = probabilities(run.logits, temperature)
        run.test = evaluate(run.logits, run.labels, temperature=temperature)
        run.confusion = run.test.confusion
        run.wrong = run.mistake_images, run.labels[rows], run.probabilities[rows], run.classes
        run.first_layer = (run.weights, run.units, run.image) if hasattr(run, "weights") else None
    return run


def _history(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / METRICS).read_text().splitlines()]


@contextmanager
def _warning(name: str) -> Iterator[None]:
    try:
        yield
    # A missing picture must not cost the run.
    except Exception as error:
        tell_beside(f"warning: cannot draw {name}: {error!r}")


def _save(product: Figure | tables.Table | None, path: Path, changed: int) -> None:
    if product is None:
        return
    if isinstance(product, Figure):
        save(product, path)
    else:
        write_json(path, product)
    # Not the time of writing: the source may have changed since it was read.
    os.utime(path, ns=(changed, changed))
    _tried.discard((path, changed))


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` as PNG, atomically."""
    with replacing_file(path) as temporary, warnings.catch_warnings():
        # Class names may use any script; missing glyphs are drawn as boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        # Low compression saves a fifth of the time.
        figure.savefig(temporary, format="png", pil_kwargs={"compress_level": 1})


def warm_up() -> None:
    """Draw a chart, so that fonts and the PNG writer are loaded before the first one is needed."""
    # It tells that it looks for fonts, once on each machine.
    logging.getLogger("matplotlib.font_manager").setLevel(logging.ERROR)
    pictures.confusion_matrix([[1]], ["a"]).savefig(io.BytesIO(), format="png")
