"""Pictures of how good the answers are: by class, and by how sure the model is of them."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from mlp_dist.tracking.plots.base import Figure, framed, short, text_width

MOST_SHOWN = 30


def class_accuracy(
    accuracies: Sequence[float | None],
    precisions: Sequence[float | None],
    overall: float,
    classes: Sequence[str],
) -> Figure:
    """Accuracy and precision of each class that has images, the worst first, at most MOST_SHOWN.

    None of `precisions` is a class that was never the answer; `overall` is the accuracy on all images.
    """
    rated = sorted((value, index) for index, value in enumerate(accuracies) if value is not None)
    shown, rows = rated[:MOST_SHOWN], range(min(len(rated), MOST_SHOWN))
    names = [short(classes[index]) for _, index in shown]
    height = max(0.27 * len(shown), 1)
    figure, axes = framed(6, height, left=0.4 + text_width(names), right=0.3, bottom=0.55, top=0.4)
    axes.axvline(overall, color="gray", linestyle=":", label=f"accuracy on all images: {overall:.2%}")
    for label, marker, colour, values in (
        ("precision", "d", "tab:orange", [precisions[index] for _, index in shown]),
        ("accuracy", "o", "tab:blue", [value for value, _ in shown]),
    ):
        known = np.array(values, dtype=np.float64)
        axes.plot(known, rows, marker, markersize=7, color=colour, label=label, zorder=3)
    axes.set_yticks(rows, names, parse_math=False)
    left, right = axes.get_xlim()
    axes.set(xlim=(left, min(right, 1 + 0.02 * (1 - left))), ylim=(len(shown) - 0.5, -0.5))
    if len(shown) < len(rated):
        axes.set_xlabel(f"the worst {len(shown)} of {len(rated)} classes")
    axes.grid(alpha=0.3)
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1), ncols=3, frameon=False)
    return figure


def reliability_diagram(bins: ArrayLike) -> Figure:
    """How often answers of a given confidence are right, and how many there are of each.

    `bins` are float (bins, 3) of equal width: images, the sum of their confidence, right answers, as
    `evaluation.calibration` returns them. After Guo et al. 2017, arXiv:1706.04599.
    """
    table = np.asarray(bins, dtype=np.float64)
    width, (total, sure, right) = 1 / len(table), table.sum(axis=0)
    error = np.abs(table[:, 1] - table[:, 2]).sum() / total
    where = (np.flatnonzero(table[:, 0]) + 0.5) * width
    num_images, confidence, correct = table[table[:, 0] > 0].T
    figure = Figure(figsize=(7, 7))
    upper, lower = figure.add_axes((0.14, 0.34, 0.82, 0.54)), figure.add_axes((0.14, 0.08, 0.82, 0.2))
    shared: dict[str, Any] = {"width": width, "edgecolor": "white"}
    accuracy, gap = correct / num_images, (confidence - correct) / num_images
    upper.bar(where, accuracy, color="tab:blue", label="accuracy", **shared)
    upper.bar(where, gap.clip(min=0), bottom=accuracy, color="#f2b5b5", label="overconfident", **shared)
    upper.bar(where, gap.clip(max=0), bottom=accuracy, color="#a9cfe8", label="underconfident", **shared)
    upper.plot((0, 1), (0, 1), color="gray", linestyle="--", label="perfectly calibrated")
    upper.set(xlim=(0, 1), ylim=(0, 1), ylabel="accuracy")
    upper.set_title(
        f"expected calibration error {error:.2%}\n"
        f"accuracy {right / total:.2%}, mean confidence {sure / total:.2%}",
        fontsize=11,
        pad=26,
    )
    upper.legend(
        loc="lower center",
        bbox_to_anchor=(0.5, 1),
        ncols=4,
        frameon=False,
        handlelength=1.2,
        columnspacing=1.2,
    )
    lower.bar(where, num_images, color="tab:gray", **shared)
    powers = [10**power for power in range(len(str(int(num_images.max()))) + 1)]
    lower.set(xlim=(0, 1), yscale="log", ylim=(0.7, powers[-1]), ylabel="images")
    lower.set_xlabel("confidence: the probability of the answer")
    lower.set_yticks(powers, [f"{power:,}" for power in powers])
    lower.minorticks_off()
    for axes in (upper, lower):
        axes.grid(alpha=0.3)
        axes.set_axisbelow(True)
    return figure
