"""What the pictures of a training show, in arrays that `figures` draws. Images are on the CPU, other tensors
on any device.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mlp_dist.data.evaluate import confident_mistakes
from mlp_dist.data.image_set import ImageSet

MOST = 20
"""Images, or units, of a picture."""

Array = NDArray[Any]


def first(images: ImageSet, *rows: torch.Tensor) -> tuple[Array, ...]:
    """The first images, their labels and what else there is a row of for each."""
    return chosen(images, torch.arange(min(MOST, len(images))), *rows)


def mistakes(images: ImageSet, probabilities: torch.Tensor) -> tuple[Array, ...]:
    """The wrongly answered of the images, the most confident answer first; their labels, and probabilities.

    `probabilities` are float (N, classes).
    """
    return chosen(images, confident_mistakes(probabilities, images.labels, MOST), probabilities)


def chosen(images: ImageSet, index: torch.Tensor, *rows: torch.Tensor) -> tuple[Array, ...]:
    part = images[index]
    return tuple(map(array, (part.images, part.labels, *(each.cpu()[index] for each in rows))))


def largest_units(weights: torch.Tensor) -> tuple[Array, Array]:
    """The rows of float weights (units, inputs) with the largest norms, float32, and their numbers, int64."""
    weights = weights.detach().float()
    units = weights.norm(dim=1).argsort(descending=True, stable=True)[:MOST]
    return array(weights[units]), array(units)


def array(tensor: torch.Tensor) -> Array:
    return np.asarray(tensor.detach().cpu())
