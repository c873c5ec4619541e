"""Runs in MLflow: finding the best one, reading one."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import TrackingError, UsageError
from mlp_dist.tracking.client import load_mlflow, one_asking_to
from mlp_dist.tracking.record import BUNDLE, CONFIG

VALIDATION_METRICS: dict[str, Callable[..., "StoredRun"]] = {"val_accuracy": max, "val_loss": min}
"""What a best run can be chosen by, and which is better. Test figures are not among them: a model
chosen by its test accuracy has none left to report."""


@dataclass(frozen=True)
class StoredRun:
    """A finished run as MLflow has it. `metrics` are the last values."""

    run_id: str
    name: str
    dataset: str
    metrics: dict[str, float]


def best_run(experiment: str, metric: str = "val_accuracy") -> StoredRun:
    """The finished run of `experiment` that is best by a validation metric; of equals the latest.

    Compared are the runs on the data set of the latest one. Where none of those held out validation images,
    the latest is taken: figures on the test images never choose. Both is told.
    Raises UsageError for a metric that does not choose, or an experiment that is not there; TrackingError
    where it has no finished run.
    """
    if metric not in VALIDATION_METRICS:
        raise UsageError(
            f"a run cannot be chosen by {metric!r}; there are: {', '.join(VALIDATION_METRICS)} "
            "(figures on the test images never choose a model)"
        )
    runs = _finished_runs(experiment)
    if not runs:
        raise TrackingError(
            f"the experiment {experiment!r} has no finished run; train one: accelerate launch launch/train.py"
        )
    latest = runs[0]
    comparable = [run for run in runs if run.dataset == latest.dataset]
    others = sorted({run.dataset for run in runs} - {latest.dataset})
    if others:
        _note(
            f"of the runs in the experiment {experiment!r}, those on {latest.dataset}, the data set of the "
            f"latest, are compared, and not those on {', '.join(others)}"
        )
    rated = [run for run in comparable if math.isfinite(run.metrics.get(f"best_{metric}", math.nan))]
    if not rated:
        _note(f"no run on {latest.dataset} held out validation images to choose by: this is the latest")
        return latest
    if latest not in rated:
        _note(f"the latest run, {latest.name} ({latest.run_id}), held out no validation images to compare")
    return VALIDATION_METRICS[metric](rated, key=lambda run: run.metrics[f"best_{metric}"])


def _note(text: str) -> None:
    print(f"note: {text}; --run-id names any run", flush=True)


def _finished_runs(experiment: str) -> list[StoredRun]:
    """Those of this package, the latest first."""
    mlflow = load_mlflow()
    with one_asking_to("be asked") as uri:
        found = mlflow.get_experiment_by_name(experiment)
        if found is None:
            names = sorted(experiment.name for experiment in mlflow.search_experiments())
            raise UsageError(
                f"MLflow at {uri} has no experiment {experiment!r} (there are: {', '.join(names)}); "
                "train first: accelerate launch launch/train.py"
            )
        runs = mlflow.search_runs(
            [found.experiment_id],
            filter_string="attributes.status = 'FINISHED' and metrics.best_epoch >= 1",
            order_by=["attributes.start_time DESC"],
            output_format="list",
        )
    return [_stored(run) for run in runs]


def get_run(run_id: str) -> StoredRun:
    """Raises UsageError for an id that MLflow does not know, TrackingError for a run that did not finish."""
    mlflow = load_mlflow()
    with one_asking_to("be asked") as uri:
        try:
            run = mlflow.get_run(run_id)
        except mlflow.MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UsageError(f"MLflow at {uri} has no run {run_id!r}") from error
    if run.info.status != "FINISHED":
        raise TrackingError(f"run {run_id} is {run.info.status}, not FINISHED: it has no model to use")
    return _stored(run)


def _stored(run: Any) -> StoredRun:
    return StoredRun(
        run_id=run.info.run_id,
        name=run.info.run_name,
        dataset=run.data.params.get("dataset", "unknown"),
        metrics=run.data.metrics,
    )


def download_bundle(run: StoredRun, directory: Path) -> Path:
    """Bring the run's bundle under `directory`; returns the bundle's own directory."""
    mlflow = load_mlflow()
    try:
        mlflow.artifacts.download_artifacts(run_id=run.run_id, artifact_path=BUNDLE, dst_path=str(directory))
    except (mlflow.MlflowException, OSError) as error:
        raise TrackingError(f"run {run.run_id} ({run.name}) has no bundle to download: {error}") from error
    return directory / BUNDLE


def load_config(run: StoredRun) -> TrainConfig:
    """The configuration the run was trained with."""
    mlflow = load_mlflow()
    try:
        return TrainConfig.from_json(mlflow.artifacts.load_dict(f"runs:/{run.run_id}/{CONFIG}"))
    except (mlflow.MlflowException, OSError) as error:
        raise TrackingError(f"run {run.run_id} ({run.name}) has no {CONFIG}: {error}") from error
