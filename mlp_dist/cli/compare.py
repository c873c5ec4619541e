"""Compare the runs of an experiment: the best first, with what was chosen differently for them.

  python -m mlp_dist.compare                            by best_val_accuracy
  python -m mlp_dist.compare --metric test_loss --top 3
  python -m mlp_dist.compare --html compare.html        as a page too, with curves, without a network

Runs on different data sets are ranked apart. A run that has not ended well is shown below the
others.
"""

import shutil
import sys
from pathlib import Path

from mlp_dist.config import DEFAULT_EXPERIMENT
from mlp_dist.console import colors, command, progress
from mlp_dist.core.errors import PromotionError, UsageError


def champion_id() -> str:
    """The run's; empty where there is none."""
    from mlp_dist.tracking import registry

    try:
        champion = registry.find_champion()
    except PromotionError as error:
        progress.tell_beside(f"note: {error}")
        return ""
    return champion.run.run_id if champion else ""


def main() -> None:
    parser = command.Parser(
        prog="python -m mlp_dist.compare", usage="python -m mlp_dist.compare [FLAG ...]", description=__doc__
    )
    which = parser.add_argument_group("which runs")
    which.add_argument(
        "--experiment", metavar="NAME", default=DEFAULT_EXPERIMENT, help=f"MLflow's ({DEFAULT_EXPERIMENT})"
    )
    which.add_argument(
        "--metric", metavar="NAME", default="best_val_accuracy", help="what to rank by (best_val_accuracy)"
    )
    which.add_argument("--top", metavar="N", type=int, help="the first N runs on each data set (all)")
    where = parser.add_argument_group("where they are shown, beside the terminal")
    where.add_argument("--csv", metavar="FILE", type=Path, help="the runs and all their figures")
    where.add_argument("--html", metavar="FILE", type=Path, help="a page with curves")
    args = parser.parse_args()
    if args.top is not None and args.top < 1:
        raise UsageError(f"top is {args.top}; it must be 1 or more")
    # mlflow takes seconds, which a mistyped flag need not wait for.
    with progress.stages("reading the runs"):
        from mlp_dist.tracking import curves, find
        from mlp_dist.tracking.leaderboard import boards, page, text

        runs = find.experiment_runs(args.experiment)
        champion = champion_id()
    found = boards.build_boards(runs, args.metric, champion=champion, top=args.top)
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n\n".join("\n".join(text.lines(board, width, colors.bold)) for board in found) or "no run")
    if args.csv:
        text.write_csv(found, args.csv)
    if args.html:
        ids = [row.run.run_id for board in found for row in board.rows]
        page.write_page(args.html, args.experiment, found, curves.read_curves(ids, page.CURVES))


if __name__ == "__main__":
    command.run(main)
