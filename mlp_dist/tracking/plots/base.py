"""What the pictures are made of, from matplotlib."""

import os
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = [
    "Axes",
    "Figure",
    "LineCollection",
    "MaxNLocator",
    "PowerNorm",
    "colormaps",
    "framed",
    "short",
    "text_width",
]

_LONGEST_NAME = 18


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
    from matplotlib import colormaps
    from matplotlib.axes import Axes
    from matplotlib.collections import LineCollection
    from matplotlib.colors import PowerNorm
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator


def framed(
    width: float, height: float, *, left: float, right: float, bottom: float, top: float
) -> tuple[Figure, Axes]:
    """A figure of one Axes of that size with these margins; all in inches.

    To have matplotlib find the margins takes as long as all the drawing.
    """
    whole = (left + width + right, bottom + height + top)
    figure = Figure(figsize=whole)
    axes = figure.add_axes((left / whole[0], bottom / whole[1], width / whole[0], height / whole[1]))
    return figure, axes


def text_width(texts: list[str], size: float = 10.0) -> float:
    """About the inches that the longest of the texts takes at a font size in points."""
    return max(map(len, texts), default=0) * 0.62 * size / 72


def short(name: str) -> str:
    """A class's name, cut where it would run into its neighbours."""
    return name if len(name) <= _LONGEST_NAME else f"{name[: _LONGEST_NAME - 1]}…"
