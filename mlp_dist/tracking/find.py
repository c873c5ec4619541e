"""Runs in MLflow: by id or name, ranked by a metric; their bundles, scored again before they are used."""

import math
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from mlp_dist.config import EXPERIMENTS, TrainConfig
from mlp_dist.console import progress
from mlp_dist.core.bundle import Bundle, load_bundle
from mlp_dist.core.errors import BundleError, TrackingError, UsageError, did_you_mean
from mlp_dist.core.spec import STATE_DICT, WEIGHTS, BundleSpec
from mlp_dist.data.arrays import Dataset
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset
from mlp_dist.data.evaluate import predict
from mlp_dist.data.scores import Evaluation, evaluate
from mlp_dist.tracking.models import find_model
from mlp_dist.tracking.run_dir import CONFIG, FINISHED
from mlp_dist.tracking.store import TrashedError, hide_password, load_mlflow, opened_store

if TYPE_CHECKING:
    from mlflow import MlflowClient

VALIDATION_METRICS = ("val_accuracy", "val_loss")
"""Metrics that may choose a model. A model chosen by a test metric would have no unbiased test result left to
report.
"""

ACCURACY_TOLERANCE = 1e-3
"""Test accuracies of the same weights differ by less between devices and machines."""

_SMALLER_IS_BETTER = ("loss", "ece", "error", "seconds")
_PARENT = "mlflow.parentRunId"


@dataclass(frozen=True)
class StoredRun:
    """A run in MLflow. `metrics` are the last values, by the names in the training's result.

    `bundle` is the URI of its bundle; "" means the run's kept weights.
    """

    run_id: str
    name: str
    dataset: str
    metrics: dict[str, float] = field(default_factory=dict)
    bundle: str = ""
    status: str = FINISHED
    params: dict[str, str] = field(default_factory=dict)
    tags: dict[str, str] = field(default_factory=dict)

    @property
    def has_model(self) -> bool:
        return self.status == FINISHED and self.metrics.get("best_epoch", 0) >= 1

    def is_rated(self, metric: str) -> bool:
        return self.status == FINISHED and math.isfinite(self.metrics.get(metric, math.nan))


def ranked(runs: Sequence[StoredRun], metric: str) -> list[StoredRun]:
    """The best run first, those without the metric last; equal runs keep their order."""
    sign = 1 if any(word in metric for word in _SMALLER_IS_BETTER) else -1
    return sorted(runs, key=lambda run: sign * run.metrics[metric] if run.is_rated(metric) else math.inf)


def best_run(experiment: str | None, metric: str = "val_accuracy") -> StoredRun:
    """The finished run of `experiment_runs` with the best validation metric; of equal runs the latest.

    Only runs on the data set of the latest run compete. If none of them has validation images, the latest
    is returned. Both cases print a note.

    Raises UsageError for a metric that may not choose or an unknown experiment, TrackingError if the
    experiment has no finished run.
    """
    if metric not in VALIDATION_METRICS:
        hint = "" if metric.startswith("test") else did_you_mean(metric, VALIDATION_METRICS)
        raise UsageError(
            f"a run cannot be chosen by {metric!r}{hint}; there are: {', '.join(VALIDATION_METRICS)} "
            "(test metrics never choose a model)"
        )
    runs = [run for run in experiment_runs(experiment) if run.has_model]
    if not runs:
        where = f"the experiment {experiment!r}" if experiment else "MLflow"
        raise TrackingError(f"{where} has no finished run; train one: accelerate launch -m mlp_dist.train")
    dataset, select = runs[0].dataset, "--run-id selects any run"
    if others := {run.dataset for run in runs} - {dataset}:
        which = f"only runs on {dataset}, the latest run's data set, are compared"
        progress.tell(f"note: {which}, not those on {', '.join(sorted(others))}; {select}")
    best = ranked([run for run in runs if run.dataset == dataset], f"best_{metric}")[0]
    if not best.is_rated(f"best_{metric}"):
        which = f"no run on {dataset} has validation images to choose by: this is the latest run"
        progress.tell(f"note: {which}; {select}")
    return best


def experiment_runs(experiment: str | None) -> list[StoredRun]:
    """All trainings of an experiment, finished or not, the latest first. Parents of nested runs are left out.

    None: the experiment that MLflow's environment variables name, else all that trainings make by default.
    Raises UsageError for an unknown experiment.
    """
    experiment = experiment or os.environ.get("MLFLOW_EXPERIMENT_NAME")
    given = None if experiment else os.environ.get("MLFLOW_EXPERIMENT_ID")
    with opened_store() as client:
        known = {each.name: each.experiment_id for each in client.search_experiments()}
        if experiment and experiment not in known:
            raise UsageError(
                f"MLflow at {hide_password(client.tracking_uri)} has no experiment {experiment!r}"
                f"{did_you_mean(experiment, known)} (there are: {', '.join(sorted(known))}); "
                "train first: accelerate launch -m mlp_dist.train"
            )
        usual = [known[name] for name in known if f"{name}/".startswith(f"{EXPERIMENTS}/")]
        ids = [known[experiment]] if experiment else [given] if given else usual
        # MLflow takes none for all.
        runs = [stored(run) for run in search_runs("", experiment_ids=ids)] if ids else []
    parents = {run.tags.get(_PARENT) for run in runs}
    return [run for run in runs if run.run_id not in parents and run.tags.get("sweep") != "parent"]


def search_runs(condition: str, **options: Any) -> list[Any]:
    """MLflow's runs, the latest first."""
    latest_first = ["attributes.start_time DESC"]
    found: list[Any] = load_mlflow().search_runs(
        filter_string=condition, order_by=latest_first, output_format="list", **options
    )
    return found


def search_everywhere(condition: str) -> list[Any]:
    """MLflow's runs in all experiments, also those in the trash."""
    view = load_mlflow().entities.ViewType.ALL
    return search_runs(condition, search_all_experiments=True, run_view_type=view)


def find_run(text: str) -> StoredRun:
    """The finished run with this id, unique id prefix or unique name.

    Raises UsageError if there is none or more than one, TrackingError for a run in the trash or without a
    model.
    """
    # MLflow's filters have two kinds of quotes and no escapes.
    quoted = f'"{text}"' if "'" in text else f"'{text}'"
    conditions = [f"attributes.run_name = {quoted}"]
    if re.fullmatch(r"[0-9a-f]+", text):
        conditions.append(f"attributes.run_id LIKE '{text}%'")
    with opened_store() as client:
        runs = {run.info.run_id: run for each in conditions for run in search_everywhere(each)}
    found = [run for run in runs.values() if run.info.lifecycle_stage == "active"] or list(runs.values())
    if not found:
        raise UsageError(
            f"MLflow at {hide_password(client.tracking_uri)} has no run {text!r}: "
            "no run has this name or id prefix"
        )
    if len(found) > 1:
        ids = ", ".join(f"{run.info.run_id} ({run.info.run_name}, {run.info.status})" for run in found)
        raise UsageError(f"{text!r} matches {len(found)} runs; give the id of one: {ids}")
    run = stored(found[0])
    if found[0].info.lifecycle_stage == "deleted":
        raise TrashedError(run.run_id, run.name)
    if not run.has_model:
        raise TrackingError(f"run {run.run_id} ({run.name}) is {run.status} and has no model to use")
    return run


def stored(run: Any) -> StoredRun:
    """An mlflow.entities.Run as a StoredRun."""
    return StoredRun(
        run_id=run.info.run_id,
        name=run.info.run_name,
        dataset=run.data.params.get("dataset", "unknown"),
        metrics=run.data.metrics,
        status=run.info.status,
        params=run.data.params,
        tags=run.data.tags,
    )


def download_bundle(run: StoredRun, directory: Path) -> Path:
    """Download the run's bundle under `directory`; returns the bundle's own directory.

    Raises TrackingError if it is not in MLflow.
    """
    mlflow = load_mlflow()
    directory.mkdir(parents=True, exist_ok=True)
    try:
        uri = run.bundle or _model_uri(mlflow.MlflowClient(), run.run_id)
        bundle = Path(mlflow.artifacts.download_artifacts(artifact_uri=uri, dst_path=str(directory)))
        # An MLflow model has the weights under MLflow's name.
        (bundle / STATE_DICT).rename(bundle / WEIGHTS)
        return bundle
    except (mlflow.MlflowException, OSError) as error:
        raise TrackingError(
            f"run {run.run_id} ({run.name}) has no bundle to download: {error}; if you still have the "
            "training's directory, python -m mlp_dist.sync DIR sends it again"
        ) from error


def _model_uri(client: "MlflowClient", run_id: str) -> str:
    if (model := find_model(client, client.get_run(run_id))) is None:
        raise FileNotFoundError("MLflow has no model of it")
    return str(model.model_uri)


@dataclass(frozen=True)
class Export:
    """The bundle in `directory`, with the test images' `labels`, int64 (N,), and which of them the model
    classifies correctly, bool (N,).
    """

    directory: Path
    bundle: Bundle
    labels: torch.Tensor
    correct: torch.Tensor
    test: Evaluation


def export_run(run: StoredRun, directory: Path, data_dir: Path | None = None) -> Export:
    """Download the run's bundle under `directory` and score it again.

    Raises TrackingError if the run has no bundle, BundleError if it is damaged or misses the test accuracy
    that the run reports, DataError if the test images are not available.
    """
    bundle_directory = download_bundle(run, directory)
    bundle = load_bundle(bundle_directory)
    bundle.check_golden()
    data = run_dataset(run, bundle.spec, data_dir)
    logits = predict(bundle.model, data.test, bundle.spec.image).cpu()
    test = evaluate(logits.numpy(), data.test.labels.numpy(), temperature=bundle.spec.temperature)
    reported = bundle.spec.metrics["test_accuracy"]
    if reported is None or abs(test.accuracy - reported) > ACCURACY_TOLERANCE:
        raise BundleError(
            f"run {run.run_id} reports a test accuracy of {reported}, but its bundle scores "
            f"{test.accuracy}: the weights or the test images are not the ones it was trained with"
        )
    return Export(bundle_directory, bundle, data.test.labels, logits.argmax(dim=1) == data.test.labels, test)


def run_dataset(
    run: StoredRun, spec: BundleSpec, data_dir: Path | None = None, *, download: bool = True
) -> Dataset:
    """The data set of the run's bundle, from `data_dir` or else the directory the training used.

    Missing files are downloaded if `download`. Raises DataError if they are not available.
    """
    mlflow = load_mlflow()
    # The run may not be in MLflow any more.
    with suppress(mlflow.MlflowException, OSError):
        config = TrainConfig.from_json(mlflow.artifacts.load_dict(f"runs:/{run.run_id}/{CONFIG}"))
        data_dir = data_dir or (config.data_dir if config.data_dir and config.data_dir.is_dir() else None)
    data_dir = data_dir or default_data_dir()
    if download:
        prepare_dataset(spec.dataset, data_dir)
    # Without any, all were read.
    return read_dataset(spec.dataset, data_dir, image_size=spec.image.height, skip_bad_images=True)
