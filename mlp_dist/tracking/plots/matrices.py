"""Pictures of counts by class."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mlp_dist.tracking.plots.base import Axes, Figure, PowerNorm, framed, short, text_width

MOST_NAMED, MOST_COUNTED = 40, 30
_CELL, _SMALLEST, _LARGEST = 0.55, 4.5, 11.0
"""Inches: a class's cell where there is room for it, and the sides that the matrix may have."""


def confusion_matrix(confusion: ArrayLike, classes: Sequence[str]) -> Figure:
    """Counts of (true class, predicted class); colour is the share of the true class.

    Of more than MOST_COUNTED classes the picture shows no counts, of more than MOST_NAMED no names either:
    they would not be legible.
    """
    counts = np.asarray(confusion)
    names = [short(name) for name in classes] if len(classes) <= MOST_NAMED else []
    side = min(max(_CELL * len(classes), _SMALLEST), _LARGEST) if names else 7.0
    size = min(10.0, 40 * side / len(classes)) if names else 10.0
    room = text_width(names, size)
    rotated = room > side / len(classes)
    figure, axes = framed(
        side, side, left=0.6 + room, right=1.3, bottom=0.6 + (0.8 * room if rotated else 0.15), top=0.45
    )
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    # Mistakes are a few in a hundred: by their root they are seen as well.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    if len(classes) <= MOST_COUNTED:
        _write_counts(axes, counts, shares, size)
    accuracy = counts.trace() / counts.sum()
    axes.set(xlabel="predicted", ylabel="true", title=f"test accuracy {accuracy:.2%}")
    if names:
        turned: dict[str, Any] = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if rotated else {}
        axes.set_xticks(range(len(names)), names, parse_math=False, fontsize=size, **turned)
        axes.set_yticks(range(len(names)), names, parse_math=False, fontsize=size)
    width = figure.get_figwidth()
    box = axes.get_position()
    bar = figure.add_axes((box.x1 + 0.2 / width, box.y0, 0.2 / width, box.height))
    figure.colorbar(image, cax=bar, label="share of the true class", ticks=(0, 0.01, 0.05, 0.1, 0.25, 0.5, 1))
    return figure


def _write_counts(axes: Axes, counts: np.ndarray, shares: np.ndarray, size: float) -> None:
    for true, predicted in zip(*counts.nonzero(), strict=True):
        colour = "white" if shares[true, predicted] > 0.3 else "black"
        axes.text(
            predicted,
            true,
            str(counts[true, predicted]),
            ha="center",
            va="center",
            color=colour,
            fontsize=0.9 * size,
        )
