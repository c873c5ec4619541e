import math
from typing import Any

import numpy as np
import pytest
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure

from mlp_dist.tracking.plots.parallel import parallel_coordinates
from mlp_dist.tracking.plots.scales import objective_scale, scale_of
from tests.helpers.drawing import is_whole

NAMES = ("lr", "optimizer", "hidden_sizes")


def lines(figure: Figure) -> list[np.ndarray]:
    """Of each trial's line the heights, the best one last."""
    (collection,) = figure.axes[0].collections
    return [segment[:, 1] for segment in collection.get_segments()]


def emphasized(figure: Figure) -> list[str]:
    return [text.get_text() for text in figure.axes[0].texts if text.get_color() == "tab:red"]


@pytest.mark.parametrize(
    ("values", "ticks"),
    [
        ([0.001, 0.02, 0.013, 1.0], {0: "0.001", 1 / 3: "0.01", 2 / 3: "0.1", 1: "1"}),
        ([0.02, 0.03, 0.05, 0.5], {0: "0.02", math.log(2.5, 25): "0.05"}),
        ([0.1, 0.2, 0.3, 0.5], {0: "0.1", 0.25: "0.2", 0.5: "0.3", 0.75: "0.4", 1: "0.5"}),
        ([0.01, 0.3, 0.4, 0.51], {0.18: "0.1", 0.38: "0.2", 0.58: "0.3", 0.78: "0.4", 0.98: "0.5"}),
        ([0.97701, 0.97705, 0.97709], {1 / 8: "0.97702", 7 / 8: "0.97708"}),
        ([0, 5, 10], {0: "0", 0.2: "2", 0.4: "4", 0.6: "6", 0.8: "8", 1: "10"}),
        ([7.0], {0.5: "7"}),
        ([64, 8, 64, 512], {1 / 6: "8", 0.5: "64", 5 / 6: "512"}),
        (["sgd", "adam", "sgd"], {0.25: "adam", 0.75: "sgd"}),
        ([[128], [256, 64], None], {1 / 6: "None", 0.5: "128", 5 / 6: "256,64"}),
        ([True, False, 1], {1 / 6: "1", 0.5: "False", 5 / 6: "True"}),
    ],
)
def test_a_scale_suits_its_values(values: list[Any], ticks: dict[float, str]) -> None:
    scale = scale_of(values)
    found = {place: text for place, text in scale.ticks.items() if place < 1.001}
    assert {text: place for place, text in found.items() if text in ticks.values()} == {
        text: pytest.approx(place) for place, text in ticks.items()
    }
    assert ((scale.places >= 0) & (scale.places <= 1)).all()


def test_very_many_choices_have_few_ticks() -> None:
    scale = scale_of([f"name {number:03}" for number in range(100)])
    assert len(scale.ticks) <= 12
    assert list(scale.places) == sorted(scale.places)


@pytest.mark.parametrize("minimize", [False, True])
def test_an_outlier_does_not_press_the_others_together(minimize: bool) -> None:
    values = np.array([0.1, 0.97, 0.971, np.nan, 0.972, 0.973, 0.974])
    scale = objective_scale(1 - values if minimize else values, minimize)
    places = 1 - scale.places if minimize else scale.places
    assert list(places) == pytest.approx([0, 0, 0.25, np.nan, 0.5, 0.75, 1], nan_ok=True)
    end, text = (1.0, "≥ 0.03") if minimize else (0.0, "≤ 0.97")
    assert scale.ticks[end] == text


def test_the_better_side_has_no_outliers() -> None:
    scale = objective_scale(np.array([0.1, 0.101, 0.102, 0.103, 0.9]), minimize=False)
    assert scale.places[4] == 1
    assert scale.places[3] < 0.1


def test_each_trial_has_a_line_and_the_best_its_values() -> None:
    rows = [[0.1, "sgd", (500,)], [0.01, "adam", (256, 64)], [0.001, "sgd", (500,)], [0.5, "sgd", (20,)]]
    figure = parallel_coordinates(NAMES, rows, [0.95, 0.98, 0.93, None])
    unfinished, *_, best = lines(figure)
    assert len(lines(figure)) == 4
    assert list(best) == [pytest.approx(math.log(10, 500)), 0.25, 0.5, 1]
    assert emphasized(figure) == ["0.01", "adam", "256,64", "0.98"]
    assert (len(unfinished), unfinished[0]) == (3, 1)
    colours = figure.axes[0].collections[0].get_colors()
    assert to_rgba(colours[0]) == (0.85, 0.85, 0.85, 1)
    assert len({to_rgba(colour) for colour in colours}) == 4
    title = "4 trials, 1 of them without a result (gray); best val accuracy: 0.98"
    assert figure.axes[0].get_title() == title
    assert {"lr", "optimizer", "hidden_sizes", "val accuracy"} <= {
        text.get_text() for text in figure.axes[0].texts
    }


def test_a_loss_is_best_where_it_is_least() -> None:
    figure = parallel_coordinates(["lr"], [[0.1], [0.2], [0.4]], [0.5, 0.25, 1.0], "val loss", True)
    assert emphasized(figure) == ["0.2", "0.25"]
    assert [line[-1] for line in lines(figure)] == pytest.approx([1, 1 / 3, 0])


@pytest.mark.parametrize("objectives", [[0.5], [None], [math.nan]])
def test_a_single_trial(objectives: list[float | None]) -> None:
    figure = parallel_coordinates(NAMES, [[0.1, "sgd", (500,)]], objectives)
    assert emphasized(figure) == (["0.1", "sgd", "500", "0.5"] if objectives == [0.5] else [])
    assert is_whole(figure)


@pytest.mark.parametrize("number", [5, 200])
def test_lines_through_one_choice_lie_side_by_side(number: int) -> None:
    generator = np.random.default_rng(0)
    rows = [[float(lr), "$a$", "x" * 30] for lr in 10 ** generator.uniform(-3, 0, number)]
    names = ["lr", "a_field_with_a_name_of_its_own", "$n$"]
    figure = parallel_coordinates(names, rows, list(generator.uniform(0.9, 1, number)))
    through = [line[1] for line in lines(figure)]
    assert through == sorted(set(through))
    assert is_whole(figure)


def test_of_equals_the_earliest_is_the_best() -> None:
    assert emphasized(parallel_coordinates(["lr"], [[0.1], [0.2], [0.3]], [0.5, 0.9, 0.9])) == ["0.2", "0.9"]
