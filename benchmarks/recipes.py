"""Train recipes and compare their test accuracy with the numbers that their authors published.

  python -m benchmarks.recipes --seeds 5
  python -m benchmarks.recipes --seeds 2 --recipes mnist-500 mnist-tensor

A published number holds if it is at most three standard deviations above the mean over the seeds. The last
line on stdout is one JSON object.
"""

import json
import os
import platform
import statistics
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from benchmarks import at_least
from mlp_dist.config import OPTIONS, TrainConfig
from mlp_dist.console import command, process
from mlp_dist.console.process import StopSignals
from mlp_dist.data.arrays import Dataset
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset
from mlp_dist.recipes import PUBLISHED, TUTORIALS, get_recipe
from mlp_dist.training.setup import complete_config
from mlp_dist.training.trainer import Trainer

COLUMNS = "{:<24} {:>6}  {:>9}  {:>17}  {:>10}  {:<5}  {:>10}"


def row(found: dict[str, Any]) -> str:
    published, difference = "-", "-"
    if found["published"] is not None:
        published = f"{found['published']:.4f}"
        difference = f"{found['mean'] - found['published']:+.4f}"
    accuracy, seconds = f"{found['mean']:.4f} ± {found['std']:.4f}", f"{found['seconds_per_epoch']:.2f}"
    holds = {True: "yes", False: "no", None: "-"}[found["holds"]]
    return COLUMNS.format(found["recipe"], found["epochs"], published, accuracy, difference, holds, seconds)


def measure(recipe: TrainConfig, data: Dataset, num_seeds: int) -> dict[str, Any]:
    """Train the recipe once per seed, as the command does, without MLflow."""
    # Accelerate keeps the first mixed precision for the whole process.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=process.use_cpu(), mixed_precision=recipe.mixed_precision)
    accuracies, seconds = [], []
    with tempfile.TemporaryDirectory() as directory, StopSignals() as signals:
        for seed in range(num_seeds):
            config, normalized = complete_config(replace(recipe, seed=seed), data)
            trainer = Trainer(config, normalized, accelerator, Path(directory))
            for _ in range(config.epochs):
                record = trainer.train_epoch(signals)
                seconds.append(record["train_seconds"])
                trainer.state.end_epoch(record | {"val_accuracy": None})
            accuracies.append(trainer.evaluate()["test_accuracy"])
    published, mean = PUBLISHED.get(recipe.recipe), statistics.mean(accuracies)
    std = statistics.stdev(accuracies) if num_seeds > 1 else 0.0
    return {
        "recipe": recipe.recipe,
        "epochs": config.epochs,
        "published": published,
        "accuracies": accuracies,
        "mean": mean,
        "std": std,
        "holds": None if published is None else published <= mean + 3 * std,
        "seconds_per_epoch": statistics.median(seconds),
    }


def main() -> None:
    parser = command.Parser(prog="python -m benchmarks.recipes", description=__doc__)
    parser.add_argument("--seeds", type=at_least(1), default=5, metavar="N", help="seeds 0 to N-1 (5)")
    known = ["mnist", "mnist-quick", *TUTORIALS]
    parser.add_argument("--recipes", nargs="+", metavar="NAME", default=known, help="(all but the best)")
    precisions = OPTIONS["matmul_precision"].choices
    parser.add_argument("--matmul-precision", choices=precisions, default="auto", metavar="P")
    parser.add_argument("--data-dir", type=Path, default=default_data_dir(), metavar="DIR")
    args = parser.parse_args()
    for name in args.recipes:
        get_recipe(name)
    process.set_threads()
    process.keep_freed_memory()
    kind = platform.machine() if process.use_cpu() else torch.cuda.get_device_name()
    print(f"{args.seeds} seeds, {kind}, {os.cpu_count()} cores, torch {torch.__version__}")
    print(COLUMNS.format("recipe", "epochs", "published", "test accuracy", "difference", "holds", "s/epoch"))
    rows = []
    for name in args.recipes:
        recipe = replace(get_recipe(name), matmul_precision=args.matmul_precision)
        prepare_dataset(recipe.dataset, args.data_dir)
        data = read_dataset(recipe.dataset, args.data_dir)
        rows.append(measure(recipe, data, args.seeds))
        print(row(rows[-1]), flush=True)
    result = {
        "benchmark": "recipes",
        "seeds": args.seeds,
        "device": kind,
        "torch": str(torch.__version__),
        "matmul_precision": args.matmul_precision,
        "recipes": rows,
    }
    print(json.dumps(result))


if __name__ == "__main__":
    command.run(main)
