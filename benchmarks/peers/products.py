"""The matrix products of an epoch alone, each into memory that is there: no training can take less in torch.

Forward, each layer's weight gradient, and the gradient of each layer's input but the first's. On a GPU the
epoch is one CUDA graph, so that launching costs nothing either.
"""

from itertools import pairwise

import torch

from benchmarks.peers.cases import Case, Train, Trained
from benchmarks.peers.modules import choose_device, clock


class Products:
    """Buffers for batches of up to `case.batch_size` rows, and the products with them."""

    def __init__(self, case: Case, sizes: tuple[int, ...], device: torch.device) -> None:
        rows, layers = case.batch_size, list(pairwise(sizes))
        self.weights = [torch.randn(units, inputs, device=device) for inputs, units in layers]
        self.slopes = [torch.empty_like(weight) for weight in self.weights]
        self.outputs = [torch.randn(rows, units, device=device) for _, units in layers]
        self.errors = [torch.randn(rows, units, device=device) for _, units in layers]

    def step(self, images: torch.Tensor) -> None:
        """Of a batch of images, float32 (B, F)."""
        outputs, errors = ([part[: len(images)] for part in parts] for parts in (self.outputs, self.errors))
        inputs = [images, *outputs[:-1]]
        for into, weight, given in zip(outputs, self.weights, inputs, strict=True):
            torch.mm(given, weight.t(), out=into)
        for index in reversed(range(len(inputs))):
            torch.mm(errors[index].t(), inputs[index], out=self.slopes[index])
            if index:
                torch.mm(errors[index], self.weights[index], out=errors[index - 1])


def prepare(case: Case, precision: str) -> Train:
    data, device = case.read(), choose_device()
    torch.set_float32_matmul_precision(precision)
    sizes = case.layer_sizes(data)
    images = (data.train.images.flatten(1).float() / 255).to(device)
    products = Products(case, sizes, device)
    graph = torch.cuda.CUDAGraph() if device.type == "cuda" else None

    def epoch() -> None:
        for batch in torch.split(images, case.batch_size):
            products.step(batch)

    if graph is not None:
        products.step(images[: case.batch_size])
        with torch.cuda.graph(graph):
            epoch()

    def train(seed: int, num_epochs: int) -> Trained:
        seconds = []
        for _ in range(num_epochs):
            started = clock(device)
            if graph is None:
                epoch()
            else:
                graph.replay()
            seconds.append(clock(device) - started)
        return Trained(seconds, None, device.type, precision)

    return train
