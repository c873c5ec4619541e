"""Makes a run the champion, the model packaged by default, unless it is worse than the present one."""

import tempfile
from pathlib import Path
from typing import Any

from mlp_dist.console import progress
from mlp_dist.core.errors import BundleError, DataError, PromotionError, TrackingError
from mlp_dist.tracking import registry
from mlp_dist.tracking.export import Export, export_run
from mlp_dist.tracking.find import StoredRun

SIGNIFICANCE = 0.05
"""A run is refused as worse if McNemar's test gives a p-value below this."""


def promote(run: StoredRun, *, force: bool = False, data_dir: Path | None = None) -> dict[str, Any]:
    """Register the run and make it the champion; returns the values of mlp_dist.promote's last line.

    `force` accepts a run that is significantly worse than the champion or cannot be compared with it, and
    prints a note.

    Raises PromotionError for such a run without `force`, TrackingError if MLflow fails, and the errors of
    `export_run`.
    """
    champion = _find_champion(force)
    comparison: dict[str, Any] = {}
    with tempfile.TemporaryDirectory(prefix="mlp_dist-") as name:
        exported = export_run(run, Path(name) / "run", data_dir)
        if champion is not None:
            comparison, problem = _compare(run, exported, champion.run, Path(name) / "champion", data_dir)
            if problem and not force:
                raise PromotionError(f"{problem}; the champion stays, --force replaces it anyway")
            if problem:
                progress.tell(f"note: {problem}; replaced anyway")
    version = registry.register(run, exported.bundle.spec.weights_sha256)
    registry.set_champion(version)
    return {
        "run_id": run.run_id,
        "model": registry.MODEL,
        "version": version,
        "alias": registry.CHAMPION,
        "test_accuracy": exported.test.accuracy,
        **comparison,
    }


def _find_champion(force: bool) -> registry.Champion | None:
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
