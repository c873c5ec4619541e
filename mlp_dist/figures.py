"""Pictures of data and of trainings, from arrays. The one file that imports matplotlib: pyplot only to open a
window. torch is not imported: tensors on the CPU are taken, as NumPy takes them.
"""

import io
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mlp_dist.core.errors import UsageError
from mlp_dist.core.files import replacing_file
from mlp_dist.core.spec import ImageSpec


@contextmanager
def _without_backend() -> Iterator[None]:
    """Jupyter names a backend of its own to all that it starts; where that one is not installed, matplotlib
    would not even be imported. Files need none.
    """
    named = os.environ.pop("MPLBACKEND", None)
    yield
    if named is not None:
        os.environ["MPLBACKEND"] = named


with _without_backend():
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

FORMATS = ("jpeg", "jpg", "pdf", "png", "svg", "webp")
"""The suffixes of the files that `save` writes."""

MOST_NAMED = 40
_LONGEST_NAME = 18
_WINDOWLESS = ("agg", "cairo", "pdf", "pgf", "ps", "svg", "template")
_CELL, _LARGEST, _BAR = (1.9, 2.2), 1.75, 1.2
"""Inches: a grid's cell with room for two lines of title, an image's longer side, room for a colour bar."""

_GRAY: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 255}
_PARTS = (("train", "tab:blue"), ("val", "tab:orange"), ("test", "tab:green"))


def learning_curves(history: list[dict[str, Any]], kept_epoch: int) -> Figure:
    """Loss and accuracy by epoch, with the kept epoch marked.

    Training, validation and test each have a curve where the records hold their values.
    """
    figure = Figure(figsize=(10, 4))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.13, top=0.96)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, colour in _PARTS:
            key = f"{part}_{name}"
            points = [(record["epoch"], record[key]) for record in history if record.get(key) is not None]
            if points:
                axes.plot(*zip(*points, strict=True), marker="o", markersize=3, color=colour, label=part)
        axes.axvline(kept_epoch, color="gray", linestyle=":", label=f"kept: epoch {kept_epoch}")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def confusion_matrix(confusion: ArrayLike, classes: Sequence[str]) -> Figure:
    """Counts of (true class, predicted class); colour is the share of the true class.

    Of more than MOST_NAMED classes the picture shows colours alone: names and counts would not be legible.
    """
    names = [_short(name) for name in classes] if len(classes) <= MOST_NAMED else []
    size = max(5.0, 0.6 * min(len(classes), MOST_NAMED))
    rotated = max(map(len, names), default=0) > 2
    # Finding the room that names need takes as long as all the rest.
    figure = Figure(figsize=(size + 1, size), layout="constrained" if rotated else None)
    if not rotated:
        figure.subplots_adjust(left=0.1, right=1, bottom=0.1, top=0.94)
    axes = figure.subplots()
    counts = np.asarray(confusion)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for true, row in enumerate(counts.tolist() if names else []):
        for predicted, count in enumerate(row):
            if count:
                colour = "white" if shares[true, predicted] > 0.5 else "black"
                axes.text(predicted, true, str(count), ha="center", va="center", color=colour, fontsize=8)
    accuracy = counts.trace() / counts.sum()
    axes.set(xlabel="predicted", ylabel="true", title=f"test accuracy {accuracy:.2%}")
    if names:
        axes.set_xticks(range(len(names)), names, rotation=45 if rotated else 0, parse_math=False)
        axes.set_yticks(range(len(names)), names, parse_math=False)
    figure.colorbar(image, ax=axes, label="share of the true class")
    return figure


def samples_grid(
    images: ArrayLike, labels: ArrayLike, classes: Sequence[str], *, rows: int = 4, columns: int = 5
) -> Figure:
    """The first of the uint8 images (N, C, H, W) with the class names of their int64 labels (N,)."""
    titles = [(_short(classes[label]), "black") for label in np.asarray(labels)[: rows * columns]]
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
        text = f"{_short(classes[predicted])} ({row[predicted]:.0%})\ntrue: {_short(classes[label])}"
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


FIGURES: dict[str, Callable[..., Figure]] = {
    "samples": samples_grid,
    "learning_curves": learning_curves,
    "confusion_matrix": confusion_matrix,
    "predictions": predictions_grid,
    "mistakes": mistakes_grid,
    "first_layer": first_layer,
}
"""What a run in MLflow has, by name."""


def warm_up() -> None:
    """Draw something: the first picture finds fonts, and imports what writes it."""
    figure = learning_curves([{"epoch": 1, "train_loss": 1.0, "train_accuracy": 1.0}], 1)
    figure.savefig(io.BytesIO(), format="png")


def picture_format(path: Path) -> str:
    """What `save` writes to `path`: its suffix, or png where it has none.

    Raises UsageError where that is none of FORMATS, or `path` is a directory.
    """
    if path.is_dir():
        raise UsageError(f"{path} is a directory; name the picture's file, as {path / 'picture.png'}")
    suffix = path.suffix.removeprefix(".").lower() or "png"
    if suffix not in FORMATS:
        raise UsageError(
            f"a picture cannot be written to {path}: its suffix must be one of .{', .'.join(FORMATS)}"
        )
    return suffix


def save(figure: Figure, path: Path) -> None:
    """Write `figure` to `path`, whole or not at all. Raises UsageError as `picture_format` does."""
    picture = picture_format(path)
    with replacing_file(path) as temporary:
        figure.savefig(temporary, format=picture)


def check_window() -> None:
    """Raise UsageError where matplotlib cannot open a window."""
    from matplotlib import pyplot

    advice = "write the picture to a file: --output FILE"
    backend = os.environ.get("MPLBACKEND") or pyplot.get_backend()
    try:
        pyplot.switch_backend(backend)
    except (ImportError, ValueError) as error:
        raise UsageError(f"matplotlib cannot open a window: {error}; {advice}") from error
    if backend.lower() in _WINDOWLESS:
        raise UsageError(
            f"matplotlib cannot open a window: its backend is {backend}, which it takes where there is no "
            f"display or no toolkit such as tkinter; {advice}"
        )


def show(figure: Figure) -> None:
    """Open a window and wait until it is closed. Raises UsageError as `check_window` does."""
    check_window()
    from matplotlib import pyplot

    # A Figure made without pyplot has no window; pyplot makes one for what FigureClass returns.
    pyplot.figure(FigureClass=lambda **_: figure)  # type: ignore[arg-type]
    pyplot.show(block=True)


def _short(name: str) -> str:
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"


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
