"""The champion: the promoted run that is packaged by default.

It is the version with the alias `champion` of MLflow's registered model `mlp`.
"""

import tempfile
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_dist.console import progress
from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import BundleError, DataError, PromotionError, TrackingError
from mlp_dist.tracking.find import (
    Export,
    StoredRun,
    best_run,
    download_bundle,
    export_run,
    search_everywhere,
    stored,
)
from mlp_dist.tracking.models import find_model
from mlp_dist.tracking.store import TrashedError, opened_store

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

MODEL, CHAMPION = "mlp", "champion"

SIGNIFICANCE = 0.05
"""A run is refused as worse if McNemar's test gives a p-value below this."""

_DESCRIPTION = (
    "Models that were promoted. python -m serve.package takes the one with the alias champion; "
    "python -m mlp_dist.promote moves the alias."
)


def chosen_run(experiment: str | None = None, metric: str | None = None) -> StoredRun:
    """The champion if neither `experiment` nor `metric` is given and one exists, else `best_run`.

    A note on stdout names the champion. Raises the errors of `best_run` and `find_champion`.
    """
    champion = None if experiment or metric else find_champion()
    if champion is None:
        return best_run(experiment, metric or "val_accuracy")
    progress.tell(f"note: this is the champion, {champion.bundle}; --run-id selects another run")
    return champion


def find_champion() -> StoredRun | None:
    """The champion's run, None if no run was promoted yet. Its `bundle` is the version's own copy.

    Raises PromotionError if the run is in MLflow's trash, or was not trained by this package. A run that
    `mlflow gc` removed has left its version.
    """
    with opened_store() as client:
        models = client.search_registered_models(f"name = '{MODEL}'")
        number = models[0].aliases.get(CHAMPION) if models else None
        if number is None:
            return None
        version = client.get_model_version(MODEL, number)
        run_id = str(version.run_id)
        found = search_everywhere(f"attributes.run_id = '{run_id}'")
    name, bundle = str(version.description).split(",")[0], f"models:/{MODEL}/{number}"
    problem = ""
    if found and found[0].info.lifecycle_stage == "deleted":
        problem = str(TrashedError(run_id, found[0].info.run_name))
    elif not found and "dataset" not in version.tags:
        problem = "its run is not in MLflow"
    if problem:
        raise PromotionError(
            f"version {number} of {MODEL} is the champion, but {problem}; "
            "python -m mlp_dist.promote RUN --force replaces it"
        )
    if not found:
        return StoredRun(run_id, name, version.tags["dataset"], bundle=bundle)
    return replace(stored(found[0]), bundle=bundle)


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
            comparison, problem = _compare(run, exported, champion, Path(name) / "champion", data_dir)
            if problem and not force:
                raise PromotionError(f"{problem}; the champion stays, --force replaces it anyway")
            if problem:
                progress.tell(f"note: {problem}; replaced anyway")
    return {
        "run_id": run.run_id,
        "model": MODEL,
        "version": _register(run, exported.bundle.spec.weights_sha256),
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
    if run.dataset != champion.dataset:
        return values, (
            f"{this} was trained on {run.dataset}, and {other} on {champion.dataset}: they cannot be compared"
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
    """Move the alias to a version of the run's LoggedModel, once it was read back; returns the version."""
    with (
        opened_store("cannot register the run") as client,
        tempfile.TemporaryDirectory(prefix="mlp_dist-") as name,
    ):
        model = find_model(client, client.get_run(run.run_id))
        assert model is not None, "its bundle was downloaded"
        versions = client.search_model_versions(f"name = '{MODEL}' AND run_id = '{run.run_id}'")
        known = next((str(each.version) for each in versions if each.source == model.model_uri), None)
        version = known or _create_version(client, run, model)
        copy = replace(run, bundle=f"models:/{MODEL}/{version}")
        found = load_bundle(download_bundle(copy, Path(name))).spec.weights_sha256
        if found != weights_sha256:
            raise TrackingError(f"version {version} of {MODEL} has other weights than run {run.run_id}")
        client.set_registered_model_alias(MODEL, CHAMPION, version)
    return version


def _create_version(client: "MlflowClient", run: StoredRun, model: "LoggedModel") -> str:
    if not client.search_registered_models(f"name = '{MODEL}'"):
        client.create_registered_model(MODEL, description=_DESCRIPTION)
    rated = {name: run.metrics.get(name) for name in ("best_val_accuracy", "test_accuracy")}
    accuracies = [f"{name} {value:.4f}" for name, value in rated.items() if value is not None]
    version = client.create_model_version(
        MODEL,
        model.model_uri,
        run.run_id,
        description=", ".join([run.name, run.dataset, *accuracies]),
        tags={"dataset": run.dataset},
        model_id=model.model_id,
    )
    return str(version.version)
