"""The loop of the tutorials: torchvision's MNIST with ToTensor, a DataLoader, nn.Sequential, torch.optim."""

from typing import Any

from torch import nn
from torch.utils.data import DataLoader
from torchvision import datasets, transforms

from benchmarks.peers.cases import Case, Train, Trained
from benchmarks.peers.modules import accuracy, build_model, build_optimizer, choose_device, clock
from mlp_dist.data.image_set import ImageSet


class Images(datasets.MNIST):  # type: ignore[misc]
    """torchvision's MNIST, with the images of a case."""

    def __init__(self, part: ImageSet) -> None:
        super(datasets.MNIST, self).__init__("", transform=transforms.ToTensor())
        self.data, self.targets = part.images[:, 0], part.labels


def prepare(case: Case) -> Train:
    data, device = case.read(), choose_device()
    loader: DataLoader[Any] = DataLoader(Images(data.train), batch_size=case.batch_size, shuffle=True)
    criterion = nn.CrossEntropyLoss()

    def train(seed: int, num_epochs: int) -> Trained:
        model = build_model(case, data, seed).to(device)
        optimizer = build_optimizer(case, model)
        seconds, reached = [], None
        for _ in range(num_epochs):
            started, running_loss = clock(device), 0.0
            for images, labels in loader:
                images, labels = images.to(device), labels.to(device)
                optimizer.zero_grad()
                loss = criterion(model(images), labels)
                loss.backward()
                optimizer.step()
                running_loss += loss.item()
            seconds.append(clock(device) - started)
            reached = accuracy(model, data.test, device) if reached is None else reached
        return Trained(seconds, reached, device.type)

    return train
