import pytest
import torch

from mlp_dist.data.evaluate import calibration
from mlp_dist.tracking.plots.answers import MOST_SHOWN, class_accuracy, reliability_diagram
from tests.helpers.drawing import is_whole


def bars(axes: object, container: int) -> list[tuple[float, float]]:
    """Of each bar its lower end and its height."""
    return [(bar.get_y(), bar.get_height()) for bar in axes.containers[container]]  # type: ignore[attr-defined]


def test_reliability_by_hand() -> None:
    """Of five bins the third has four images at 0.5, three right; the last one, wrong at 0.875."""
    bins = [[0, 0, 0], [0, 0, 0], [4, 2.0, 3], [0, 0, 0], [1, 0.875, 0]]
    figure = reliability_diagram(bins)
    upper, lower = figure.axes
    assert [bar.get_x() + bar.get_width() / 2 for bar in upper.containers[0]] == pytest.approx([0.5, 0.9])
    assert bars(upper, 0) == [(0, 0.75), (0, 0)]
    over, under = bars(upper, 1), bars(upper, 2)
    assert over == [(0.75, 0), (0, 0.875)]
    assert under == [(0.75, -0.25), (0, 0)]
    assert [bar.get_height() for bar in lower.containers[0]] == [4, 1]
    # (4 * |0.75 - 0.5| + 1 * |0 - 0.875|) / 5
    assert upper.get_title() == "expected calibration error 37.50%\naccuracy 60.00%, mean confidence 57.50%"
    assert is_whole(figure)


@pytest.mark.parametrize("number", [1, 20_000])
def test_reliability_of_few_and_of_many_images(number: int) -> None:
    generator = torch.Generator().manual_seed(0)
    probabilities = torch.softmax(
        4 * torch.randn(number, 10, generator=generator, dtype=torch.float64), dim=1
    )
    figure = reliability_diagram(
        calibration(probabilities, torch.randint(10, (number,), generator=generator))
    )
    assert is_whole(figure)
    assert figure.axes[1].get_ylim()[1] > max(bar.get_height() for bar in figure.axes[1].patches)


CLASSES = ("cat", "cow", "$dog$", "eel")


def test_the_worst_class_comes_first() -> None:
    figure = class_accuracy(
        [0.9, None, 0.5, 1.0], [0.75, 0.0, None, 1.0], 0.8, ("cat", "cow", "$dog$", "eel")
    )
    (axes,) = figure.axes
    assert [label.get_text() for label in axes.get_yticklabels()] == ["$dog$", "cat", "eel"]
    overall, precision, accuracy = axes.get_lines()
    assert overall.get_xdata() == [0.8, 0.8]
    assert list(accuracy.get_xdata()) == [0.5, 0.9, 1.0]
    assert list(precision.get_xdata()) == pytest.approx([float("nan"), 0.75, 1.0], nan_ok=True)
    assert is_whole(figure)


def test_of_many_classes_the_worst_are_shown() -> None:
    shares = [number / 100 for number in range(100)]
    figure = class_accuracy(shares, [None] * 100, 0.5, [f"a long name of number {n}" for n in range(100)])
    (axes,) = figure.axes
    assert len(axes.get_yticklabels()) == MOST_SHOWN
    assert axes.get_xlabel() == f"the worst {MOST_SHOWN} of 100 classes"
    assert is_whole(figure)
