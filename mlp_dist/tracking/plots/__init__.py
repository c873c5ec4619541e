"""Pictures of data and of trainings, from arrays. Nothing else imports matplotlib. torch is not imported:
tensors on the CPU are taken, as NumPy takes them.
"""

import io
from collections.abc import Callable

from mlp_dist.tracking.plots.answers import class_accuracy, reliability_diagram
from mlp_dist.tracking.plots.base import Figure
from mlp_dist.tracking.plots.curves import learning_curves
from mlp_dist.tracking.plots.files import check_window, picture_format, save, show
from mlp_dist.tracking.plots.grids import first_layer, mistakes_grid, predictions_grid, samples_grid
from mlp_dist.tracking.plots.matrices import confusion_matrix
from mlp_dist.tracking.plots.parallel import parallel_coordinates

__all__ = ["FIGURES", "check_window", "picture_format", "samples_grid", "save", "show", "warm_up"]

FIGURES: dict[str, Callable[..., Figure]] = {
    "samples": samples_grid,
    "learning_curves": learning_curves,
    "confusion_matrix": confusion_matrix,
    "class_accuracy": class_accuracy,
    "reliability": reliability_diagram,
    "predictions": predictions_grid,
    "mistakes": mistakes_grid,
    "first_layer": first_layer,
    "parallel_coordinates": parallel_coordinates,
}
"""What a run in MLflow has, by name."""


def warm_up() -> None:
    """Draw something: the first picture finds fonts, and imports what writes it."""
    figure = learning_curves([{"epoch": 1, "train_loss": 1.0, "train_accuracy": 1.0}], 1)
    figure.savefig(io.BytesIO(), format="png")
