"""Which images and units the plots of a run show."""

import pytest
import torch

from mlp_dist.data.image_set import ImageSet
from mlp_dist.tracking.plots.images import mistakes_grid
from mlp_dist.training.pictured import first, largest_units, mistakes
from tests.helpers.drawing import random_images

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
    assert [len(each) for each in first(images, torch.full((60, 2), 0.5))] == [20, 20, 20]
    assert [len(each) for each in mistakes(images, torch.eye(2).flip(0).repeat(30, 1))] == [20, 20, 20]


@pytest.mark.gpu
def test_tensors_on_a_gpu_are_accepted() -> None:
    images = ImageSet(random_images(6), torch.tensor([0, 1, 0, 0, 0, 1]))
    assert len(mistakes_grid(*mistakes(images, probabilities().cuda()), ("a", "b")).axes[0].texts) == 5
    _, units = largest_units(torch.ones(3, 36).cuda())
    assert units.tolist() == [0, 1, 2]
