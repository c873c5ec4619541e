"""Ranks an experiment's runs, one table per data set, for a terminal or as CSV."""

import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mlp_dist.config import OPTIONS
from mlp_dist.core.errors import UsageError, did_you_mean
from mlp_dist.core.io import replacing_file
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
"""Params that distinguish trainings; the value stands in for runs from before the param existed."""


@dataclass(frozen=True)
class Ranking:
    """The runs on one data set, best first.

    `runs` has the columns dataset, place, run_id, name, status, champion, summary metrics, and param.NAME for
    each of the `params` in which the runs differ. `place` is <NA> if a run did not finish or lacks `metric`.
    """

    dataset: str
    metric: str
    params: list[str]
    runs: pd.DataFrame


def rank_runs(
    runs: Sequence[StoredRun], metric: str = DEFAULT_METRIC, *, champion: str = ""
) -> list[Ranking]:
    """One ranking per data set of `runs`, which are ordered from the latest to the earliest.

    `champion` is a run id. Raises UsageError if no run has the metric.
    """
    metric = _full_name(metric, runs)
    groups: list[list[StoredRun]] = []
    for run in runs:
        group = next((each for each in groups if all(run.is_on_data_of(other) for other in each)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    return [_rank(group, metric, champion) for group in groups]


def _full_name(metric: str, runs: Sequence[StoredRun]) -> str:
    """Expands val_accuracy, as serve.package spells it, to best_val_accuracy."""
    names = {name for run in runs for name in run.metrics}
    for name in (f"best_{metric}", metric):
        if name in names or name == DEFAULT_METRIC:
            return name
    known = sorted(names)
    hint = did_you_mean(metric, known)
    raise UsageError(f"no run here has the metric {metric!r}{hint} (there are: {', '.join(known) or 'none'})")


def _rank(runs: list[StoredRun], metric: str, champion: str) -> Ranking:
    params = {name: [_param(run, name) for run in runs] for name in _DEFAULTS}
    params = {name: values for name, values in params.items() if len(set(values)) > 1}
    metrics = sorted({name for run in runs for name in run.metrics} | {metric})
    frame = pd.DataFrame(
        {
            "dataset": runs[0].dataset,
            "run_id": [run.run_id for run in runs],
            "name": [run.name for run in runs],
            "status": ["PRUNED" if "pruned" in run.tags else run.status for run in runs],
            "champion": [run.run_id == champion for run in runs],
            **{name: [run.metrics.get(name, np.nan) for run in runs] for name in metrics},
            **{f"param.{name}": values for name, values in params.items()},
        }
    )
    eligible = frame[metric].where(np.isfinite(frame[metric]) & (frame["status"] == FINISHED))
    smaller_first = any(word in metric for word in _SMALLER_IS_BETTER)
    # Of equal runs the latest, which comes first, stays first.
    frame.insert(1, "place", eligible.rank(method="first", ascending=smaller_first).astype("Int64"))
    frame = frame.sort_values("place", kind="stable", ignore_index=True)
    return Ranking(runs[0].dataset, metric, list(params), frame)


def _param(run: StoredRun, name: str) -> str:
    value = run.params.get(name, _DEFAULTS[name])
    if name == "hidden_sizes":
        return "-".join(re.findall(r"\d+", value)) or "none"
    return "" if value == "None" else value


def format_ranking(ranking: Ranking, *, top: int | None = None) -> str:
    """The first `top` runs as a table; None: all."""
    runs = ranking.runs.head(len(ranking.runs) if top is None else top)
    table = pd.DataFrame(_cells(ranking, runs)).to_string(index=False)
    count = f"{len(runs)} run{'s' * (len(runs) != 1)}"
    if len(runs) < len(ranking.runs):
        count += f" of {len(ranking.runs)}"
    notes = ["", "* the champion"] if runs["champion"].any() else []
    title = f"{ranking.dataset}: {count}, ranked by {ranking.metric}"
    return "\n".join([title, "", table, *notes])


def _cells(ranking: Ranking, runs: pd.DataFrame) -> dict[str, list[str]]:
    """Headings and the cells below them."""
    marks = ["*" if champion else "" for champion in runs["champion"]]
    cells = {
        "#": [
            f"{'-' if pd.isna(place) else place}{mark}"
            for place, mark in zip(runs["place"], marks, strict=True)
        ],
        "run": list(runs["name"]),
        "id": [run_id[:8] for run_id in runs["run_id"]],
        ranking.metric: _numbers(runs, ranking.metric),
    }
    if (runs["status"] != FINISHED).any():
        cells["status"] = list(runs["status"])
    cells |= {name: list(runs[f"param.{name}"]) for name in ranking.params}
    figures = [name for name in _FIGURES if name in runs and name != ranking.metric]
    return cells | {name: _numbers(runs, name) for name in figures}


def _numbers(runs: pd.DataFrame, name: str) -> list[str]:
    form = "{:.0f}" if name == "best_epoch" else "{:#.4g}"
    return ["-" if pd.isna(value) else form.format(value) for value in runs[name]]


def write_csv(rankings: Sequence[Ranking], path: Path, *, top: int | None = None) -> None:
    """Write the first `top` runs of each ranking to one file; missing values are empty."""
    frames = [ranking.runs.head(len(ranking.runs) if top is None else top) for ranking in rankings]
    frame = pd.concat(frames).astype({"champion": int})
    # Params follow all metrics, whichever data set they come from.
    columns = sorted(frame.columns, key=lambda name: name.startswith("param."))
    with replacing_file(path) as temporary:
        frame[columns].to_csv(temporary, index=False)
