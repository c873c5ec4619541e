"""Compare the runs of an experiment: best first, with the parameters in which they differ.

  python -m mlp_dist.compare                    rank by best_val_accuracy
  python -m mlp_dist.compare --metric test_loss --top 3
  python -m mlp_dist.compare --csv runs.csv     write every column to a file

Runs on different data sets are ranked separately. Runs that did not finish are listed last. Charts
are on MLflow's pages: mlflow ui
"""

from pathlib import Path

from mlp_dist.console import command, progress
from mlp_dist.core.errors import PromotionError, UsageError
from mlp_dist.core.io import replacing_file


def champion_id() -> str:
    """The champion's run id; "" if there is no champion or its run is gone."""
    from mlp_dist.tracking.champion import find_champion

    try:
        found = find_champion()
    except PromotionError as error:
        progress.tell_beside(f"note: {error}")
        return ""
    return found.run.run_id if found else ""


def main() -> None:
    parser = command.Parser(
        prog="python -m mlp_dist.compare", usage="python -m mlp_dist.compare [FLAG ...]", description=__doc__
    )
    which = parser.add_argument_group("runs")
    which.add_argument(
        "--experiment",
        metavar="NAME",
        help="MLflow experiment (those of all data sets)",
    )
    which.add_argument(
        "--metric", metavar="NAME", default="best_val_accuracy", help="metric to rank by (best_val_accuracy)"
    )
    which.add_argument("--top", metavar="N", type=int, help="show the first N runs of each data set (all)")
    where = parser.add_argument_group("output")
    where.add_argument("--csv", metavar="FILE", type=Path, help="also write the runs with all metrics")
    args = parser.parse_args()
    if args.top is not None and args.top < 1:
        raise UsageError(f"top is {args.top}; it must be 1 or more")
    # Importing mlflow takes seconds; a mistyped flag is reported first.
    with progress.stages("reading the runs"):
        from mlp_dist.tracking import compare_runs, find

        runs = find.experiment_runs(args.experiment)
        champion = champion_id()
    metric = compare_runs.full_name(args.metric, runs)
    rankings = compare_runs.rank_runs(runs, metric, champion=champion)
    tables = [compare_runs.format_ranking(each, metric, top=args.top) for each in rankings]
    print("\n\n".join(tables) or "no runs")
    if args.csv and rankings:
        import pandas

        frame = pandas.concat([each.head(args.top or len(each)) for each in rankings])
        # Params follow all metrics, whichever data set they come from.
        columns = sorted(frame, key=lambda name: name.startswith("param."))
        with replacing_file(args.csv) as temporary:
            frame.to_csv(temporary, columns=columns, index=False)


if __name__ == "__main__":
    command.run(main)
