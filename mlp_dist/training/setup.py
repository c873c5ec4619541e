"""Before the first step: all processes agree on configuration, data, state and output directory.

The main process reads the checkpoint and sends it to the others, and each machine reads its own copy of the
data set, so machines need no shared disk.
"""

import os
import shutil
from collections.abc import Sequence, Set
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin
from torch import nn

from mlp_dist.config import TrainConfig
from mlp_dist.console import process
from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.errors import CheckpointError, DataError, DownloadError, UsageError
from mlp_dist.data.arrays import Dataset
from mlp_dist.data.batches import usual_val_size
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset
from mlp_dist.training import distributed
from mlp_dist.training.checkpoint import Checkpoint, find_checkpoint, new_output_dir, resumed_config
from mlp_dist.training.distributed import Peers
from mlp_dist.training.trainer import Trainer

MOST_NAMED = 50
"""Classes that the announcement names."""


def start_training(
    config: TrainConfig,
    *,
    resume: str = "no",
    given: Set[str] = frozenset(),
    parent: Path | None = None,
    command: Sequence[str] = (),
    data: Dataset | None = None,
    module: nn.Module | None = None,
) -> Trainer:
    """A Trainer for `config`, on the processes that the launcher started.

    `data` and `module` take the place of the data set and the model that `config` names.

    With `resume`, "yes" or "auto", it continues the run in `config.output_dir`, or in the newest directory
    under `outputs`. Of `config`, only the fields in `given` are used then; only those that are free on resume
    may differ. After a restart by the launcher, it continues the previous attempt's run. `parent` is the
    directory of the run in which this run is nested, `command` are the words that start or repeat it.

    Raises UsageError, CheckpointError or DataError on all processes; ProcessLostError if one has died.
    """
    use_cpu = process.use_cpu()
    _check_machine(config, use_cpu)
    peers = distributed.connect(use_cpu)
    with peers.watched():
        output_dir, checkpoint = peers.on_main(
            lambda: find_checkpoint(config, resume=resume, training=peers.training)
        )
        if checkpoint is not None:
            config = resumed_config(checkpoint, config, given)
        config, data = _load_data(peers, config, data)
        if checkpoint is not None and checkpoint.data_digest not in ("", data.digest()):
            raise CheckpointError(
                f"{data.title} has changed since the run was started: resuming would mix two data sets; "
                "leave --resume out to start a new run"
            )
        output_dir = output_dir or peers.on_main(lambda: new_output_dir(config))
        config = replace(config, output_dir=output_dir)
        accelerator = Accelerator(
            cpu=use_cpu,
            mixed_precision=config.mixed_precision,
            # The launcher's settings are in `config`; Accelerate would apply them once more.
            dynamo_backend="no",
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1),
        )
        trainer = Trainer(
            config,
            data,
            accelerator,
            output_dir,
            peers=peers,
            checkpoint=checkpoint,
            workers=_hardware(accelerator),
            parent=parent,
            command=command,
            module=module,
        )
    if peers.rank == 0:
        _announce(trainer, checkpoint)
    return trainer


def _check_machine(config: TrainConfig, use_cpu: bool) -> None:
    if config.mixed_precision == "fp16" and use_cpu:
        raise UsageError("mixed-precision fp16 needs a GPU; bf16 works on the CPU too")
    compiler = os.environ.get("CXX", "g++")
    if config.compile and shutil.which(compiler) is None:
        raise UsageError(
            f"compile needs a C++ compiler, and {compiler} was not found: install it, set CXX to another, "
            "or leave --compile out"
        )


def _load_data(peers: Peers, config: TrainConfig, given: Dataset | None) -> tuple[TrainConfig, Dataset]:
    if given is not None:
        if len(set(peers.gather(given.digest()))) > 1:
            raise DataError("the processes were given different data: make or split it from a fixed seed")
        return complete_config(config, given)
    config = replace(config, data_dir=(config.data_dir or default_data_dir()).absolute())
    data = _read_in_turn(peers, config)
    if isinstance(data, DownloadError) and config.fallback_dataset is not None:
        config = replace(config, dataset=config.fallback_dataset)
        if peers.rank == 0:
            reason = str(data).splitlines()[0]
            print(f"{reason}; training on {CATALOG[config.dataset].title} instead", flush=True)
        data = _read_in_turn(peers, config)
    if isinstance(data, DataError):
        raise data
    return complete_config(config, data)


def complete_config(config: TrainConfig, data: Dataset) -> tuple[TrainConfig, Dataset]:
    """Set what depends on the data: val_size in the configuration, `normalize` in the data's image format.

    Raises UsageError if no training images would be left.
    """
    if config.normalize is not None:
        mean, std = config.normalize
        channels = data.image.channels
        data = replace(data, image=replace(data.image, mean=(mean,) * channels, std=(std,) * channels))
    num_images = len(data.train)
    if data.val is not None:
        if config.val_size not in (None, len(data.val)):
            raise UsageError(f"val-size {config.val_size}: {data.title} has {len(data.val)} of its own")
        val_size = len(data.val)
    else:
        val_size = usual_val_size(num_images) if config.val_size is None else config.val_size
    if data.val is None and val_size >= num_images:
        raise UsageError(
            f"val-size {val_size} leaves nothing to train on: {data.title} has {num_images} training images"
        )
    return replace(config, dataset=data.name, fallback_dataset=None, val_size=val_size), data


def _read_in_turn(peers: Peers, config: TrainConfig) -> Dataset | DataError:
    """The data set, or the first error of any process; the same on all processes.

    One process per machine reads first, since it may have to download files or decode images.
    """
    outcome: Dataset | DataError | None = None
    for first in (True, False):
        if peers.is_local_main == first:
            outcome = _read(config)
        problems = peers.gather(outcome if isinstance(outcome, DataError) else None)
        found = next((each for each in problems if each is not None), None)
        if found is not None:
            return found
    return cast(Dataset, outcome)


def _read(config: TrainConfig) -> Dataset | DataError:
    data_dir, size = config.data_dir or default_data_dir(), config.image_size
    try:
        prepare_dataset(config.dataset, data_dir)
        return read_dataset(config.dataset, data_dir, image_size=size, skip_bad_images=config.skip_bad_images)
    except DataError as error:
        return error


def _hardware(accelerator: Accelerator) -> str:
    number, device, threads = accelerator.num_processes, accelerator.device, torch.get_num_threads()
    is_cpu, processes = device.type == "cpu", f"process{'es' * (number > 1)}"
    kind = "CPU" if is_cpu else torch.cuda.get_device_name(device)
    each = f" of {threads} thread{'s' * (threads > 1)}" if is_cpu else ""
    return f"{number} {kind} {processes}{each}"


def _classes(data: Dataset) -> str:
    """The classes, and how many images for training and validation each has."""
    counts = torch.bincount(data.train.labels, minlength=len(data.classes)).tolist()
    named = [f"{name} ({count:,})" for name, count in zip(data.classes, counts, strict=True)]
    more = f" and {len(named) - MOST_NAMED} more" if len(named) > MOST_NAMED else ""
    return f"{len(named)} classes: {', '.join(named[:MOST_NAMED])}{more}"


def _announce(trainer: Trainer, checkpoint: Checkpoint | None) -> None:
    config, context = trainer.state.config, trainer.context
    place, here = context.output_dir, Path.cwd()
    place = place.relative_to(here) if place.is_relative_to(here) else place
    no_gpu = " (there is no GPU)" if context.world_size > 1 and not torch.cuda.is_available() else ""
    lines = [
        f"{context.data.title}: {len(context.train_set):,} training, {len(context.val_set):,} validation and "
        f"{len(context.test_set):,} test images",
        _classes(context.data),
        f"{config.recipe}: {context.spec}, {trainer.state.num_parameters:,} parameters, "
        f"{config.optimizer} at {config.lr:g}, global batch {config.batch_size}, seed {config.seed}, "
        f"gradients in {config.gradient_dtype}, matmul precision {context.matmul_precision}",
        f"training on {context.workers}{no_gpu} in {place}",
    ]
    if checkpoint is not None:
        lines.append(f"resumed after {checkpoint.progress} of {config.epochs}")
        if checkpoint.workers not in ("", context.workers):
            lines.append(
                f"the run was on {checkpoint.workers}: its weights will equal those of an uninterrupted run "
                "up to rounding, not bit for bit"
            )
    if not len(context.val_set):
        lines.append(
            "no validation images: the last epoch's weights are kept, and probabilities are not calibrated"
        )
    print("\n".join(lines), flush=True)
