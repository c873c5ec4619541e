"""Two loops in plain PyTorch: a tutorial's, and one with Accelerate whose images stay on the device."""

import time
from collections.abc import Callable, Iterable
from itertools import pairwise
from typing import Any

import torch
from accelerate import Accelerator
from torch import nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.peers.cases import Case, Timing, Train
from mlp_dist.console.process import set_threads
from mlp_dist.data.arrays import Dataset, ImageSet


def choose_device() -> torch.device:
    """CUDA if available, else the CPU with one thread per core."""
    set_threads()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def clock(device: torch.device) -> float:
    """Seconds, after the device has finished its queue."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def build_model(case: Case, data: Dataset, seed: int) -> nn.Sequential:
    torch.manual_seed(seed)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, units in pairwise(case.layer_sizes(data)):
        layers += [nn.Linear(inputs, units), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def build_optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    kind = torch.optim.SGD if case.optimizer == "sgd" else torch.optim.Adam
    return kind(model.parameters(), lr=case.lr)


@torch.no_grad()
def accuracy(model: nn.Module, test: ImageSet, device: torch.device) -> float:
    logits = model((test.images.float() / 255).to(device))
    return float((logits.argmax(dim=1).cpu() == test.labels).double().mean())


class Images(datasets.MNIST):  # type: ignore[misc]
    """torchvision's MNIST with ToTensor, holding the images of a case."""

    def __init__(self, part: ImageSet) -> None:
        super(datasets.MNIST, self).__init__("", transform=transforms.ToTensor())
        self.data, self.targets = part.images[:, 0], part.labels


def timed(
    epoch: Callable[[], None], model: nn.Module, data: Dataset, device: torch.device, num_epochs: int
) -> Timing:
    seconds, accuracies = [], []
    for _ in range(num_epochs):
        started = clock(device)
        epoch()
        seconds.append(clock(device) - started)
        accuracies.append(accuracy(model, data.test, device))
    return Timing(seconds, accuracies[0], device.type)


def prepare_notebook(case: Case) -> Train:
    data, device = case.read(), choose_device()
    loader: Iterable[Any] = DataLoader(Images(data.train), batch_size=case.batch_size, shuffle=True)
    criterion = nn.CrossEntropyLoss()

    def train(seed: int, num_epochs: int) -> Timing:
        model = build_model(case, data, seed).to(device)
        optimizer = build_optimizer(case, model)

        def epoch() -> None:
            running_loss = 0.0
            for images, labels in loader:
                images, labels = images.to(device), labels.to(device)
                optimizer.zero_grad()
                loss = criterion(model(images), labels)
                loss.backward()
                optimizer.step()
                running_loss += loss.item()

        return timed(epoch, model, data, device, num_epochs)

    return train


def prepare_accelerate(case: Case) -> Train:
    data, device = case.read(), choose_device()
    accelerator = Accelerator(cpu=device.type == "cpu")
    images = (data.train.images.float() / 255).to(device)
    labels = data.train.labels.to(device)

    def train(seed: int, num_epochs: int) -> Timing:
        model = build_model(case, data, seed)
        model, optimizer = accelerator.prepare(model, build_optimizer(case, model))

        def epoch() -> None:
            total = torch.zeros((), device=device)
            for batch in torch.split(torch.randperm(len(labels), device=device), case.batch_size):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(images[batch]), labels[batch])
                accelerator.backward(loss)
                optimizer.step()
                total += loss.detach()

        return timed(epoch, model, data, device, num_epochs)

    return train
