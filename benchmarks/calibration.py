"""How far confidence and accuracy lie apart on the test images, without and with the temperature.

  python -m benchmarks.calibration --seeds 5
  python -m benchmarks.calibration --seeds 1 --recipes mnist fashion-best

The expected calibration error in 15 bins, the mean over the seeds and the largest; the temperature is fitted
on the validation images, and 1 where a recipe holds none out. The goal is met where no seed has more than
0.01. The last line on stdout is one JSON object.
"""

import argparse
import json
import os
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from benchmarks.recipes import read
from mlp_dist.config import TrainConfig
from mlp_dist.console import command, processes
from mlp_dist.core.errors import UsageError
from mlp_dist.data.calibration import model_temperature
from mlp_dist.data.evaluate import Evaluation, evaluate, predict
from mlp_dist.data.image_set import Dataset
from mlp_dist.recipes import TUTORIALS, get_recipe
from mlp_dist.training.start import settle
from mlp_dist.training.trainer import Trainer

GOAL = 0.01
COLUMNS = "{:<24} {:>10}  {:>11}  {:>17}  {:>17}  {:<4}"


@dataclass(frozen=True)
class Row:
    """One Evaluation a seed, of the kept weights on the test images."""

    recipe: str
    num_validation: int
    tests: Sequence[Evaluation]

    @property
    def uncalibrated(self) -> list[float]:
        return [test.uncalibrated_ece for test in self.tests]

    @property
    def calibrated(self) -> list[float]:
        return [test.ece for test in self.tests]

    @property
    def temperatures(self) -> list[float]:
        return [test.temperature for test in self.tests]

    def __str__(self) -> str:
        return COLUMNS.format(
            self.recipe,
            f"{self.num_validation:,}",
            f"{statistics.mean(self.temperatures):.3f}",
            _shown(self.uncalibrated),
            _shown(self.calibrated),
            "yes" if max(self.calibrated) <= GOAL else "no",
        )

    def to_json(self) -> dict[str, object]:
        return {
            "recipe": self.recipe,
            "num_validation": self.num_validation,
            "test_accuracy": [test.accuracy for test in self.tests],
            "temperature": self.temperatures,
            "test_ece_uncalibrated": self.uncalibrated,
            "test_ece": self.calibrated,
        }


def _shown(errors: Sequence[float]) -> str:
    return f"{statistics.mean(errors):.4f} ({max(errors):.4f})"


def measure(recipe: TrainConfig, data: Dataset, num_seeds: int) -> Row:
    """Train the recipe once a seed, as the command does but for MLflow and its files."""
    # It is made for one precision, and kept for the process.
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=processes.use_cpu(), mixed_precision=recipe.mixed_precision)
    tests = []
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(num_seeds):
            config, normalized = settle(replace(recipe, seed=seed), data)
            trainer = Trainer(config, normalized, accelerator, Path(directory))
            tests.append(_test(trainer))
    return Row(recipe.recipe, len(trainer.val_set), tests)


def _test(trainer: Trainer) -> Evaluation:
    with processes.StopSignals() as signals:
        while not trainer.config.is_over(len(trainer.history), trainer.kept):
            trainer.keep(trainer.train_epoch(signals) | trainer.evaluate())
    model, image = trainer.evaluated, trainer.data.image
    model.load_state_dict(trainer.best)
    temperature = model_temperature(model, trainer.val_set, image)
    logits = predict(model, trainer.test_set, image)
    return evaluate(logits, trainer.test_set.labels, temperature=temperature)


def parse() -> argparse.Namespace:
    parser = command.Parser(prog="python -m benchmarks.calibration", description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, metavar="N", help="the seeds 0 to N-1 (5)")
    parser.add_argument(
        "--recipes", nargs="+", metavar="NAME", default=["mnist", *TUTORIALS], help="(mnist, the tutorials')"
    )
    parser.add_argument(
        "--val-size", type=int, metavar="N", help="hold out so many images, whatever the recipe does"
    )
    parser.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="torchvision's root ($MLP_DIST_DATA, else data)"
    )
    args = parser.parse_args()
    if args.seeds < 1:
        raise UsageError(f"seeds is {args.seeds}; it must be 1 or more")
    return args


def main() -> None:
    args = parse()
    processes.set_threads()
    print(
        COLUMNS.format("recipe", "validation", "temperature", "without (worst)", "with it (worst)", "goal"),
        flush=True,
    )
    rows = []
    for name in args.recipes:
        recipe = get_recipe(name)
        if args.val_size is not None:
            recipe = replace(recipe, val_size=args.val_size)
        rows.append(measure(recipe, read(recipe.dataset, args.data_dir), args.seeds))
        print(rows[-1], flush=True)
    shown = {"benchmark": "calibration", "goal": GOAL, "seeds": args.seeds, "cores": os.cpu_count()}
    print(json.dumps({**shown, "torch": str(torch.__version__), "rows": [row.to_json() for row in rows]}))


if __name__ == "__main__":
    command.run(main)
