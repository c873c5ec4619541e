"""What each contestant trains, and what it says of it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from mlp_dist.core.spec import ModelSpec
from mlp_dist.data.batches import split_validation
from mlp_dist.data.datasets import default_data_dir, read_dataset
from mlp_dist.data.image_set import Dataset, ImageSet


@dataclass(frozen=True)
class Case:
    """A training: `lr` is SGD's (without momentum) or Adam's; images from 0 to 1, cross entropy, ReLU.

    The training images are all but `held_out` of `dataset`.
    """

    name: str
    hidden_sizes: tuple[int, ...]
    optimizer: str
    lr: float
    batch_size: int
    num_images: int = 60_000
    held_out: int = 0
    dataset: str = "mnist"

    def of(self, data: Dataset) -> "Case":
        """The same case with the images that `data` has."""
        num_images = min(self.num_images, len(data.train))
        return replace(self, num_images=num_images, held_out=len(data.train) - num_images, dataset=data.name)

    def read(self) -> Dataset:
        """Its data, without those that are held out: the same images for every contestant."""
        data = read_dataset(self.dataset, default_data_dir())
        return replace(data, train=split_validation(data.train, self.held_out)[0])

    def layer_sizes(self, data: Dataset) -> tuple[int, ...]:
        return (data.image.num_features, *self.hidden_sizes, len(data.classes))

    def title(self, data: Dataset) -> str:
        return (
            f"{ModelSpec(self.layer_sizes(data))}, {self.optimizer} at {self.lr:g}, "
            f"batch {self.batch_size}, {self.num_images:,} images of {data.title}"
        )


CASES = {
    case.name: case
    for case in (
        Case("sgd-100", (500,), "sgd", 0.1, 100),
        Case("adam-64", (128, 64), "adam", 1e-3, 64),
        Case("sgd-1024", (500,), "sgd", 0.1, 1024),
        Case("wide-512", (2048, 2048), "sgd", 0.1, 512, num_images=12_000),
    )
}


def arrays(part: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Images from 0 to 1, float32 (N, F), and labels, int64 (N,)."""
    return part.images.flatten(1).numpy().astype(np.float32) / np.float32(255), part.labels.numpy()


@dataclass(frozen=True)
class Trained:
    """`seconds` of each epoch's training; the test accuracy after the first (None: nothing was trained).

    `precision` is that of the matrix products, as torch.set_float32_matmul_precision names them.
    """

    seconds: list[float]
    accuracy: float | None
    device: str = "cpu"
    precision: str | None = None


Train = Callable[[int, int], Trained]
"""(seed, number of epochs) -> what a training from new weights came to."""
