"""Train a recipe on the processes that `accelerate launch` starts.

  accelerate launch -m mlp_dist.train                                  one CPU process, or all GPUs
  accelerate launch -m mlp_dist.train --dataset digits --lr 0.2        other data, another rate
  accelerate launch --multi_gpu --num_processes 2 -m mlp_dist.train    two GPUs, or two processes

The last line on stdout is one JSON object with the result.
"""

import argparse
import gc
import json
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

from mlp_dist.config import (
    CHOICES,
    DEFAULT_EXPERIMENT,
    RESUME,
    TO_TENSOR,
    TrainConfig,
    absolute_dataset,
    has_type,
)
from mlp_dist.console import command, progress
from mlp_dist.console.hardware import choose_interface
from mlp_dist.console.process import Interrupted, end_with_launcher, is_main, launch_command
from mlp_dist.core.errors import ProcessLostError
from mlp_dist.recipes import get_recipe, recipe_table
from mlp_dist.tracking import next_steps
from mlp_dist.training import recorder

OFTEN = (
    *("recipe", "list_recipes", "hidden_sizes", "optimizer", "lr", "batch_size", "epochs", "seed"),
    *("dataset", "val_size", "output_dir", "experiment", "resume"),
)
"""The flags in --help; --help-all has the others, too."""

FLAGS = {
    "what to train (defaults: the recipe's)": {
        "recipe": "a complete configuration (mnist)",
        "hidden_sizes": "widths of the hidden layers, or none",
        "model": "built of nn.Linear (module), raw tensors (tensor), or core/layers.py (layers)",
        "initialization": ", ".join(CHOICES["initialization"]),
        "optimizer": ", ".join(CHOICES["optimizer"]),
        "lr": "learning rate, the peak of a schedule",
        "schedule": ", ".join(CHOICES["schedule"]),
        "warmup_epochs": "epochs of linear warmup (0)",
        "batch_size": "global batch: images per step over all processes",
        "accumulation_steps": "gradient accumulation steps",
        "epochs": "passes over the training images",
        "patience": "early stopping after N epochs without improvement",
        "seed": "seed of all randomness (0)",
        "mixed_precision": "no, bf16 or fp16 (the launcher's, else the recipe's)",
        "gradient_dtype": "float32, or float64: the same weights on any number of processes",
        "matmul_precision": "auto (medium if it loses nothing), highest, high, medium",
        "compile": "use torch.compile",
    },
    "regularization and stability (defaults: the recipe's, else none)": {
        "weight_decay": "L2; decoupled for adam, as in AdamW",
        "dropout": "probability of dropping a hidden unit",
        "label_smoothing": "label smoothing",
        "augment_shift": "shift images randomly by up to N pixels",
        "deform": "random affine and elastic deformations of strength X (try 1)",
        "adversarial": "adversarial (FGSM) training, epsilon X",
        "ema_decay": "evaluate and keep an exponential moving average of the weights",
        "clip_norm": "maximum gradient norm",
    },
    "data": {
        "dataset": "mnist, fashion_mnist, kmnist, digits, folder:DIR with one folder per class, or "
        "arrays:DIR with train_images.npy, train_labels.npy, test_...; "
        "auto (the default): the recipe's, or digits if it cannot be downloaded",
        "data_dir": "torchvision's root ($MLP_DIST_DATA, else data)",
        "image_size": "resize images to N x N pixels",
        "normalize": "none: ToTensor's range; data: the training images' mean and std; --normalize=-0.5,0.5",
        "skip_bad_images": "skip unreadable images of a folder",
        "val_size": "validation images (one in twelve); 0: none",
    },
    "output": {
        "output_dir": "(a new directory under outputs)",
        "experiment": f"MLflow experiment ({DEFAULT_EXPERIMENT})",
        "run_name": "MLflow run (recipe, changes, seed)",
        "log_every": "log the loss every N steps",
        "checkpoint_every_steps": "write a checkpoint every N steps, not only after each epoch",
    },
}
"""Group -> fields of TrainConfig -> help."""


def parse() -> argparse.Namespace:
    parser = command.Parser(
        often=OFTEN,
        prog="accelerate launch -m mlp_dist.train",
        usage="accelerate launch -m mlp_dist.train [FLAG ...]",
        description=__doc__,
        argument_default=argparse.SUPPRESS,
    )
    parser.add_argument(
        "--list-recipes", action="store_true", default=False, help="show all recipes and exit"
    )
    for title, flags in FLAGS.items():
        group = parser.add_argument_group(title)
        for name, text in flags.items():
            group.add_argument(f"--{name.replace('_', '-')}", help=text, **_options(name))
    group.add_argument(
        "--resume",
        nargs="?",
        choices=RESUME,
        const="yes",
        default="no",
        metavar="auto",
        help="continue the run in --output-dir, else the newest under outputs; auto: only if there is one",
    )
    return parser.parse_args()


def _options(name: str) -> dict[str, Any]:
    """argparse's options of the flag for a field."""
    if has_type(name, bool):
        return {"action": "store_true"}
    if name in CHOICES:
        return {"choices": CHOICES[name], "metavar": "NAME"}
    special = {"hidden_sizes": (hidden_sizes, "N,N"), "normalize": (normalization, "MEAN,STD")}
    kinds: tuple[tuple[type, str], ...] = ((int, "N"), (float, "X"), (Path, "DIR"), (str, "NAME"))
    kind, metavar = special.get(name) or next(each for each in kinds if has_type(name, each[0]))
    return {"type": kind, "metavar": metavar}


def hidden_sizes(text: str) -> tuple[int, ...]:
    try:
        return () if text == "none" else tuple(map(int, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not a list of widths as 256,64, nor none") from error


def normalization(text: str) -> tuple[float, float] | None:
    if text in ("none", "data"):
        return TO_TENSOR if text == "none" else None
    try:
        mean, std = map(float, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not MEAN,STD as 0.5,0.5, nor none or data") from error
    return mean, std


def configure(args: argparse.Namespace) -> tuple[TrainConfig, set[str]]:
    """The recipe with the flags' values, and the names of the fields that they set."""
    others = ("list_recipes", "resume")
    given = {name: value for name, value in vars(args).items() if name not in others}
    if given.get("dataset") == "auto":
        del given["dataset"]
    fields = set(given)
    if "dataset" in given:
        given |= {"dataset": absolute_dataset(given["dataset"]), "fallback_dataset": None}
    # "no" is also the launcher's default; the recipe's precision is used then.
    if (precision := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        given.setdefault("mixed_precision", precision)
    return replace(get_recipe(given.get("recipe", "mnist")), **given), fields


def main() -> None:
    # First, since the launcher may die during the imports, which take seconds.
    end_with_launcher()
    args = parse()
    if args.list_recipes:
        print(recipe_table())
        return
    config, given = configure(args)
    choose_interface()
    if is_main():
        # The recorder imports mlflow while this process imports torch.
        recorder.start()
    # Imported objects are never garbage; collecting during imports takes a second.
    gc.disable()
    try:
        # Accelerate's import takes seconds; a wrong flag is reported before.
        with progress.stages("starting"):
            from mlp_dist.training.setup import start_training
        training = start_training(config, resume=args.resume, given=given)
    finally:
        gc.freeze()
        gc.enable()
    try:
        result = training.fit()
    except (Interrupted, ProcessLostError) as stop:
        directory = shlex.quote(str(training.run.output_dir))
        stop.add_note(f"resume with: {launch_command()} --resume --output-dir {directory}")
        raise
    if training.accelerator.is_main_process:
        experiment = training.state.config.experiment
        print(next_steps.after_training(result["run_id"], result["output_dir"], experiment))
        print(json.dumps(result), flush=True)
    training.accelerator.end_training()


if __name__ == "__main__":
    command.run(main, at_once=True)
