"""Runs in MLflow: finding the best one, reading one."""

import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mlp_dist.config import TrainConfig
from mlp_dist.console import progress
from mlp_dist.core.errors import TrackingError, UsageError, did_you_mean
from mlp_dist.tracking.run_dir import BUNDLE, CONFIG, FINISHED
from mlp_dist.tracking.store import load_mlflow, one_asking_to, shown

VALIDATION_METRICS: dict[str, Callable[..., "StoredRun"]] = {"val_accuracy": max, "val_loss": min}
"""What a best run can be chosen by, and which is better. Test figures are not among them: a model
chosen by its test accuracy has none left to report."""


_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class StoredRun:
    """A run as MLflow has it. `metrics` are the last values, `bundle` is where MLflow has its bundle.

    `digest` is of the images of `dataset`, as they were of the size that the run was trained with.
    """

    run_id: str
    name: str
    dataset: str
    metrics: dict[str, float]
    bundle: str
    status: str = FINISHED
    experiment_id: str = ""
    digest: str = ""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def has_model(self) -> bool:
        return self.status == FINISHED and self.metrics.get("best_epoch", 0) >= 1

    def is_on_data_of(self, other: "StoredRun") -> bool:
        """Whether both were trained on the same images, so far as MLflow knows: it knows none of old runs."""
        same_size = self.params.get("image_size") == other.params.get("image_size")
        unchanged = not same_size or self.digest == other.digest or "" in (self.digest, other.digest)
        return self.dataset == other.dataset and unchanged


# Choosing


def best_run(experiment: str, metric: str = "val_accuracy") -> StoredRun:
    """The finished run of `experiment` that is best by a validation metric; of equals the latest.

    Compared are the runs on the data set of the latest one. Where none of those held out validation images,
    the latest is taken: figures on the test images never choose. Both is told. A run that others are nested
    in has no model and is none of them.

    Raises UsageError for a metric that does not choose, or an experiment that is not there; TrackingError
    where it has no finished run.
    """
    if metric not in VALIDATION_METRICS:
        hint = did_you_mean(metric, VALIDATION_METRICS)
        raise UsageError(
            f"a run cannot be chosen by {metric!r}{'' if metric.startswith('test') else hint}; "
            f"there are: {', '.join(VALIDATION_METRICS)} "
            "(figures on the test images never choose a model)"
        )
    runs = [run for run in experiment_runs(experiment) if run.has_model]
    if not runs:
        train = "accelerate launch -m mlp_dist.train"
        raise TrackingError(f"the experiment {experiment!r} has no finished run; train one: {train}")
    latest = runs[0]
    comparable = [run for run in runs if run.is_on_data_of(latest)]
    if others := [run for run in runs if not run.is_on_data_of(latest)]:
        names = sorted({run.dataset for run in others} - {latest.dataset}) or ["what it was before"]
        _note(
            f"of the runs in the experiment {experiment!r}, those on {latest.dataset}, the data set of the "
            f"latest, are compared, and not those on {', '.join(names)}"
        )
    best = _best(comparable, metric)
    if best is None:
        _note(f"no run on {latest.dataset} held out validation images to choose by: this is the latest")
        return latest
    if not _is_rated(latest, metric):
        _note(f"the latest run, {latest.name} ({latest.run_id}), held out no validation images to compare")
    return best


def best_beside(run: StoredRun) -> StoredRun | None:
    """The best by validation accuracy of the finished runs in `run`'s experiment and on its data set."""
    others = [other for other in _runs_in(run.experiment_id) if other.has_model]
    return _best([other for other in others if other.is_on_data_of(run)], "val_accuracy")


def _best(runs: Sequence[StoredRun], metric: str) -> StoredRun | None:
    """The first of equals; None where none held out validation images."""
    rated = [run for run in runs if _is_rated(run, metric)]
    choose = VALIDATION_METRICS[metric]
    return choose(rated, key=lambda run: run.metrics[f"best_{metric}"]) if rated else None


def _is_rated(run: StoredRun, metric: str) -> bool:
    return math.isfinite(run.metrics.get(f"best_{metric}", math.nan))


def _note(text: str) -> None:
    progress.tell(f"note: {text}; --run-id names any run")


# Finding


def experiment_runs(experiment: str) -> list[StoredRun]:
    """All runs of an experiment that are trainings, whatever became of them, the latest first.

    Raises UsageError, naming those there are, for an experiment that is not there.
    """
    mlflow = load_mlflow()
    with one_asking_to("be asked") as uri:
        found = mlflow.get_experiment_by_name(experiment)
        if found is None:
            names = sorted(experiment.name for experiment in mlflow.search_experiments())
            raise UsageError(
                f"MLflow at {shown(uri)} has no experiment {experiment!r}{did_you_mean(experiment, names)} "
                f"(there are: {', '.join(names)}); "
                f"train first: {'accelerate launch -m mlp_dist.train'}"
            )
    return _runs_in(found.experiment_id)


def _runs_in(experiment_id: str) -> list[StoredRun]:
    with one_asking_to("be asked"):
        found = load_mlflow().search_runs(
            [experiment_id], order_by=["attributes.start_time DESC"], output_format="list"
        )
    runs = list(map(stored, found))
    parents = {run.tags.get(_PARENT) for run in runs}
    return [run for run in runs if run.run_id not in parents and run.tags.get("sweep") != "parent"]


def get_run(run_id: str) -> StoredRun:
    """Raises UsageError for an id that MLflow does not know, TrackingError for a run that did not finish."""
    mlflow = load_mlflow()
    with one_asking_to("be asked") as uri:
        try:
            run = stored(mlflow.get_run(run_id))
        except mlflow.MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UsageError(f"MLflow at {shown(uri)} has no run {run_id!r}") from error
    if run.status != FINISHED:
        raise TrackingError(f"run {run_id} is {run.status}, not FINISHED: it has no model to use")
    if not run.has_model:
        raise TrackingError(
            f"run {run_id} ({run.name}) is no training that kept a model: runs nested in it may be"
        )
    return run


def find_run(text: str) -> StoredRun:
    """The run with this id, with the only id that begins so, or with this name where no other has it.

    Raises what `get_run` does, and UsageError for what is the beginning or the name of several.
    """
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return get_run(text)
    wanted = [f"attributes.run_name = {_quoted(text)}"]
    if re.fullmatch(r"[0-9a-f]+", text):
        wanted.append(f"attributes.run_id LIKE '{text}%'")
    with one_asking_to("be asked") as uri:
        found = {
            run.info.run_id: stored(run)
            for each in wanted
            for run in load_mlflow().search_runs(
                search_all_experiments=True, filter_string=each, output_format="list"
            )
        }
    if not found:
        raise UsageError(
            f"MLflow at {shown(uri)} has no run {text!r}: no id begins so, and no run is called so"
        )
    if len(found) > 1:
        ids = ", ".join(f"{run.run_id} ({run.name}, {run.status})" for run in found.values())
        raise UsageError(f"{text!r} may be any of {len(found)} runs; give the id of one: {ids}")
    return get_run(next(iter(found)))


def _quoted(text: str) -> str:
    """As a string of MLflow's filters, which know no escapes."""
    return f'"{text}"' if "'" in text else f"'{text}'"


def stored(run: Any) -> StoredRun:
    """MLflow's Run as a StoredRun."""
    datasets = [each.dataset for each in run.inputs.dataset_inputs]
    return StoredRun(
        run_id=run.info.run_id,
        name=run.info.run_name,
        dataset=run.data.params.get("dataset", "unknown"),
        metrics=run.data.metrics,
        bundle=f"runs:/{run.info.run_id}/{BUNDLE}",
        status=run.info.status,
        experiment_id=run.info.experiment_id,
        digest=datasets[0].digest if datasets else "",
        params=run.data.params,
        tags=run.data.tags,
    )


# What a run left


def download_bundle(run: StoredRun, directory: Path) -> Path:
    """Bring the run's bundle under `directory`; returns the bundle's own directory."""
    mlflow = load_mlflow()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        return Path(mlflow.artifacts.download_artifacts(artifact_uri=run.bundle, dst_path=str(directory)))
    except (mlflow.MlflowException, OSError) as error:
        raise TrackingError(f"run {run.run_id} ({run.name}) has no bundle to download: {error}") from error


def load_config(run: StoredRun) -> TrainConfig:
    """The configuration the run was trained with."""
    mlflow = load_mlflow()
    try:
        return TrainConfig.from_json(mlflow.artifacts.load_dict(f"runs:/{run.run_id}/{CONFIG}"))
    except (mlflow.MlflowException, OSError) as error:
        raise TrackingError(f"run {run.run_id} ({run.name}) has no {CONFIG}: {error}") from error
