"""The resumable state of a training in one file, written so that a crash never costs the one before."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import CheckpointError, UsageError
from mlp_dist.core.files import replacing_file

CHECKPOINT = "last.pt"
METRICS = "metrics.jsonl"

_FORMAT = "mlp_dist checkpoint 1"

StateDict = dict[str, torch.Tensor]


@dataclass
class Checkpoint:
    """A training after `len(history)` epochs.

    `history` has one record an epoch: epoch (from 1), losses, accuracies, learning rate, samples_per_second,
    train_seconds, the time it ended in milliseconds since 1970, and the losses told of its `steps`. `kept` is
    the index in it of the epoch whose weights are in `best`. `data_digest` is Dataset.digest().
    """

    config: TrainConfig
    run_id: str
    model: StateDict
    optimizer: dict[str, Any]
    best: StateDict
    kept: int
    history: list[dict[str, Any]]
    data_digest: str = ""

    @property
    def num_epochs(self) -> int:
        return len(self.history)


def save_checkpoint(checkpoint: Checkpoint, directory: Path) -> None:
    """Write DIR/last.pt, and the history as DIR/metrics.jsonl."""
    state = {"format": _FORMAT, **vars(checkpoint), "config": json.dumps(checkpoint.config.to_json())}
    with replacing_file(directory / CHECKPOINT) as path:
        try:
            torch.save(state, path)
        # What torch.save makes of a full disk.
        except RuntimeError as error:
            raise CheckpointError(f"{directory / CHECKPOINT} cannot be written: {error}") from error
    with replacing_file(directory / METRICS) as path:
        path.write_text("".join(json.dumps(record) + "\n" for record in checkpoint.history))


def load_checkpoint(directory: Path) -> Checkpoint:
    """Read DIR/last.pt onto the CPU.

    Raises UsageError where there is none, CheckpointError where it is damaged or not one of ours.
    """
    path = directory / CHECKPOINT
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError as error:
        raise UsageError(
            f"{directory} holds no {CHECKPOINT}, so there is nothing to resume; "
            "to start a run, leave --resume out"
        ) from error
    # torch.load raises what it happens to meet in a file that is cut off or foreign.
    except Exception as error:
        raise CheckpointError(f"{path} cannot be read: it is damaged, or not a checkpoint") from error
    if not isinstance(state, dict) or state.pop("format", None) != _FORMAT:
        raise CheckpointError(f"{path} is not a checkpoint of this package")
    try:
        config = TrainConfig.from_json(json.loads(state.pop("config")))
        return Checkpoint(config=config, **state)
    except (CheckpointError, UsageError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} does not fit this version: {error}") from error
