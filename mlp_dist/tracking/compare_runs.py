"""Ranks an experiment's runs, one table per data set, for a terminal or as CSV."""

import re
from collections.abc import Sequence
from dataclasses import MISSING

import numpy as np
import pandas as pd

from mlp_dist.config import OPTIONS
from mlp_dist.core.errors import UsageError, did_you_mean
from mlp_dist.tracking.find import StoredRun
from mlp_dist.tracking.run_dir import FINISHED

DEFAULT_METRIC = "best_val_accuracy"

_FIGURES = ("best_val_accuracy", "best_val_loss", "test_accuracy", "best_epoch")
"""Metrics shown beside the one that ranks."""

_SMALLER_IS_BETTER = ("loss", "ece", "error", "seconds")

_DEFAULTS = {
    name: "" if option.default in (MISSING, None) else option.text(option.default)
    for name, option in OPTIONS.items()
    if option.changes_training and name != "dataset"
}
"""Params that distinguish trainings; MLflow has few of those at their default."""


def full_name(metric: str, runs: Sequence[StoredRun]) -> str:
    """Expands val_accuracy, as serve.package spells it, to best_val_accuracy.

    Raises UsageError if no run has the metric.
    """
    names = sorted({name for run in runs for name in run.metrics})
    for name in (f"best_{metric}", metric):
        if name in names or name == DEFAULT_METRIC:
            return name
    hint = f"{did_you_mean(metric, names)} (there are: {', '.join(names) or 'none'})"
    raise UsageError(f"no run here has the metric {metric!r}{hint}")


def rank_runs(
    runs: Sequence[StoredRun], metric: str = DEFAULT_METRIC, *, champion: str = ""
) -> list[pd.DataFrame]:
    """A table per data set of `runs`, which are ordered from the latest to the earliest; the best run first.

    The columns are dataset, place, run_id, name, status, champion, the metrics, and param.NAME for the params
    in which the runs differ. `place` is <NA> if a run did not finish or lacks `metric`. `champion` is a
    run id.
    """
    groups: list[list[StoredRun]] = []
    for run in runs:
        group = next((each for each in groups if all(run.is_on_data_of(other) for other in each)), None)
        if group is None:
            groups.append(group := [])
        group.append(run)
    return [_rank(group, metric, champion) for group in groups]


def _rank(runs: list[StoredRun], metric: str, champion: str) -> pd.DataFrame:
    params = {f"param.{name}": [_param(run, name) for run in runs] for name in _DEFAULTS}
    metrics = sorted({name for run in runs for name in run.metrics} | {metric})
    frame = pd.DataFrame(
        {
            "dataset": runs[0].dataset,
            "run_id": [run.run_id for run in runs],
            "name": [run.name for run in runs],
            "status": ["PRUNED" if "pruned" in run.tags else run.status for run in runs],
            "champion": [int(run.run_id == champion) for run in runs],
            **{name: [run.metrics.get(name, np.nan) for run in runs] for name in metrics},
            **{name: values for name, values in params.items() if len(set(values)) > 1},
        }
    )
    eligible = frame[metric].where(np.isfinite(frame[metric]) & (frame["status"] == FINISHED))
    smaller_first = any(word in metric for word in _SMALLER_IS_BETTER)
    # Of equal runs the latest, which comes first, stays first.
    frame.insert(1, "place", eligible.rank(method="first", ascending=smaller_first).astype("Int64"))
    return frame.sort_values("place", kind="stable", ignore_index=True)


def _param(run: StoredRun, name: str) -> str:
    value = run.params.get(name, _DEFAULTS[name])
    # 0.1.0 wrote (256, 64) and None.
    if name == "hidden_sizes":
        return "-".join(re.findall(r"\d+", value)) or "none"
    return "" if value in ("None", "none") else value


def format_ranking(frame: pd.DataFrame, metric: str, *, top: int | None = None) -> str:
    """The first `top` runs as a table; None: all."""
    runs = frame.head(len(frame) if top is None else top)
    is_champion, params = runs["champion"] == 1, [name for name in runs if name.startswith("param.")]
    shown = pd.DataFrame(
        {
            "#": runs["place"].astype("string").fillna("-") + is_champion.map({True: "*", False: ""}),
            "run": runs["name"],
            "id": runs["run_id"].str[:8],
            metric: runs[metric],
            **({} if (runs["status"] == FINISHED).all() else {"status": runs["status"]}),
            **{name.removeprefix("param."): runs[name] for name in params},
            **{name: runs[name] for name in _FIGURES if name in runs and name != metric},
        }
    )
    if "best_epoch" in shown:
        shown["best_epoch"] = shown["best_epoch"].astype("Int64")
    table = shown.to_string(index=False, na_rep="-", float_format="{:#.4g}".format)
    count = f"{len(runs)} run{'s' * (len(runs) != 1)}" + f" of {len(frame)}" * (len(runs) < len(frame))
    note = "\n\n* the champion" if is_champion.any() else ""
    return f"{frame['dataset'][0]}: {count}, ranked by {metric}\n\n{table}{note}"
