from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mlp_dist.core.spec import ImageSpec
from mlp_dist.tracking.plots import FIGURES, predictions_grid, samples_grid, save
from mlp_dist.tracking.plots.images import first_layer
from mlp_dist.tracking.plots.metrics import (
    MOST_CLASSES,
    class_accuracy,
    confusion_matrix,
    learning_curves,
    reliability_diagram,
)
from tests.helpers.drawing import fits, random_images, render

AWKWARD = ("$5_to_$10", r"a_b^c \alpha %d {}", "Staffordshire bull terrier")
"""Class names that matplotlib could take for mathematics, and one that is cut."""


def records(number: int) -> list[dict[str, Any]]:
    """Epochs with training and validation, and a test in the last one."""
    splits = {"train": 1.0, "val": 1.1, "test": 1.2}
    history = []
    for epoch in range(1, number + 1):
        record: dict[str, Any] = {"epoch": epoch}
        for split, factor in splits.items():
            known = split != "test" or epoch == number
            record[f"{split}_loss"] = factor / epoch if known else None
            record[f"{split}_accuracy"] = 1 - factor / (epoch + 1) if known else None
        history.append(record)
    return history


def test_learning_curves_show_every_value_and_the_kept_epoch() -> None:
    history = records(200)
    figure = learning_curves(history, kept_epoch=2)
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == ["train", "val", "test", "kept: epoch 2"]
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        assert axes.get_ylabel() == name
        *lines, kept = axes.get_lines()
        for line, split in zip(lines, ("train", "val", "test"), strict=True):
            points = [(each["epoch"], each[f"{split}_{name}"]) for each in history]
            assert list(zip(*line.get_data(), strict=True)) == [p for p in points if p[1] is not None]
        assert set(kept.get_xdata()) == {2}
    assert fits(figure)


def test_confusion_matrix_shows_counts_and_shares() -> None:
    figure = confusion_matrix(torch.tensor([[8, 2, 0], [0, 0, 0], [3, 1, 6]]), ("cat", "cow", "dog"))
    axes = figure.axes[0]
    assert axes.get_title() == "test accuracy 70.00%"
    counts = {(*map(round, text.get_position()),): text.get_text() for text in axes.texts}
    assert counts == {(0, 0): "8", (1, 0): "2", (0, 2): "3", (1, 2): "1", (2, 2): "6"}
    (image,) = axes.get_images()
    assert np.allclose(image.get_array(), [[0.8, 0.2, 0], [0, 0, 0], [0.3, 0.1, 0.6]])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "cow", "dog"]


def test_figures_of_many_classes_fit() -> None:
    names = [f"a long name of number {number}" for number in range(100)]
    figure = class_accuracy([number / 100 for number in range(100)], [None] * 100, 0.5, names)
    assert figure.axes[0].get_xlabel() == f"the worst {MOST_CLASSES} of 100 classes"
    assert fits(figure)
    assert fits(confusion_matrix(torch.eye(100, dtype=torch.int64), names))


def test_reliability_diagram_matches_hand_computed_values() -> None:
    """Four images at confidence 0.5, three of them correct; one at 0.875, wrong."""
    figure = reliability_diagram([[0, 0, 0], [0, 0, 0], [4, 2.0, 3], [0, 0, 0], [1, 0.875, 0]])
    upper, lower = figure.axes
    assert [bar.get_x() + bar.get_width() / 2 for bar in upper.containers[0]] == pytest.approx([0.5, 0.9])
    bars = [[(bar.get_y(), bar.get_height()) for bar in group] for group in upper.containers]
    assert bars == [[(0, 0.75), (0, 0)], [(0.75, 0), (0, 0.875)], [(0.75, -0.25), (0, 0)]]
    assert [bar.get_height() for bar in lower.containers[0]] == [4, 1]
    # (4 * |0.75 - 0.5| + 1 * |0 - 0.875|) / 5
    assert upper.get_title() == "expected calibration error 37.50%\naccuracy 60.00%, mean confidence 57.50%"
    assert fits(figure)


def titles(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def pictures(figure: Figure) -> list[np.ndarray]:
    """The grid's images, each of which must be below its own title."""
    images, texts = figure.axes[0].get_images(), figure.axes[0].texts
    for image, text in zip(images, texts, strict=True):
        left, right, _, top = image.get_extent()
        assert left < text.get_position()[0] < right
        assert 0 < top - text.get_position()[1] < 0.1
    return [np.asarray(image.get_array()) for image in images]


@pytest.mark.parametrize("channels", [1, 3])
def test_predictions_show_answer_probability_and_label(channels: int) -> None:
    images, labels = random_images(30, channels), torch.arange(30) % 2
    probabilities = torch.tensor([[0.75, 0.25]], dtype=torch.float64).repeat(30, 1)
    figure = predictions_grid(images, labels, probabilities, ("cat", "dog"))
    assert titles(figure) == ["cat (75%)\ntrue: cat", "cat (75%)\ntrue: dog"] * 10
    colors = [to_rgb(text.get_color()) for text in figure.axes[0].texts]
    assert colors == [to_rgb("black"), to_rgb("tab:red")] * 10
    for picture, pixels in zip(pictures(figure), images, strict=False):
        assert np.array_equal(picture, pixels.permute(1, 2, 0).squeeze(2).numpy())


@pytest.mark.parametrize("channels", [1, 3])
def test_first_layer_shows_weights_on_a_common_scale(channels: int) -> None:
    image = ImageSpec(height=2, width=3, channels=channels, mean=(0.0,) * channels, std=(1.0,) * channels)
    weights = torch.arange(-6.0 * channels, 6.0 * channels).reshape(2, channels * 6)
    figure = first_layer(weights, torch.tensor([7, 4]), image)
    assert titles(figure) == ["unit 7", "unit 4"]
    maps, scale = weights.reshape(2, channels, 2, 3).numpy(), 6 * channels
    expected = maps[:, 0] if channels == 1 else 0.5 + maps.transpose(0, 2, 3, 1) / (2 * scale)
    assert np.allclose(pictures(figure), expected)
    assert fits(figure)


def test_awkward_class_names_are_drawn_literally() -> None:
    images, labels = random_images(3), torch.arange(3)
    samples = samples_grid(images, labels, AWKWARD, rows=1, columns=3)
    assert titles(samples) == [*AWKWARD[:2], "Staffordshire bul…"]
    figures = (
        samples,
        FIGURES["predictions"](images, labels, torch.eye(3), AWKWARD),
        FIGURES["confusion_matrix"](torch.eye(3, dtype=torch.int64), AWKWARD),
        FIGURES["class_accuracy"]([1.0] * 3, [1.0] * 3, 1.0, AWKWARD),
    )
    assert all(render(figure).std() > 0 for figure in figures)


def test_save_draws_missing_glyphs(tmp_path: Path) -> None:
    path = tmp_path / "new/grid.png"
    figure = Figure()
    figure.suptitle("\u65e5\u672c")
    save(figure, path)
    assert path.read_bytes().startswith(b"\x89PNG")
    assert list(path.parent.iterdir()) == [path]
