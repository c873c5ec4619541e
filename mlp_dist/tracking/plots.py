"""Pictures of a run as matplotlib figures: grids of images, learning curves, confusion, calibration."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from mlp_dist.core.io import replacing_file
from mlp_dist.data.scores import Evaluation

MAX_TILES, COLUMNS = 20, 5
MAX_NAMED = 30
"""Classes with names and counts in the confusion matrix: with more they would be illegible."""

_TILE, _TITLE, _GAP = 1.75, 0.4, 0.15
"""Inches: an image's longer side, and the room above it for two lines of title, and beside it."""

_LONGEST_NAME, _LETTER = 18, 0.086
"""Characters of a class name that is not cut, and the width of one, in inches."""

_COLORS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}


def shorten(name: str) -> str:
    """A class name, cut so that it does not overlap its neighbors."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


def samples_grid(images: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> Figure:
    """The first uint8 images (N, C, H, W), titled with the class names of their int64 labels (N,)."""
    return _grid(images, [(shorten(classes[label]), "black") for label in np.asarray(labels)])


def predictions_grid(
    images: ArrayLike, labels: ArrayLike, probabilities: ArrayLike, classes: Sequence[str]
) -> Figure:
    """The first uint8 images (N, C, H, W) with prediction, probability and label; red if wrong.

    `labels` are int64 (N,), `probabilities` float (N, classes).
    """
    titles = []
    for label, row in zip(np.asarray(labels), np.asarray(probabilities), strict=True):
        predicted = int(row.argmax())
        text = f"{shorten(classes[predicted])} ({row[predicted]:.0%})\ntrue: {shorten(classes[label])}"
        titles.append((text, "black" if predicted == label else "tab:red"))
    figure = _grid(images, titles)
    if not titles:
        figure.text(0.5, 0.5, "no mistakes", ha="center")
    return figure


def _grid(images: ArrayLike, titles: Sequence[tuple[str, str]]) -> Figure:
    """The first MAX_TILES uint8 images (N, C, H, W), each below its (title, color).

    They are drawn as one image: one by one would take five times as long.
    """
    tiles = np.asarray(images)[:MAX_TILES].transpose(0, 2, 3, 1)
    number, height, width, channels = tiles.shape
    rows, longest = max(-(-number // COLUMNS), 1), max(height, width)
    above, beside = (int(np.ceil(room * longest / _TILE)) for room in (_TITLE, _GAP))
    cells = np.full((rows * COLUMNS, longest + above, longest + beside, channels), 255, tiles.dtype)
    left = (longest + beside - width) // 2
    cells[:number, above : above + height, left : left + width] = tiles
    cells = cells.reshape(rows, COLUMNS, *cells.shape[1:]).swapaxes(1, 2)
    picture = cells.reshape(rows * (longest + above), -1, channels)
    inches = np.array(picture.shape[1::-1]) * _TILE / longest
    figure = Figure(figsize=tuple(inches))
    axes = figure.add_axes((0, 0, 1, 1))
    gray: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
    axes.imshow(picture if channels > 1 else picture[..., 0], aspect="auto", **gray)
    axes.axis("off")
    style: dict[str, Any] = {"fontsize": 9, "ha": "center", "va": "bottom", "parse_math": False}
    for index, (title, color) in enumerate(titles[:number]):
        row, column = divmod(index, COLUMNS)
        x, y = (column + 0.5) * (longest + beside), row * (longest + above) + 0.9 * above
        axes.text(x - 0.5, y - 0.5, title, color=color, **style)
    return figure


def learning_curves(history: Sequence[dict[str, Any]]) -> Figure:
    """Loss and accuracy by epoch, from a record per epoch; marks the kept epoch.

    That is the first with the best validation accuracy; without validation, the last. Splits without values
    are left out.
    """
    rated = [each for each in history if each["val_accuracy"] is not None] or [history[-1]]
    kept = max(rated, key=lambda each: each["val_accuracy"] or 0)["epoch"]
    figure = Figure(figsize=(10, 4.2))
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.12, top=0.9, wspace=0.18)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for split, color in _COLORS.items():
            values = [(each["epoch"], each[f"{split}_{name}"]) for each in history]
            if points := [point for point in values if point[1] is not None]:
                marker = "o" if len(points) <= 50 else ""
                axes.plot(*zip(*points, strict=True), color=color, label=split, marker=marker, markersize=3)
        axes.axvline(kept, color="gray", linestyle=":", label=f"kept: epoch {kept}", zorder=1)
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)
    return figure


def confusion_matrix(confusion: ArrayLike, classes: Sequence[str]) -> Figure:
    """Counts by (true class, predicted class), int64; the color is the share of the true class."""
    counts, number = np.asarray(confusion), len(classes)
    names = [shorten(name) for name in classes] if number <= MAX_NAMED else []
    longest = max(map(len, names), default=0)
    # matplotlib's layout engines would double the drawing time.
    side, room = min(max(0.5 * number, 5.0), 10.0), 0.65 + _LETTER * longest
    width, height = room + side + 0.2, room + side + 0.45
    figure = Figure(figsize=(width, height))
    axes = figure.add_axes((room / width, room / height, side / width, side / height))
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    # The square root makes shares of a few percent visible.
    axes.imshow(shares**0.5, cmap="Blues", vmin=0, vmax=1)
    for true, predicted in zip(*counts.nonzero(), strict=True) if names else ():
        color = "white" if shares[true, predicted] > 0.3 else "black"
        axes.text(predicted, true, counts[true, predicted], color=color, fontsize=9, ha="center", va="center")
    axes.set(xlabel="predicted", ylabel="true", title=f"test accuracy {counts.trace() / counts.sum():.2%}")
    axes.set_yticks(range(len(names)), names, parse_math=False)
    axes.set_xticks(range(len(names)), names, parse_math=False, rotation=90 if longest > 2 else 0)
    return figure


def reliability_diagram(test: Evaluation) -> Figure:
    """Accuracy and number of images by confidence. After Guo et al. 2017, arXiv:1706.04599."""
    numbers, confidences, correct = test.calibration.T
    centers, accuracies = (np.arange(len(numbers)) + 0.5) / len(numbers), correct / numbers.clip(min=1)
    figure = Figure(figsize=(7, 6))
    axes = figure.add_axes((0.1, 0.1, 0.87, 0.76))
    axes.bar(
        centers, accuracies, width=1 / len(numbers), edgecolor="white", label="accuracy, number of images"
    )
    axes.plot((0, 1), (0, 1), color="black", linestyle="--", label="perfectly calibrated")
    for center, accuracy, number in zip(centers, accuracies, numbers, strict=True):
        if number:
            axes.text(center, accuracy + 0.01, f"{number:,.0f}", fontsize=8, ha="center")
    axes.set(xlim=(0, 1), ylim=(0, 1.05), xlabel="confidence (probability of the answer)", ylabel="accuracy")
    shares = f"accuracy {test.accuracy:.2%}, mean confidence {confidences.sum() / numbers.sum():.2%}"
    axes.set_title(f"expected calibration error {test.ece:.2%}\n{shares}", fontsize=11, pad=26)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=2, frameon=False)
    return figure


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path` as PNG, atomically."""
    with replacing_file(path) as temporary, warnings.catch_warnings():
        # Class names may use any script; missing glyphs are drawn as boxes.
        warnings.filterwarnings("ignore", message=r"Glyph \d+ .* missing from font")
        # Low compression saves a fifth of the time.
        figure.savefig(temporary, format="png", pil_kwargs={"compress_level": 1})
