import io
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from PIL import Image

from mlp_dist.figures import confusion_matrix, learning_curves, predictions_grid


def drawn(figure: Figure) -> np.ndarray:
    """The figure's pixels, as a PNG file has them."""
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=40)
    return np.asarray(Image.open(file).convert("RGB"))


def records(number: int, *, validation: bool = True) -> list[dict[str, Any]]:
    return [
        {
            "epoch": epoch,
            "train_loss": 1 / epoch,
            "train_accuracy": 1 - 1 / (epoch + 1),
            "val_loss": 1.1 / epoch if validation else None,
            "val_accuracy": 1 - 1.1 / (epoch + 1) if validation else None,
        }
        for epoch in range(1, number + 1)
    ]


def legend(axes: Any) -> list[str]:
    return [text.get_text() for text in axes.get_legend().get_texts()]


@pytest.mark.parametrize("number", [1, 2, 30])
def test_curves_show_every_epoch(number: int) -> None:
    history = records(number)
    figure = learning_curves(history, kept_epoch=number)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert legend(axes) == ["train", "val", f"kept: epoch {number}"]
        train, val, kept = axes.get_lines()
        for line, part in ((train, "train"), (val, "val")):
            assert list(line.get_xdata()) == list(range(1, number + 1))
            assert list(line.get_ydata()) == [record[f"{part}_{name}"] for record in history]
        assert set(kept.get_xdata()) == {number}
    assert drawn(figure).std() > 0
    assert all(tick == int(tick) for axes in figure.axes for tick in axes.get_xticks())


def test_curves_without_validation() -> None:
    figure = learning_curves(records(3, validation=False), kept_epoch=3)
    assert [legend(axes) for axes in figure.axes] == [["train", "kept: epoch 3"]] * 2
    assert drawn(figure).std() > 0


def test_confusion_shows_counts_shares_and_accuracy() -> None:
    counts = torch.tensor([[8, 2, 0], [0, 0, 0], [3, 1, 6]])
    figure = confusion_matrix(counts, ("cat", "cow", "dog"))
    axes = figure.axes[0]
    assert axes.get_title() == "test accuracy 70.00%"
    shown = {(*map(round, text.get_position()),): text.get_text() for text in axes.texts}
    assert shown == {(0, 0): "8", (1, 0): "2", (0, 2): "3", (1, 2): "1", (2, 2): "6"}
    (image,) = axes.get_images()
    expected = [[0.8, 0.2, 0], [0, 0, 0], [0.3, 0.1, 0.6]]
    assert np.allclose(np.ma.filled(image.get_array(), np.nan), expected)
    for ticks in (axes.get_xticklabels(), axes.get_yticklabels()):
        assert [tick.get_text() for tick in ticks] == ["cat", "cow", "dog"]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("predicted", "true")
    assert drawn(figure).std() > 0


@pytest.mark.parametrize("classes", [2, 10, 30])
def test_confusion_of_many_classes(classes: int) -> None:
    counts = torch.full((classes, classes), 1) + 99 * torch.eye(classes, dtype=torch.int64)
    assert drawn(confusion_matrix(counts, [f"class number {name}" for name in range(classes)])).std() > 0


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("number", [1, 20, 50])
def test_grid_shows_prediction_probability_and_label(channels: int, number: int) -> None:
    images = torch.randint(
        0, 256, (number, channels, 6, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    labels = torch.arange(number) % 2
    probabilities = torch.tensor([[0.75, 0.25]], dtype=torch.float64).repeat(number, 1)
    figure = predictions_grid(images, labels, probabilities, ("cat", "dog"))
    assert len(figure.axes) == 20
    for position, axes in enumerate(figure.axes):
        if position >= number:
            assert (axes.get_title(), len(axes.get_images())) == ("", 0)
            continue
        assert axes.get_title() == f"cat (75%)\ntrue: {('cat', 'dog')[position % 2]}"
        colour = "black" if position % 2 == 0 else "tab:red"
        assert to_rgb(axes.title.get_color()) == to_rgb(colour)
        pixels = (
            images[position].permute(1, 2, 0).squeeze(2)
            if channels == 1
            else images[position].permute(1, 2, 0)
        )
        assert np.array_equal(axes.get_images()[0].get_array(), pixels.numpy())
    assert drawn(figure).std() > 0


def test_grid_of_another_size() -> None:
    images = torch.zeros(9, 1, 4, 4, dtype=torch.uint8)
    probabilities = torch.full((9, 2), 0.5)
    figure = predictions_grid(
        images, torch.zeros(9, dtype=torch.int64), probabilities, "ab", rows=2, columns=3
    )
    assert len(figure.axes) == 6


@pytest.mark.parametrize("name", ["$5_to_$10", "a_b^c", r"\alpha", "%d {}", "x" * 30])
def test_class_names_are_shown_as_they_are(name: str) -> None:
    classes = (name, "other")
    images, labels = torch.zeros(2, 1, 4, 4, dtype=torch.uint8), torch.tensor([0, 1])
    assert drawn(confusion_matrix(torch.tensor([[3, 1], [0, 4]]), classes)).std() > 0
    assert drawn(predictions_grid(images, labels, torch.eye(2), classes)).std() > 0
