"""Pictures of a training. The one file that imports matplotlib, without pyplot and its global state."""

from collections.abc import Sequence
from typing import Any

import torch
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator


def learning_curves(history: list[dict[str, Any]], kept_epoch: int) -> Figure:
    """Loss and accuracy by epoch, training and validation, with the kept epoch marked."""
    figure = Figure(figsize=(10, 4), layout="constrained")
    epochs = [record["epoch"] for record in history]
    for axes, name in zip(figure.subplots(1, 2), ("loss", "accuracy"), strict=True):
        for part, colour in (("train", "tab:blue"), ("val", "tab:orange")):
            values = [record[f"{part}_{name}"] for record in history]
            if None not in values:
                axes.plot(epochs, values, marker="o", markersize=3, color=colour, label=part)
        axes.axvline(kept_epoch, color="gray", linestyle=":", label=f"kept: epoch {kept_epoch}")
        axes.set(xlabel="epoch", ylabel=name)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
        axes.grid(alpha=0.3)
        axes.legend()
    return figure


def confusion_matrix(confusion: torch.Tensor, classes: Sequence[str]) -> Figure:
    """Counts of (true class, predicted class); colour is the share of the true class."""
    size = max(5.0, 0.6 * len(classes))
    figure = Figure(figsize=(size + 1, size), layout="constrained")
    axes = figure.subplots()
    shares = confusion / confusion.sum(dim=1, keepdim=True).clamp(min=1)
    image = axes.imshow(shares.numpy(), cmap="Blues", vmin=0, vmax=1)
    for true, row in enumerate(confusion.tolist()):
        for predicted, count in enumerate(row):
            if count:
                colour = "white" if shares[true, predicted] > 0.5 else "black"
                axes.text(predicted, true, str(count), ha="center", va="center", color=colour, fontsize=8)
    accuracy = confusion.trace().item() / confusion.sum().item()
    axes.set(xlabel="predicted", ylabel="true", title=f"test accuracy {accuracy:.2%}")
    axes.set_xticks(
        range(len(classes)), classes, rotation=45 if max(map(len, classes)) > 2 else 0, parse_math=False
    )
    axes.set_yticks(range(len(classes)), classes, parse_math=False)
    figure.colorbar(image, ax=axes, label="share of the true class")
    return figure


def predictions_grid(
    images: torch.Tensor,
    labels: torch.Tensor,
    probabilities: torch.Tensor,
    classes: Sequence[str],
    *,
    rows: int = 4,
    columns: int = 5,
) -> Figure:
    """The first of the uint8 images (N, C, H, W) with prediction, probability and label; wrong ones red."""
    figure = Figure(figsize=(1.9 * columns, 2.2 * rows), layout="constrained")
    all_axes = list(figure.subplots(rows, columns).flat)
    for axes in all_axes:
        axes.axis("off")
    for axes, pixels, label, row in zip(all_axes, images, labels.tolist(), probabilities, strict=False):
        shown = pixels[0] if len(pixels) == 1 else pixels.permute(1, 2, 0)
        axes.imshow(shown.numpy(), cmap="gray", vmin=0, vmax=255)
        predicted = int(row.argmax())
        axes.set_title(
            f"{classes[predicted]} ({row[predicted]:.0%})\ntrue: {classes[label]}",
            fontsize=9,
            color="black" if predicted == label else "tab:red",
            parse_math=False,
        )
    return figure
