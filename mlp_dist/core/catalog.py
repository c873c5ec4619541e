"""Facts of each named data set: image size, normalization, class names.

Mean and standard deviation are those of the training images, in units of ToTensor's range 0 to 1.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from string import ascii_lowercase, ascii_uppercase

from mlp_dist.core.spec import AUTO, EXACT, ImageSpec

FOLDER_PREFIX = "folder:"
"""`folder:DIR`: the user's own image files, one folder per class, or DIR/train and DIR/test."""

MEMORY = "memory"
"""The name of data sets that are passed to `mlp_dist.train`."""

ARRAYS_PREFIX = "arrays:"
"""`arrays:DIR`: the user's own arrays, written by numpy.save; see data/arrays.py."""


def _idx(*prefixes: str, labels: str = "labels-idx1-ubyte") -> tuple[str, ...]:
    return tuple(f"{prefix}-{kind}" for prefix in prefixes for kind in ("images-idx3-ubyte", labels))


_MNIST_FILES = _idx("train", "t10k")


@dataclass(frozen=True)
class DatasetFacts:
    """`source` is the class in torchvision.datasets; None if the images come with a package.

    `options` are the class's, beside root, train and download. `files` are those that it reads; MNIST's may
    also be compressed. Without `image`, normalization is measured on the training images.

    `preprocess` is how a model of this data set reads images by default; "auto" frames them as MNIST does.
    """

    title: str
    image: ImageSpec | None
    classes: tuple[str, ...]
    source: str | None
    preprocess: str = EXACT
    files: tuple[str, ...] = _MNIST_FILES
    options: Mapping[str, str] = field(default_factory=dict)


_DIGIT_NAMES = tuple("0123456789")


_QMNIST_FILES = _idx("qmnist-train", "qmnist-test", labels="labels-idx2-int")


def _emnist(split: str, classes: tuple[str, ...]) -> DatasetFacts:
    files = _idx(f"emnist-{split}-train", f"emnist-{split}-test")
    return DatasetFacts(f"EMNIST {split.title()}", None, classes, "EMNIST", EXACT, files, {"split": split})


def _gray(mean: float, std: float) -> ImageSpec:
    return ImageSpec(height=28, width=28, channels=1, mean=(mean,), std=(std,))


CATALOG: dict[str, DatasetFacts] = {
    "mnist": DatasetFacts("MNIST", _gray(0.1307, 0.3081), _DIGIT_NAMES, "MNIST", preprocess=AUTO),
    "fashion_mnist": DatasetFacts(
        "Fashion-MNIST",
        _gray(0.2860, 0.3530),
        (
            *("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat"),
            *("Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        ),
        "FashionMNIST",
    ),
    "kmnist": DatasetFacts(
        "Kuzushiji-MNIST",
        _gray(0.1918, 0.3483),
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        "KMNIST",
    ),
    "digits": DatasetFacts("scikit-learn's handwritten digits", _gray(0.3085, 0.3484), _DIGIT_NAMES, None),
    "qmnist": DatasetFacts("QMNIST", None, _DIGIT_NAMES, "QMNIST", AUTO, _QMNIST_FILES),
    "emnist-letters": _emnist("letters", tuple(ascii_lowercase)),
    "emnist-balanced": _emnist("balanced", (*_DIGIT_NAMES, *ascii_uppercase, *"abdefghnqrt")),
    "usps": DatasetFacts("USPS", None, _DIGIT_NAMES, "USPS", files=("usps.bz2", "usps.t.bz2")),
}
