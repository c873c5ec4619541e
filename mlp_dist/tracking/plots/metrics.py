"""Plots of losses, accuracies and calibration."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import PowerNorm
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from numpy.typing import ArrayLike

from mlp_dist.tracking.plots.files import shorten

MOST_CLASSES = 30
"""Classes with counts in the confusion matrix, and rows of `class_accuracy`."""

MOST_NAMES = 40
"""Classes with names in the confusion matrix."""

_MOST_MARKERS = 50
_COLORS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}

_Curves = dict[str, list[tuple[int, float]]]


def learning_curves(history: Sequence[dict[str, Any]], kept_epoch: int) -> Figure:
    """Loss and accuracy by epoch; marks the kept epoch.

    `history` has a record per epoch. Splits without values are left out.
    """
    figure = Figure(figsize=(10, 4.2))
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.12, top=0.9, wspace=0.18)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        curves: _Curves = {}
        for split in _COLORS:
            values = ((record["epoch"], record.get(f"{split}_{name}")) for record in history)
            if points := [(epoch, value) for epoch, value in values if value is not None]:
                curves[split] = points
        _draw_curves(axes, curves, kept_epoch, 1.0 if name == "accuracy" else float("inf"))
        axes.set(xlabel="epoch", ylabel=name)
        axes.grid(alpha=0.3)
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)
    return figure


def _draw_curves(axes: Axes, curves: _Curves, kept_epoch: int, limit: float) -> None:
    for split, points in curves.items():
        marker = "o" if len(points) <= _MOST_MARKERS else ""
        x, y = zip(*points, strict=True)
        axes.plot(x, y, color=_COLORS[split], label=split, marker=marker, markersize=3, zorder=3)
    axes.axvline(kept_epoch, color="gray", linestyle=":", label=f"kept: epoch {kept_epoch}")
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))
    values = [value for points in curves.values() for _, value in points]
    if values:
        low, high = axes.get_ylim()
        # Start at 0 if the curves still fill half of the height.
        bottom = 0 if min(values) < max(values) / 2 else low
        axes.set_ylim(bottom, min(high, limit + 0.02 * (limit - low)))


def confusion_matrix(confusion: ArrayLike, classes: Sequence[str]) -> Figure:
    """Counts by (true class, predicted class); color is the share of the true class.

    Counts are written for up to MOST_CLASSES classes and names for up to MOST_NAMES, beyond which they would
    be illegible.
    """
    counts = np.asarray(confusion)
    names = [shorten(name) for name in classes] if len(classes) <= MOST_NAMES else []
    side = min(max(0.55 * len(classes), 4.5), 11.0) if names else 7.0
    fontsize = min(10.0, 40 * side / len(classes))
    room = _text_width(names, fontsize)
    is_rotated = room > side / len(classes)
    bottom = 0.6 + (0.8 * room if is_rotated else 0.15)
    figure, axes = _single_axes(side, side, left=0.6 + room, right=1.3, bottom=bottom, top=0.45)
    shares = counts / counts.sum(axis=1, keepdims=True).clip(min=1)
    # The square root makes shares of a few percent visible.
    image = axes.imshow(shares, cmap="Blues", norm=PowerNorm(0.5, 0, 1))
    if len(classes) <= MOST_CLASSES:
        for true, predicted in zip(*counts.nonzero(), strict=True):
            color = "white" if shares[true, predicted] > 0.3 else "black"
            text: dict[str, Any] = {
                "ha": "center",
                "va": "center",
                "color": color,
                "fontsize": 0.9 * fontsize,
            }
            axes.text(predicted, true, str(counts[true, predicted]), **text)
    axes.set(xlabel="predicted", ylabel="true", title=f"test accuracy {counts.trace() / counts.sum():.2%}")
    if names:
        labels: dict[str, Any] = {"parse_math": False, "fontsize": fontsize}
        axes.set_yticks(range(len(names)), names, **labels)
        if is_rotated:
            labels |= {"rotation": 45, "ha": "right", "rotation_mode": "anchor"}
        axes.set_xticks(range(len(names)), names, **labels)
    bar = axes.inset_axes((1 + 0.2 / side, 0, 0.2 / side, 1))
    figure.colorbar(image, cax=bar, label="share of the true class", ticks=(0, 0.01, 0.05, 0.1, 0.25, 0.5, 1))
    return figure


def class_accuracy(
    accuracies: Sequence[float | None],
    precisions: Sequence[float | None],
    overall: float,
    classes: Sequence[str],
) -> Figure:
    """Accuracy and precision per class, the worst accuracy first, for at most MOST_CLASSES classes.

    An accuracy is None for a class without images, a precision for a class that was never predicted.
    `overall` is the accuracy on all images.
    """
    ranked = sorted((value, index) for index, value in enumerate(accuracies) if value is not None)
    worst = ranked[:MOST_CLASSES]
    rows = range(len(worst))
    names = [shorten(classes[index]) for _, index in worst]
    height = max(0.27 * len(worst), 1)
    left = 0.4 + _text_width(names)
    figure, axes = _single_axes(6, height, left=left, right=0.3, bottom=0.55, top=0.4)
    axes.axvline(overall, color="gray", linestyle=":", label=f"accuracy on all images: {overall:.2%}")
    series = {
        "precision": ("d", "tab:orange", [precisions[index] for _, index in worst]),
        "accuracy": ("o", "tab:blue", [value for value, _ in worst]),
    }
    for label, (marker, color, values) in series.items():
        known = np.array(values, dtype=np.float64)
        axes.plot(known, rows, marker, markersize=7, color=color, label=label, zorder=3)
    axes.set_yticks(rows, names, parse_math=False)
    low, high = axes.get_xlim()
    axes.set(xlim=(low, min(high, 1 + 0.02 * (1 - low))), ylim=(len(worst) - 0.5, -0.5))
    if len(worst) < len(ranked):
        axes.set_xlabel(f"the worst {len(worst)} of {len(ranked)} classes")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    return figure


def reliability_diagram(bins: ArrayLike) -> Figure:
    """Accuracy by confidence, and the number of images at each confidence.

    `bins` are float (bins, 3) of equal width: number of images, sum of confidences, number of correct
    answers, as `evaluate.calibration` returns them. After Guo et al. 2017, arXiv:1706.04599.
    """
    table = np.asarray(bins, dtype=np.float64)
    width, (total, total_confidence, total_correct) = 1 / len(table), table.sum(axis=0)
    error = np.abs(table[:, 1] - table[:, 2]).sum() / total
    centers = (np.flatnonzero(table[:, 0]) + 0.5) * width
    num_images, confidence, correct = table[table[:, 0] > 0].T
    accuracy, gap = correct / num_images, (confidence - correct) / num_images
    figure = Figure(figsize=(7, 7))
    figure.subplots_adjust(left=0.14, right=0.96, bottom=0.08, top=0.88, hspace=0.12)
    upper, lower = figure.subplots(2, 1, height_ratios=(0.72, 0.28))
    style: dict[str, Any] = {"width": width, "edgecolor": "white"}
    upper.bar(centers, accuracy, color="tab:blue", label="accuracy", **style)
    upper.bar(centers, gap.clip(min=0), bottom=accuracy, color="#f2b5b5", label="overconfident", **style)
    upper.bar(centers, gap.clip(max=0), bottom=accuracy, color="#a9cfe8", label="underconfident", **style)
    upper.plot((0, 1), (0, 1), color="gray", linestyle="--", label="perfectly calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    upper.set_title(
        f"expected calibration error {error:.2%}\n"
        f"accuracy {total_correct / total:.2%}, mean confidence {total_confidence / total:.2%}",
        fontsize=11,
        pad=26,
    )
    upper.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=4, frameon=False, columnspacing=1.2)
    lower.bar(centers, num_images, color="tab:gray", **style)
    powers = [10**power for power in range(len(str(int(num_images.max()))) + 1)]
    lower.set(xlim=(0, 1), yscale="log", ylim=(0.7, powers[-1]), ylabel="images")
    lower.set_xlabel("confidence: the probability of the answer")
    lower.set_yticks(powers, [f"{power:,}" for power in powers])
    lower.minorticks_off()
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure


def _single_axes(
    width: float, height: float, *, left: float, right: float, bottom: float, top: float
) -> tuple[Figure, Axes]:
    """A figure with one Axes of this size and these margins, in inches.

    matplotlib's own layout engines would double the drawing time.
    """
    total_width, total_height = left + width + right, bottom + height + top
    figure = Figure(figsize=(total_width, total_height))
    box = (left / total_width, bottom / total_height, width / total_width, height / total_height)
    return figure, figure.add_axes(box)


def _text_width(texts: list[str], fontsize: float = 10.0) -> float:
    """Approximate width of the longest text, in inches; `fontsize` is in points."""
    return max(map(len, texts), default=0) * 0.62 * fontsize / 72
