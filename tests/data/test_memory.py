"""Data sets in memory: arrays, tensors, data frames, and torch's map-style data sets."""

from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch.utils.data import TensorDataset

from mlp_dist.core.errors import DataError, UsageError
from mlp_dist.data.memory import read_memory

NUMBER = 40
GRAY = np.random.default_rng(0).integers(0, 256, (NUMBER, 6, 5), dtype=np.uint8)
COLOR = np.random.default_rng(1).integers(0, 256, (NUMBER, 3, 4, 4), dtype=np.uint8)
LABELS = np.arange(NUMBER) % 4


class Pictures:
    """A map-style data set of PIL images, as torchvision's ImageFolder is."""

    classes = ("ant", "bee", "cat", "dog")

    def __init__(self, images: list[Image.Image]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return self.images[index], int(LABELS[index])


FLAT = GRAY[:, :5].reshape(NUMBER, 25)
FORMS = {
    "bytes": (GRAY, GRAY),
    "floats from 0 to 1": (GRAY / 255, GRAY),
    "floats from 0 to 255": (torch.tensor(GRAY).double(), GRAY),
    "flattened": (FLAT.tolist(), GRAY[:, :5]),
    "a data frame": (pd.DataFrame(FLAT), GRAY[:, :5]),
    "a data frame's column": (pd.Series(list(GRAY)), GRAY),
    "color": (COLOR, COLOR),
    "channels last": (COLOR.transpose(0, 2, 3, 1), COLOR),
    "a list of tensors": ([torch.tensor(image) for image in COLOR], COLOR),
    "a list of pictures": ([Image.fromarray(image) for image in GRAY], GRAY),
}


def _images(data: Any) -> torch.Tensor:
    """All images in their order."""
    return read_memory((*data, *data)).train.images


@pytest.mark.parametrize("form", FORMS)
def test_each_form_gives_the_same_images(form: str) -> None:
    x, expected = FORMS[form]
    images = torch.from_numpy(expected.copy())
    assert torch.equal(_images((x, LABELS)), images if images.dim() == 4 else images[:, None])


def test_data_sets_are_read_with_their_class_names() -> None:
    data = read_memory(Pictures([Image.fromarray(image) for image in GRAY]))
    assert data.classes == Pictures.classes
    assert (len(data.train), len(data.test)) == (36, 4)
    assert (data.image.height, data.image.width, data.image.channels) == (6, 5, 1)
    shares = TensorDataset(torch.tensor(COLOR) / 255, torch.tensor(LABELS))
    assert read_memory(shares, class_names=["a", "b", "c", "d"]).classes == ("a", "b", "c", "d")
    mixed = [Image.new("L", (9 + index % 2, 9), index) for index in range(NUMBER)]
    assert read_memory(Pictures(mixed), image_size=7).train.images.shape[1:] == (1, 7, 7)


@pytest.mark.parametrize(
    ("labels", "names", "classes"),
    [
        (LABELS * 10.0 - 5, None, ("-5", "5", "15", "25")),
        (np.array(["d", "c", "b", "a"])[LABELS], None, ("a", "b", "c", "d")),
        (pd.Series(np.array(["d", "c", "b", "a"])[LABELS]), ("d", "c", "b", "a"), ("d", "c", "b", "a")),
    ],
)
def test_labels_are_numbered(labels: Any, names: Any, classes: tuple[str, ...]) -> None:
    data = read_memory((GRAY, labels, GRAY, labels), names)
    assert data.classes == classes
    assert [data.classes[label] for label in data.train.labels] == [
        str(int(each) if isinstance(each, float) else each) for each in labels
    ]


@pytest.mark.parametrize(
    ("data", "error", "message"),
    [
        ((GRAY,), UsageError, "a tuple of 1"),
        (iter(()), UsageError, "iterator"),
        ([1, 2], UsageError, "pairs"),
        ((GRAY, LABELS[:-1]), DataError, "40 images and 39 labels"),
        ((GRAY, np.eye(NUMBER)), DataError, r"shape \(40, 40\)"),
        ((GRAY, LABELS * 0), DataError, "two or more"),
        ((GRAY, LABELS + 0.5), DataError, "one integer or text an image"),
        ((GRAY, LABELS, GRAY, LABELS + 1), DataError, "no training images of the classes 4"),
        ((GRAY, LABELS, COLOR, LABELS), DataError, "must agree"),
        ((GRAY / 127.5 - 1, LABELS), DataError, "values from -1 to 1"),
        ((np.full((NUMBER, 4), np.nan), LABELS), DataError, "values from nan"),
        ((GRAY[None, None], LABELS), DataError, "shape"),
        (([GRAY[0], GRAY[0, 1:]], LABELS[:2]), DataError, "different shapes"),
    ],
)
def test_wrong_data_is_refused(data: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        read_memory(data)


def test_a_label_beyond_the_names_is_refused() -> None:
    with pytest.raises(DataError, match="label 3"):
        read_memory((GRAY, LABELS), ["a", "b", "c"])
