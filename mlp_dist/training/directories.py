"""The directory of a run: a new one, or one to go on in. On the main process."""

import contextlib
import itertools
import os
import shlex
import sys
from collections.abc import Set
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from mlp_dist.config import FREE_ON_RESUME, TrainConfig
from mlp_dist.core.errors import CheckpointError, UsageError
from mlp_dist.core.io import remove_left, try_to_lock
from mlp_dist.tracking.run_dir import PLAN, has_record
from mlp_dist.tracking.sent import is_sent
from mlp_dist.training.checkpoint import (
    CHECKPOINT,
    Checkpoint,
    has_checkpoint,
    load_checkpoint,
    set_aside_damaged,
)
from mlp_dist.training.distributed.rendezvous import recall, remember

OUTPUTS = Path("outputs")

_REMEMBERED = "output_dir"
"""The launcher's name for the directory, which it keeps for the attempts that follow."""


_LONGEST_NAME = 200
"""Bytes; file systems have 255, and a number may come behind it."""

_claims: dict[Path, int] = {}
"""What holds the locks of this process's directories."""


def new_output_dir(config: TrainConfig) -> Path:
    """The one asked for, or a new one named after the run. An unfinished run in it is not overwritten."""
    name = config.run_name or f"{config.recipe}-{datetime.now():%Y%m%d-%H%M%S}"
    directory = config.output_dir or OUTPUTS / _file_name(name)
    try:
        if config.output_dir is None:
            directory = make_new(directory)
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(
            f"the output directory {directory.absolute()} cannot be made ({error.strerror}); "
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
    if (lock := try_to_lock(directory)) is None:
        raise UsageError(f"another training runs in {directory}; choose another --output-dir")
    _claims[directory.absolute()] = lock
    remove_left(directory)


def release(directory: Path) -> None:
    """Undo what claimed the directory of a run that is over, for a process that goes on to others."""
    os.close(_claims.pop(directory.absolute()))


def _check_finished(directory: Path) -> None:
    try:
        before, _ = load_checkpoint(directory)
    except CheckpointError as error:
        raise UsageError(
            f"a run in {directory} would overwrite what is there ({error}); choose another --output-dir"
        ) from error
    if before.has_begun and not before.is_over:
        raise UsageError(
            f"{directory} holds a run that stopped after {before.progress} of {before.config.epochs}: "
            "go on with it by --resume, or choose another --output-dir"
        )
    if before.has_begun and has_record(directory) and not is_sent(directory):
        raise UsageError(
            f"{directory} holds a run that MLflow has not got whole: "
            f"python -m mlp_dist.sync {shlex.quote(str(directory))}, or choose another --output-dir"
        )


# Going on


def find_checkpoint(config: TrainConfig, *, resume: str) -> tuple[Path | None, Checkpoint | None]:
    """The directory to go on in and what is there; (None, None) for a new run."""
    directory = config.output_dir
    if (before := recall(_REMEMBERED)) is not None:
        directory = Path(before)
    elif resume == "no":
        return None, None
    elif resume == "auto":
        if directory is None:
            raise UsageError("resume is auto; it needs --output-dir, where there may be a run to go on with")
        if not has_checkpoint(directory):
            return None, None
    elif directory is None:
        directory = _newest_output_dir()
    checkpoint, damage = load_checkpoint(directory)
    _claim(directory)
    if damage:
        print(f"warning: {damage}", file=sys.stderr, flush=True)
        set_aside_damaged(directory)
    return directory.absolute(), checkpoint


def _newest_output_dir() -> Path:
    found = sorted(OUTPUTS.glob(f"*/{CHECKPOINT}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(
            f"there is no run under {OUTPUTS.absolute()} to resume; name its directory with --output-dir"
        )
    return found[-1].parent


def continued(checkpoint: Checkpoint, config: TrainConfig, given: Set[str]) -> TrainConfig:
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
    if "epochs" in other and saved.schedule != "constant":
        raise UsageError(
            f"the run's {saved.schedule} schedule ends with epoch {saved.epochs}, "
            f"so {other['epochs']} epochs would be another training: leave --epochs out to go on with it"
        )
    if other.get("epochs", saved.epochs) < checkpoint.num_epochs:
        raise UsageError(
            f"the run has trained {checkpoint.num_epochs} epochs already, "
            f"more than the {other['epochs']} asked for"
        )
    return replace(saved, **other)


def remember_output_dir(directory: Path) -> None:
    """From here on an attempt that follows this one finds something to go on from."""
    remember(_REMEMBERED, str(directory))
