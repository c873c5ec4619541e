"""Send MLflow what it has not got of runs: the server was down, or the training was killed.

  python launch/sync.py outputs/*                                 of all that are there
  python launch/sync.py "$(ls -td outputs/*/ | head -n 1)"        of the latest

Times stay those of the training, and what MLflow has already is not sent twice. The last line on
stdout is one JSON object with the run ids.
"""

import json
from pathlib import Path

from mlp_dist import command, progress


def main() -> None:
    parser = command.Parser(prog="python launch/sync.py", description=__doc__)
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

    run_ids = []
    directories = [run for each in args.directories for run in runs_in(each)]
    with progress.bar("sending", len(directories), " runs") as bar:
        for directory in directories:
            record, run_id = sync(directory)
            run_ids.append(run_id)
            bar.update()
            progress.tell(f"{record.name}: {record.status}, {run_id} in the experiment {record.experiment}")
    print(json.dumps({"run_ids": run_ids}))


if __name__ == "__main__":
    command.run(main)
