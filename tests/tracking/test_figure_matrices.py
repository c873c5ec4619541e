from itertools import pairwise

import numpy as np
import pytest
import torch

from mlp_dist.tracking.plots.matrices import confusion_matrix
from tests.helpers.drawing import drawn, is_whole


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


@pytest.mark.parametrize("classes", [2, 10, 30, 40, 100])
@pytest.mark.parametrize("name", ["{}", "class number {}"])
def test_names_have_room_and_do_not_meet(classes: int, name: str) -> None:
    counts = torch.full((classes, classes), 1) + 99 * torch.eye(classes, dtype=torch.int64)
    figure = confusion_matrix(counts, [name.format(number) for number in range(classes)])
    assert is_whole(figure)
    # Beside each other where they fit; turned, a line's height apart.
    labels = figure.axes[0].get_xticklabels()
    for one, next_one in pairwise(labels):
        if one.get_rotation() == 0:
            assert one.get_window_extent().x1 < next_one.get_window_extent().x0
        else:
            assert next_one.get_window_extent().x1 - one.get_window_extent().x1 > one.get_fontsize()


def test_a_confusion_of_very_many_classes_stays_small() -> None:
    figure = confusion_matrix(torch.eye(1000, dtype=torch.int64), [f"class {n}" for n in range(1000)])
    axes = figure.axes[0]
    assert max(figure.get_size_inches()) < 30
    assert len(axes.texts) == 0
    assert axes.images[0].get_array().shape == (1000, 1000)


@pytest.mark.parametrize("name", ["$5_to_$10", "a_b^c", r"\alpha", "%d {}", "x" * 30])
def test_class_names_are_shown_as_they_are(name: str) -> None:
    assert drawn(confusion_matrix(torch.tensor([[3, 1], [0, 4]]), (name, "other"))).std() > 0
