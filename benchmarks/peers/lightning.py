"""Lightning on the notebook's data, without what it writes and shows."""

from typing import Any

import torch
from lightning import LightningModule, Trainer
from torch.nn import functional
from torch.utils.data import DataLoader

from benchmarks.peers.cases import Case, Train, Trained
from benchmarks.peers.modules import accuracy, build_model, build_optimizer, choose_device, clock
from benchmarks.peers.notebook import Images
from mlp_dist.data.image_set import Dataset


class Perceptron(LightningModule):  # type: ignore[misc]
    """Takes the time from hook to hook around each epoch."""

    def __init__(self, case: Case, data: Dataset, seed: int) -> None:
        super().__init__()
        self.case, self.test_set = case, data.test
        self.model = build_model(case, data, seed)
        self.seconds: list[float] = []
        self.reached: float | None = None

    def training_step(self, batch: list[torch.Tensor], batch_index: int) -> torch.Tensor:
        images, labels = batch
        return functional.cross_entropy(self.model(images), labels)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return build_optimizer(self.case, self.model)

    def on_train_epoch_start(self) -> None:
        self.started = clock(self.device)

    def on_train_epoch_end(self) -> None:
        self.seconds.append(clock(self.device) - self.started)
        if self.reached is None:
            self.reached = accuracy(self.model, self.test_set, self.device)


def prepare(case: Case) -> Train:
    data, device = case.read(), choose_device()
    loader: DataLoader[Any] = DataLoader(Images(data.train), batch_size=case.batch_size, shuffle=True)

    def train(seed: int, num_epochs: int) -> Trained:
        module = Perceptron(case, data, seed)
        trainer = Trainer(
            accelerator="gpu" if device.type == "cuda" else "cpu",
            devices=1,
            max_epochs=num_epochs,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, loader)
        return Trained(module.seconds, module.reached, device.type)

    return train
