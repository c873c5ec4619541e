"""Checkpoints of a small training."""

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


def record(epoch: int) -> dict[str, Any]:
    return {
        "epoch": epoch,
        "train_loss": 1 / epoch,
        "val_accuracy": None,
        "timestamp_ms": 1_700_000_000_000 + epoch,
    }


def of_epoch(number: int) -> Checkpoint:
    """The checkpoint after `number` epochs, each with other weights."""
    model = build_model(ModelSpec((6, 8, 3)), generator=torch.Generator().manual_seed(0))
    optimizer = build_optimizer(CONFIG, model.parameters())
    functional.cross_entropy(model(torch.eye(6)), torch.arange(6) % 3).backward()
    optimizer.step()
    weights = {name: tensor + number for name, tensor in model.state_dict().items()}
    best = {name: tensor / 2 for name, tensor in weights.items()}
    history = [record(epoch) for epoch in range(1, number + 1)]
    return Checkpoint(
        CONFIG, "run-id", weights, optimizer.state_dict(), best, max(0, number - 1), history, "digest"
    )


def within_epoch(number: int, *, steps: int) -> Checkpoint:
    """A checkpoint with every optional field."""
    before = of_epoch(number - 1)
    return replace(
        before,
        average={"n_averaged": torch.tensor(3), **before.best},
        scaler={"scale": 1024.0, "_growth_tracker": 2},
        epoch_steps={
            "totals": torch.arange(2 * steps, dtype=torch.float64).view(steps, 2),
            "losses": [{"step": 1, "loss": 0.5, "timestamp_ms": 1_700_000_000_000}],
            "seconds": 1.5,
        },
        workers="2 CPU processes of 1 thread",
    )


def assert_same_tensors(one: Any, other: Any) -> None:
    """Both are equal, and so are their tensors, bit for bit."""
    assert type(one) is type(other)
    if isinstance(one, torch.Tensor):
        assert one.dtype == other.dtype
        assert torch.equal(one, other)
    elif isinstance(one, dict):
        assert list(one) == list(other)
        for name in one:
            assert_same_tensors(one[name], other[name])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for each, another in zip(one, other, strict=True):
            assert_same_tensors(each, another)
    else:
        assert one == other
