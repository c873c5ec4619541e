"""What the contestants that are torch modules share."""

import time
from itertools import pairwise

import torch
from torch import nn

from benchmarks.peers.cases import Case
from mlp_dist.console.processes import set_threads
from mlp_dist.data.image_set import Dataset, ImageSet


def choose_device() -> torch.device:
    """The GPU where there is one; on the CPU torch gets all cores."""
    set_threads()
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def clock(device: torch.device) -> float:
    """Seconds, once the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()


def build_model(case: Case, data: Dataset, seed: int) -> nn.Sequential:
    """nn.Linear as torch draws them, in the global generator's order, as a notebook has it."""
    torch.manual_seed(seed)
    sizes = case.layer_sizes(data)
    layers: list[nn.Module] = [nn.Flatten()]
    for inputs, units in pairwise(sizes):
        layers += [nn.Linear(inputs, units), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def build_optimizer(case: Case, model: nn.Module) -> torch.optim.Optimizer:
    kind = torch.optim.SGD if case.optimizer == "sgd" else torch.optim.Adam
    return kind(model.parameters(), lr=case.lr)


@torch.no_grad()
def accuracy(model: nn.Module, test: ImageSet, device: torch.device) -> float:
    logits = model((test.images.float() / 255).to(device))
    return float((logits.argmax(dim=1).cpu() == test.labels).double().mean())
