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
from mlp_dist.recipes import RECIPES, get_recipe
from mlp_dist.start import settle
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


@pytest.mark.parametrize("val_size", [120, 0])
def test_evaluation_counts_every_image_once(
    val_size: int, digits: Dataset, accelerator: Accelerator, tmp_path: Path
) -> None:
    trainer = make(replace(CONFIG, val_size=val_size), digits, accelerator, tmp_path)
    found = trainer.evaluate()
    _, val = split_validation(digits.train, val_size)
    for name, part in (("val", val), ("test", digits.test)):
        if not len(part):
            assert found[f"{name}_accuracy"] is found[f"{name}_loss"] is None
            continue
        expected = evaluate(predict(trainer.module, part.images, digits.image), part.labels)
        assert found[f"{name}_accuracy"] == pytest.approx(expected.accuracy, abs=1e-12)
        assert found[f"{name}_loss"] == pytest.approx(expected.loss, abs=1e-6)


@pytest.mark.parametrize(
    ("model", "optimizer"), [("tensor", "sgd"), ("layers", "scratch-sgd"), ("layers", "adam")]
)
def test_every_kind_trains_as_modules_do(
    model: str, optimizer: str, digits: Dataset, accelerator: Accelerator, tmp_path: Path
) -> None:
    config = replace(CONFIG, optimizer=optimizer, lr=0.01)
    plain = make(replace(config, optimizer=optimizer.removeprefix("scratch-")), digits, accelerator, tmp_path)
    other = make(replace(config, model=model), digits, accelerator, tmp_path)
    with torch.no_grad():
        for parameter, source in zip(other.module.parameters(), plain.module.parameters(), strict=True):
            parameter.copy_(source.T if parameter.shape != source.shape else source)
    signals = StopSignals()
    expected, found = plain.train_epoch(0, signals), other.train_epoch(0, signals)
    assert found["train_loss"] == pytest.approx(expected["train_loss"], abs=1e-6)
    for parameter, source in zip(other.module.parameters(), plain.module.parameters(), strict=True):
        wanted = source.T if parameter.shape != source.shape else source
        torch.testing.assert_close(parameter, wanted, rtol=0, atol=2e-6)


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_learns(name: str, digits: Dataset, accelerator: Accelerator, tmp_path: Path) -> None:
    config, data = settle(replace(get_recipe(name), dataset="digits", batch_size=20), digits)
    trainer = make(config, data, accelerator, tmp_path)
    before = trainer.evaluate()
    trainer.train_epoch(0, StopSignals())
    after = trainer.evaluate()
    assert after["test_loss"] < before["test_loss"]
    assert after["test_accuracy"] > before["test_accuracy"]
    assert (after["val_loss"] is None) == (name != "mnist")


def test_the_loss_of_every_so_many_steps(
    digits: Dataset, accelerator: Accelerator, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = replace(CONFIG, log_every=3)
    trainer = make(config, digits, accelerator, tmp_path)
    again = make(config, digits, accelerator, tmp_path)
    losses = []
    for epoch in range(2):
        order = epoch_order(len(again.train_set), seed=0, epoch=epoch)
        for indices in order.split(100):
            batch = again.train_set[indices]
            losses.append(again.train_step(batch, len(batch))[0].item() / len(batch))
    records = [each for epoch in range(2) for each in trainer.train_epoch(epoch, StopSignals())["steps"]]
    # 1317 images are 13 full batches and one of 17; the last two of an epoch are too few to be told.
    assert [each["step"] for each in records] == [3, 6, 9, 12, 17, 20, 23, 26]
    for each in records:
        told = losses[each["step"] - 3 : each["step"]]
        assert each["loss"] == pytest.approx(sum(told) / 3, abs=1e-9)
    out = capsys.readouterr().out
    assert [line.split()[1] for line in out.splitlines()] == [str(each["step"]) for each in records]
    assert f"step 3  loss {records[0]['loss']:.4f}" in out


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
        TrainingError, match=r"training loss of epoch 1 is nan at learning rate 1e\+30; try a smaller --lr"
    ):
        trainer.train_epoch(0, StopSignals())


def test_a_last_step_too_far_is_noticed(digits: Dataset, accelerator: Accelerator, tmp_path: Path) -> None:
    trainer = make(CONFIG, digits, accelerator, tmp_path)
    nn.init.constant_(trainer.module[0].weight, float("inf"))  # type: ignore[index]
    with pytest.raises(TrainingError, match=r"the val loss of epoch 1 is nan at learning rate 0\.1; try"):
        trainer.evaluate()


def test_a_signal_stops_the_epoch(digits: Dataset, accelerator: Accelerator, tmp_path: Path) -> None:
    import os
    import signal

    trainer = make(CONFIG, digits, accelerator, tmp_path)
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGTERM)
        with pytest.raises(Interrupted, match="SIGTERM"):
            trainer.train_epoch(0, signals)
