"""Upload to MLflow what it lacks of runs, after an outage or a killed training.

  python -m mlp_dist.sync outputs/*                             all runs
  python -m mlp_dist.sync "$(ls -td outputs/*/ | head -n 1)"    the latest run

Metrics keep the times of the training, and nothing is uploaded twice. The last line on stdout is one
JSON object with the run ids.
"""

import json
import sys
from pathlib import Path

from mlp_dist.console import command, progress
from mlp_dist.core.errors import MlpDistError, UsageError


def main() -> int:
    parser = command.Parser(prog="python -m mlp_dist.sync", description=__doc__)
    parser.add_argument(
        "directories", metavar="OUTPUT_DIR", type=Path, nargs="+", help="of trainings or sweeps"
    )
    parser.add_argument(
        "--follow",
        action="store_true",
        help="beside a training, which starts it: upload again and again until the run has ended",
    )
    args = parser.parse_args()
    if args.follow:
        from mlp_dist.tracking.follow import follow

        if len(args.directories) > 1:
            raise UsageError(f"--follow takes one directory, not {len(args.directories)}")
        return 0 if follow(args.directories[0]) else 1
    # Importing mlflow takes seconds.
    with progress.stages("starting"):
        from mlp_dist.tracking.run_dir import runs_in
        from mlp_dist.tracking.store import TrashedError
        from mlp_dist.tracking.upload import sync

    run_ids: list[str] = []
    directories: list[Path] = []
    problems: list[MlpDistError] = []
    for each in args.directories:
        try:
            directories += runs_in(each)
        except UsageError as error:
            problems.append(error)
    # A run that fails does not stop the others.
    with progress.bar("uploading", len(directories), " runs") as bar:
        for directory in directories:
            try:
                record, run_id, sent = sync(directory)
            except TrashedError as error:
                progress.tell(f"note: {error}")
            except MlpDistError as error:
                problems.append(error)
            else:
                run_ids.append(run_id)
                what = f"sent {', '.join(sent)}" if sent else "MLflow has all of it"
                progress.tell(f"{record.name}: {record.status}, {run_id}; {what}")
            bar.update()
    if problems and not run_ids:
        raise problems[0]
    for problem in problems:
        print(f"error: {problem}", file=sys.stderr)
    print(json.dumps({"run_ids": run_ids}))
    return 1 if problems else 0


if __name__ == "__main__":
    command.run(main, at_once=True)
