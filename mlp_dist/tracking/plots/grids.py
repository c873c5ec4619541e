"""Pictures of images, side by side."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mlp_dist.core.spec import ImageSpec
from mlp_dist.tracking.plots.base import Figure, short

_CELL, _LARGEST, _BAR = (1.9, 2.2), 1.75, 1.2
"""Inches: a grid's cell with room for two lines of title, an image's longer side, room for a colour bar."""

_GRAY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}


def samples_grid(
    images: ArrayLike, labels: ArrayLike, classes: Sequence[str], *, rows: int = 4, columns: int = 5
) -> Figure:
    """The first of the uint8 images (N, C, H, W) with the class names of their int64 labels (N,)."""
    titles = [(short(classes[label]), "black") for label in np.asarray(labels)[: rows * columns]]
    return _image_grid(images, titles, rows, columns, **_GRAY)


def predictions_grid(
    images: ArrayLike,
    labels: ArrayLike,
    probabilities: ArrayLike,
    classes: Sequence[str],
    *,
    rows: int = 4,
    columns: int = 5,
) -> Figure:
    """The first of the uint8 images (N, C, H, W) with prediction, probability and label; wrong ones red.

    `labels` are int64 (N,), `probabilities` float (N, classes).
    """
    titles = []
    for label, row in zip(np.asarray(labels)[: rows * columns], np.asarray(probabilities), strict=False):
        predicted = int(row.argmax())
        text = f"{short(classes[predicted])} ({row[predicted]:.0%})\ntrue: {short(classes[label])}"
        titles.append((text, "black" if predicted == label else "tab:red"))
    return _image_grid(images, titles, rows, columns, **_GRAY)


def mistakes_grid(
    images: ArrayLike, labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str], **size: int
) -> Figure:
    """As `predictions_grid`; of no images it says that there are no mistakes."""
    if len(np.asarray(labels)):
        return predictions_grid(images, labels, probabilities, classes, **size)
    figure = Figure(figsize=(5, 2))
    figure.text(0.5, 0.5, "no mistakes", ha="center", va="center", fontsize=16, color="gray")
    return figure


def first_layer(
    weights: ArrayLike, units: ArrayLike, image: ImageSpec, *, rows: int = 4, columns: int = 5
) -> Figure:
    """The first of the units as images with one common scale; `units` int64 (N,) are their numbers.

    `weights` are float (N, channels * height * width), in the order of a flattened image. Gray: blue is
    below 0, white is 0, red is above. RGB: a channel's 0.5 is the weight 0.
    """
    shown = np.asarray(weights).reshape(-1, image.channels, image.height, image.width)[: rows * columns]
    scale = float(abs(shown).max()) or 1.0
    titles = [(f"unit {unit}", "black") for unit in np.asarray(units)[: rows * columns]]
    if image.channels != 1:
        return _image_grid(0.5 + shown / (2 * scale), titles, rows, columns)
    figure = _image_grid(shown, titles, rows, columns, cmap="RdBu_r", vmin=-scale, vmax=scale)
    width = figure.get_figwidth()
    # The grid keeps its inches; the bar gets some of its own.
    figure.set_figwidth(width + _BAR)
    axes = figure.axes[0]
    axes.set_position((0, 0, width / (width + _BAR), 1))
    bar = figure.add_axes((width / (width + _BAR), 0.2, 0.2 / (width + _BAR), 0.6))
    figure.colorbar(axes.images[0], cax=bar, label="weight")
    return figure


def _image_grid(
    images: ArrayLike, titles: list[tuple[str, str]], rows: int, columns: int, **colours: Any
) -> Figure:
    """The first of the images (N, C, H, W) under (title, colour), as many as there are of both.

    All stand in one Axes, measured in inches: one for each would take five times as long to draw.
    """
    width, height = _CELL
    figure = Figure(figsize=(width * columns, height * rows))
    axes = figure.add_axes((0, 0, 1, 1))
    cells = product(range(rows), range(columns))
    for (row, column), pixels, (title, colour) in zip(cells, np.asarray(images), titles, strict=False):
        shown = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        inch = _LARGEST / max(shown.shape[:2])
        middle, top = (column + 0.5) * width, (row + 1) * height - _LARGEST
        left, right = middle - inch * shown.shape[1] / 2, middle + inch * shown.shape[1] / 2
        axes.imshow(shown, extent=(left, right, top + inch * shown.shape[0], top), **colours)
        axes.text(
            *(middle, top - 0.05, title), color=colour, fontsize=9, ha="center", va="bottom", parse_math=False
        )
    axes.axis("off")
    axes.set(xlim=(0, width * columns), ylim=(height * rows, 0))
    return figure
