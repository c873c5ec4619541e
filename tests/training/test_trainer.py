from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from torch import nn

from mlp_dist.config import TrainConfig
from mlp_dist.console.process import StopSignals
from mlp_dist.core.errors import TrainingError
from mlp_dist.data import arrays, batches
from mlp_dist.data.arrays import Dataset, ImageSet
from mlp_dist.recipes import get_recipe
from mlp_dist.training.checkpoint import load_checkpoint
from mlp_dist.training.setup import complete_config
from mlp_dist.training.trainer import Trainer
from tests.helpers import variants

CONFIG = TrainConfig(
    recipe="test", dataset="digits", hidden_sizes=(32,), lr=0.1, batch_size=100, epochs=2, val_size=120
)


@pytest.fixture(scope="module")
def accelerator() -> Accelerator:
    return Accelerator(cpu=True)


Make = Callable[..., Trainer]


@pytest.fixture
def make(image_data: Dataset, accelerator: Accelerator, tmp_path: Path) -> Make:
    """A function (config, data=image_data) -> a Trainer in `tmp_path`."""
    return lambda config, data=image_data, **options: Trainer(config, data, accelerator, tmp_path, **options)


def state(trainer: Trainer) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in trainer.state.model.state_dict().items()}


def test_the_seed_determines_the_weights(make: Make) -> None:
    weights = []
    for seed in (3, 3, 4):
        trainer = make(replace(CONFIG, seed=seed))
        torch.manual_seed(torch.seed())
        trainer.train_epoch(StopSignals())
        weights.append(state(trainer)["0.weight"])
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize(
    "name", ["mnist", "mnist-quick", "mnist-tensor-normalized", "mnist-scratch-256-64", "mnist-deformed"]
)
def test_recipes_learn(name: str, image_data: Dataset, make: Make) -> None:
    recipe = get_recipe(name)
    sizes = tuple(min(size, 100) for size in recipe.hidden_sizes)
    small = replace(recipe, dataset="digits", batch_size=20, hidden_sizes=sizes)
    # One epoch of warmup, or of averaging, would change little.
    config, data = complete_config(replace(small, warmup_epochs=0, ema_decay=0), image_data)
    trainer = make(config, data)
    before = trainer.evaluate()
    trainer.train_epoch(StopSignals())
    after = trainer.evaluate()
    assert after["test_loss"] < before["test_loss"]
    assert after["test_accuracy"] > before["test_accuracy"]
    assert (after["val_loss"] is None) == (recipe.val_size == 0)


@pytest.mark.parametrize(
    ("accuracies", "kept"),
    [([0.5, 0.7, 0.6], 1), ([0.7, 0.7, 0.6], 0), ([0.1, 0.2, 0.3], 2), ([None] * 3, 2)],
)
def test_the_first_best_epoch_is_kept(accuracies: list[float | None], kept: int, make: Make) -> None:
    trainer = make(replace(CONFIG, schedule="constant"))
    for epoch, accuracy in enumerate(accuracies):
        nn.init.constant_(trainer.state.model[0].weight, epoch)  # type: ignore[index]
        trainer.state.end_epoch({"val_accuracy": accuracy})
    assert trainer.state.kept == kept
    assert trainer.state.best["0.weight"].unique().item() == kept


def test_the_last_epoch_of_a_schedule_is_kept(make: Make) -> None:
    for config, kept in ((CONFIG, 2), (replace(CONFIG, patience=2), 0)):
        trainer = make(replace(config, schedule="cosine"))
        for accuracy in (0.7, 0.6, 0.5):
            trainer.state.end_epoch({"val_accuracy": accuracy})
        assert trainer.state.kept == kept


NOT_FINITE = (
    r"the loss of step 2 \(epoch 1\) is not finite at learning rate 1e\+30; "
    r"try a smaller --lr, --clip-norm 1 or --warmup-epochs 1"
)


@pytest.mark.parametrize("every", [0, 1])
def test_a_loss_that_is_not_finite_stops_the_training(every: int, tmp_path: Path, make: Make) -> None:
    config = replace(CONFIG, lr=1e30, checkpoint_every_steps=every)
    trainer = make(config)
    with pytest.raises(TrainingError, match=NOT_FINITE):
        trainer.train_epoch(StopSignals())
    assert not every or load_checkpoint(tmp_path)[0].progress == "step 1 of epoch 1"


def test_weights_that_are_not_finite_are_not_saved(tmp_path: Path, make: Make) -> None:
    trainer = make(replace(CONFIG, lr=0.01, checkpoint_every_steps=2))
    train = trainer.engine.train

    def diverge_in_the_last_step(number: int, sizes: Sequence[int], images: ImageSet) -> torch.Tensor:
        totals = train(number, sizes, images)
        if number + len(sizes) == 4:
            nn.init.constant_(trainer.state.model[0].bias, float("inf"))  # type: ignore[index]
        return totals

    trainer.engine.train = diverge_in_the_last_step  # type: ignore[method-assign]
    with pytest.raises(
        TrainingError,
        match=rf"the weights after step 4 are not finite .* of step 2 of epoch 1 is kept in {tmp_path}",
    ):
        trainer.train_epoch(StopSignals())
    assert all(tensor.isfinite().all() for tensor in load_checkpoint(tmp_path)[0].model.values())


def test_divergence_in_the_last_step_is_noticed(make: Make) -> None:
    trainer = make(CONFIG)
    nn.init.constant_(trainer.state.model[0].weight, float("inf"))  # type: ignore[index]
    with pytest.raises(TrainingError, match=r"the val loss after epoch 1 is nan at learning rate 0\.1; try"):
        trainer.evaluate()


EVERYTHING = replace(variants.EVERYTHING, optimizer="adam", lr=0.01, batch_size=64, val_size=120)
FAST = replace(EVERYTHING, accumulation_steps=1, clip_norm=None, deform=1.0, restyle=1.0)
"""For the CPU engine."""


@pytest.mark.parametrize(
    ("config", "stopped_at"),
    [
        (FAST, 20),
        (replace(CONFIG, optimizer="adam", lr=0.01), 14),
        (EVERYTHING, 20),
        (replace(EVERYTHING, model="tensor", optimizer="sgd"), 28),
        (replace(EVERYTHING, model="layers", optimizer="scratch-sgd", schedule="one-cycle"), 1),
    ],
    ids=["fast", "end of an epoch", "everything", "tensor", "layers"],
)
def test_resuming_at_any_step_gives_the_same_weights(
    config: TrainConfig, stopped_at: int, make: Make, tmp_path: Path
) -> None:
    check_resume(make, replace(config, checkpoint_every_steps=stopped_at), stopped_at, tmp_path)


def check_resume(make: Make, config: TrainConfig, stopped_at: int, directory: Path, **data: Dataset) -> None:
    class Stop(Exception):  # noqa: N818
        pass

    def save_and_stop() -> None:
        Trainer.save(stopped)
        raise Stop

    stopped, whole = make(config, **data), make(config, **data)
    stopped.save = save_and_stop  # type: ignore[method-assign]
    with pytest.raises(Stop):
        train_all(stopped)
    checkpoint, _ = load_checkpoint(directory)
    train_all(whole)
    resumed = make(config, **data, checkpoint=checkpoint)
    assert resumed.state.epoch.first_step + resumed.state.epoch.done == stopped_at
    train_all(resumed)
    assert_same_state(state(resumed), state(whole))
    assert_same_state(resumed.state.weights, whole.state.weights)
    assert_same_state(resumed.state.best, whole.state.best)
    for found, expected in zip(resumed.state.history, whole.state.history, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "test_loss", "learning_rate"):
            assert found[name] == pytest.approx(expected[name], rel=1e-12)


@pytest.mark.parametrize("window", [2**26, 100 * 784], ids=["one window", "many windows"])
def test_arrays_on_disk_train_and_resume_exactly(
    window: int, make: Make, image_data: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To the weights of the same arrays in memory, if the set is not larger than a window."""
    monkeypatch.setattr(arrays, "WINDOW_BYTES", window)
    monkeypatch.setattr(batches, "WINDOW_BYTES", window)
    monkeypatch.setattr(batches, "BLOCK_BYTES", 10 * 784)
    for name, part in (("train", image_data.train), ("test", image_data.test)):
        np.save(tmp_path / f"{name}_images.npy", part.images.numpy())
        np.save(tmp_path / f"{name}_labels.npy", part.labels.numpy())
    stored, memory = (arrays.read_arrays(tmp_path, most_in_memory=most) for most in (0, 2**30))
    if window == 2**26:
        trainers = [make(CONFIG, data) for data in (stored, memory)]
        for trainer in trainers:
            train_all(trainer)
        assert_same_state(*map(state, trainers))
    check_resume(make, replace(CONFIG, checkpoint_every_steps=20), 20, tmp_path, data=stored)


def train_all(trainer: Trainer) -> None:
    while not trainer.state.is_over:
        trainer.state.end_epoch(trainer.train_epoch(StopSignals()) | trainer.evaluate())


def assert_same_state(found: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert list(found) == list(expected)
    for name, tensor in expected.items():
        assert torch.equal(found[name], tensor), name
