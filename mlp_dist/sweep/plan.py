"""What a sweep was asked for. It stands in the sweep's directory: space.toml, and sweep.json for the rest."""

import json
import shutil
import time
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from mlp_dist.config import DEFAULT_EXPERIMENT, TrainConfig
from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.errors import DownloadError, UsageError
from mlp_dist.core.io import try_to_lock
from mlp_dist.recipes import flags, shown, training_command
from mlp_dist.sweep.space import Space, read_space
from mlp_dist.tracking.run_dir import PLAN, RECORD, write_json

SPACE = "space.toml"

_ENDING_SECONDS = 10.0

_SAVED = ("num_trials", "seed", "experiment", "dataset", "data_dir")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`directory` is the sweep's own, an absolute path. `dataset` is what all trials are trained on: the
    search space's, or digits where that cannot be had; `data_dir` None stands for the default."""

    directory: Path
    space: Space
    num_trials: int = 20
    seed: int = 0
    experiment: str = DEFAULT_EXPERIMENT
    dataset: str
    data_dir: str | None = None

    def __post_init__(self) -> None:
        if self.num_trials < 1:
            raise UsageError(f"trials is {self.num_trials}; it must be 1 or more")
        if self.seed < 0:
            raise UsageError(f"seed is {self.seed}; it must be 0 or more")
        self.config(0, {})

    def save(self) -> None:
        write_json(self.directory / PLAN, {name: getattr(self, name) for name in _SAVED})

    def trial_directory(self, number: int) -> Path:
        return self.directory / f"trial-{number:04}"

    def config(self, number: int, values: dict[str, Any]) -> TrainConfig:
        """The training of trial `number`, which has these values."""
        return replace(
            self.space.base,
            **values,
            dataset=self.dataset,
            fallback_dataset=None,
            data_dir=None if self.data_dir is None else Path(self.data_dir),
            experiment=self.experiment,
            run_name=" ".join([f"trial {number}", *(f"{name}={shown(values[name])}" for name in values)]),
            output_dir=self.trial_directory(number),
        )

    def command(self, values: dict[str, Any]) -> list[str]:
        """The words that train a trial of these values again, in a directory of its own."""
        config = self.config(0, values)
        where = {"data_dir": config.data_dir, "experiment": config.experiment}
        usual = (None, DEFAULT_EXPERIMENT)
        return training_command(config) + flags(
            {name: value for name, value in where.items() if value not in usual}
        )


def new_plan(space: Path, output_dir: Path | None, asked: dict[str, Any]) -> tuple[Plan, int]:
    """Get the data, make the directory and write the plan; returns it and what holds the directory's lock.

    Raises UsageError where the directory is taken, or what is asked is no sweep; DataError for data that
    cannot be had.
    """
    read = read_space(space)
    for taken in (PLAN, RECORD):
        if output_dir is not None and (output_dir / taken).exists():
            raise UsageError(
                f"{output_dir} holds a {'sweep' if taken == PLAN else 'training'} already: "
                "go on with it by --resume, or choose another --output-dir"
            )
    plan = Plan(directory=Path(), space=read, dataset=read.base.dataset, **asked)
    plan = replace(plan, dataset=_obtained(plan))
    # It imports torch.
    from mlp_dist.training.directories import OUTPUTS, make_new

    if output_dir is None:
        output_dir = make_new(OUTPUTS / f"sweep-{space.stem}-{datetime.now():%Y%m%d-%H%M%S}")
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(space, output_dir / SPACE)
    except OSError as error:
        raise UsageError(f"the output directory {output_dir} cannot be made: {error.strerror}") from error
    lock = _claim(output_dir)
    plan = replace(plan, directory=output_dir.absolute())
    plan.save()
    return plan, lock


def _claim(directory: Path) -> int:
    """Those who work there have a moment to end: their sweep may just have been killed."""
    deadline = time.monotonic() + _ENDING_SECONDS
    while (lock := try_to_lock(directory)) is None:
        if time.monotonic() > deadline:
            raise UsageError(f"another sweep runs in {directory}; choose another --output-dir")
        time.sleep(0.1)
    return lock


def _obtained(plan: Plan) -> str:
    """The data set that can be had: once for all trials, which must not differ in it."""
    # It imports torch.
    from mlp_dist.data.datasets import default_data_dir, prepare_dataset

    data_dir = default_data_dir() if plan.data_dir is None else Path(plan.data_dir)
    try:
        prepare_dataset(plan.dataset, data_dir)
    except DownloadError as error:
        fallback = plan.space.base.fallback_dataset
        if fallback is None:
            raise
        print(f"{str(error).splitlines()[0]}; training on {CATALOG[fallback].title} instead", flush=True)
        prepare_dataset(fallback, data_dir)
        return fallback
    return plan.dataset


def load_plan(directory: Path) -> Plan:
    """Raises UsageError where the directory holds no sweep."""
    try:
        values = json.loads((directory / PLAN).read_text())
        return Plan(directory=directory.absolute(), space=read_space(directory / SPACE), **values)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{directory} holds no sweep to go on with ({error}); to start one, leave --resume out"
        ) from error


def continued_plan(space: Path | None, output_dir: Path | None, asked: dict[str, Any]) -> tuple[Plan, int]:
    """The sweep in `output_dir`, or the newest under `outputs`, and what holds its directory's lock.

    Raises UsageError where there is none, or something else was asked for: only the number of trials may
    change.
    """
    plan = load_plan(_newest() if output_dir is None else output_dir)
    lock = _claim(plan.directory)
    if space is not None and space.read_text() != (plan.directory / SPACE).read_text():
        raise UsageError(f"{space} is not the search space of the sweep in {plan.directory}: leave it out")
    for name in asked.keys() - {"num_trials"}:
        if asked[name] != (before := getattr(plan, name)):
            raise UsageError(
                f"the sweep was started with {name.replace('_', '-')} {before}, not {asked[name]}: "
                "leave that out to go on with it"
            )
    plan = replace(plan, **asked)
    plan.save()
    return plan, lock


def _newest() -> Path:
    from mlp_dist.training.directories import OUTPUTS

    found = sorted(OUTPUTS.glob(f"*/{PLAN}"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise UsageError(f"there is no sweep under {OUTPUTS.absolute()} to resume; name it with --output-dir")
    return found[-1].parent
