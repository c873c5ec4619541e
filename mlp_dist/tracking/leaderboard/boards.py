"""Runs -> boards: those on one data set, the best first, and what people chose differently for them."""

import math
import re
from collections.abc import Sequence
from dataclasses import MISSING, dataclass, fields

from mlp_dist.config import WHERE, TrainConfig
from mlp_dist.core.errors import UsageError, did_you_mean
from mlp_dist.tracking.find import StoredRun
from mlp_dist.tracking.run_dir import FINISHED

DEFAULT_METRIC = "best_val_accuracy"

FIGURES = ("best_val_accuracy", "best_val_loss", "test_accuracy", "best_epoch")
"""Shown beside what the runs are ranked by."""

_SMALLER_IS_BETTER = ("loss", "ece", "error", "seconds")

_DEFAULTS = {
    field.name: "" if field.default is MISSING else str(field.default)
    for field in fields(TrainConfig)
    if field.name not in (*WHERE, "dataset")
}
"""The fields that make one training another, and the value of those that a run's params do not name."""


@dataclass(frozen=True)
class Row:
    """`place` is from 1 on, None for a run that has not ended well or has no such figure; `value` is then
    what it reached so far, if anything. `chosen` has the columns of its board.
    """

    run: StoredRun
    place: int | None
    value: float | None
    is_champion: bool
    chosen: dict[str, str]

    @property
    def status(self) -> str:
        """MLflow's, or PRUNED where a sweep gave the run up; empty for one that ended well."""
        status = "PRUNED" if "pruned" in self.run.tags else self.run.status
        return "" if status == FINISHED else status

    def figure(self, name: str) -> float | None:
        return self.run.metrics.get(name) if self.run.status == FINISHED else None


@dataclass(frozen=True)
class Board:
    """The runs on one data set; `columns` are the params in which they differ."""

    dataset: str
    metric: str
    columns: list[str]
    rows: list[Row]
    left_out: int = 0

    @property
    def figures(self) -> list[str]:
        """The other metrics to show, where a run has them."""
        others = [name for name in FIGURES if name != self.metric]
        return [name for name in others if any(row.figure(name) is not None for row in self.rows)]


def build_boards(
    runs: Sequence[StoredRun], metric: str = DEFAULT_METRIC, *, champion: str = "", top: int | None = None
) -> list[Board]:
    """A board for each data set of the `runs`, which come the latest first; that of the latest run first.

    `champion` is a run's id; of each board's rows the first `top` are kept. Raises UsageError for a metric
    that no run has.
    """
    metric = _known(metric, runs)
    groups: list[list[StoredRun]] = []
    for run in runs:
        group = next((each for each in groups if all(run.is_on_data_of(other) for other in each)), None)
        if group is None:
            groups.append([run])
        else:
            group.append(run)
    names = [group[0].dataset for group in groups]
    return [
        _board(group, name if names.count(name) == 1 else _told_apart(group), metric, champion, top)
        for group, name in zip(groups, names, strict=True)
    ]


def _told_apart(group: list[StoredRun]) -> str:
    """Where the images behind one name have changed."""
    return f"{group[0].dataset} (digest {group[0].digest[:8] or 'unknown'})"


def _known(metric: str, runs: Sequence[StoredRun]) -> str:
    """val_accuracy, as serve.package calls it, is best_val_accuracy."""
    names = {name for run in runs for name in run.metrics}
    for name in (metric, f"best_{metric}"):
        if name in names or name == DEFAULT_METRIC:
            return name
    shown = sorted(name for name in names if "/" not in name)
    hint = did_you_mean(metric, names if "/" in metric else shown)
    raise UsageError(f"no run here has the metric {metric!r}{hint} (there are: {', '.join(shown) or 'none'})")


def _board(runs: list[StoredRun], dataset: str, metric: str, champion: str, top: int | None) -> Board:
    values = {run.run_id: _value(run, metric) for run in runs}
    # Sorting keeps the order of equals, the latest first.
    ranked = sorted(
        (run for run in runs if run.status == FINISHED and values[run.run_id] is not None),
        key=lambda run: _sign(metric) * (values[run.run_id] or 0.0),
    )
    rest = [run for run in runs if run.status != FINISHED or values[run.run_id] is None]
    columns = [name for name in _DEFAULTS if len({_chosen(run, name) for run in runs}) > 1]
    rows = [
        Row(
            run=run,
            place=number if number <= len(ranked) else None,
            value=values[run.run_id],
            is_champion=run.run_id == champion,
            chosen={name: _chosen(run, name) for name in columns},
        )
        for number, run in enumerate([*ranked, *rest], start=1)
    ]
    return Board(dataset, metric, columns, rows[:top], left_out=max(0, len(rows) - len(rows[:top])))


def _sign(metric: str) -> int:
    return 1 if any(word in metric for word in _SMALLER_IS_BETTER) else -1


def _value(run: StoredRun, metric: str) -> float | None:
    """Of a run that goes on, or broke off, the last epoch's: its summary is written at the end."""
    names = [metric]
    if run.status != FINISHED and metric.startswith("best_"):
        names.append(metric.removeprefix("best_").replace("_", "/", 1))
    found = next((run.metrics[name] for name in names if name in run.metrics), math.nan)
    return found if math.isfinite(found) else None


def _chosen(run: StoredRun, name: str) -> str:
    value = run.params.get(name, _DEFAULTS[name])
    if name == "hidden_sizes":
        return "-".join(re.findall(r"\d+", value)) or "none"
    return "" if value == "None" else value
