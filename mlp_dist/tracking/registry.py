"""The registered model `mlp`: one version per promoted run, and the alias `champion` on one of them."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_dist.config import DEFAULT_EXPERIMENT
from mlp_dist.console import progress
from mlp_dist.core.errors import PromotionError
from mlp_dist.tracking.find import StoredRun, best_beside, best_run, download_bundle, stored
from mlp_dist.tracking.models import FIGURES, find_model, log_model
from mlp_dist.tracking.store import existing_store, load_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run
    from mlflow.entities.model_registry import ModelVersion

MODEL = "mlp"
CHAMPION = "champion"

_DESCRIPTION = (
    "Models that were promoted. python -m serve.package takes the one with the alias champion; "
    "python -m mlp_dist.promote moves the alias."
)
_NOT_FOUND = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""MLflow's error codes for an absent registered model, alias or run."""


@dataclass(frozen=True)
class Champion:
    """A version of the registered model. `run.bundle` is the version's copy, which the run cannot change."""

    version: str
    run: StoredRun


def chosen_run(experiment: str | None = None, metric: str | None = None) -> StoredRun:
    """The champion if neither `experiment` nor `metric` is given and one exists, else `best_run`.

    A note on stdout names the champion, and the best run by validation accuracy if that is another.
    Raises the errors of `best_run`.
    """
    champion = None if experiment or metric else find_champion()
    if champion is None:
        return best_run(experiment or DEFAULT_EXPERIMENT, metric or "val_accuracy")
    run, best = champion.run, best_beside(champion.run)
    note = f"this is the champion, version {champion.version} of {MODEL}"
    if best is not None and best.run_id != run.run_id:
        accuracy = best.metrics["best_val_accuracy"]
        note += (
            f"; {best.name} ({best.run_id}) has the best validation accuracy, {accuracy:.2%}: "
            "--run-id selects it"
        )
    progress.tell(f"note: {note}")
    return run


def find_champion() -> Champion | None:
    """None if no run was promoted yet. Raises PromotionError if the champion's run is gone."""
    mlflow = load_mlflow()
    with existing_store():
        client = mlflow.MlflowClient()
        try:
            version = client.get_model_version_by_alias(MODEL, CHAMPION)
        except mlflow.MlflowException as error:
            if error.error_code not in _NOT_FOUND:
                raise
            return None
        try:
            run = stored(client.get_run(version.run_id or "none"))
        except mlflow.MlflowException as error:
            if error.error_code not in _NOT_FOUND:
                raise
            raise PromotionError(
                f"the run of the champion, version {version.version} of {MODEL}, is not in MLflow; "
                "python -m mlp_dist.promote RUN --force replaces the champion"
            ) from error
    return Champion(str(version.version), replace(run, bundle=f"models:/{MODEL}/{version.version}"))


def register(run: StoredRun) -> str:
    """The registered model's version with the run's kept weights, created if necessary.

    A run without a LoggedModel gets one from its bundle. Raises TrackingError.
    """
    mlflow = load_mlflow()
    with existing_store("cannot register the run"):
        client = mlflow.MlflowClient()
        found = client.get_run(run.run_id)
        epoch = int(run.metrics["best_epoch"])
        model = find_model(client, found)
        if model is None or str(model.status) != "READY":
            model = _log_bundle(client, found, run, epoch)
        versions = client.search_model_versions(f"name = '{MODEL}' AND run_id = '{run.run_id}'")
        known = next((str(each.version) for each in versions if each.source == model.model_uri), None)
        return known or _create_version(client, run, model)


def set_champion(version: str) -> None:
    """Move the alias `champion` to a version. Raises TrackingError."""
    with existing_store("cannot move the champion's alias"):
        load_mlflow().MlflowClient().set_registered_model_alias(MODEL, CHAMPION, version)


def _log_bundle(client: "MlflowClient", found: "Run", run: StoredRun, epoch: int) -> "LoggedModel":
    names = [name for name in FIGURES if name in found.data.metrics]
    history = [point for name in names for point in client.get_metric_history(run.run_id, name)]
    points = [point for point in history if point.step == epoch]
    with tempfile.TemporaryDirectory(prefix="mlp_dist-") as directory:
        bundle = download_bundle(run, Path(directory))
        model_id = log_model(
            client,
            run.run_id,
            run.name,
            bundle,
            step=epoch,
            metrics={point.key: point.value for point in points},
            timestamp_ms=max((point.timestamp for point in points), default=0),
        )
    return client.get_logged_model(model_id)


def _create_version(client: "MlflowClient", run: StoredRun, model: "LoggedModel") -> str:
    mlflow = load_mlflow()
    try:
        client.create_registered_model(MODEL, description=_DESCRIPTION)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    names = [name for name in ("best_val_accuracy", "test_accuracy") if name in run.metrics]
    accuracies = [f"{name.removeprefix('best_')} {run.metrics[name]:.4f}" for name in names]
    version: ModelVersion = client.create_model_version(
        MODEL,
        model.model_uri,
        run.run_id,
        description=", ".join([run.name, run.dataset, *accuracies]),
        tags={"dataset": run.dataset, **{name: str(run.metrics[name]) for name in names}},
        model_id=model.model_id,
    )
    return str(version.version)
