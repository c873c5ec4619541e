"""Train a recipe on the processes that `accelerate launch` starts.

  accelerate launch -m mlp_dist.train
  accelerate launch -m mlp_dist.train --dataset digits --lr 0.2
  accelerate launch --multi_gpu --num_processes 2 -m mlp_dist.train

The first uses one CPU process or all GPUs, the last two GPUs or processes.

The last line on stdout is one JSON object with the result.
"""

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from mlp_dist.config import GROUPS, TrainConfig, absolute_dataset
from mlp_dist.console import command
from mlp_dist.console.launcher import launcher_flags
from mlp_dist.console.options import option, parse
from mlp_dist.console.process import end_with_launcher, is_main, launch_command
from mlp_dist.recipes import default_recipe, get_recipe, recipe_table
from mlp_dist.training.run import run

_DEVICES = (
    "the launcher chooses devices and processes: accelerate launch --cpu, --gpu_ids 0 or --multi_gpu "
    "--num_processes N, before the script"
)
ADVICE = {
    "--learning-rate": "use --lr",
    "--workers": "images are in memory and need no workers; accelerate launch --num_processes N, before the "
    "script, sets the number of processes",
    **dict.fromkeys(("--gpu", "--gpus", "--device", "--cpu", "--num-processes"), _DEVICES),
    "--verbose": "--log-every N prints the loss every N steps",
}
"""Flags of other trainers, and what to use instead."""


@dataclass(frozen=True, kw_only=True)
class Command:
    """What this command does."""

    resume: Literal["no", "yes", "auto"] = option(
        "no", names={"": "yes"}, advice="; to continue the run in a directory: --resume --output-dir DIR"
    )
    """Continue the run in --output-dir, else the newest under outputs; auto: only if there is one."""

    list_recipes: bool = option(False)
    """List all recipes and exit."""


def configure(words: Sequence[str]) -> tuple[Command, TrainConfig, set[str]]:
    """The command, the recipe with the options of the words and of the launcher, and the fields they set."""
    recipe = get_recipe(_recipe(words))
    given = parse(
        # A flag that is given twice has its last value.
        [*launcher_flags(), *words],
        (Command, *GROUPS),
        vars(Command()) | vars(recipe),
        prog="accelerate launch -m mlp_dist.train",
        description=__doc__ or "",
        advice=ADVICE,
    )
    asked = Command(**{name: given.pop(name) for name in vars(Command()) if name in given})
    if given.get("dataset") == "auto":
        del given["dataset"]
    fields = set(given)
    if "dataset" in given:
        given["dataset"] = absolute_dataset(given["dataset"])
    if {"dataset", "data_dir"} & set(given):
        given["fallback_dataset"] = None
    return asked, replace(recipe, **given), fields


def _recipe(words: Sequence[str]) -> str:
    """The recipe among the words, on which the other options' defaults depend."""
    given = {"--recipe": "", "--dataset": "auto"}
    for word, following in pairwise([*words, ""]):
        name, equals, value = word.partition("=")
        if name in given:
            given[name] = value if equals else following
    return given["--recipe"] or default_recipe(given["--dataset"])


def main() -> None:
    # First, since the launcher may die during the imports, which take seconds.
    end_with_launcher()
    asked, config, given = configure(sys.argv[1:])
    if asked.list_recipes:
        print(recipe_table())
        return
    command_line = [*launch_command().split(), *sys.argv[1:]]
    result = run(config, resume=asked.resume, given=given, command=command_line)
    if is_main():
        print(json.dumps(result.metrics), flush=True)
    # Imported by now.
    from accelerate import PartialState

    PartialState().destroy_process_group()


if __name__ == "__main__":
    command.run(main, at_once=True)
