"""Pictures of what changes by epoch."""

from typing import Any

from mlp_dist.figures.base import Figure, MaxNLocator

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
