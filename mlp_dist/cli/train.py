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

from mlp_dist.config import (
    DEFAULT_EXPERIMENT,
    GRADIENT_DTYPES,
    INITIALIZATIONS,
    MATMUL_PRECISIONS,
    OPTIMIZERS,
    PRECISIONS,
    RESUME,
    SCHEDULES,
    TO_TENSOR,
    TrainConfig,
    absolute_dataset,
)
from mlp_dist.console import command, progress
from mlp_dist.console.processes import Interrupted, end_with_launcher, is_main, launch_command
from mlp_dist.core.errors import ProcessLostError
from mlp_dist.core.spec import KINDS
from mlp_dist.recipes import get_recipe, recipe_table
from mlp_dist.tracking import next_steps
from mlp_dist.training import recorder

OFTEN = (
    *("recipe", "list_recipes", "hidden_sizes", "optimizer", "lr", "batch_size", "epochs", "seed"),
    *("dataset", "val_size", "output_dir", "experiment", "resume"),
)
"""The flags that --help shows."""


def parse() -> argparse.Namespace:
    parser = command.Parser(
        often=OFTEN,
        prog="accelerate launch -m mlp_dist.train",
        usage="accelerate launch -m mlp_dist.train [FLAG ...]",
        description=__doc__,
        argument_default=argparse.SUPPRESS,
    )
    what = parser.add_argument_group("what to train (defaults: the recipe's)")
    what.add_argument("--recipe", metavar="NAME", help="a complete configuration (mnist)")
    what.add_argument("--list-recipes", action="store_true", default=False, help="show all recipes and exit")
    what.add_argument(
        "--hidden-sizes", type=hidden_sizes, metavar="N,N", help="widths of the hidden layers, or none"
    )
    what.add_argument(
        "--model",
        choices=KINDS,
        metavar="KIND",
        help="module: of nn.Linear; tensor: raw; layers: written out",
    )
    what.add_argument(
        "--initialization", choices=INITIALIZATIONS, metavar="NAME", help=", ".join(INITIALIZATIONS)
    )
    what.add_argument("--optimizer", choices=OPTIMIZERS, metavar="NAME", help=", ".join(OPTIMIZERS))
    what.add_argument("--lr", type=float, metavar="X", help="learning rate, and the peak of a schedule")
    what.add_argument("--schedule", choices=SCHEDULES, metavar="NAME", help=", ".join(SCHEDULES))
    what.add_argument("--warmup-epochs", type=float, metavar="X", help="epochs over which the rate rises (0)")
    what.add_argument(
        "--batch-size", type=int, metavar="N", help="images a step, over all processes together"
    )
    what.add_argument(
        "--accumulation-steps", type=int, metavar="N", help="parts a batch is worked through in"
    )
    what.add_argument("--epochs", type=int, metavar="N", help="passes over the training images")
    what.add_argument("--patience", type=int, metavar="N", help="stop after N epochs that validate no better")
    what.add_argument("--seed", type=int, metavar="N", help="all randomness flows from it (0)")
    what.add_argument(
        "--mixed-precision",
        choices=PRECISIONS,
        metavar="P",
        help="no, bf16 or fp16 (the launcher's, else the recipe's)",
    )
    what.add_argument(
        "--gradient-dtype",
        choices=GRADIENT_DTYPES,
        metavar="T",
        help="float32, or float64: the same weights on any number of processes",
    )
    what.add_argument(
        "--matmul-precision",
        choices=MATMUL_PRECISIONS,
        metavar="P",
        help="auto (medium where it loses nothing), highest, high, medium",
    )
    what.add_argument("--compile", action="store_true", help="with torch.compile")
    better = parser.add_argument_group(
        "against overfitting and divergence (defaults: the recipe's, else none)"
    )
    better.add_argument("--weight-decay", type=float, metavar="X", help="L2; for adam decoupled, as AdamW")
    better.add_argument("--dropout", type=float, metavar="P", help="share of hidden units left out of a step")
    better.add_argument("--label-smoothing", type=float, metavar="P", help="share of it for all classes")
    better.add_argument("--augment-shift", type=int, metavar="N", help="move images by up to N pixels")
    better.add_argument("--deform", type=float, metavar="X", help="turn, slant and bend images (try 1)")
    better.add_argument("--adversarial", type=float, metavar="X", help="move pixels by X against the model")
    better.add_argument("--ema-decay", type=float, metavar="X", help="keep the weights' moving average")
    better.add_argument("--clip-norm", type=float, metavar="X", help="largest norm of the gradient")
    data = parser.add_argument_group("data")
    data.add_argument(
        "--dataset",
        metavar="NAME",
        help="mnist, fashion_mnist, kmnist, digits, folder:DIR with one folder a class, or arrays:DIR "
        "with train_images.npy, train_labels.npy, test_...; "
        "auto (the default): the recipe's, or digits where it cannot be downloaded",
    )
    data.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="torchvision's root ($MLP_DIST_DATA, else data)"
    )
    data.add_argument("--image-size", type=int, metavar="N", help="resize images to N x N pixels")
    data.add_argument(
        "--normalize",
        type=normalization,
        metavar="MEAN,STD",
        help="none: as ToTensor gives them; data: by the training images' own; --normalize=-0.5,0.5",
    )
    data.add_argument(
        "--skip-bad-images", action="store_true", help="leave files out of a folder that cannot be read"
    )
    data.add_argument(
        "--val-size",
        type=int,
        metavar="N",
        help="training images held out (one in twelve); 0: keep the last epoch",
    )
    where = parser.add_argument_group("where it goes")
    where.add_argument("--output-dir", type=Path, metavar="DIR", help="(a new one under outputs)")
    where.add_argument("--experiment", metavar="NAME", help=f"MLflow experiment ({DEFAULT_EXPERIMENT})")
    where.add_argument("--run-name", metavar="NAME", help="MLflow run (recipe, changes, seed)")
    where.add_argument("--log-every", type=int, metavar="N", help="tell the loss every N steps")
    where.add_argument("--checkpoint-every-steps", type=int, metavar="N", help="not only after each epoch")
    where.add_argument(
        "--resume",
        nargs="?",
        choices=RESUME,
        const="yes",
        default="no",
        metavar="auto",
        help="go on in --output-dir, else in the newest under outputs; auto: if there is a run in it",
    )
    return parser.parse_args()


def hidden_sizes(text: str) -> tuple[int, ...]:
    try:
        return () if text == "none" else tuple(map(int, text.split(",")))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not widths as 500 or 256,64, nor none") from error


def normalization(text: str) -> tuple[float, float] | None:
    if text in ("none", "data"):
        return TO_TENSOR if text == "none" else None
    try:
        mean, std = map(float, text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is not MEAN,STD as 0.5,0.5, nor none or data") from error
    return mean, std


def configure(args: argparse.Namespace) -> tuple[TrainConfig, set[str]]:
    """The recipe with what the flags say, and the names of the fields they gave."""
    others = ("list_recipes", "resume")
    given = {name: value for name, value in vars(args).items() if name not in others}
    if given.get("dataset") == "auto":
        del given["dataset"]
    fields = set(given)
    if "dataset" in given:
        given |= {"dataset": absolute_dataset(given["dataset"]), "fallback_dataset": None}
    # "no" is also what the launcher says where nobody has chosen: the recipe's own stands then.
    if (precision := os.environ.get("ACCELERATE_MIXED_PRECISION", "no")) != "no":
        given.setdefault("mixed_precision", precision)
    return replace(get_recipe(given.get("recipe", "mnist")), **given), fields


def main() -> None:
    # The imports take seconds, in which the launcher may die too.
    end_with_launcher()
    args = parse()
    if args.list_recipes:
        print(recipe_table())
        return
    config, given = configure(args)
    if is_main():
        # It imports mlflow while this process imports torch.
        recorder.start()
    # What imports make stays to the end; a garbage collector that looks at it over and over takes a second.
    gc.disable()
    # Importing accelerate takes seconds; a wrong flag is told before.
    with progress.stages("starting"):
        from mlp_dist.training.start import start_training

    training = start_training(config, resume=args.resume, given=given)
    gc.freeze()
    gc.enable()
    try:
        result = training.fit()
    except (Interrupted, ProcessLostError) as stop:
        directory = shlex.quote(str(training.output_dir))
        stop.add_note(f"go on with: {launch_command()} --resume --output-dir {directory}")
        raise
    if training.accelerator.is_main_process:
        experiment = training.config.experiment
        print(next_steps.after_training(result["run_id"], result["output_dir"], experiment))
        print(json.dumps(result), flush=True)
    training.accelerator.end_training()


if __name__ == "__main__":
    command.run(main, at_once=True)
