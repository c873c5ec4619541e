"""What comes before the first step: all processes agree on configuration, data, state and directory.

Files are read where they are, by the main process or, for data, by one process a machine; what the others
need is sent to them, so machines need no common disk.
"""

import contextlib
import fcntl
import itertools
import os
from collections.abc import Callable, Set
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import TypeVar, cast

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import broadcast_object_list, gather_object

from mlp_dist import processes
from mlp_dist.checkpoint import CHECKPOINT, Checkpoint, load_checkpoint
from mlp_dist.config import FREE_ON_RESUME, TrainConfig
from mlp_dist.core.errors import CheckpointError, DataError, DownloadError, MlpDistError, UsageError
from mlp_dist.data.catalog import CATALOG
from mlp_dist.data.dataset import Dataset
from mlp_dist.data.readers import default_data_dir, prepare_dataset, read_dataset
from mlp_dist.trainer import Trainer

OUTPUTS = Path("outputs")

VALIDATION_SHARE = 12
"""One training image in twelve is held out where no number was asked for."""

T = TypeVar("T")


def start_training(config: TrainConfig, *, resume: bool = False, given: Set[str] = frozenset()) -> Trainer:
    """A Trainer for `config` on the processes that the launcher started.

    With `resume`, the one that stopped in `config.output_dir`, or in the newest directory under `outputs`;
    of `config` only the fields in `given` count then, and only those of FREE_ON_RESUME may differ.

    Raises UsageError, CheckpointError or DataError, on every process alike.
    """
    processes.check_launcher()
    use_cpu = processes.use_cpu()
    if config.mixed_precision == "fp16" and use_cpu:
        raise UsageError("mixed-precision fp16 needs a GPU; bf16 works on the CPU too")
    processes.end_with_launcher()
    processes.set_threads()
    state = PartialState(cpu=use_cpu)
    if state.num_processes != processes.world_size():
        raise UsageError(
            f"{processes.world_size()} processes were started, but Accelerate sees {state.num_processes}; "
            "start them with accelerate launch --multi_gpu --num_processes N"
        )
    checkpoint = None
    if resume:
        output_dir, checkpoint = _on_main(state, lambda: _find_checkpoint(config.output_dir))
        config = _continued(checkpoint, config, given)
    config, data = _load_data(state, config)
    if checkpoint is None:
        output_dir = _on_main(state, lambda: _new_output_dir(config))
    else:
        _check_same_data(checkpoint, data)
    config = replace(config, output_dir=output_dir, run_name=config.run_name or output_dir.name)
    accelerator = Accelerator(cpu=use_cpu, mixed_precision=config.mixed_precision)
    trainer = Trainer(config, data, accelerator, output_dir, checkpoint)
    if state.is_main_process:
        _announce(trainer, resumed=checkpoint is not None)
    return trainer


def _on_main(state: PartialState, work: Callable[[], T]) -> T:
    """What `work` returns on the main process, on all of them; an error it raises, too."""
    outcome: list[object] = [None, None]
    if state.is_main_process:
        try:
            outcome[0] = work()
        except MlpDistError as error:
            outcome[1] = error
    if state.num_processes > 1:
        broadcast_object_list(outcome)
    result, problem = outcome
    if isinstance(problem, MlpDistError):
        raise problem
    return cast(T, result)


# Data


def _load_data(state: PartialState, config: TrainConfig) -> tuple[TrainConfig, Dataset]:
    config = replace(config, data_dir=(config.data_dir or default_data_dir()).absolute())
    data = _read_in_turn(state, config)
    if isinstance(data, DownloadError) and config.fallback_dataset is not None:
        config = replace(config, dataset=config.fallback_dataset)
        if state.is_main_process:
            reason = str(data).splitlines()[0]
            print(f"{reason}; training on {CATALOG[config.dataset].title} instead", flush=True)
        data = _read_in_turn(state, config)
    if isinstance(data, DataError):
        raise data
    return settle(config, data)


def settle(config: TrainConfig, data: Dataset) -> tuple[TrainConfig, Dataset]:
    """What was left to the data is settled by them: the normalization, the number of validation images.

    Raises UsageError where nothing would be left to train on.
    """
    if config.normalize is not None:
        mean, std = config.normalize
        channels = data.image.channels
        data = replace(data, image=replace(data.image, mean=(mean,) * channels, std=(std,) * channels))
    num_images = len(data.train)
    val_size = round(num_images / VALIDATION_SHARE) if config.val_size is None else config.val_size
    if val_size >= num_images:
        raise UsageError(
            f"val-size {val_size} leaves nothing to train on: {data.title} has {num_images} training images"
        )
    return replace(config, dataset=data.name, fallback_dataset=None, val_size=val_size), data


def _read_in_turn(state: PartialState, config: TrainConfig) -> Dataset | DataError:
    """The data set, or the error that a process met: on all processes alike.

    First one process a machine, which may have to download it or to decode a folder; then the others, who
    find that done.
    """
    outcome: Dataset | DataError | None = None
    for first in (True, False):
        if state.is_local_main_process == first:
            outcome = _read(config)
        problem = outcome if isinstance(outcome, DataError) else None
        problems = gather_object([problem]) if state.num_processes > 1 else [problem]
        found = next((each for each in problems if each is not None), None)
        if found is not None:
            return cast(DataError, found)
    return cast(Dataset, outcome)


def _read(config: TrainConfig) -> Dataset | DataError:
    data_dir = config.data_dir or default_data_dir()
    try:
        prepare_dataset(config.dataset, data_dir)
        return read_dataset(
            config.dataset,
            data_dir,
            image_size=config.image_size,
            skip_bad_images=config.skip_bad_images,
        )
    except DataError as error:
        return error


def _check_same_data(checkpoint: Checkpoint, data: Dataset) -> None:
    if checkpoint.data_digest not in ("", data.digest()):
        raise CheckpointError(
            f"{data.title} has changed since the run was started: going on would mix two data sets; "
            "leave --resume out to start a new run"
        )


# The output directory


def _new_output_dir(config: TrainConfig) -> Path:
    """The one asked for, or a new one named after the run. An unfinished run in it is not overwritten."""
    directory = config.output_dir
    try:
        if directory is None:
            name = config.run_name or f"{config.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
            directory = _make_new(OUTPUTS / name.replace(os.sep, "-"))
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"the output directory {directory} cannot be made: {error.strerror}") from error
    _claim(directory)
    if (directory / CHECKPOINT).exists():
        _check_finished(directory)
    return directory.absolute()


def _make_new(wanted: Path) -> Path:
    """Make `wanted`, or with the first number behind it that is free."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        directory = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with contextlib.suppress(FileExistsError):
            directory.mkdir()
            break
    return directory


def _claim(directory: Path) -> None:
    """Lock the directory until this process ends: two trainings in it would overwrite each other."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise UsageError(f"another training runs in {directory}; choose another --output-dir") from error


def _check_finished(directory: Path) -> None:
    try:
        before = load_checkpoint(directory)
    except CheckpointError as error:
        raise UsageError(
            f"a run in {directory} would overwrite what is there ({error}); choose another --output-dir"
        ) from error
    if before.num_epochs < before.config.epochs:
        raise UsageError(
            f"{directory} holds a run that stopped after epoch {before.num_epochs} of "
            f"{before.config.epochs}: go on with it by --resume, or choose another --output-dir"
        )


# Resuming


def _find_checkpoint(directory: Path | None) -> tuple[Path, Checkpoint]:
    if directory is None:
        found = sorted(OUTPUTS.glob(f"*/{CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
        if not found:
            raise UsageError(
                f"there is no run under {OUTPUTS.absolute()} to resume; name its directory with --output-dir"
            )
        directory = found[-1].parent
    checkpoint = load_checkpoint(directory)
    _claim(directory)
    return directory.absolute(), checkpoint


def _continued(checkpoint: Checkpoint, config: TrainConfig, given: Set[str]) -> TrainConfig:
    """The checkpoint's configuration with what may change and was asked for."""
    saved = checkpoint.config
    asked = {name: getattr(config, name) for name in given - {"output_dir"}}
    other = {name: value for name, value in asked.items() if value != getattr(saved, name)}
    fixed = [name for name in sorted(other) if name not in FREE_ON_RESUME]
    if fixed:
        differences = ", ".join(f"{name} {getattr(saved, name)}, not {other[name]}" for name in fixed)
        raise UsageError(
            f"the run was started with {differences}: leave that out to go on with it, "
            "or leave --resume out to start a new run"
        )
    if other.get("epochs", saved.epochs) < checkpoint.num_epochs:
        raise UsageError(
            f"the run has trained {checkpoint.num_epochs} epochs already, "
            f"more than the {other['epochs']} asked for"
        )
    return replace(saved, **other)


def _announce(trainer: Trainer, *, resumed: bool) -> None:
    config, data, spec = trainer.config, trainer.data, trainer.spec
    number, device = trainer.world_size, trainer.accelerator.device
    kind = "CPU" if device.type == "cpu" else torch.cuda.get_device_name(device)
    workers = f"{number} {kind} process{'es' * (number > 1)}"
    if device.type == "cpu":
        workers += f" of {torch.get_num_threads()} thread{'s' * (torch.get_num_threads() > 1)}"
        if number > 1 and not torch.cuda.is_available():
            workers += " (there is no GPU)"
    print(
        f"{data.title}: {len(trainer.train_set):,} training, {len(trainer.val_set):,} validation and "
        f"{len(data.test):,} test images\n"
        f"{config.recipe}: {spec}, {spec.num_parameters:,} parameters, "
        f"{config.optimizer} at {config.lr:g}, global batch {config.batch_size}, seed {config.seed}\n"
        f"training on {workers} in {trainer.output_dir}",
        flush=True,
    )
    if resumed:
        print(f"resumed after epoch {len(trainer.history)} of {config.epochs}", flush=True)
    if not len(trainer.val_set):
        print("no validation images: the last epoch's weights are kept", flush=True)
