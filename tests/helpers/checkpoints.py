"""A small training's checkpoints."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from mlp_dist.config import TrainConfig
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import ModelSpec
from mlp_dist.training.checkpoint import Checkpoint
from mlp_dist.training.optim import build_optimizer

CONFIG = TrainConfig(
    recipe="small",
    dataset="digits",
    hidden_sizes=(8,),
    optimizer="adam",
    lr=0.01,
    batch_size=8,
    epochs=9,
    val_size=5,
    data_dir=Path("/data"),
    output_dir=Path("outputs/run"),
    run_name="run",
)


def trained(config: TrainConfig = CONFIG) -> tuple[torch.nn.Module, torch.optim.Optimizer]:
    model = build_model(ModelSpec((6, 8, 3)), generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer(config, model.parameters())
    train(model, optimizer, steps=3)
    return model, optimizer


def train(model: torch.nn.Module, optimizer: torch.optim.Optimizer, *, steps: int) -> None:
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        inputs, labels = torch.randn(8, 6, generator=generator), torch.randint(3, (8,), generator=generator)
        functional.cross_entropy(model(inputs), labels).backward()
        optimizer.step()
        optimizer.zero_grad()


def record(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "val_accuracy": None,
        "timestamp_ms": 1_700_000_000_000 + epoch,
    }


def of_epoch(number: int) -> Checkpoint:
    """The checkpoint after `number` epochs; of each number it holds other weights."""
    model, optimizer = trained()
    weights = {name: tensor + number for name, tensor in model.state_dict().items()}
    best = {name: tensor / 2 for name, tensor in weights.items()}
    history = [record(epoch) for epoch in range(1, number + 1)]
    return Checkpoint(
        CONFIG, "run-id", weights, optimizer.state_dict(), best, max(0, number - 1), history, "digest"
    )


def within_epoch(number: int, *, steps: int) -> Checkpoint:
    """A checkpoint with every field that not all have."""
    totals = torch.arange(2 * steps, dtype=torch.float64).view(steps, 2)
    told = [{"step": 1, "loss": 0.5, "timestamp_ms": 1_700_000_000_000}]
    before = of_epoch(number - 1)
    return replace(
        before,
        average={"num_updates": 3, "average": before.best},
        scaler={"scale": 1024.0, "_growth_tracker": 2},
        epoch_steps={"totals": totals, "losses": told, "seconds": 1.5},
        workers="2 CPU processes of 1 thread",
    )
