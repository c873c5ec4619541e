"""Pictures of counts by class."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import ArrayLike

from mlp_dist.figures.base import Figure, short

MOST_NAMED = 40


def confusion_matrix(confusion: ArrayLike, classes: Sequence[str]) -> Figure:
    """Counts of (true class, predicted class); colour is the share of the true class.

    Of more than MOST_NAMED classes the picture shows colours alone: names and counts would not be legible.
    """
    names = [short(name) for name in classes] if len(classes) <= MOST_NAMED else []
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
