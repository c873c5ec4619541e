"""What a training does, start to end: `mlp_dist.train`, which the command calls, too."""

import gc
import shlex
import sys
from collections.abc import Sequence, Set
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from mlp_dist.config import OPTIONS, TrainConfig, absolute_dataset
from mlp_dist.console import launcher, progress
from mlp_dist.console.process import Interrupted, is_main, launch_command, limit_spinning
from mlp_dist.core.catalog import MEMORY
from mlp_dist.core.errors import ProcessLostError, UsageError, unknown
from mlp_dist.recipes import default_recipe, get_recipe
from mlp_dist.tracking import next_steps
from mlp_dist.tracking.follow import Follower
from mlp_dist.tracking.run_dir import BUNDLE, choose_output_dir

if TYPE_CHECKING:
    from torch import nn

    from mlp_dist.core.bundle import Bundle


class Own(NamedTuple):
    """What the caller of `train` passes in memory."""

    data: Any
    class_names: Sequence[str] | None
    model: "nn.Module | None"


@dataclass(frozen=True)
class Result:
    """A finished training. `metrics` is what the command prints as its last line."""

    metrics: dict[str, Any]

    @property
    def run_id(self) -> str | None:
        """The run's id in MLflow; None if MLflow could not be reached."""
        run_id: str | None = self.metrics["run_id"]
        return run_id

    @property
    def test_accuracy(self) -> float:
        """Of the kept weights, from 0 to 1."""
        accuracy: float = self.metrics["test_accuracy"]
        return accuracy

    @property
    def output_dir(self) -> Path:
        return Path(self.metrics["output_dir"])

    @cached_property
    def model(self) -> "Bundle":
        """The kept model, on the CPU. Raises BundleError on a machine that does not see `output_dir`."""
        from mlp_dist.core.bundle import load_bundle

        return load_bundle(self.output_dir / BUNDLE)


def train(
    config: TrainConfig | str | None = None,
    *,
    data: Any = None,
    model: "nn.Module | None" = None,
    class_names: Sequence[str] | None = None,
    resume: bool | str = False,
    **fields: Any,
) -> Result:
    """Train a model, as the command does: the same run directory, run in MLflow, resuming and packaging.

    Runs on this process alone, or on all processes that accelerate launch, torchrun or
    accelerate.notebook_launcher started; each of them calls it with the same arguments.

    Args:
        config: A recipe's name or a configuration; default: the recipe "mnist", or "folder" for own images.
        data: Images and labels in memory: (x, y), (x, y, x_test, y_test) or a data set of (image, label);
            `read_memory` describes shapes and types. Default: the configuration's data set.
        model: Any module from float32 (B, features) to logits (B, classes), which is copied. Its weights are
            trained from where they are. Default: the configuration's perceptron.
        class_names: Of the labels 0, 1, ... in `data`; default: `data.classes`, else the labels.
        resume: Continue the run in `output_dir`, else the newest under outputs; "auto": only if there is one.
            Data and model are passed again, and compared.
        fields: Values for fields of TrainConfig.

    Raises UsageError for wrong arguments, and a model that cannot be kept without its class; DataError;
    CheckpointError; TrainingError, if the loss is not finite; Interrupted on a signal, after a checkpoint.
    """
    for name in fields:
        if name not in OPTIONS:
            raise UsageError(unknown("option", name, OPTIONS))
    given = {name: OPTIONS[name].from_json(value) for name, value in fields.items()}
    if data is not None:
        given["dataset"] = MEMORY
    elif class_names is not None:
        raise UsageError("class_names are those of data, which is None")
    if {"dataset", "data_dir"} & set(given):
        given |= {"fallback_dataset": None}
    if "dataset" in given:
        given["dataset"] = absolute_dataset(given["dataset"])
    start = (
        config
        if isinstance(config, TrainConfig)
        else get_recipe(config or default_recipe(given.get("dataset", "auto")))
    )
    asked = [] if config is None else [name for name in OPTIONS if _is_set(start, name)]
    if resume not in (True, False, "auto"):
        raise UsageError(f"resume is {resume!r}; it must be True, False or 'auto'")
    return run(
        replace(start, **given),
        resume="auto" if resume == "auto" else "yes" if resume else "no",
        given={*asked, *given} - {"fallback_dataset"},
        command=["python", *sys.argv],
        own=None if data is None and model is None else Own(data, class_names, model),
    )


def _is_set(config: TrainConfig, name: str) -> bool:
    return bool(getattr(config, name) != OPTIONS[name].default)


def run(
    config: TrainConfig,
    *,
    resume: str = "no",
    given: Set[str] = frozenset(),
    command: Sequence[str] = (),
    own: "Own | None" = None,
) -> Result:
    """Train `config`; on resume, only its fields in `given` count. `command` is what started the run."""
    limit_spinning()
    launcher.choose_interface()
    follower, made = None, None
    if is_main():
        directory = choose_output_dir(config, resume)
        made = directory if directory != config.output_dir else None
        config = replace(config, output_dir=directory)
        # It imports mlflow while this process imports torch.
        follower = Follower(directory)
    # Imported objects are never garbage; collecting during imports takes a second.
    gc.disable()
    try:
        # Accelerate's import takes seconds; a wrong flag is reported before.
        with progress.stages("starting"):
            from mlp_dist.data.memory import read_memory
            from mlp_dist.training.setup import start_training
        data, module = None, None
        if own is not None:
            module = own.model
            data = (
                None
                if own.data is None
                else read_memory(own.data, own.class_names, image_size=config.image_size)
            )
        training = start_training(
            config, resume=resume, given=given, command=command, data=data, module=module
        )
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
        place = str(training.context.output_dir)
        again = f"{launch_command()} --resume --output-dir {shlex.quote(place)}"
        stop.add_note(
            f"resume with: {again if own is None else f'train(..., resume=True, output_dir={place!r})'}"
        )
        raise
    if is_main():
        print(
            next_steps.after_training(
                result["run_id"], result["output_dir"], training.state.config.experiment
            )
        )
    return Result(result)


def _remove_empty(directory: Path) -> None:
    """Remove a directory that was made for a run that did not begin in it."""
    with suppress(OSError):
        directory.rmdir()
        directory.parent.rmdir()
