from typing import Any

import pytest
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from mlp_dist.tracking.plots.curves import learning_curves
from tests.helpers.drawing import is_whole


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


def legend(figure: Figure) -> list[str]:
    (legend,) = figure.legends
    return [text.get_text() for text in legend.get_texts()]


@pytest.mark.parametrize("number", [2, 30, 200])
def test_curves_show_every_epoch(number: int) -> None:
    history = records(number)
    figure = learning_curves(history, kept_epoch=number)
    assert [axes.get_ylabel() for axes in figure.axes] == ["loss", "accuracy"]
    assert legend(figure) == ["train", "val", f"kept: epoch {number}"]
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        train, val, kept = axes.get_lines()
        for line, part in ((train, "train"), (val, "val")):
            assert list(line.get_xdata()) == list(range(1, number + 1))
            assert list(line.get_ydata()) == [record[f"{part}_{name}"] for record in history]
        assert set(kept.get_xdata()) == {number}
        low, high = axes.get_ylim()
        shown = [record[f"{part}_{name}"] for part in ("train", "val") for record in history]
        assert low <= min(shown) < max(shown) <= high
    assert is_whole(figure)
    assert all(tick == int(tick) for axes in figure.axes for tick in axes.get_xticks())


def test_curves_without_validation() -> None:
    figure = learning_curves(records(3, validation=False), kept_epoch=3)
    assert legend(figure) == ["train", "kept: epoch 3"]
    assert [len(axes.get_lines()) for axes in figure.axes] == [2, 2]


@pytest.mark.parametrize("validation", [True, False])
def test_a_single_epoch_is_shown_as_bars_with_their_values(validation: bool) -> None:
    (record,) = records(1, validation=validation)
    figure = learning_curves([record], kept_epoch=1)
    parts = ["train", "val"] if validation else ["train"]
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        values = [record[f"{part}_{name}"] for part in parts]
        assert [bar.get_height() for bar in axes.patches] == values
        assert [text.get_text() for text in axes.texts] == [f"{value:.4f}" for value in values]
        assert [tick.get_text() for tick in axes.get_xticklabels()] == parts
        assert axes.get_xlabel() == "epoch 1"
    assert is_whole(figure)


@pytest.mark.parametrize(
    ("loss", "low"), [([2.0, 1.0, 0.5], 0.0), ([0.5, 0.45, 0.44], pytest.approx(0.44, abs=0.01))]
)
def test_the_loss_starts_at_zero_where_that_wastes_no_room(loss: list[float], low: float) -> None:
    history = [
        {"epoch": epoch, "train_loss": value, "train_accuracy": 0.99 + epoch / 300}
        for epoch, value in enumerate(loss, 1)
    ]
    losses, accuracies = learning_curves(history, 3).axes
    assert losses.get_ylim()[0] == low
    assert 0.98 < accuracies.get_ylim()[0] < 1 <= accuracies.get_ylim()[1] < 1.001


def test_curves_show_the_test_set_beside_the_others() -> None:
    history = [
        {**record, "test_loss": 2 / record["epoch"], "test_accuracy": 0.5 + record["epoch"] / 10}
        for record in records(3)
    ]
    figure = learning_curves(history, kept_epoch=2)
    assert legend(figure) == ["train", "val", "test", "kept: epoch 2"]
    for axes, name in zip(figure.axes, ("loss", "accuracy"), strict=True):
        lines = axes.get_lines()
        assert list(lines[2].get_xdata()) == [1, 2, 3]
        assert list(lines[2].get_ydata()) == [record[f"test_{name}"] for record in history]
        assert len({to_rgb(line.get_color()) for line in lines}) == 4


def test_curves_begin_where_the_values_do() -> None:
    history = [{**record, "test_loss": None, "test_accuracy": None} for record in records(2)]
    assert legend(learning_curves(history, 1)) == ["train", "val", "kept: epoch 1"]
    history += [{**records(3)[2], "test_loss": 0.25, "test_accuracy": 0.75}]
    for axes, value in zip(learning_curves(history, 1).axes, (0.25, 0.75), strict=True):
        train, _, test, _ = axes.get_lines()
        assert list(train.get_xdata()) == [1, 2, 3]
        assert (list(test.get_xdata()), list(test.get_ydata())) == ([3], [value])
