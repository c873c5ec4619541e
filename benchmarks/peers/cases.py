"""The trainings that contestants are timed on, and the result that they return."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from mlp_dist.core.spec import ModelSpec
from mlp_dist.data.arrays import Dataset
from mlp_dist.data.batches import split_validation
from mlp_dist.data.datasets import default_data_dir, read_dataset


@dataclass(frozen=True)
class Case:
    """One training: pixels scaled to [0, 1], ReLU, cross entropy; plain SGD or Adam at learning rate `lr`.

    All training images of `dataset` are used except the `held_out` ones.
    """

    name: str
    hidden_sizes: tuple[int, ...]
    optimizer: Literal["sgd", "adam"]
    lr: float
    batch_size: int
    num_images: int = 60_000
    held_out: int = 0
    dataset: str = "mnist"

    def of(self, data: Dataset) -> "Case":
        """This case on `data`, with as many images as it has."""
        num_images = min(self.num_images, len(data.train))
        return replace(self, num_images=num_images, held_out=len(data.train) - num_images, dataset=data.name)

    def read(self) -> Dataset:
        """The data set without the held-out images, the same for every contestant."""
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


@dataclass(frozen=True)
class Timing:
    """Seconds of each epoch's training steps, and the test accuracy after the first epoch."""

    seconds: list[float]
    accuracy: float
    device: str = "cpu"


Train = Callable[[int, int], Timing]
"""(seed, number of epochs) -> the timing of a training from new weights."""
