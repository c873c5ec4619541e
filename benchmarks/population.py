"""How long an epoch takes for N members one after the other, as batched products, and for one alone.

  python -m benchmarks.population
  python -m benchmarks.population --members 1 8 64 --recipes mnist mnist-128-64-adam --repeats 5

Times are those of the steps, shuffling and batches included; evaluation, checkpoints and MLflow are what N
separate trainings have too. In each repeat the ways follow each other; shown are medians over the repeats, of
ratios the medians of those within a repeat. "taken" is the way that `--population N` goes on this machine.
The goals are that it is no slower than one after the other, and on a GPU at most 4 times one for 64 members.

Where MNIST cannot be had, scikit-learn's digits are trained on instead. The last line on stdout is one JSON
object.
"""

import argparse
import json
import os
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator

from mlp_dist import command, processes
from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import DownloadError, UsageError
from mlp_dist.data.dataset import Dataset
from mlp_dist.data.readers import default_data_dir, prepare_dataset, read_dataset
from mlp_dist.population import Population, beside
from mlp_dist.processes import StopSignals
from mlp_dist.recipes import get_recipe
from mlp_dist.start import settle
from mlp_dist.trainer import Trainer

COLUMNS = "{:<20} {:>7} {:>8} {:>9} {:>9}  {:<8} {:>15} {:>13} {:>9}"
HEADER = COLUMNS.format(
    *("recipe", "members", "one s", "in turn s", "batched s", "taken"),
    *("batched/in turn", "taken/in turn", "taken/one"),
)


@dataclass(frozen=True)
class Row:
    """`seconds` has (one, in turn, batched) of each repeat; `is_batched` tells which of the two is taken."""

    recipe: str
    members: int
    is_batched: bool
    seconds: list[tuple[float, float, float]]

    def to_json(self) -> dict[str, Any]:
        one, in_turn, batched = (statistics.median(times) for times in zip(*self.seconds, strict=True))
        taken = 2 if self.is_batched else 1
        return {
            "recipe": self.recipe,
            "members": self.members,
            "one": one,
            "in_turn": in_turn,
            "batched": batched,
            "taken": "batched" if self.is_batched else "in turn",
            "batched_to_in_turn": statistics.median(times[2] / times[1] for times in self.seconds),
            "taken_to_in_turn": statistics.median(times[taken] / times[1] for times in self.seconds),
            "taken_to_one": statistics.median(times[taken] / times[0] for times in self.seconds),
        }

    def __str__(self) -> str:
        values = self.to_json().values()
        shown = [f"{value:.2f}" if isinstance(value, float) else value for value in values]
        return COLUMNS.format(*shown)


def parse() -> argparse.Namespace:
    parser = command.Parser(prog="python -m benchmarks.population", description=__doc__)
    parser.add_argument("--members", type=int, nargs="+", default=[1, 8, 64], metavar="N", help="(1 8 64)")
    recipes = ["mnist", "mnist-128-64-adam", "mnist-logistic"]
    parser.add_argument(
        "--recipes", nargs="+", default=recipes, metavar="NAME", help=f"({' '.join(recipes)})"
    )
    parser.add_argument("--repeats", type=int, default=3, metavar="N", help="after one to warm up (3)")
    args = parser.parse_args()
    for name, values in (("members", args.members), ("repeats", [args.repeats])):
        for value in values:
            if value < 1:
                raise UsageError(f"{name} is {value}; it must be 1 or more")
    return args


def read() -> Dataset:
    """MNIST's images, else the digits."""
    try:
        prepare_dataset("mnist", default_data_dir())
    except DownloadError as error:
        print(f"{str(error).splitlines()[0]}; training on the digits instead")
        return read_dataset("digits", default_data_dir())
    return read_dataset("mnist", default_data_dir())


def population(config: TrainConfig, data: Dataset, accelerator: Accelerator, number: int) -> Population:
    directory = Path(tempfile.gettempdir())
    first = Trainer(config, replace(data, known_digest="none"), accelerator, directory)
    others = [beside(first, replace(config, seed=seed), directory) for seed in range(1, number)]
    return Population([first, *others], directory)


def seconds_an_epoch(made: Population, *, batched: bool) -> float:
    """Of the next epoch's steps."""
    trainers, signals = [member.trainer for member in made.members], StopSignals()
    started = time.perf_counter()
    if batched:
        made.take_steps(made.members, signals)
    # Where the steps are taken, what is left is to sum up.
    records = [trainer.train_epoch(signals) for trainer in trainers]
    seconds = time.perf_counter() - started
    for trainer, record in zip(trainers, records, strict=True):
        trainer.keep({**record, "val_accuracy": None})
    return seconds


def measure(config: TrainConfig, data: Dataset, accelerator: Accelerator, number: int, repeats: int) -> Row:
    one, in_turn, batched = (population(config, data, accelerator, each) for each in (1, number, number))
    found = [
        (
            seconds_an_epoch(one, batched=False),
            seconds_an_epoch(in_turn, batched=False),
            seconds_an_epoch(batched, batched=True),
        )
        for _ in range(repeats + 1)
    ]
    return Row(config.recipe, number, batched.takes(batched.members), found[1:])


def main() -> None:
    args = parse()
    use_cpu = processes.use_cpu()
    processes.set_threads()
    data, accelerator = read(), Accelerator(cpu=use_cpu)
    print(HEADER, flush=True)
    rows = []
    for recipe in args.recipes:
        config, settled = settle(replace(get_recipe(recipe), dataset=data.name, epochs=1000), data)
        for number in args.members:
            rows.append(measure(config, settled, accelerator, number, args.repeats))
            print(rows[-1], flush=True)
    device = "CPU" if use_cpu else torch.cuda.get_device_name()
    shown = {"benchmark": "population", "device": device, "cores": os.cpu_count(), "dataset": data.name}
    print(json.dumps({**shown, "repeats": args.repeats, "cases": [row.to_json() for row in rows]}))


if __name__ == "__main__":
    command.run(main)
