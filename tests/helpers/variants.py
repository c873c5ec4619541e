"""Training options, each as a small training on the digits, in this process or under a launcher."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from mlp_dist.config import TrainConfig
from mlp_dist.console.process import StopSignals
from mlp_dist.data.arrays import Dataset
from mlp_dist.data.datasets import read_dataset
from mlp_dist.training.checkpoint import Checkpoint
from mlp_dist.training.distributed import Peers, connect
from mlp_dist.training.setup import complete_config
from mlp_dist.training.trainer import Trainer

# 1310 training images in batches of 119: the last one has a single image. Two, three or four processes have
# unequal shares of the batches and of the 127 validation images.
PLAIN = TrainConfig(
    recipe="plain",
    dataset="digits",
    hidden_sizes=(48, 32),
    lr=0.05,
    batch_size=119,
    epochs=2,
    val_size=127,
)
STEPS_PER_EPOCH = 12

EVERYTHING = replace(
    PLAIN,
    accumulation_steps=2,
    clip_norm=1.0,
    weight_decay=0.01,
    label_smoothing=0.1,
    dropout=0.2,
    augment_shift=2,
    schedule="cosine",
    warmup_epochs=0.3,
    ema_decay=0.95,
)

VARIANTS = {
    "plain": PLAIN,
    "tensor": replace(PLAIN, model="tensor"),
    "layers": replace(PLAIN, model="layers", initialization="normal_fan_in"),
    # 46 training images in batches of three: of four processes at least one has an empty share.
    "tiny batches": replace(PLAIN, batch_size=3, val_size=1391),
    "one batch": replace(PLAIN, batch_size=5000, lr=0.2, epochs=4),
    "accumulation": replace(PLAIN, accumulation_steps=3),
    "clipping": replace(PLAIN, clip_norm=0.2),
    "weight decay": replace(PLAIN, weight_decay=0.1),
    "scratch-sgd": replace(PLAIN, optimizer="scratch-sgd", weight_decay=0.1),
    "adam": replace(PLAIN, optimizer="adam", lr=0.0003),
    "adamw": replace(PLAIN, optimizer="adam", lr=0.0003, weight_decay=1.0),
    "label smoothing": replace(PLAIN, label_smoothing=0.2),
    "dropout": replace(PLAIN, dropout=0.3),
    "augmentation": replace(PLAIN, augment_shift=3),
    "one-cycle": replace(PLAIN, schedule="one-cycle", warmup_epochs=0.5),
    "deformation": replace(PLAIN, deform=0.5, restyle=0.5),
    "adversarial": replace(PLAIN, adversarial=0.05),
    "average": replace(PLAIN, ema_decay=0.9),
    "patience": replace(PLAIN, lr=0.02, epochs=30, patience=2),
    "log every": replace(PLAIN, log_every=5),
    "bf16": replace(PLAIN, mixed_precision="bf16", optimizer="adam", lr=0.002, epochs=3),
    "compiled": replace(PLAIN, compile=True),
    "everything": EVERYTHING,
    "float64 gradients": replace(PLAIN, gradient_dtype="float64", accumulation_steps=2),
    "float64 gradients, adamw": replace(
        PLAIN, gradient_dtype="float64", optimizer="adam", lr=0.003, weight_decay=0.1
    ),
    "float64 gradients, tensor": replace(PLAIN, gradient_dtype="float64", model="tensor"),
    "float64 gradients, layers": replace(PLAIN, gradient_dtype="float64", model="layers"),
    "float64 gradients, everything": replace(EVERYTHING, gradient_dtype="float64"),
    "float64 gradients, tiny batches": replace(PLAIN, gradient_dtype="float64", batch_size=3, val_size=1391),
}


def digits() -> Dataset:
    """With 359 test images, a prime number."""
    data = read_dataset("digits", Path("unused"))
    return replace(data, test=data.test[:359])


@contextmanager
def trainer(
    config: TrainConfig, directory: Path, *, cpu: bool = True, checkpoint: Checkpoint | None = None
) -> Iterator[Trainer]:
    AcceleratorState._reset_state(reset_partial_state=not cpu)
    accelerator = Accelerator(cpu=cpu, mixed_precision=config.mixed_precision)
    config, data = complete_config(config, digits())
    try:
        yield Trainer(config, data, accelerator, directory, peers=Peers(), checkpoint=checkpoint)
    finally:
        AcceleratorState._reset_state(reset_partial_state=not cpu)


def fit(trainer: Trainer) -> dict[str, Any]:
    """The initial, final, evaluated and best weights, and each epoch's record."""
    initial = copied(trainer.state.model.state_dict())
    while not trainer.state.is_over:
        trainer.state.end_epoch(trainer.train_epoch(StopSignals()) | trainer.evaluate())
    return {
        "initial": initial,
        "weights": copied(trainer.state.model.state_dict()),
        "evaluated": copied(trainer.state.weights),
        "best": trainer.state.best,
        "kept": trainer.state.kept,
        "history": trainer.state.history,
    }


def train(config: TrainConfig, directory: Path) -> dict[str, Any]:
    with trainer(config, directory) as made:
        return fit(made)


def take_step(trainer: Trainer, step: int, batch: torch.Tensor) -> torch.Tensor:
    """Take a step with the training images at the indices `batch`; returns Engine.train's totals."""
    images = trainer.context.train_set[batch[trainer.context.rank :: trainer.context.world_size]]
    return trainer.engine.train(step, [len(batch)], images)


def copied(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor.clone() for name, tensor in state.items()}


def main(output: Path, names: list[str]) -> None:
    connect(use_cpu=True)
    results = {name: train(VARIANTS[name], output.parent) for name in names}
    accelerator = Accelerator(cpu=True)
    if accelerator.is_main_process:
        torch.save(results, output)
    accelerator.end_training()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
