"""Send MLflow what it has not got of a run: the server was down, or the training was killed.

  python launch/sync.py OUTPUT_DIR

Times stay those of the training, and what MLflow has already is not sent twice. The last line on stdout is
one JSON object with the run ids.
"""

import json
from pathlib import Path

from mlp_dist import command


def main() -> None:
    parser = command.Parser(prog="launch/sync.py", description=__doc__)
    parser.add_argument(
        "directories",
        metavar="OUTPUT_DIR",
        type=Path,
        nargs="+",
        help="of trainings or sweeps",
    )
    args = parser.parse_args()
    # MLflow takes seconds to import.
    from mlp_dist.tracking.sync import runs_in, sync

    run_ids = []
    for directory in [run for each in args.directories for run in runs_in(each)]:
        record, run_id = sync(directory)
        run_ids.append(run_id)
        print(f"{record.name}: {record.status}, {run_id} in the experiment {record.experiment}", flush=True)
    print(json.dumps({"run_ids": run_ids}))


if __name__ == "__main__":
    command.run(main)
