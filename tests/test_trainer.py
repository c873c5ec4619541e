from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import TrainingError
from mlp_dist.core.images import normalize
from mlp_dist.data.batches import epoch_order, split_validation
from mlp_dist.data.dataset import Dataset
from mlp_dist.data.readers import read_dataset
from mlp_dist.evaluation import evaluate, predict
from mlp_dist.processes import Interrupted, StopSignals
from mlp_dist.trainer import Trainer

CONFIG = TrainConfig(
    recipe="test", dataset="digits", hidden_sizes=(32,), lr=0.1, batch_size=100, epochs=2, val_size=120
)


@pytest.fixture(scope="module")
def digits() -> Dataset:
    return read_dataset("digits", Path("unused"))


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


def make(config: TrainConfig, data: Dataset, accelerator: Accelerator, tmp_path: Path) -> Trainer:
    return Trainer(config, data, accelerator, tmp_path)


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.module.state_dict().items()}


@pytest.mark.parametrize(("optimizer", "batch_size"), [("sgd", 100), ("adam", 64), ("sgd", 5000)])
def test_an_epoch_is_what_a_plain_loop_does(
    optimizer: str, batch_size: int, digits: Dataset, accelerator: Accelerator, tmp_path: Path
) -> None:
    config = replace(CONFIG, optimizer=optimizer, batch_size=batch_size, lr=0.01)
    trainer = make(config, digits, accelerator, tmp_path)
    model = nn.Sequential(nn.Linear(784, 32), nn.ReLU(), nn.Linear(32, 10))
    model.load_state_dict(trainer.module.state_dict())
    steps = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam}[optimizer](model.parameters(), lr=0.01)
    train, _ = split_validation(digits.train, 120)
    losses, correct = 0.0, 0
    for indices in epoch_order(len(train), seed=0, epoch=0).split(batch_size):
        logits = model(normalize(train.images[indices], digits.image))
        loss = nn.functional.cross_entropy(logits, train.labels[indices])
        steps.zero_grad()
        loss.backward()
        steps.step()
        losses += loss.item() * len(indices)
        correct += int((logits.argmax(1) == train.labels[indices]).sum())

    record = trainer.train_epoch(0, StopSignals())

    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(trainer.module.state_dict()[name], tensor, rtol=0, atol=1e-6)
    assert record["train_loss"] == pytest.approx(losses / len(train), abs=1e-6)
    assert record["train_accuracy"] == pytest.approx(correct / len(train), abs=1e-9)
    assert record["epoch"] == 1
    assert record["learning_rate"] == 0.01
    assert record["samples_per_second"] == pytest.approx(len(train) / record["train_seconds"])


def test_the_seed_decides_everything(digits: Dataset, accelerator: Accelerator, tmp_path: Path) -> None:
    weights = []
    for seed in (3, 3, 4):
        trainer = make(replace(CONFIG, seed=seed), digits, accelerator, tmp_path)
        torch.manual_seed(torch.seed())
        trainer.train_epoch(0, StopSignals())
        weights.append(state(trainer)["0.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_validation_counts_every_image_once(
    digits: Dataset, accelerator: Accelerator, tmp_path: Path
) -> None:
    trainer = make(CONFIG, digits, accelerator, tmp_path)
    _, val = split_validation(digits.train, 120)
    expected = evaluate(predict(trainer.module, val.images, digits.image), val.labels)
    found = trainer.validate()
    assert found["val_accuracy"] == pytest.approx(expected.accuracy, abs=1e-12)
    assert found["val_loss"] == pytest.approx(expected.loss, abs=1e-6)


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [([0.5, 0.7, 0.6], 1), ([0.7, 0.7, 0.6], 0), ([0.1, 0.2, 0.3], 2), ([None] * 3, 2)],
)
def test_the_first_best_epoch_is_kept(
    accuracies: list[float | None], kept: int, digits: Dataset, accelerator: Accelerator, tmp_path: Path
) -> None:
    trainer = make(CONFIG, digits, accelerator, tmp_path)
    for epoch, accuracy in enumerate(accuracies):
        nn.init.constant_(trainer.module[0].weight, epoch)  # type: ignore[index]
        trainer._keep({"val_accuracy": accuracy})
    assert trainer.kept == kept
    assert trainer.best["0.weight"].unique().item() == kept


def test_a_loss_that_is_not_finite_stops_the_training(
    digits: Dataset, accelerator: Accelerator, tmp_path: Path
) -> None:
    trainer = make(replace(CONFIG, lr=1e30), digits, accelerator, tmp_path)
    with pytest.raises(
        TrainingError, match=r"loss of epoch 1 is nan at learning rate 1e\+30; try a smaller --lr"
    ):
        trainer.train_epoch(0, StopSignals())


def test_a_signal_stops_the_epoch(digits: Dataset, accelerator: Accelerator, tmp_path: Path) -> None:
    import os
    import signal

    trainer = make(CONFIG, digits, accelerator, tmp_path)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            trainer.train_epoch(0, signals)
