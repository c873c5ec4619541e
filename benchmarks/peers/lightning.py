"""Lightning on the tutorial's data, without logger, checkpoints and progress bar."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.peers.cases import Case, Timing, Train
from benchmarks.peers.loops import Images, accuracy, build_model, build_optimizer, choose_device, clock
from mlp_dist.data.arrays import Dataset


class Perceptron(LightningModule):  # type: ignore[misc]
    def __init__(self, case: Case, data: Dataset, seed: int) -> None:
        super().__init__()
        self.case, self.test_set = case, data.test
        self.model = build_model(case, data, seed)
        self.seconds: list[float] = []
        self.accuracies: list[float] = []

    def training_step(self, batch: list[torch.Tensor], batch_index: int) -> torch.Tensor:
        images, labels = batch
        return functional.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.case, self.model)

    def on_train_epoch_start(self) -> None:
        self.started = clock(self.device)

    def on_train_epoch_end(self) -> None:
        self.seconds.append(clock(self.device) - self.started)
        self.accuracies.append(accuracy(self.model, self.test_set, self.device))


def prepare(case: Case) -> Train:
    data, device = case.read(), choose_device()
    loader: DataLoader[Any] = DataLoader(Images(data.train), batch_size=case.batch_size, shuffle=True)
    quiet = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")

    def train(seed: int, num_epochs: int) -> Timing:
        module = Perceptron(case, data, seed)
        accelerator = "gpu" if device.type == "cuda" else "cpu"
        trainer = Trainer(
            accelerator=accelerator, devices=1, max_epochs=num_epochs, **dict.fromkeys(quiet, False)
        )
        trainer.fit(module, loader)
        return Timing(module.seconds, module.accuracies[0], device.type)

    return train
