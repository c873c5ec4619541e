"""What a recipe reaches on MNIST made hard: wrong labels, rare classes, ten images a class.

  python -m benchmarks.hard_data
  python -m benchmarks.hard_data --recipes mnist --seeds 1 --cases "labels 20% wrong" --epochs 2

All seeds train on the same images; the test images stay as they are. None are held out, and the weights after
the last epoch are tested; of short epochs there are more, for at least 1,000 steps. The last line on stdout
is one JSON object.
"""

import argparse
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.recipes import measure, read
from mlp_dist.config import TrainConfig
from mlp_dist.console import command, processes
from mlp_dist.core.errors import UsageError, unknown
from mlp_dist.data.batches import generator
from mlp_dist.data.image_set import Dataset, ImageSet
from mlp_dist.recipes import get_recipe

HARD_DATA = 100
"""The stream of random numbers by which images are made hard; none of a training's."""

MIN_STEPS = 1000
RAREST = 0.01
COLUMNS = "{:<20} {:<16} {:>9} {:>7}  {:>17}"


def wrong_labels(train: ImageSet, share: float, source: torch.Generator) -> ImageSet:
    """A share of the images, drawn at random, get a label drawn from the other classes."""
    num_wrong, num_classes = round(share * len(train)), int(train.labels.max()) + 1
    chosen = torch.randperm(len(train), generator=source)[:num_wrong]
    labels = train.labels.clone()
    labels[chosen] += torch.randint(1, num_classes, (num_wrong,), generator=source)
    return replace(train, labels=labels % num_classes)


def keep_of_each(train: ImageSet, number: Callable[[int, int], int], source: torch.Generator) -> ImageSet:
    """Of class k, which has n images, `number(k, n)` drawn at random."""
    order = torch.randperm(len(train), generator=source)
    labels = train.labels[order]
    kept = [order[labels == k][: number(k, int((labels == k).sum()))] for k in range(int(labels.max()) + 1)]
    return train[torch.cat(kept)]


def imbalanced(train: ImageSet, source: torch.Generator) -> ImageSet:
    """Class k keeps a share of its images that falls geometrically, from all of class 0's to RAREST."""
    last = int(train.labels.max())
    return keep_of_each(train, lambda k, n: round(n * RAREST ** (k / last)), source)


CASES: dict[str, Callable[[ImageSet, torch.Generator], ImageSet]] = {
    "as it is": lambda train, source: train,
    "labels 20% wrong": lambda train, source: wrong_labels(train, 0.2, source),
    "labels 40% wrong": lambda train, source: wrong_labels(train, 0.4, source),
    "classes down to 1%": imbalanced,
    "10 images a class": lambda train, source: keep_of_each(train, lambda k, n: 10, source),
}


def hardened(config: TrainConfig, data: Dataset, case: str) -> tuple[TrainConfig, Dataset]:
    """The data made hard, and the configuration with epochs enough."""
    train = CASES[case](data.train, generator(0, HARD_DATA))
    epochs = max(config.epochs, math.ceil(MIN_STEPS / math.ceil(len(train) / config.batch_size)))
    config = replace(config, val_size=0, patience=0, epochs=epochs)
    return config, replace(data, train=train, known_digest="")


def row(config: TrainConfig, data: Dataset, case: str, num_seeds: int) -> dict[str, object]:
    """One of the table, printed and for JSON: the configuration's recipe on the case."""
    config, hard = hardened(config, data, case)
    found = measure(config, hard, num_seeds)
    accuracy = f"{found.mean:.4f} ± {found.std:.4f}"
    print(COLUMNS.format(case, config.recipe, f"{len(hard.train):,}", config.epochs, accuracy), flush=True)
    return {"case": case, "images": len(hard.train), **found.to_json()}


def parse() -> argparse.Namespace:
    recipes = ["mnist", "mnist-best"]
    parser = command.Parser(prog="python -m benchmarks.hard_data", description=__doc__)
    parser.add_argument("--seeds", type=int, default=3, metavar="N", help="the seeds 0 to N-1 (3)")
    parser.add_argument(
        "--recipes", nargs="+", metavar="NAME", default=recipes, help=f"({' '.join(recipes)})"
    )
    parser.add_argument("--cases", nargs="+", metavar="NAME", default=list(CASES), help="(all)")
    parser.add_argument("--epochs", type=int, metavar="N", help="instead of the recipe's")
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="torchvision's root ($MLP_DIST_DATA, else data)"
    )
    args = parser.parse_args()
    for name, value in (("seeds", args.seeds), ("epochs", args.epochs)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it must be 1 or more")
    for case in args.cases:
        if case not in CASES:
            raise UsageError(unknown("case", case, CASES))
    for name in args.recipes:
        get_recipe(name)
    return args


def main() -> None:
    args = parse()
    processes.set_threads()
    print(COLUMNS.format("training images", "recipe", "number", "epochs", "test accuracy"), flush=True)
    rows = []
    for case in args.cases:
        for name in args.recipes:
            config = get_recipe(name)
            if args.epochs is not None:
                warm_up = min(config.warmup_epochs, args.epochs)
                config = replace(config, epochs=args.epochs, warmup_epochs=warm_up)
            rows.append(row(config, read(config.dataset, args.data_dir), case, args.seeds))
    device = "CPU" if processes.use_cpu() else torch.cuda.get_device_name()
    shown = {"benchmark": "hard_data", "device": device, "cores": os.cpu_count(), "seeds": args.seeds}
    print(json.dumps({**shown, "rows": rows}))


if __name__ == "__main__":
    command.run(main)
