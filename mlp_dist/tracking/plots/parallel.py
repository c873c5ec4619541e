"""A sweep's trials side by side."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mlp_dist.tracking.plots.base import Axes, Figure, LineCollection, colormaps, framed, short
from mlp_dist.tracking.plots.scales import Places, Scale, is_number, objective_scale, scale_of, text_of

_WIDTH, _NARROWEST, _HEIGHT = 1.7, 5.5, 4.2
"""Inches from an axis to the next, between the first and the last, and of an axis."""
_SPREAD = 0.12
"""The part of an axis over which the lines through one choice are spread."""
_SHADES, _PALEST, _GRAY, _BEST = colormaps["YlGnBu"], 0.2, (0.85, 0.85, 0.85, 1.0), "tab:red"


def parallel_coordinates(
    names: Sequence[str],
    rows: Sequence[Sequence[Any]],
    objectives: Sequence[float | None],
    objective: str = "val accuracy",
    minimize: bool = False,
) -> Figure:
    """A line a trial: through its value of each searched field to its objective, whose rank is its colour.

    `rows`, at least one, hold a trial's values in the order of `names`: numbers, or anything else as choices.
    An objective of None, or one that is not finite, is that of a trial that came to no end: its line is gray
    and ends at the last field. The best line is red, with its values beside it.
    """
    reached = np.array([value if is_number(value) else np.nan for value in objectives], dtype=np.float64)
    goodness = np.nan_to_num(-reached if minimize else reached, nan=-np.inf)
    # The better ones are drawn over the others; of equals the earliest is the best.
    order = np.lexsort((-np.arange(len(goodness)), goodness))
    fields = [scale_of(column) for column in zip(*rows, strict=True)]
    scales = [*fields, objective_scale(reached, minimize)]
    width = max(_NARROWEST, _WIDTH * len(names))
    figure, axes = framed(width, _HEIGHT, left=0.8, right=0.9, bottom=0.2, top=0.9)
    axes.set(xlim=(0, len(names)), ylim=(0, 1))
    axes.axis("off")
    for index, (name, scale) in enumerate(zip([*names, objective], scales, strict=True)):
        _axis(axes, index, short(name), scale)
    places = np.stack([_spread(scale, order) for scale in scales], axis=1)
    _lines(axes, places[order])
    missing = np.isnan(reached).sum()
    title = f"{len(rows)} trials" + (f", {missing} of them without a result (gray)" if missing else "")
    if missing < len(rows):
        best = order[-1]
        title += f"; best {objective}: {text_of(reached[best])}"
        _emphasize(axes, places[best], [*map(text_of, rows[best]), text_of(reached[best])])
    axes.set_title(title, pad=36, fontsize=11, parse_math=False)
    return figure


def _axis(axes: Axes, index: int, name: str, scale: Scale) -> None:
    axes.plot((index, index), (0, 1), color="black", linewidth=1, clip_on=False, zorder=3)
    axes.text(index, 1.05, name, ha="center", va="bottom", parse_math=False)
    for place, text in scale.ticks.items():
        axes.plot((index, index + 0.02), (place, place), color="black", linewidth=1, clip_on=False, zorder=3)
        axes.text(
            *(index + 0.04, place, short(text)),
            fontsize=8,
            va="center",
            parse_math=False,
            zorder=4,
            bbox={"facecolor": "white", "alpha": 0.7, "edgecolor": "none", "pad": 1},
        )


def _spread(scale: Scale, order: NDArray[np.intp]) -> Places:
    """Lines that would hide each other lie side by side, the better ones above."""
    places = scale.places.copy()
    for place in np.unique(places) if scale.is_choice else ():
        same = order[scale.places[order] == place]
        room = min(_SPREAD, 0.6 / len(scale.ticks)) * min(1, len(same) / 20)
        places[same] += (np.arange(len(same)) - (len(same) - 1) / 2) * room / len(same)
    return places


def _lines(axes: Axes, places: Places) -> None:
    """`places` (trials, axes), the better ones last; where the last is NaN the line is gray."""
    ended = ~np.isnan(places[:, -1])
    ranks = ended.cumsum() / max(1, ended.sum())
    # Of many trials a few are to stand out.
    colours = np.where(ended[:, None], _SHADES(_PALEST + (1 - _PALEST) * ranks**2), _GRAY)
    across = np.broadcast_to(np.arange(places.shape[1]), places.shape)
    width = 1.5 if len(places) <= 50 else 0.8
    lines = list(np.stack([across, places], axis=2))
    axes.add_collection(LineCollection(lines, colors=colours, linewidths=width))


def _emphasize(axes: Axes, places: Places, texts: list[str]) -> None:
    axes.plot(range(len(places)), places, color=_BEST, linewidth=2.5, marker="o", clip_on=False, zorder=5)
    for index, (place, text) in enumerate(zip(places, texts, strict=True)):
        axes.text(
            *(index - 0.04, place, short(text)),
            ha="right",
            va="center",
            fontsize=9,
            color=_BEST,
            weight="bold",
            parse_math=False,
            zorder=6,
            bbox={"facecolor": "white", "alpha": 0.8, "edgecolor": "none", "pad": 1},
        )
