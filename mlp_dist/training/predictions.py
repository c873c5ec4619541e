"""The files that a run's pictures and tables are drawn from: NumPy's npz, without pickles."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import ArrayLike

from mlp_dist.core.io import replacing_file
from mlp_dist.core.model import first_layer
from mlp_dist.core.spec import ImageSpec
from mlp_dist.data.arrays import Dataset, ImageSet
from mlp_dist.data.scores import confident_mistakes, probabilities
from mlp_dist.tracking.run_dir import PREDICTIONS, SAMPLES

MAX_SHOWN = 20
"""Images, or units of the first layer, in a picture."""


def write_samples(directory: Path, images: ImageSet, classes: Sequence[str]) -> None:
    """Write SAMPLES: the first `images`, uint8 (N, C, H, W), their `labels`, int64 (N,), and `classes`."""
    part = images[:MAX_SHOWN]
    _write(directory / SAMPLES, images=part.images, labels=part.labels, classes=list(classes))


def write_predictions(
    directory: Path, model: torch.nn.Module, logits: torch.Tensor, temperature: float, data: Dataset
) -> None:
    """Write PREDICTIONS: the test images' `logits`, float32 (N, classes), `labels`, int64 (N,), and what the
    pictures show besides.

    `temperature` is float64 (), `classes` are strings. `mistakes` are the indices, int64 (M,), of the most
    confident mistakes, and `mistake_images` uint8 (M, C, H, W). If the first layer of `model` sees the pixels
    of `data.image`, `weights`, float32 (U, C * H * W), are those of its units with the largest norms, `units`
    their indices, int64 (U,), and `image` is (C, H, W).
    """
    scores, labels = logits.cpu().numpy(), data.test.labels.cpu().numpy()
    mistakes = confident_mistakes(probabilities(scores, temperature), labels, MAX_SHOWN)
    _write(
        directory / PREDICTIONS,
        logits=scores,
        labels=labels,
        temperature=temperature,
        classes=list(data.classes),
        mistakes=mistakes,
        mistake_images=data.test[torch.from_numpy(mistakes)].images,
        **_largest_units(model, data.image),
    )


def _largest_units(model: torch.nn.Module, image: ImageSpec) -> dict[str, ArrayLike]:
    weights = first_layer(model)
    if weights is None or weights.shape[1] != image.num_features:
        return {}
    weights = weights.float().cpu()
    units = weights.norm(dim=1).argsort(descending=True, stable=True)[:MAX_SHOWN]
    shape = (image.channels, image.height, image.width)
    return {"weights": weights[units].numpy(), "units": units.numpy(), "image": shape}


def _write(path: Path, **arrays: ArrayLike) -> None:
    with replacing_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, allow_pickle=False, **{name: np.asarray(array) for name, array in arrays.items()})
