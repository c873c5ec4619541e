"""Train a recipe on the processes that `accelerate launch` starts.

  accelerate launch -m mlp_dist.train
  accelerate launch -m mlp_dist.train --dataset digits --lr 0.2
  accelerate launch --multi_gpu --num_processes 2 -m mlp_dist.train

The first uses one CPU process or all GPUs, the last two GPUs or processes.

The last line on stdout is one JSON object with the result.
"""

import gc
import json
import shlex
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Literal

from mlp_dist.config import GROUPS, TrainConfig, absolute_dataset
from mlp_dist.console import command, launcher, progress
from mlp_dist.console.options import option, parse
from mlp_dist.console.process import Interrupted, end_with_launcher, is_main, launch_command
from mlp_dist.core.errors import ProcessLostError
from mlp_dist.recipes import get_recipe, recipe_table
from mlp_dist.tracking import next_steps
from mlp_dist.tracking.follow import Follower
from mlp_dist.tracking.run_dir import choose_output_dir, output_name

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
        [*launcher.launcher_flags(), *words],
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
        given |= {"dataset": absolute_dataset(given["dataset"]), "fallback_dataset": None}
    return asked, replace(recipe, **given), fields


def _recipe(words: Sequence[str]) -> str:
    """The recipe among the words, which the other options' defaults depend on."""
    named = "mnist"
    for word, following in pairwise([*words, ""]):
        if word == "--recipe" or word.startswith("--recipe="):
            named = following if word == "--recipe" else word.partition("=")[2]
    return named


def _remove_empty(directory: Path) -> None:
    """Remove a directory that was made for a run that did not begin in it."""
    with suppress(OSError):
        directory.rmdir()
        directory.parent.rmdir()


def main() -> None:
    # First, since the launcher may die during the imports, which take seconds.
    end_with_launcher()
    asked, config, given = configure(sys.argv[1:])
    if asked.list_recipes:
        print(recipe_table())
        return
    launcher.choose_interface()
    follower, made = None, None
    if is_main():
        directory = choose_output_dir(config.output_dir, output_name(config), asked.resume)
        made = directory if directory != config.output_dir else None
        config = replace(config, output_dir=directory)
        # It imports mlflow while this process imports torch.
        follower = Follower(directory)
    # Imported objects are never garbage; collecting during imports takes a second.
    gc.disable()
    try:
        # Accelerate's import takes seconds; a wrong flag is reported before.
        with progress.stages("starting"):
            from mlp_dist.training.setup import start_training
        training = start_training(config, resume=asked.resume, given=given)
    except BaseException:
        if follower is not None:
            follower.stop()
        if made is not None:
            _remove_empty(made)
        raise
    finally:
        gc.freeze()
        gc.enable()
    if made is not None and made.absolute() != training.context.output_dir:
        # A restart by the launcher continues in the directory of the attempt before.
        _remove_empty(made)
    try:
        result = training.fit(follower=follower)
    except (Interrupted, ProcessLostError) as stop:
        place = shlex.quote(str(training.context.output_dir))
        stop.add_note(f"resume with: {launch_command()} --resume --output-dir {place}")
        raise
    if training.accelerator.is_main_process:
        experiment = training.state.config.experiment
        print(next_steps.after_training(result["run_id"], result["output_dir"], experiment))
        print(json.dumps(result), flush=True)
    training.accelerator.end_training()


if __name__ == "__main__":
    command.run(main, at_once=True)
