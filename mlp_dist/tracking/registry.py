"""The registered model `mlp`: a version for each run that was promoted, and the alias `champion` on one."""

import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_dist.config import DEFAULT_EXPERIMENT
from mlp_dist.console import progress
from mlp_dist.core.errors import PromotionError
from mlp_dist.tracking.find import StoredRun, best_beside, best_run, download_bundle, stored
from mlp_dist.tracking.models import BEST, FIGURES, find_model, log_model
from mlp_dist.tracking.store import load_mlflow, one_asking_to

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric, Run
    from mlflow.entities.model_registry import ModelVersion

MODEL = "mlp"
CHAMPION = "champion"

_DESCRIPTION = (
    "Perceptrons that were good enough to ship. The alias champion is on the one that "
    "python -m serve.package takes; python -m mlp_dist.promote moves it."
)
_NOT_THERE = ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE")
"""What MLflow answers for a registered model, or an alias, that is not there."""


@dataclass(frozen=True)
class Champion:
    """A version of the registered model; the `run`'s bundle is the version's, whatever the run did since."""

    version: str
    run: StoredRun


def chosen_run(experiment: str | None = None, metric: str | None = None) -> StoredRun:
    """The champion, where there is one and neither an experiment nor a metric is named; else `best_run`.

    That it is the champion is told, and which run is the best by validation accuracy, where another is.
    Raises what `best_run` does.
    """
    champion = None if experiment or metric else find_champion()
    if champion is None:
        return best_run(experiment or DEFAULT_EXPERIMENT, metric or "val_accuracy")
    run, best = champion.run, best_beside(champion.run)
    text = f"this is the champion, version {champion.version} of {MODEL}"
    if best is not None and best.run_id != run.run_id:
        text += (
            f"; by validation accuracy {best.name} ({best.run_id}) is best, with "
            f"{best.metrics['best_val_accuracy']:.2%}: --run-id takes that"
        )
    progress.tell(f"note: {text}")
    return run


def find_champion() -> Champion | None:
    """None where no run was promoted yet. Raises PromotionError where its run is not there."""
    mlflow = load_mlflow()
    with one_asking_to("be asked"):
        client = mlflow.MlflowClient()
        try:
            version = client.get_model_version_by_alias(MODEL, CHAMPION)
        except mlflow.MlflowException as error:
            if error.error_code not in _NOT_THERE:
                raise
            return None
        try:
            run = stored(client.get_run(version.run_id or "none"))
        except mlflow.MlflowException as error:
            if error.error_code not in _NOT_THERE:
                raise
            raise PromotionError(
                f"the champion, version {version.version} of {MODEL}, is of no run that MLflow has; "
                f"{'python -m mlp_dist.promote'} RUN --force makes another run it"
            ) from error
    return Champion(str(version.version), replace(run, bundle=f"models:/{MODEL}/{version.version}"))


def register(run: StoredRun) -> str:
    """The version of the registered model that is the run's kept weights; a second call makes no second one.

    Of a run without a LoggedModel one is made, from its bundle. Raises TrackingError.
    """
    mlflow = load_mlflow()
    with one_asking_to("register the run"):
        client = mlflow.MlflowClient()
        found = client.get_run(run.run_id)
        epoch = int(run.metrics["best_epoch"])
        model = find_model(client, found, BEST, epoch)
        if model is None or str(model.status) != "READY":
            model = _log_bundle(client, found, run, epoch)
        version = _find_version(client, run, model) or _create_version(client, run, model)
        _link(client, model, version)
    return version


def crown(version: str) -> None:
    """Move the alias `champion` to a version. Raises TrackingError."""
    with one_asking_to("move the champion's alias"):
        load_mlflow().MlflowClient().set_registered_model_alias(MODEL, CHAMPION, version)


def _log_bundle(client: "MlflowClient", found: "Run", run: StoredRun, epoch: int) -> "LoggedModel":
    with tempfile.TemporaryDirectory(prefix="mlp_dist-") as directory:
        bundle = download_bundle(run, Path(directory))
        points = _points(client, found, epoch)
        return client.get_logged_model(
            log_model(client, run.run_id, BEST, bundle, epoch=epoch, points=points)
        )


def _points(client: "MlflowClient", found: "Run", epoch: int) -> "list[Metric]":
    """The run's figures of an epoch."""
    names = [name for name in FIGURES if name in found.data.metrics]
    points = [point for name in names for point in client.get_metric_history(found.info.run_id, name)]
    return [point for point in points if point.step == epoch]


def _find_version(client: "MlflowClient", run: StoredRun, model: "LoggedModel") -> str | None:
    versions = client.search_model_versions(f"name = '{MODEL}' AND run_id = '{run.run_id}'")
    return next((str(each.version) for each in versions if each.source == model.model_uri), None)


def _create_version(client: "MlflowClient", run: StoredRun, model: "LoggedModel") -> str:
    mlflow = load_mlflow()
    try:
        client.create_registered_model(MODEL, description=_DESCRIPTION)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    figures = {
        name: run.metrics[name] for name in ("best_val_accuracy", "test_accuracy") if name in run.metrics
    }
    told = "".join(f", {name.removeprefix('best_')} {value:.4f}" for name, value in figures.items())
    version: ModelVersion = client.create_model_version(
        MODEL,
        model.model_uri,
        run.run_id,
        description=f"{run.name}, {run.dataset}{told}",
        tags={"dataset": run.dataset, **{name: str(value) for name, value in figures.items()}},
        model_id=model.model_id,
    )
    return str(version.version)


def _link(client: "MlflowClient", model: "LoggedModel", version: str) -> None:
    """So that the LoggedModel's page shows the version; only a server does that by itself."""
    key = "mlflow.modelVersions"
    versions: list[dict[str, Any]] = json.loads(client.get_logged_model(model.model_id).tags.get(key, "[]"))
    if version not in [str(each["version"]) for each in versions if each["name"] == MODEL]:
        versions.append({"name": MODEL, "version": version})
        client.set_logged_model_tags(model.model_id, {key: json.dumps(versions)})
