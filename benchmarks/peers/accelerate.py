"""A loop with Accelerate over images that lie on the device, without a wait for it within an epoch."""

import torch
from accelerate import Accelerator
from torch.nn import functional

from benchmarks.peers.cases import Case, Train, Trained
from benchmarks.peers.modules import accuracy, build_model, build_optimizer, choose_device, clock


def prepare(case: Case) -> Train:
    data, device = case.read(), choose_device()
    accelerator = Accelerator(cpu=device.type == "cpu")
    images = (data.train.images.float() / 255).to(device)
    labels = data.train.labels.to(device)

    def train(seed: int, num_epochs: int) -> Trained:
        model = build_model(case, data, seed)
        model, optimizer = accelerator.prepare(model, build_optimizer(case, model))
        seconds, reached = [], None
        for _ in range(num_epochs):
            started, total = clock(device), torch.zeros((), device=device)
            order = torch.randperm(len(labels), device=device)
            for batch in torch.split(order, case.batch_size):
                optimizer.zero_grad()
                loss = functional.cross_entropy(model(images[batch]), labels[batch])
                accelerator.backward(loss)
                optimizer.step()
                total += loss.detach()
            seconds.append(clock(device) - started)
            reached = accuracy(model, data.test, device) if reached is None else reached
        return Trained(seconds, reached, device.type)

    return train
