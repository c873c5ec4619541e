"""The facts of each named data set, once: image size, normalization, class names.

Mean and standard deviation are those of the training images, in units of ToTensor's range 0 to 1.
"""

from dataclasses import dataclass

from mlp_dist.core.spec import AUTO, EXACT, ImageSpec

FOLDER_PREFIX = "folder:"
"""`folder:DIR` names a data set of one's own: one folder a class, or DIR/train and DIR/test."""

ARRAYS_PREFIX = "arrays:"
"""`arrays:DIR` names one of arrays that numpy.save wrote; arrays.py tells which."""


_IDX_FILES = (
    *("train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"),
    *("t10k-images-idx3-ubyte.gz", "t10k-labels-idx1-ubyte.gz"),
)


@dataclass(frozen=True)
class Files:
    """IDX files under DIR/`directory`/raw, where torchvision's class of that name has them.

    `md5` are those of the training images and labels and the test images and labels; a mirror ends in "/".
    """

    directory: str
    mirrors: tuple[str, ...]
    md5: tuple[str, str, str, str]

    @property
    def resources(self) -> dict[str, str]:
        """File name -> md5, in the order of `md5`."""
        return dict(zip(_IDX_FILES, self.md5, strict=True))


@dataclass(frozen=True)
class DatasetFacts:
    """`files` is None where the images come with a package.

    `preprocess` is how pictures are read, where a question does not say: "auto" frames them as MNIST's are.
    """

    title: str
    image: ImageSpec
    classes: tuple[str, ...]
    files: Files | None
    preprocess: str = EXACT


_DIGIT_NAMES = tuple("0123456789")


def _gray(mean: float, std: float) -> ImageSpec:
    return ImageSpec(height=28, width=28, channels=1, mean=(mean,), std=(std,))


CATALOG: dict[str, DatasetFacts] = {
    "mnist": DatasetFacts(
        "MNIST",
        _gray(0.1307, 0.3081),
        _DIGIT_NAMES,
        Files(
            "MNIST",
            ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/"),
            (
                "f68b3c2dcbeaaa9fbdd348bbdeb94873",
                "d53e105ee54ea40749a09fcbcd1e9432",
                "9fb629c4189551a2d022fa330f9573f3",
                "ec29112dd5afa0611ce80d1b7f02629c",
            ),
        ),
        preprocess=AUTO,
    ),
    "fashion_mnist": DatasetFacts(
        "Fashion-MNIST",
        _gray(0.2860, 0.3530),
        (
            "T-shirt/top",
            "Trouser",
            "Pullover",
            "Dress",
            "Coat",
            "Sandal",
            "Shirt",
            "Sneaker",
            "Bag",
            "Ankle boot",
        ),
        Files(
            "FashionMNIST",
            ("http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",),
            (
                "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
                "25c81989df183df01b3e8a0aad5dffbe",
                "bef4ecab320f06d8554ea6380940ec79",
                "bb300cfdad3c16e7a12a480ee83cd310",
            ),
        ),
    ),
    "kmnist": DatasetFacts(
        "Kuzushiji-MNIST",
        _gray(0.1918, 0.3483),
        ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
        Files(
            "KMNIST",
            ("http://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
            (
                "bdb82020997e1d708af4cf47b453dcf7",
                "e144d726b3acfaa3e44228e80efcd344",
                "5c965bf0a639b31b8f53240b1b52f4d7",
                "7320c461ea6c1c855c0b718fb2a4b134",
            ),
        ),
    ),
    "digits": DatasetFacts("scikit-learn's handwritten digits", _gray(0.3085, 0.3484), _DIGIT_NAMES, None),
}
