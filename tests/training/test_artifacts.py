import json

import pytest
import torch

from mlp_dist.data.arrays import ImageSet
from mlp_dist.data.evaluate import evaluate
from mlp_dist.tracking.plots.images import mistakes_grid
from mlp_dist.training.artifacts import (
    MAX_ROWS,
    class_table,
    first_images,
    largest_units,
    mistakes,
    mistakes_table,
)
from tests.helpers.drawing import random_images

CLASSES = ("cat", "cow", "dog", "eel")


def test_class_table() -> None:
    """No cow, but one predicted; no eel, and none predicted."""
    answers, labels = torch.tensor([0, 0, 1, 2, 2, 2]), torch.tensor([0, 0, 0, 2, 2, 0])
    table = class_table(evaluate(torch.eye(4)[answers], labels), CLASSES)
    assert table["columns"] == ["class", "images", "accuracy", "precision", "f1", "confused with", "times"]
    assert table["data"] == [
        ["cat", 4, 0.5, 1.0, 0.6667, "cow", 1],
        ["cow", 0, None, 0.0, 0.0, None, 0],
        ["dog", 2, 1.0, 0.6667, 0.8, None, 0],
        ["eel", 0, None, None, None, None, 0],
    ]
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_mistakes_table() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.125, 0.875], [0.5, 0.5]], dtype=torch.float64)
    table = mistakes_table(probabilities, torch.tensor([1, 0, 0]), CLASSES[:2])
    assert table["columns"] == ["image", "true", "predicted", "probability", "probability of true"]
    assert table["data"] == [[1, "cat", "cow", 0.875, 0.125], [0, "cow", "cat", 0.75, 0.25]]
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_mistakes_table_is_limited() -> None:
    predictions = torch.eye(2).repeat(300, 1)
    assert len(mistakes_table(predictions, torch.tensor([1, 0] * 300), CLASSES[:2])["data"]) == MAX_ROWS
    assert mistakes_table(predictions, torch.tensor([0, 1] * 300), CLASSES[:2])["data"] == []


CONFIDENCE = [0.75, 0.5, 1.0, 0.75, 0.625, 1.0]
"""Probability of class 1 for six images: two ties, and one image with equal probabilities."""


def probabilities() -> torch.Tensor:
    return torch.tensor([[1 - value, value] for value in CONFIDENCE], dtype=torch.float64)


def test_most_confident_mistakes_come_first() -> None:
    images = ImageSet(random_images(6), torch.tensor([0, 1, 0, 0, 0, 1]))
    pixels, labels, rows = mistakes(images, probabilities())
    assert (pixels == images.images[[2, 0, 3, 4, 1]].numpy()).all()
    assert labels.tolist() == [0, 0, 0, 0, 1]
    assert rows.max(axis=1).tolist() == [1.0, 0.75, 0.75, 0.625, 0.5]


def test_units_with_the_largest_norms_come_first() -> None:
    weights = torch.ones(24, 6, dtype=torch.bfloat16) * torch.arange(24)[:, None]
    rows, units = largest_units(weights.requires_grad_())
    assert units.tolist() == list(range(23, 3, -1))
    assert (rows == weights.detach().float()[units].numpy()).all()


def test_number_of_images_is_limited() -> None:
    images = ImageSet(random_images(60), torch.arange(60) % 2)
    assert [len(each) for each in first_images(images, torch.full((60, 2), 0.5))] == [20, 20, 20]
    assert [len(each) for each in mistakes(images, torch.eye(2).flip(0).repeat(30, 1))] == [20, 20, 20]


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_accepted() -> None:
    images = ImageSet(random_images(6), torch.tensor([0, 1, 0, 0, 0, 1]))
    assert len(mistakes_grid(*mistakes(images, probabilities().cuda()), ("a", "b")).axes[0].texts) == 5
    _, units = largest_units(torch.ones(3, 36).cuda())
    assert units.tolist() == [0, 1, 2]
