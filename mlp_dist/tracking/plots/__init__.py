"""Plots of data sets and training runs, made from arrays.

Tensors on the CPU are accepted where NumPy accepts them; torch is not imported.
"""

import io
from collections.abc import Callable

from matplotlib.figure import Figure

from mlp_dist.tracking.plots.files import check_window, file_format, save, show
from mlp_dist.tracking.plots.images import first_layer, mistakes_grid, predictions_grid, samples_grid
from mlp_dist.tracking.plots.metrics import (
    class_accuracy,
    confusion_matrix,
    learning_curves,
    reliability_diagram,
)

__all__ = [
    "FIGURES",
    "check_window",
    "file_format",
    "predictions_grid",
    "samples_grid",
    "save",
    "show",
    "warm_up",
]

FIGURES: dict[str, Callable[..., Figure]] = {
    "samples": samples_grid,
    "learning_curves": learning_curves,
    "confusion_matrix": confusion_matrix,
    "class_accuracy": class_accuracy,
    "reliability": reliability_diagram,
    "predictions": predictions_grid,
    "mistakes": mistakes_grid,
    "first_layer": first_layer,
}
"""The plots of a training run by name."""


def warm_up() -> None:
    """Draw a plot, so that fonts and the PNG writer are loaded before the first one is needed."""
    figure = learning_curves([{"epoch": 1, "train_loss": 1.0, "train_accuracy": 1.0}], 1)
    figure.savefig(io.BytesIO(), format="png")
