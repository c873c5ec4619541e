"""Grids of images: samples, predictions, mistakes, first-layer weights."""

from collections.abc import Sequence
from itertools import product
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from mlp_dist.core.spec import ImageSpec
from mlp_dist.tracking.plots.files import shorten

ROWS, COLUMNS = 4, 5

_CELL_WIDTH, _CELL_HEIGHT, _IMAGE_SIDE, _BAR_WIDTH = 1.9, 2.2, 1.75, 1.2
"""Inches. A cell has room for two lines of title; _IMAGE_SIDE is the image's longer side."""

_GRAY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}


def samples_grid(
    images: ArrayLike, labels: ArrayLike, classes: Sequence[str], *, rows: int = ROWS, columns: int = COLUMNS
) -> Figure:
    """The first uint8 images (N, C, H, W), titled with the class names of their int64 labels (N,)."""
    titles = [(shorten(classes[label]), "black") for label in np.asarray(labels)[: rows * columns]]
    return _image_grid(images, titles, rows, columns, **_GRAY)


def predictions_grid(
    images: ArrayLike,
    labels: ArrayLike,
    probabilities: ArrayLike,
    classes: Sequence[str],
    *,
    rows: int = ROWS,
    columns: int = COLUMNS,
) -> Figure:
    """The first uint8 images (N, C, H, W) with prediction, probability and label; red if wrong.

    `labels` are int64 (N,), `probabilities` float (N, classes).
    """
    titles = []
    for label, row in zip(np.asarray(labels)[: rows * columns], np.asarray(probabilities), strict=False):
        predicted = int(row.argmax())
        text = f"{shorten(classes[predicted])} ({row[predicted]:.0%})\ntrue: {shorten(classes[label])}"
        titles.append((text, "black" if predicted == label else "tab:red"))
    return _image_grid(images, titles, rows, columns, **_GRAY)


def mistakes_grid(
    images: ArrayLike, labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]
) -> Figure:
    """Like `predictions_grid`, for misclassified images; without any, the text "no mistakes"."""
    if len(np.asarray(labels)):
        return predictions_grid(images, labels, probabilities, classes)
    figure = Figure(figsize=(5, 2))
    figure.text(0.5, 0.5, "no mistakes", ha="center", va="center", fontsize=16, color="gray")
    return figure


def first_layer(weights: ArrayLike, units: ArrayLike, image: ImageSpec) -> Figure:
    """Weights of the first layer's units as images on one common scale.

    `weights` are float (N, channels * height * width) in the order of a flattened image; `units` are the
    units' int64 numbers (N,). Gray images: blue is negative, white 0, red positive. RGB: 0 is mid-gray.
    """
    maps = np.asarray(weights).reshape(-1, image.channels, image.height, image.width)[: ROWS * COLUMNS]
    scale = float(abs(maps).max()) or 1.0
    titles = [(f"unit {unit}", "black") for unit in np.asarray(units)[: ROWS * COLUMNS]]
    if image.channels != 1:
        return _image_grid(0.5 + maps / (2 * scale), titles, ROWS, COLUMNS)
    figure = _image_grid(maps, titles, ROWS, COLUMNS, cmap="RdBu_r", vmin=-scale, vmax=scale)
    grid_width = figure.get_figwidth()
    width = grid_width + _BAR_WIDTH
    figure.set_figwidth(width)
    axes = figure.axes[0]
    axes.set_position((0, 0, grid_width / width, 1))
    figure.colorbar(
        axes.images[0], cax=figure.add_axes((grid_width / width, 0.2, 0.2 / width, 0.6)), label="weight"
    )
    return figure


def _image_grid(
    images: ArrayLike, titles: Sequence[tuple[str, str]], rows: int, columns: int, **colors: Any
) -> Figure:
    """The first images (N, C, H, W) below their (title, color).

    All share one Axes, scaled in inches: one Axes per image would take five times as long to draw.
    """
    width, height = _CELL_WIDTH * columns, _CELL_HEIGHT * rows
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((0, 0, 1, 1))
    cells = product(range(rows), range(columns))
    for (row, column), pixels, (title, color) in zip(cells, np.asarray(images), titles, strict=False):
        picture = pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)
        inch = _IMAGE_SIDE / max(picture.shape[:2])
        middle, top = (column + 0.5) * _CELL_WIDTH, (row + 1) * _CELL_HEIGHT - _IMAGE_SIDE
        left, right = middle - inch * picture.shape[1] / 2, middle + inch * picture.shape[1] / 2
        axes.imshow(picture, extent=(left, right, top + inch * picture.shape[0], top), **colors)
        text: dict[str, Any] = {"color": color, "fontsize": 9, "ha": "center", "va": "bottom"}
        axes.text(middle, top - 0.05, title, parse_math=False, **text)
    axes.axis("off")
    axes.set(xlim=(0, width), ylim=(height, 0))
    return figure
