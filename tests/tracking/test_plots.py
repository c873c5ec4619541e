import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mlp_dist.data.scores import evaluate
from mlp_dist.tracking.draw import MAX_ROWS, draw, mistakes, per_class
from mlp_dist.tracking.plots import (
    confusion_matrix,
    learning_curves,
    predictions_grid,
    reliability_diagram,
    samples_grid,
)
from tests.helpers.drawing import fits, random_images, render

AWKWARD = ("$5_to_$10", r"a_b^c \alpha %d {}", "Staffordshire bull terrier")
"""Class names that matplotlib could take for mathematics, and one that is cut."""

FIGURES = ("samples", "learning_curves", "confusion_matrix", "reliability", "mistakes")
ALL = [*(f"figures/{name}.png" for name in FIGURES), "tables/mistakes.json", "tables/per_class.json"]


def records(number: int) -> list[dict[str, Any]]:
    """Epochs with training and validation, and a test in the last one; the best epochs are 2 and 3."""
    history = []
    for epoch in range(1, number + 1):
        accuracy = 0.5 if epoch in (2, 3) else 0.4
        record = {"epoch": epoch, "train_loss": 1 / epoch, "train_accuracy": 0.3, "val_loss": 2 / epoch}
        tested = {"test_loss": 0.1, "test_accuracy": 0.6} if epoch == number else {}
        history.append(
            {**record, "val_accuracy": accuracy, "test_loss": None, "test_accuracy": None, **tested}
        )
    return history


def write_run(directory: Path) -> None:
    """A perceptron that mistakes the last of 4 images; the font lacks the second class's name."""
    classes = ("cat", "\u72ac")
    images, labels = random_images(4).numpy(), np.array([0, 1, 0, 1])
    np.savez(directory / "samples.npz", images=images, labels=labels, classes=classes)
    np.savez(
        directory / "predictions.npz",
        **{"logits": np.eye(2, dtype=np.float32)[[0, 1, 0, 0]], "labels": labels, "temperature": 2.0},
        **{"classes": classes, "mistakes": np.array([3]), "mistake_images": images[3:]},
    )
    (directory / "metrics.jsonl").write_text("".join(f"{json.dumps(record)}\n" for record in records(3)))


def made(directory: Path) -> dict[str, int]:
    """The pictures and tables, and their inodes: each is new after it was made again."""
    paths = [path for folder in ("figures", "tables") for path in directory.glob(f"{folder}/*")]
    return {str(path.relative_to(directory)): path.stat().st_ino for path in paths}


def test_a_run_is_drawn_from_its_files(tmp_path: Path, capfd: Any) -> None:
    """Only what is missing, or older than its source, is drawn again; copies are drawn, too."""
    write_run(tmp_path)
    draw(tmp_path)
    first = made(tmp_path)
    assert sorted(first) == sorted(ALL)
    assert json.loads((tmp_path / "tables/mistakes.json").read_text())["data"][0][:3] == [3, "cat", "\u72ac"]
    draw(tmp_path)
    assert made(tmp_path) == first
    (tmp_path / "figures/mistakes.png").unlink()
    (tmp_path / "samples.npz").touch()
    draw(tmp_path)
    second = made(tmp_path)
    assert {name for name in ALL if second[name] != first[name]} <= {ALL[0], ALL[4]}
    assert len(second) == len(ALL)
    # A directory of version 0.1.0 has pictures without sources.
    for source in ("samples.npz", "predictions.npz"):
        (tmp_path / source).unlink()
    draw(tmp_path)
    assert made(tmp_path) == second
    assert capfd.readouterr().err == ""


def test_a_picture_that_cannot_be_drawn_costs_one_warning(tmp_path: Path, capfd: Any) -> None:
    write_run(tmp_path)
    (tmp_path / "metrics.jsonl").unlink()
    (tmp_path / "samples.npz").write_bytes(b"")
    for _ in range(2):
        draw(tmp_path)
    errors = capfd.readouterr().err.splitlines()
    assert [line[: line.index(":", 10)] for line in errors] == [
        "warning: cannot draw samples.npz",
        "warning: cannot draw learning_curves.png",
    ]
    assert sorted(made(tmp_path)) == sorted(ALL[2:])
    write_run(tmp_path)
    draw(tmp_path)
    assert sorted(made(tmp_path)) == sorted(ALL)
    assert capfd.readouterr().err == ""


def test_learning_curves_show_every_value_and_the_kept_epoch() -> None:
    history = records(200)
    figure = learning_curves(history)
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
    (_, kept) = learning_curves(
        [{**each, "val_accuracy": None, "val_loss": None} for each in records(3)]
    ).axes
    assert set(kept.get_lines()[-1].get_xdata()) == {3}


def test_confusion_matrix_shows_counts_and_shares() -> None:
    figure = confusion_matrix([[8, 2, 0], [0, 0, 0], [3, 1, 6]], ("cat", "cow", "dog"))
    axes = figure.axes[0]
    assert axes.get_title() == "test accuracy 70.00%"
    counts = {(*map(round, text.get_position()),): text.get_text() for text in axes.texts}
    assert counts == {(0, 0): "8", (1, 0): "2", (0, 2): "3", (1, 2): "1", (2, 2): "6"}
    (image,) = axes.get_images()
    assert np.allclose(image.get_array() ** 2, [[0.8, 0.2, 0], [0, 0, 0], [0.3, 0.1, 0.6]])
    assert [tick.get_text() for tick in axes.get_yticklabels()] == ["cat", "cow", "dog"]


def test_reliability_diagram_matches_hand_computed_values() -> None:
    """Four images at confidence 0.5, three of them correct; one at 0.875, wrong."""
    logits = np.log([[0.5, 0.25, 0.25]] * 4 + [[0.0625, 0.875, 0.0625]])
    figure = reliability_diagram(evaluate(logits, np.array([0, 0, 0, 1, 0])))
    (axes,) = figure.axes
    assert [bar.get_height() for bar in axes.containers[0]] == [
        0.75 if index == 7 else 0 for index in range(15)
    ]
    places = [(round(text.get_position()[0], 3), text.get_text()) for text in axes.texts]
    assert places == [(0.5, "4"), (0.9, "1")]
    # (4 * |0.75 - 0.5| + 1 * |0 - 0.875|) / 5
    assert axes.get_title() == "expected calibration error 37.50%\naccuracy 60.00%, mean confidence 57.50%"
    assert fits(figure)


def titles(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts]


def tile(figure: Figure, index: int, height: int = 6, width: int = 6) -> np.ndarray:
    """The image of this index in a grid whose images are wider than high, found below its title."""
    (image,) = figure.axes[0].get_images()
    x, y = figure.axes[0].texts[index].get_position()
    left, top = int(x + 0.5 - width / 2), int(np.ceil(y + 0.5))
    return np.asarray(image.get_array())[top : top + height, left : left + width]


@pytest.mark.parametrize("channels", [1, 3])
def test_predictions_show_answer_probability_and_label(channels: int) -> None:
    images, labels = random_images(30, channels), np.arange(30) % 2
    figure = predictions_grid(images, labels, [[0.75, 0.25]] * 30, ("cat", "dog"))
    assert titles(figure) == ["cat (75%)\ntrue: cat", "cat (75%)\ntrue: dog"] * 10
    colors = [to_rgb(text.get_color()) for text in figure.axes[0].texts]
    assert colors == [to_rgb("black"), to_rgb("tab:red")] * 10
    for index, pixels in enumerate(images[:20].permute(0, 2, 3, 1).squeeze(3).numpy()):
        assert np.array_equal(tile(figure, index), pixels)
    assert fits(figure)


def test_without_mistakes_the_grid_says_so() -> None:
    figure = predictions_grid(np.zeros((0, 1, 6, 6), np.uint8), [], [], ("cat", "dog"))
    assert [text.get_text() for text in figure.texts] == ["no mistakes"]
    assert fits(figure)


def test_awkward_and_many_class_names_are_drawn_literally() -> None:
    images, labels = random_images(3), np.arange(3)
    samples = samples_grid(images, labels, AWKWARD)
    assert titles(samples) == [*AWKWARD[:2], "Staffordshire bul…"]
    figures = (
        samples,
        predictions_grid(images, labels, np.eye(3), AWKWARD),
        *(confusion_matrix(np.eye(3 * times, dtype=np.int64), AWKWARD * times) for times in (1, 9, 40)),
    )
    for figure in figures:
        assert render(figure).std() > 0
        assert fits(figure)


def test_class_table() -> None:
    """No cow, but one predicted; no eel, and none predicted."""
    answers, labels = np.array([0, 0, 1, 2, 2, 2]), np.array([0, 0, 0, 2, 2, 0])
    table = per_class(evaluate(np.eye(4)[answers], labels), ("cat", "cow", "dog", "eel"))
    assert json.loads(table.to_json(orient="split", index=False)) == {
        "columns": ["class", "accuracy", "precision", "f1", "images", "confused with", "times"],
        "data": [
            ["cat", 0.5, 1.0, 0.6667, 4, "cow", 1],
            ["cow", None, 0.0, 0.0, 0, None, 0],
            ["dog", 1.0, 0.6667, 0.8, 2, None, 0],
            ["eel", None, None, None, 0, None, 0],
        ],
    }


def test_mistakes_table() -> None:
    table = mistakes(
        np.array([[0.75, 0.25], [0.125, 0.875], [0.5, 0.5]]), np.array([1, 0, 0]), ("cat", "cow")
    )
    assert list(table) == ["image", "predicted", "true", "probability", "probability of true"]
    assert table.to_numpy().tolist() == [[1, "cow", "cat", 0.875, 0.125], [0, "cat", "cow", 0.75, 0.25]]
    many = mistakes(np.eye(2)[[0, 1] * 150], np.array([1, 0] * 150), ("cat", "cow"))
    assert list(many["image"]) == list(range(MAX_ROWS))
