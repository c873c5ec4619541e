"""Compare the runs of an experiment: best first, with the parameters in which they differ.

  python -m mlp_dist.compare                    rank by best_val_accuracy
  python -m mlp_dist.compare --metric test_loss --top 3
  python -m mlp_dist.compare --csv runs.csv     write every column to a file

Runs on different data sets are ranked separately. Runs that did not finish are listed last. Charts
are on MLflow's pages: mlflow ui
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_dist.config import OPTIONS
from mlp_dist.console import command, progress
from mlp_dist.core.errors import PromotionError, UsageError, did_you_mean
from mlp_dist.core.io import replacing_file

if TYPE_CHECKING:
    from pandas import DataFrame

    from mlp_dist.tracking.find import StoredRun

DEFAULT_METRIC = "best_val_accuracy"

_FIGURES = ("best_val_accuracy", "best_val_loss", "test_accuracy", "best_epoch")
"""Metrics shown beside the one that ranks."""

_DEFAULTS = {
    name: "" if option.default is None else option.text(option.default)
    for name, option in OPTIONS.items()
    if option.changes_training and name != "dataset"
}
"""Params that distinguish trainings; MLflow has few of those at their default."""


def full_name(metric: str, runs: "Sequence[StoredRun]") -> str:
    """Expands val_accuracy, as serve.package spells it, to best_val_accuracy.

    Raises UsageError if no run has the metric.
    """
    names = sorted({name for run in runs for name in run.metrics})
    for name in (f"best_{metric}", metric):
        if name in names or name == DEFAULT_METRIC:
            return name
    hint = f"{did_you_mean(metric, names)} (there are: {', '.join(names) or 'none'})"
    raise UsageError(f"no run here has the metric {metric!r}{hint}")


def ranking(runs: "Sequence[StoredRun]", metric: str = DEFAULT_METRIC, champion: str = "") -> "DataFrame":
    """A row for each run on one data set, the best run first; `champion` is a run id.

    The columns are dataset, place, run_id, name, status, champion, the metrics, and param.NAME for the params
    in which the runs differ. `place` is <NA> if a run did not finish or lacks `metric`.
    """
    from pandas import DataFrame, Series

    from mlp_dist.tracking.find import ranked

    runs = ranked(runs, metric)
    places = [place if run.is_rated(metric) else None for place, run in enumerate(runs, start=1)]
    params = {
        f"param.{name}": [run.params.get(name, default) for run in runs]
        for name, default in _DEFAULTS.items()
    }
    metrics = sorted({name for run in runs for name in run.metrics} | {metric})
    return DataFrame(
        {
            "dataset": runs[0].dataset,
            "place": Series(places, dtype="Int64"),
            "run_id": [run.run_id for run in runs],
            "name": [run.name for run in runs],
            "status": ["PRUNED" if "pruned" in run.tags else run.status for run in runs],
            "champion": [int(run.run_id == champion) for run in runs],
            **{name: Series([run.metrics.get(name) for run in runs], dtype="float") for name in metrics},
            **{name: values for name, values in params.items() if len(set(values)) > 1},
        }
    )


def table(frame: "DataFrame", metric: str = DEFAULT_METRIC, top: int | None = None) -> str:
    """The first `top` runs of a ranking, for a terminal; None: all."""
    from pandas import DataFrame

    runs = frame.head(top or len(frame))
    is_champion, params = runs["champion"] == 1, [name for name in runs if name.startswith("param.")]
    shown = DataFrame(
        {
            "#": runs["place"].astype("string").fillna("-") + is_champion.map({True: "*", False: ""}),
            "run": runs["name"],
            "id": runs["run_id"].str[:8],
            metric: runs[metric],
            **({} if (runs["status"] == "FINISHED").all() else {"status": runs["status"]}),
            **{name.removeprefix("param."): runs[name] for name in params},
            **{name: runs[name] for name in _FIGURES if name in runs and name != metric},
        }
    )
    if "best_epoch" in shown:
        shown["best_epoch"] = shown["best_epoch"].astype("Int64")
    text = shown.to_string(index=False, na_rep="-", float_format="{:#.4g}".format)
    count = f"{len(runs)} run{'s' * (len(runs) != 1)}" + f" of {len(frame)}" * (len(runs) < len(frame))
    note = "\n\n* the champion" if is_champion.any() else ""
    return f"{frame['dataset'][0]}: {count}, ranked by {metric}\n\n{text}{note}"


def champion_id() -> str:
    """The champion's run id; "" if there is no champion or its run is gone."""
    from mlp_dist.tracking.champion import find_champion

    try:
        found = find_champion()
    except PromotionError as error:
        progress.tell_beside(f"note: {error}")
        return ""
    return found.run_id if found else ""


def main() -> None:
    parser = command.Parser(
        prog="python -m mlp_dist.compare", usage="python -m mlp_dist.compare [FLAG ...]", description=__doc__
    )
    which = parser.add_argument_group("runs")
    which.add_argument("--experiment", metavar="NAME", help="MLflow experiment (those of all data sets)")
    which.add_argument(
        "--metric", metavar="NAME", default=DEFAULT_METRIC, help=f"metric to rank by ({DEFAULT_METRIC})"
    )
    which.add_argument("--top", metavar="N", type=int, help="show the first N runs of each data set (all)")
    where = parser.add_argument_group("output")
    where.add_argument("--csv", metavar="FILE", type=Path, help="also write the runs with all metrics")
    args = parser.parse_args()
    if args.top is not None and args.top < 1:
        raise UsageError(f"top is {args.top}; it must be 1 or more")
    # Importing mlflow takes seconds; a mistyped flag is reported first.
    with progress.stages("reading the runs"):
        import pandas

        from mlp_dist.tracking import find

        runs = find.experiment_runs(args.experiment)
        champion = champion_id()
    metric = full_name(args.metric, runs)
    groups = [
        [run for run in runs if run.dataset == each] for each in dict.fromkeys(run.dataset for run in runs)
    ]
    rankings = [ranking(group, metric, champion) for group in groups]
    print("\n\n".join(table(each, metric, args.top) for each in rankings) or "no runs")
    if args.csv and rankings:
        frame = pandas.concat([each.head(args.top or len(each)) for each in rankings])
        # Params follow all metrics, whichever data set they come from.
        columns = sorted(frame, key=lambda name: name.startswith("param."))
        with replacing_file(args.csv) as temporary:
            frame.to_csv(temporary, columns=columns, index=False)


if __name__ == "__main__":
    command.run(main)
