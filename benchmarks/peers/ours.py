"""This project's whole trainer: Accelerate, metrics, checkpoints and MLflow."""

import os
import time
from dataclasses import replace
from pathlib import Path

from benchmarks.peers.cases import Case, Timing, Train
from mlp_dist.config import TO_TENSOR
from mlp_dist.recipes import get_recipe
from mlp_dist.tracking.follow import Follower
from mlp_dist.training.setup import start_training


def prepare(case: Case) -> Train:
    """Times are the `train_seconds` that each epoch reports."""
    here = Path.cwd()
    os.environ["MLFLOW_TRACKING_URI"] = f"sqlite:///{here}/mlflow.db"

    def train(seed: int, num_epochs: int) -> Timing:
        config = replace(
            get_recipe("mnist-quick"),
            dataset=case.dataset,
            fallback_dataset=None,
            hidden_sizes=case.hidden_sizes,
            normalize=TO_TENSOR,
            optimizer=case.optimizer,
            lr=case.lr,
            batch_size=case.batch_size,
            epochs=num_epochs,
            seed=seed,
            val_size=case.held_out,
            gradient_dtype="float32",
            output_dir=here / f"seed {seed}",
        )
        follower = Follower(here / f"seed {seed}")
        # The command's follower imports MLflow while the command imports torch.
        time.sleep(4)
        trainer = start_training(config)
        trainer.fit(follower=follower)
        seconds = [record["train_seconds"] for record in trainer.state.history]
        return Timing(seconds, trainer.state.history[0]["test_accuracy"], trainer.context.device.type)

    return train
