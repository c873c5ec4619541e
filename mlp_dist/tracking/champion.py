"""The champion: the promoted run that is packaged by default.

It is the version with the alias `champion` of MLflow's registered model `mlp`.
"""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from mlp_dist.console import progress
from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import BundleError, DataError, PromotionError, TrackingError
from mlp_dist.tracking.export import Export, export_run
from mlp_dist.tracking.find import StoredRun, best_beside, best_run, download_bundle, stored
from mlp_dist.tracking.models import log_model
from mlp_dist.tracking.store import TrashedError, existing_store, load_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel
    from mlflow.entities.model_registry import ModelVersion

T = TypeVar("T")

MODEL, CHAMPION = "mlp", "champion"

SIGNIFICANCE = 0.05
"""A run is refused as worse if McNemar's test gives a p-value below this."""

_DESCRIPTION = (
    "Models that were promoted. python -m serve.package takes the one with the alias champion; "
    "python -m mlp_dist.promote moves the alias."
)
_RATED = ("best_val_accuracy", "test_accuracy", "best_epoch")
"""Metrics of a run that its version keeps as tags."""

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
        return best_run(experiment, metric or "val_accuracy")
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
    """None if no run was promoted yet. Raises PromotionError if the champion's run is in MLflow's trash.

    A run that `mlflow gc` removed has left its version.
    """
    mlflow = load_mlflow()
    with existing_store():
        client = mlflow.MlflowClient()
        version = _unless_absent(lambda: client.get_model_version_by_alias(MODEL, CHAMPION))
        if version is None:
            return None
        found = _unless_absent(lambda: client.get_run(version.run_id or "none"))
    if found is None and "dataset" not in version.tags:
        raise PromotionError(
            f"the run of the champion, version {version.version} of {MODEL}, is not in MLflow; "
            "python -m mlp_dist.promote RUN --force replaces the champion"
        )
    if found is not None and found.info.lifecycle_stage == "deleted":
        trashed = TrashedError(version.run_id, found.info.run_name)
        raise PromotionError(
            f"version {version.version} of {MODEL} is the champion, but {trashed}; "
            "python -m mlp_dist.promote RUN --force replaces it"
        )
    run = _run_of(version) if found is None else stored(found)
    return Champion(str(version.version), replace(run, bundle=f"models:/{MODEL}/{version.version}"))


def _unless_absent(ask: Callable[[], T]) -> T | None:
    try:
        return ask()
    except load_mlflow().MlflowException as error:
        if error.error_code not in _NOT_FOUND:
            raise
        return None


def _run_of(version: "ModelVersion") -> StoredRun:
    """What the version says about its run, which `mlflow gc` removed."""
    metrics = {name: float(version.tags[name]) for name in _RATED if name in version.tags}
    dataset = version.tags.get("dataset", "unknown")
    return StoredRun(str(version.run_id), str(version.description).split(",")[0], dataset, metrics)


def promote(run: StoredRun, *, force: bool = False, data_dir: Path | None = None) -> dict[str, Any]:
    """Register the run and make it the champion; returns the values of mlp_dist.promote's last line.

    `force` accepts a run that is significantly worse than the champion or cannot be compared with it, and
    prints a note.

    Raises PromotionError for such a run without `force`, TrackingError if MLflow fails, and the errors of
    `export_run`.
    """
    try:
        champion = find_champion()
    except PromotionError as error:
        if not force:
            raise
        progress.tell(f"note: {error}")
        champion = None
    comparison: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mlp_dist-") as name:
        exported = export_run(run, Path(name) / "run", data_dir)
        if champion is not None:
            comparison, problem = _compare(run, exported, champion.run, Path(name) / "champion", data_dir)
            if problem and not force:
                raise PromotionError(f"{problem}; the champion stays, --force replaces it anyway")
            if problem:
                progress.tell(f"note: {problem}; replaced anyway")
    version = _register(run, exported.bundle.spec.weights_sha256)
    return {
        "run_id": run.run_id,
        "model": MODEL,
        "version": version,
        "alias": CHAMPION,
        "test_accuracy": exported.test.accuracy,
        **comparison,
    }


def _compare(
    run: StoredRun, exported: Export, champion: StoredRun, directory: Path, data_dir: Path | None
) -> tuple[dict[str, Any], str]:
    """The comparison's values for the last line, and why `run` should not be promoted ("" if it may be).

    McNemar's exact test: among the images that only one of the models gets right, each model should win
    half if both are equally good (McNemar 1947; Dietterich 1998 for classifiers).
    """
    from scipy.stats import binomtest

    values: dict[str, Any] = {"previous_run_id": champion.run_id}
    this, other = f"{run.name} ({run.run_id})", f"the champion, {champion.name} ({champion.run_id}),"
    if not run.is_on_data_of(champion):
        changed = " as it was then" if run.dataset == champion.dataset else ""
        return values, (
            f"{this} was trained on {run.dataset}, and {other} on {champion.dataset}{changed}: "
            "they cannot be compared"
        )
    try:
        previous = export_run(champion, directory, data_dir)
    except (TrackingError, BundleError, DataError) as error:
        return values, f"{other} cannot be scored again: {error}"
    if exported.labels.tolist() != previous.labels.tolist():
        return values, f"{other} was trained with other test images: they cannot be compared"
    only_previous = int((previous.correct & ~exported.correct).sum())
    only_this = int((~previous.correct & exported.correct).sum())
    differing = only_previous + only_this
    p_value = float(binomtest(only_this, differing).pvalue) if differing else 1.0
    values |= {
        "previous_test_accuracy": previous.test.accuracy,
        "only_previous": only_previous,
        "only_this": only_this,
        "p_value": p_value,
    }
    if only_previous <= only_this or p_value >= SIGNIFICANCE:
        return values, ""
    return values, (
        f"{this} is significantly worse than {other} {exported.test.accuracy:.2%} against "
        f"{previous.test.accuracy:.2%} of {len(previous.labels):,} test images; {only_previous} are right by "
        f"the champion alone, {only_this} by this run alone (McNemar's exact test, p = {p_value:.2g})"
    )


def _register(run: StoredRun, weights_sha256: str) -> str:
    """Move the alias to a version with the run's kept weights, once it was read back; returns the version."""
    mlflow = load_mlflow()
    with existing_store("cannot register the run"), tempfile.TemporaryDirectory(prefix="mlp_dist-") as name:
        client, directory = mlflow.MlflowClient(), Path(name)
        bundle, step = download_bundle(run, directory / "run"), int(run.metrics["best_epoch"])
        model_id = log_model(client, run.run_id, run.name, bundle, step=step, points=())
        model = client.get_logged_model(model_id)
        versions = client.search_model_versions(f"name = '{MODEL}' AND run_id = '{run.run_id}'")
        known = next((str(each.version) for each in versions if each.source == model.model_uri), None)
        version = known or _create_version(client, run, model)
        copy = replace(run, bundle=f"models:/{MODEL}/{version}")
        found = load_bundle(download_bundle(copy, directory / "version")).spec.weights_sha256
        if found != weights_sha256:
            raise TrackingError(f"version {version} of {MODEL} has other weights than run {run.run_id}")
        client.set_registered_model_alias(MODEL, CHAMPION, version)
    return version


def _create_version(client: "MlflowClient", run: StoredRun, model: "LoggedModel") -> str:
    mlflow = load_mlflow()
    try:
        client.create_registered_model(MODEL, description=_DESCRIPTION)
    except mlflow.MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    metrics = {name: run.metrics[name] for name in _RATED if name in run.metrics}
    accuracies = [
        f"{name.removeprefix('best_')} {metrics[name]:.4f}" for name in metrics if "accuracy" in name
    ]
    version: ModelVersion = client.create_model_version(
        MODEL,
        model.model_uri,
        run.run_id,
        description=", ".join([run.name, run.dataset, *accuracies]),
        tags={"dataset": run.dataset, **{name: str(value) for name, value in metrics.items()}},
        model_id=model.model_id,
    )
    return str(version.version)
