"""The plan of a sweep and the Optuna study that its workers share.

They are stored in its directory as space.toml, sweep.json and study.jsonl.
"""

import json
import os
import shutil
import time
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
from filelock import FileLock
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend

from mlp_dist.config import OPTIONS, TrainConfig
from mlp_dist.core.catalog import CATALOG
from mlp_dist.core.errors import DownloadError, UsageError
from mlp_dist.core.io import locked, try_to_lock
from mlp_dist.recipes import training_command
from mlp_dist.sweep.space import Space, read_space
from mlp_dist.tracking import run_dir
from mlp_dist.tracking.run_dir import PLAN, RECORD, SPACE

JOURNAL = "study.jsonl"

_EXIT_SECONDS = 10.0
"""Time for the workers of a sweep that was just killed to exit."""


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

    def config(self, number: int, params: dict[str, Any]) -> TrainConfig:
        """The training of trial `number`, for which Optuna chose `params`."""
        values = self.space.values(params)
        texts = [f"{name}={OPTIONS[name].text(value)}" for name, value in values.items()]
        return replace(
            self.space.base,
            **values,
            dataset=self.dataset,
            fallback_dataset=None,
            data_dir=None if self.data_dir is None else Path(self.data_dir),
            experiment=self.experiment,
            run_name=" ".join([f"trial {number}", *texts]),
            output_dir=self.directory / f"trial-{number:04}",
        )

    def command(self, params: dict[str, Any]) -> list[str]:
        """The command line that trains with these params, in a new directory."""
        return training_command(self.config(0, params), "data_dir", "experiment")


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
    dataset = _prepare_data(plan.config(0, {}), read.base.fallback_dataset)
    output_dir = output_dir or run_dir.make_output_dir(run_dir.stamped(f"sweep-{space.stem}"))
    try:
        output_dir.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(space, output_dir / SPACE)
    except OSError as error:
        raise UsageError(f"cannot create the output directory {output_dir}: {error.strerror}") from error
    return _locked_and_saved(replace(plan, directory=output_dir.absolute(), dataset=dataset))


def _prepare_data(config: TrainConfig, fallback: str | None) -> str:
    """Download the data set, or the fallback; returns the name of the one that all trials use."""
    # Imports torch.
    from mlp_dist.data.datasets import default_data_dir, prepare_dataset

    data_dir = config.data_dir or default_data_dir()
    try:
        prepare_dataset(config.dataset, data_dir)
        return config.dataset
    except DownloadError as error:
        if fallback is None:
            raise
        print(f"{str(error).splitlines()[0]}; training on {CATALOG[fallback].title} instead", flush=True)
    prepare_dataset(fallback, data_dir)
    return fallback


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
    plan = load_plan(output_dir or run_dir.newest_output_dir(PLAN, "sweep"))
    if space is not None and space.read_text() != (plan.directory / SPACE).read_text():
        raise UsageError(f"{space} is not the search space of the sweep in {plan.directory}: leave it out")
    for name in options.keys() - {"num_trials"}:
        if options[name] != (before := getattr(plan, name)):
            flag = name.replace("_", "-")
            raise UsageError(
                f"the sweep was started with {flag} {before}, not {options[name]}: leave --{flag} out"
            )
    return _locked_and_saved(replace(plan, **options))


def _locked_and_saved(plan: Plan) -> tuple[Plan, int]:
    deadline = time.monotonic() + _EXIT_SECONDS
    while (lock := try_to_lock(plan.directory)) is None:
        if time.monotonic() > deadline:
            raise UsageError(f"another sweep is running in {plan.directory}; choose another --output-dir")
        time.sleep(0.1)
    saved = {name: value for name, value in vars(plan).items() if name not in ("directory", "space")}
    run_dir.write_json(plan.directory / PLAN, saved)
    return plan, lock


def open_study(plan: Plan) -> optuna.Study:
    """The study of `plan`, created if it does not exist.

    TPE (Bergstra et al. 2011) chooses the values. The median rule (Golovin et al. 2017) prunes a trial whose
    best validation accuracy is below the median of the completed trials' at the same epoch. Successive
    halving would stop three of four trials at each rung, too many for the few epochs of a perceptron.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    journal = plan.directory / JOURNAL
    # Optuna's own locks outlive a killed process and block the others for half a minute.
    lock = FileLock(plan.directory / ".study.lock")
    with lock, suppress(FileNotFoundError):
        # A killed process may have left part of a line, and the next line would be appended to it.
        os.truncate(journal, journal.read_bytes().rfind(b"\n") + 1)
    return optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal), lock)),  # type: ignore[arg-type]
        study_name="sweep",
        direction="maximize",
        # One epoch says little about a small learning rate.
        pruner=optuna.pruners.MedianPruner(n_startup_trials=5, n_warmup_steps=2),
        load_if_exists=True,
    )


def take_trial(study: optuna.Study, plan: Plan, session: str) -> optuna.Trial | None:
    """The next trial to train: one that an earlier session left unfinished, else a new one; None if all are
    taken.
    """
    with locked(plan.directory / ".taking.lock"):
        trials = study.get_trials(deepcopy=False)
        for left in trials:
            # Without a session, it was killed before it had all its values.
            if not left.state.is_finished() and left.user_attrs.get("session", session) != session:
                trial = optuna.Trial(study, left._trial_id)
                break
        else:
            if len(trials) >= plan.num_trials:
                return None
            # One seed per trial: its values depend neither on the worker that takes it nor on resumptions.
            seed = int(np.random.SeedSequence((plan.seed, len(trials))).generate_state(1)[0])
            study.sampler = optuna.samplers.TPESampler(constant_liar=True, seed=seed)
            trial = study.ask({**plan.space.distributions})
        trial.set_user_attr("session", session)
        return trial
