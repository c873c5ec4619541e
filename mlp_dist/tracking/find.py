"""Finds runs in MLflow: the best one, or one by id or name."""

import math
import os
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_dist.config import EXPERIMENTS, TrainConfig
from mlp_dist.console import progress
from mlp_dist.core.errors import TrackingError, UsageError, did_you_mean
from mlp_dist.core.spec import STATE_DICT, WEIGHTS
from mlp_dist.tracking.models import find_model
from mlp_dist.tracking.run_dir import BUNDLE, CONFIG, FINISHED
from mlp_dist.tracking.store import TrashedError, existing_store, hide_password, load_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient

VALIDATION_METRICS: dict[str, Callable[..., "StoredRun"]] = {"val_accuracy": max, "val_loss": min}
"""Metrics that may choose a model, and how. A model chosen by a test metric would have no unbiased test
result left to report.
"""

_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class StoredRun:
    """A run in MLflow. `metrics` are the last values, by the names in the training's result.

    `bundle` is the URI of its bundle; "" means the run's kept weights. `digest` is that of the images of
    `dataset`, at the image size of the training; "" if unknown.
    """

    run_id: str
    name: str
    dataset: str
    metrics: dict[str, float]
    bundle: str = ""
    status: str = FINISHED
    experiment_id: str = ""
    digest: str = ""
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def has_model(self) -> bool:
        return self.status == FINISHED and self.metrics.get("best_epoch", 0) >= 1

    def is_rated(self, metric: str) -> bool:
        return math.isfinite(self.metrics.get(f"best_{metric}", math.nan))

    def is_on_data_of(self, other: "StoredRun") -> bool:
        """True if both were trained on the same images, as far as the digests of equal sizes tell."""
        # A param at its default is not logged.
        sizes = {run.params.get("image_size", "28") for run in (self, other)}
        unchanged = len(sizes) > 1 or self.digest == other.digest or "" in (self.digest, other.digest)
        return self.dataset == other.dataset and unchanged


# The best run


def best_run(experiment: str | None, metric: str = "val_accuracy") -> StoredRun:
    """The finished run of `experiment_runs` with the best validation metric; of equal runs the latest.

    Only runs on the data set of the latest run compete. If none of them has validation images, the latest
    is returned. Both cases print a note.

    Raises UsageError for a metric that may not choose or an unknown experiment, TrackingError if the
    experiment has no finished run.
    """
    if metric not in VALIDATION_METRICS:
        hint = did_you_mean(metric, VALIDATION_METRICS)
        raise UsageError(
            f"a run cannot be chosen by {metric!r}{'' if metric.startswith('test') else hint}; "
            f"there are: {', '.join(VALIDATION_METRICS)} (test metrics never choose a model)"
        )
    runs = [run for run in experiment_runs(experiment) if run.has_model]
    if not runs:
        train = "accelerate launch -m mlp_dist.train"
        where = f"the experiment {experiment!r}" if experiment else "MLflow"
        raise TrackingError(f"{where} has no finished run; train one: {train}")
    latest = runs[0]
    others = [run for run in runs if not run.is_on_data_of(latest)]
    best = _best_on_data_of(latest, runs, metric)
    notes = []
    if others:
        names = sorted({run.dataset for run in others} - {latest.dataset}) or ["an earlier version of it"]
        which = f"only runs on {latest.dataset}, the latest run's data set, are compared"
        notes.append(f"{which}, not those on {', '.join(names)}")
    if best is None:
        notes.append(f"no run on {latest.dataset} has validation images to choose by: this is the latest run")
    elif not latest.is_rated(metric):
        which = f"the latest run, {latest.name} ({latest.run_id})"
        notes.append(f"{which}, has no validation images and is not compared")
    for note in notes:
        progress.tell(f"note: {note}; --run-id selects any run")
    return best or latest


def best_beside(run: StoredRun) -> StoredRun | None:
    """The best finished run by validation accuracy in `run`'s experiment, on its data set."""
    # The experiment of a run that `mlflow gc` removed is unknown.
    ids = [run.experiment_id] if run.experiment_id else []
    others = [other for other in _runs_in(ids) if other.has_model]
    return _best_on_data_of(run, others, "val_accuracy")


def _best_on_data_of(run: StoredRun, runs: Sequence[StoredRun], metric: str) -> StoredRun | None:
    """The first of equal runs; None if no run has validation images."""
    rated = [each for each in runs if each.is_on_data_of(run) and each.is_rated(metric)]
    choose = VALIDATION_METRICS[metric]
    return choose(rated, key=lambda each: each.metrics[f"best_{metric}"]) if rated else None


# Search


def experiment_runs(experiment: str | None) -> list[StoredRun]:
    """All trainings of an experiment, finished or not, the latest first. Parents of nested runs are left out.

    None: the experiment that MLflow's environment variables name, else all that trainings make by default.
    Raises UsageError for an unknown experiment.
    """
    experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    given = None if experiment else os.environ.get("MLFLOW_EXPERIMENT_ID")
    with existing_store() as uri:
        known = {each.name: each.experiment_id for each in load_mlflow().search_experiments()}
        if experiment and experiment not in known:
            raise UsageError(
                f"MLflow at {hide_password(uri)} has no experiment {experiment!r}"
                f"{did_you_mean(experiment, known)} (there are: {', '.join(sorted(known))}); "
                "train first: accelerate launch -m mlp_dist.train"
            )
    usual = [known[name] for name in known if f"{name}/".startswith(f"{EXPERIMENTS}/")]
    return _runs_in([known[experiment]] if experiment else [given] if given else usual)


def _runs_in(experiment_ids: list[str]) -> list[StoredRun]:
    with existing_store():
        search, latest_first = load_mlflow().search_runs, ["attributes.start_time DESC"]
        # MLflow takes none for all.
        found = search(experiment_ids, order_by=latest_first, output_format="list") if experiment_ids else []
    runs = list(map(stored, found))
    parents = {run.tags.get(_PARENT) for run in runs}
    return [run for run in runs if run.run_id not in parents and run.tags.get("sweep") != "parent"]


def get_run(run_id: str) -> StoredRun:
    """Raises UsageError for an unknown id, TrackingError for a run in the trash or without a model."""
    mlflow = load_mlflow()
    with existing_store() as uri:
        try:
            found = mlflow.get_run(run_id)
        except mlflow.MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UsageError(f"MLflow at {hide_password(uri)} has no run {run_id!r}") from error
    run = stored(found)
    if found.info.lifecycle_stage == "deleted":
        raise TrashedError(run_id, run.name)
    if run.status != FINISHED:
        raise TrackingError(f"run {run_id} is {run.status}, not FINISHED: it has no model to use")
    if not run.has_model:
        raise TrackingError(f"run {run_id} ({run.name}) kept no model; runs nested in it may have one")
    return run


def find_run(text: str) -> StoredRun:
    """The run with this id, unique id prefix or unique name.

    Raises UsageError for an ambiguous prefix or name, and the errors of `get_run`.
    """
    if re.fullmatch(r"[0-9a-f]{32}", text):
        return get_run(text)
    # MLflow's filters have two kinds of quotes and no escapes.
    quoted = f'"{text}"' if "'" in text else f"'{text}'"
    filters = [f"attributes.run_name = {quoted}"]
    if re.fullmatch(r"[0-9a-f]+", text):
        filters.append(f"attributes.run_id LIKE '{text}%'")
    with existing_store() as uri:
        everywhere: dict[str, Any] = {"search_all_experiments": True, "output_format": "list"}
        runs = [
            run for each in filters for run in load_mlflow().search_runs(filter_string=each, **everywhere)
        ]
    found = {run.info.run_id: stored(run) for run in runs}
    if not found:
        raise UsageError(
            f"MLflow at {hide_password(uri)} has no run {text!r}: no run has this name or id prefix"
        )
    if len(found) > 1:
        ids = ", ".join(f"{run.run_id} ({run.name}, {run.status})" for run in found.values())
        raise UsageError(f"{text!r} matches {len(found)} runs; give the id of one: {ids}")
    return get_run(next(iter(found)))


def stored(run: Any) -> StoredRun:
    """An mlflow.entities.Run as a StoredRun."""
    datasets = [each.dataset for each in run.inputs.dataset_inputs]
    return StoredRun(
        run_id=run.info.run_id,
        name=run.info.run_name,
        dataset=run.data.params.get("dataset", "unknown"),
        metrics=run.data.metrics,
        status=run.info.status,
        experiment_id=run.info.experiment_id,
        digest=datasets[0].digest if datasets else "",
        params=run.data.params,
        tags=run.data.tags,
    )


# Artifacts


def download_bundle(run: StoredRun, directory: Path) -> Path:
    """Download the run's bundle under `directory`; returns the bundle's own directory.

    Raises TrackingError if it is not in MLflow.
    """
    mlflow = load_mlflow()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        uri = run.bundle or _bundle_uri(mlflow.MlflowClient(), run.run_id)
        bundle = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(directory)))
        # An MLflow model has the weights under MLflow's name.
        if (bundle / STATE_DICT).exists():
            (bundle / STATE_DICT).rename(bundle / WEIGHTS)
        return bundle
    except (mlflow.MlflowException, OSError) as error:
        raise TrackingError(
            f"run {run.run_id} ({run.name}) has no bundle to download: {error}; if you still have the "
            "training's directory, python -m mlp_dist.sync DIR sends it again"
        ) from error


def _bundle_uri(client: "MlflowClient", run_id: str) -> str:
    # 0.1.0 stored it among the run's artifacts.
    if client.list_artifacts(run_id, BUNDLE):
        return f"runs:/{run_id}/{BUNDLE}"
    model = find_model(client, client.get_run(run_id))
    return f"runs:/{run_id}/{BUNDLE}" if model is None else str(model.model_uri)


def load_config(run: StoredRun) -> TrainConfig | None:
    """The configuration of the training; None if the run is not in MLflow any more."""
    mlflow = load_mlflow()
    try:
        return TrainConfig.from_json(mlflow.artifacts.load_dict(f"runs:/{run.run_id}/{CONFIG}"))
    except (mlflow.MlflowException, OSError):
        return None
