from typing import Any

import pytest
from drawing import drawn
from matplotlib.colors import to_rgb

from mlp_dist.figures.curves import learning_curves


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


def test_curves_show_the_test_set_beside_the_others() -> None:
    history = [
        {**record, "test_loss": 2 / record["epoch"], "test_accuracy": 0.5 + record["epoch"] / 10}
        for record in records(3)
    ]
    for axes, name in zip(learning_curves(history, kept_epoch=2).axes, ("loss", "accuracy"), strict=True):
        assert legend(axes) == ["train", "val", "test", "kept: epoch 2"]
        lines = axes.get_lines()
        assert list(lines[2].get_xdata()) == [1, 2, 3]
        assert list(lines[2].get_ydata()) == [record[f"test_{name}"] for record in history]
        assert len({to_rgb(line.get_color()) for line in lines}) == 4


def test_curves_begin_where_the_values_do() -> None:
    history = [{**record, "test_loss": None, "test_accuracy": None} for record in records(2)]
    assert [legend(axes) for axes in learning_curves(history, 1).axes] == [
        ["train", "val", "kept: epoch 1"]
    ] * 2
    history += [{**records(3)[2], "test_loss": 0.25, "test_accuracy": 0.75}]
    for axes, value in zip(learning_curves(history, 1).axes, (0.25, 0.75), strict=True):
        train, _, test, _ = axes.get_lines()
        assert list(train.get_xdata()) == [1, 2, 3]
        assert (list(test.get_xdata()), list(test.get_ydata())) == ([3], [value])
