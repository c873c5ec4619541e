"""Which run is the champion: the one that is shipped, until another that is not worse takes its place."""

import tempfile
from pathlib import Path
from typing import Any

from mlp_dist.console import progress
from mlp_dist.core.errors import BundleError, DataError, PromotionError, TrackingError
from mlp_dist.tracking import registry
from mlp_dist.tracking.export import Export, export_run
from mlp_dist.tracking.find import StoredRun
from mlp_dist.tracking.mcnemar import mcnemar

SIGNIFICANCE = 0.05
"""A run is worse by more than chance where McNemar's test gives a p below it."""


def promote(run: StoredRun, *, force: bool = False, data_dir: Path | None = None) -> dict[str, Any]:
    """Register the run and make it the champion; returns what mlp_dist.promote's last line shows.

    `force`: also where it is worse than the champion by more than chance, or cannot be compared with it; that
    is told.

    Raises PromotionError for such a run, what `export.export_run` does for one that is not as good as it
    reports, TrackingError where MLflow cannot be asked.
    """
    champion = _champion(force)
    told: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mlp_dist-") as name:
        exported = export_run(run, Path(name) / "run", data_dir)
        if champion is not None:
            told, problem = _compare(run, exported, champion.run, Path(name) / "champion", data_dir)
            if problem and not force:
                raise PromotionError(f"{problem}; the champion stays, and --force replaces it nevertheless")
            if problem:
                progress.tell(f"note: {problem}; it is replaced nevertheless")
    version = registry.register(run)
    registry.crown(version)
    return {
        "run_id": run.run_id,
        "model": registry.MODEL,
        "version": version,
        "alias": registry.CHAMPION,
        "test_accuracy": exported.test_accuracy,
        **told,
    }


def _champion(force: bool) -> registry.Champion | None:
    try:
        return registry.find_champion()
    except PromotionError as error:
        if not force:
            raise
        progress.tell(f"note: {error}")
        return None


def _compare(
    run: StoredRun, exported: Export, champion: StoredRun, directory: Path, data_dir: Path | None
) -> tuple[dict[str, Any], str]:
    """What there is to tell of the champion, and what there is against `run`, if anything."""
    told: dict[str, Any] = {"previous_run_id": champion.run_id}
    its = f"the champion, {champion.name} ({champion.run_id}),"
    if not run.is_on_data_of(champion):
        changed = " as it was then" if run.dataset == champion.dataset else ""
        return told, (
            f"{run.name} ({run.run_id}) was trained on {run.dataset}, and {its} on "
            f"{champion.dataset}{changed}: nothing tells which is better"
        )
    try:
        other = export_run(champion, directory, data_dir)
    except (TrackingError, BundleError, DataError) as error:
        return told, f"{its} cannot be compared with: {error}"
    if exported.labels.tolist() != other.labels.tolist():
        return told, f"{its} was trained with other test images: nothing tells which is better"
    result = mcnemar(other.correct, exported.correct)
    told |= {
        "previous_test_accuracy": other.test_accuracy,
        "only_previous": result.only_first,
        "only_this": result.only_second,
        "p_value": result.p_value,
    }
    if result.only_first <= result.only_second or result.p_value >= SIGNIFICANCE:
        return told, ""
    return told, (
        f"{run.name} ({run.run_id}) is worse than {its} by more than chance: {exported.test_accuracy:.2%} of "
        f"{len(other.labels):,} test images are right, and {other.test_accuracy:.2%} by the champion; "
        f"{result.only_first} by the champion alone, {result.only_second} by this run alone (McNemar's exact "
        f"test, p = {result.p_value:.2g})"
    )
