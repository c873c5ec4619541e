"""Send MLflow what it has not got of runs: the server was down, or the training was killed.

  python -m mlp_dist.sync outputs/*                                 of all that are there
  python -m mlp_dist.sync "$(ls -td outputs/*/ | head -n 1)"        of the latest

Times stay those of the training, and what MLflow has already is not sent twice. The last line on
stdout is one JSON object with the run ids.
"""

import json
import sys
from pathlib import Path

from mlp_dist.console import colors, command, progress
from mlp_dist.core.errors import MlpDistError, UsageError


def main() -> int:
    parser = command.Parser(prog="python -m mlp_dist.sync", description=__doc__)
    what = parser.add_argument_group("what is sent")
    what.add_argument(
        "directories",
        metavar="OUTPUT_DIR",
        type=Path,
        nargs="+",
        help="of trainings, populations or sweeps",
    )
    args = parser.parse_args()
    # MLflow takes seconds to import.
    with progress.stages("starting"):
        from mlp_dist.tracking.sync import runs_in, sync

    run_ids: list[str] = []
    directories: list[Path] = []
    problems: list[MlpDistError] = []
    for each in args.directories:
        try:
            directories += runs_in(each)
        except UsageError as error:
            problems.append(error)
    # One that cannot be sent does not hold up the others.
    with progress.bar("sending", len(directories), " runs") as bar:
        for directory in directories:
            try:
                record, run_id = sync(directory)
            except MlpDistError as error:
                problems.append(error)
            else:
                run_ids.append(run_id)
                where = f"{run_id} in the experiment {record.experiment}"
                progress.tell(f"{record.name}: {record.status}, {where}")
            bar.update()
    if problems and not run_ids:
        raise problems[0]
    for problem in problems:
        print(colors.error(str(problem)), file=sys.stderr)
    print(json.dumps({"run_ids": run_ids}))
    return 1 if problems else 0


if __name__ == "__main__":
    command.run(main)
