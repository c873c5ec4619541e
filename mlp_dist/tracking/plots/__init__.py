"""Plots of data sets and training runs, made from arrays.

Tensors on the CPU are accepted where NumPy accepts them; torch is not imported.
"""

import io
from collections.abc import Callable

from matplotlib.figure import Figure

from mlp_dist.tracking.plots import images, metrics
from mlp_dist.tracking.plots.files import save
from mlp_dist.tracking.plots.images import predictions_grid, samples_grid

__all__ = ["FIGURES", "predictions_grid", "samples_grid", "save", "warm_up"]

FIGURES: dict[str, Callable[..., Figure]] = {
    "samples": images.samples_grid,
    "learning_curves": metrics.learning_curves,
    "confusion_matrix": metrics.confusion_matrix,
    "class_accuracy": metrics.class_accuracy,
    "reliability": metrics.reliability_diagram,
    "predictions": images.predictions_grid,
    "mistakes": images.mistakes_grid,
    "first_layer": images.first_layer,
}
"""The plots of a training run by name."""


def warm_up() -> None:
    """Draw a plot, so that fonts and the PNG writer are loaded before the first one is needed."""
    figure = metrics.learning_curves([{"epoch": 1, "train_loss": 1.0, "train_accuracy": 1.0}], 1)
    figure.savefig(io.BytesIO(), format="png")
