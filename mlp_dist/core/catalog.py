"""Facts of each named data set: image size, normalization, class names.

Mean and standard deviation are those of the training images, in units of ToTensor's range 0 to 1.
"""

from dataclasses import dataclass

from mlp_dist.core.spec import AUTO, EXACT, ImageSpec

FOLDER_PREFIX = "folder:"
"""`folder:DIR`: the user's own image files, one folder per class, or DIR/train and DIR/test."""

ARRAYS_PREFIX = "arrays:"
"""`arrays:DIR`: the user's own arrays, written by numpy.save; see data/arrays.py."""


@dataclass(frozen=True)
class DatasetFacts:
    """`source` is the class in torchvision.datasets; None if the images come with a package.

    `preprocess` is how a model of this data set reads images by default; "auto" frames them as MNIST does.
    """

    title: str
    image: ImageSpec
    classes: tuple[str, ...]
    source: str | None
    preprocess: str = EXACT


_DIGIT_NAMES = tuple("0123456789")


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
}
