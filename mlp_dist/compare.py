"""Compare the runs of an experiment: the best first, with what was chosen differently for them.

  python launch/compare.py                        the experiment mlp_dist, by best_val_accuracy
  python launch/compare.py --html compare.html    as a page too, with curves; it needs no network

Runs on different data sets are ranked apart. A run that has not ended well is shown below the others.
"""

import shutil
import sys
from pathlib import Path

from mlp_dist import colours, command, progress
from mlp_dist.config import DEFAULT_EXPERIMENT
from mlp_dist.core.errors import UsageError


def main() -> None:
    parser = command.Parser(prog="python launch/compare.py", description=__doc__)
    parser.add_argument(
        "--experiment", metavar="NAME", default=DEFAULT_EXPERIMENT, help=f"({DEFAULT_EXPERIMENT})"
    )
    parser.add_argument(
        "--metric", metavar="NAME", default="best_val_accuracy", help="what to rank by (best_val_accuracy)"
    )
    parser.add_argument("--top", metavar="N", type=int, help="only the first N runs on each data set")
    parser.add_argument("--csv", metavar="FILE", type=Path, help="write the runs and their figures there")
    parser.add_argument("--html", metavar="FILE", type=Path, help="write a page with curves there")
    args = parser.parse_args()
    if args.top is not None and args.top < 1:
        raise UsageError(f"top is {args.top}; it must be 1 or more")
    # mlflow takes seconds, which a mistyped flag need not wait for.
    with progress.stages("reading the runs"):
        from mlp_dist.leaderboard import boards, page, text
        from mlp_dist.tracking import curves, find, registry

        runs = find.experiment_runs(args.experiment)
        champion = registry.find_champion()
    found = boards.build_boards(
        runs, args.metric, champion=champion.run.run_id if champion else "", top=args.top
    )
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
    print("\n\n".join("\n".join(text.lines(board, width, colours.bold)) for board in found) or "no run")
    if args.csv:
        text.write_csv(found, args.csv)
    if args.html:
        ids = [row.run.run_id for board in found for row in board.rows]
        page.write_page(args.html, args.experiment, found, curves.read_curves(ids, page.CURVES))


if __name__ == "__main__":
    command.run(main)
