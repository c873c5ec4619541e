"""The plan of a sweep, stored in its directory as space.toml and sweep.json."""

import json
import shutil
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from mlp_dist.config import OPTIONS, TrainConfig
from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.errors import DownloadError, UsageError
from mlp_dist.core.io import try_to_lock
from mlp_dist.recipes import training_command
from mlp_dist.sweep.space import Space, read_space
from mlp_dist.tracking.run_dir import (
    PLAN,
    RECORD,
    SPACE,
    make_output_dir,
    newest_output_dir,
    stamped,
    write_json,
)

_EXIT_SECONDS = 10.0

_SAVED = ("num_trials", "seed", "experiment", "dataset", "data_dir")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """`directory` is the sweep's absolute path. All trials use `dataset`: the search space's, or its fallback
    if that cannot be downloaded. A `data_dir` of None is the default one.
    """

    directory: Path
    space: Space
    num_trials: int = 20
    seed: int = 0
    experiment: str | None = None
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

    def config(self, number: int, values: dict[str, Any]) -> TrainConfig:
        """The training of trial `number` with these values."""
        return replace(
            self.space.base,
            **values,
            dataset=self.dataset,
            fallback_dataset=None,
            data_dir=None if self.data_dir is None else Path(self.data_dir),
            experiment=self.experiment,
            run_name=" ".join(
                [
                    f"trial {number}",
                    *(f"{name}={OPTIONS[name].text(value)}" for name, value in values.items()),
                ]
            ),
            output_dir=self.directory / f"trial-{number:04}",
        )

    def command(self, values: dict[str, Any]) -> list[str]:
        """The command line that trains with these values, in a new directory."""
        return training_command(self.config(0, values), "data_dir", "experiment")


def new_plan(space: Path, output_dir: Path | None, options: dict[str, Any]) -> tuple[Plan, int]:
    """Get the data, create the directory and save the plan; returns it and the directory's lock.

    Raises UsageError if the directory is in use or the options are invalid, DataError if the data cannot be
    read.
    """
    read = read_space(space)
    for file, kind in ((PLAN, "sweep"), (RECORD, "training")):
        if output_dir is not None and (output_dir / file).exists():
            raise UsageError(
                f"{output_dir} already holds a {kind}: use --resume to continue it, or another --output-dir"
            )
    plan = Plan(directory=Path(), space=read, dataset=read.base.dataset, **options)
    plan = replace(plan, dataset=_prepare_data(plan))
    if output_dir is None:
        output_dir = make_output_dir(stamped(f"sweep-{space.stem}"))
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(space, output_dir / SPACE)
    except OSError as error:
        raise UsageError(f"cannot create the output directory {output_dir}: {error.strerror}") from error
    lock = _lock(output_dir)
    plan = replace(plan, directory=output_dir.absolute())
    plan.save()
    return plan, lock


def _lock(directory: Path) -> int:
    """Lock the directory; workers of a sweep that was just killed get a moment to exit."""
    deadline = time.monotonic() + _EXIT_SECONDS
    while (lock := try_to_lock(directory)) is None:
        if time.monotonic() > deadline:
            raise UsageError(f"another sweep is running in {directory}; choose another --output-dir")
        time.sleep(0.1)
    return lock


def _prepare_data(plan: Plan) -> str:
    """Download the data set, or its fallback; returns its name. All trials must use the same one."""
    # Imports torch.
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
    """Raises UsageError if the directory holds no sweep."""
    try:
        values = json.loads((directory / PLAN).read_text())
        return Plan(directory=directory.absolute(), space=read_space(directory / SPACE), **values)
    except (OSError, ValueError, TypeError) as error:
        raise UsageError(
            f"{directory} holds no sweep to resume ({error}); leave --resume out to start one"
        ) from error


def resumed_plan(space: Path | None, output_dir: Path | None, options: dict[str, Any]) -> tuple[Plan, int]:
    """The plan in `output_dir`, or in the newest sweep under `outputs`, and the directory's lock.

    Raises UsageError if there is none, or if an option other than the number of trials differs.
    """
    plan = load_plan(output_dir or newest_output_dir(PLAN, "sweep"))
    if space is not None and space.read_text() != (plan.directory / SPACE).read_text():
        raise UsageError(f"{space} is not the search space of the sweep in {plan.directory}: leave it out")
    for name in options.keys() - {"num_trials"}:
        if options[name] != (before := getattr(plan, name)):
            flag = name.replace("_", "-")
            raise UsageError(
                f"the sweep was started with {flag} {before}, not {options[name]}: leave --{flag} out"
            )
    lock = _lock(plan.directory)
    plan = replace(plan, **options)
    plan.save()
    return plan, lock
