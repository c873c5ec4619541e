import json

import torch

from mlp_dist.data.evaluate import evaluate
from mlp_dist.training.tables import MOST, class_table, mistakes_table

CLASSES = ("cat", "cow", "dog", "eel")


def test_a_row_for_each_class() -> None:
    """No cow is there, one is seen; of the eel there is neither."""
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


def test_a_row_for_each_mistake() -> None:
    probabilities = torch.tensor([[0.75, 0.25], [0.125, 0.875], [0.5, 0.5]], dtype=torch.float64)
    table = mistakes_table(probabilities, torch.tensor([1, 0, 0]), CLASSES[:2])
    assert table["columns"] == ["image", "true", "predicted", "probability", "probability of true"]
    assert table["data"] == [[1, "cat", "cow", 0.875, 0.125], [0, "cow", "cat", 0.75, 0.25]]
    assert json.loads(json.dumps(table, allow_nan=False)) == table


def test_mistakes_are_many_or_none() -> None:
    answers = torch.eye(2).repeat(300, 1)
    assert len(mistakes_table(answers, torch.tensor([1, 0] * 300), CLASSES[:2])["data"]) == MOST
    assert mistakes_table(answers, torch.tensor([0, 1] * 300), CLASSES[:2])["data"] == []
