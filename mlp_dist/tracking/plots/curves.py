"""Pictures of what changes by epoch."""

from typing import Any

from mlp_dist.tracking.plots.base import Axes, Figure, MaxNLocator

_PARTS = {"train": "tab:blue", "val": "tab:orange", "test": "tab:green"}
_MOST_MARKED = 50
"""Epochs whose points can be told apart."""

Points = dict[str, list[tuple[int, float]]]


def learning_curves(history: list[dict[str, Any]], kept_epoch: int) -> Figure:
    """Loss and accuracy by epoch, with the kept epoch marked.

    Training, validation and test each have a curve where the records hold their values; of a single epoch
    each has a bar.
    """
    figure = Figure(figsize=(10, 4.2))
    figure.subplots_adjust(left=0.07, right=0.98, bottom=0.12, top=0.9, wspace=0.18)
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        points = {part: _points(history, f"{part}_{name}") for part in _PARTS}
        points = {part: found for part, found in points.items() if found}
        if len(history) == 1:
            _bars(axes, points)
        else:
            _curves(axes, points, kept_epoch)
            _limit(axes, points, 1.0 if name == "accuracy" else float("inf"))
        axes.set(xlabel=f"epoch {kept_epoch}" if len(history) == 1 else "epoch", ylabel=name)
        axes.grid(alpha=0.3, axis="y" if len(history) == 1 else "both")
    handles, labels = axes.get_legend_handles_labels()
    if labels:
        # Above both, where no curve can be.
        figure.legend(handles, labels, loc="upper center", ncols=len(labels), frameon=False)
    return figure


def _points(history: list[dict[str, Any]], key: str) -> list[tuple[int, float]]:
    return [(record["epoch"], record[key]) for record in history if record.get(key) is not None]


def _curves(axes: Axes, points: Points, kept_epoch: int) -> None:
    for part, found in points.items():
        marker = "o" if len(found) <= _MOST_MARKED else ""
        axes.plot(
            *zip(*found, strict=True), color=_PARTS[part], label=part, marker=marker, markersize=3, zorder=3
        )
    axes.axvline(kept_epoch, color="gray", linestyle=":", label=f"kept: epoch {kept_epoch}")
    axes.margins(x=0.02)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1, steps=[1, 2, 5, 10]))


def _bars(axes: Axes, points: Points) -> None:
    values = [value for ((_, value),) in points.values()]
    bars = axes.bar(list(points), values, width=0.6, color=[_PARTS[part] for part in points], zorder=3)
    axes.bar_label(bars, [f"{value:.4f}" for value in values], padding=3)
    axes.margins(y=0.12)


def _limit(axes: Axes, points: Points, most: float) -> None:
    """From 0 where that wastes less than half of the height; above `most` by a line's width at most."""
    values = [value for found in points.values() for _, value in found]
    if not values:
        return
    low, high = axes.get_ylim()
    axes.set_ylim(0 if min(values) < max(values) / 2 else low, min(high, most + 0.02 * (most - low)))
