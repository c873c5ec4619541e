"""A run's output directory: a new one, or the one to resume. Used on the main process."""

import contextlib
import itertools
import os
import shlex
import sys
from collections.abc import Set
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from mlp_dist.config import OPTIONS, TrainConfig
from mlp_dist.core.errors import CheckpointError, UsageError
from mlp_dist.core.io import remove_left, try_to_lock
from mlp_dist.tracking.run_dir import PLAN, has_record, is_sent
from mlp_dist.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    has_checkpoint,
    load_checkpoint,
    set_aside_damaged,
    write_history,
)
from mlp_dist.training.distributed import remembered_output_dir

OUTPUTS = Path("outputs")

_LONGEST_NAME = 200
"""Bytes; file systems allow 255, and a number may be appended."""

_claims: dict[Path, int] = {}
"""The directories that this process has locked -> their descriptors."""


def new_output_dir(config: TrainConfig) -> Path:
    """Make and lock `config.output_dir`, or a new directory named after the run.

    Raises UsageError if it is in use, holds a sweep, or a run that is unfinished or not yet in MLflow.
    """
    name = config.run_name or f"{config.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    directory = config.output_dir or OUTPUTS / _file_name(name)
    try:
        if config.output_dir is None:
            directory = make_new(directory)
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"cannot create the output directory {directory.absolute()} ({error.strerror}); "
            "choose another --output-dir"
        ) from error
    _claim(directory)
    if (directory / PLAN).exists():
        raise UsageError(f"{directory} holds a sweep; choose another --output-dir")
    if has_checkpoint(directory):
        _check_finished(directory)
    return directory.absolute()


def _file_name(name: str) -> str:
    return name.replace(os.sep, "-").encode()[:_LONGEST_NAME].decode(errors="ignore")


def make_new(wanted: Path) -> Path:
    """Make `wanted`, or, if it exists, `wanted-2`, `wanted-3`, ..."""
    wanted.parent.mkdir(parents=True, exist_ok=True)
    for number in itertools.count(1):
        directory = wanted if number == 1 else wanted.with_name(f"{wanted.name}-{number}")
        with contextlib.suppress(FileExistsError):
            directory.mkdir()
            break
    return directory


def _claim(directory: Path) -> None:
    """Lock the directory until this process ends, so that no other training writes to it."""
    # This process may have locked it for a start that failed.
    if directory.absolute() not in _claims:
        if (lock := try_to_lock(directory)) is None:
            raise UsageError(f"another training is running in {directory}; choose another --output-dir")
        _claims[directory.absolute()] = lock
    remove_left(directory)


def release(directory: Path) -> None:
    """Unlock the directory of a run that has ended."""
    if (lock := _claims.pop(directory.absolute(), None)) is not None:
        os.close(lock)


def _check_finished(directory: Path) -> None:
    try:
        before, _ = load_checkpoint(directory)
    except CheckpointError as error:
        raise UsageError(
            f"{directory} holds a checkpoint that cannot be read ({error}); choose another --output-dir"
        ) from error
    if before.has_begun and not before.is_over:
        raise UsageError(
            f"{directory} holds a run that stopped after {before.progress} of {before.config.epochs}: "
            "continue it with --resume, or choose another --output-dir"
        )
    if before.has_begun and has_record(directory) and not is_sent(directory):
        raise UsageError(
            f"{directory} holds a run that is not fully uploaded to MLflow: upload it with "
            f"python -m mlp_dist.sync {shlex.quote(str(directory))}, or choose another --output-dir"
        )


def find_checkpoint(config: TrainConfig, *, resume: str) -> tuple[Path | None, Checkpoint | None]:
    """The directory to resume and its checkpoint; (None, None) for a new run."""
    directory = config.output_dir
    if (before := remembered_output_dir()) is not None:
        directory = before
    elif resume == "no":
        return None, None
    elif resume == "auto":
        if directory is None:
            raise UsageError("resume is auto; it needs --output-dir, where there may be a run to resume")
        if not has_checkpoint(directory):
            return None, None
    elif directory is None:
        directory = _newest_output_dir()
    checkpoint, damage = load_checkpoint(directory)
    _claim(directory)
    if damage:
        print(f"warning: {damage}", file=sys.stderr, flush=True)
        set_aside_damaged(directory)
    write_history(checkpoint, directory)
    return directory.absolute(), checkpoint


def _newest_output_dir() -> Path:
    found = sorted(OUTPUTS.glob(f"*/{CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(
            f"there is no run under {OUTPUTS.absolute()} to resume; name its directory with --output-dir"
        )
    return found[-1].parent


def resumed_config(checkpoint: Checkpoint, config: TrainConfig, given: Set[str]) -> TrainConfig:
    """The checkpoint's configuration, with the fields in `given` taken from `config`.

    Raises UsageError if one of them differs that must not.
    """
    saved = checkpoint.config
    asked = {name: getattr(config, name) for name in given - {"output_dir"}}
    other = {name: value for name, value in asked.items() if value != getattr(saved, name)}
    fixed = [name for name in sorted(other) if not OPTIONS[name].free_on_resume]
    if fixed:
        differences = ", ".join(f"{name} {getattr(saved, name)}, not {other[name]}" for name in fixed)
        raise UsageError(
            f"the run was started with {differences}: leave that out to continue it, "
            "or leave --resume out to start a new run"
        )
    if "epochs" in other and saved.schedule != "constant":
        raise UsageError(
            f"the run's {saved.schedule} schedule ends with epoch {saved.epochs}, "
            f"so {other['epochs']} epochs would be another training: leave --epochs out to continue it"
        )
    if other.get("epochs", saved.epochs) < checkpoint.num_epochs:
        raise UsageError(
            f"the run has already trained {checkpoint.num_epochs} epochs, "
            f"more than the {other['epochs']} requested"
        )
    return replace(saved, **other)
