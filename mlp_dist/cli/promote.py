"""Make a run the champion, the model that python -m serve.package takes.

  python -m mlp_dist.promote "seed=0 · mnist"            by name, id or prefix
  python -m mlp_dist.promote "seed=0 · mnist" --force    even if it is worse

The model becomes a version of MLflow's registered model mlp, and the alias champion moves to it. A
run that is significantly worse than the champion on the same test images is refused (McNemar's
test, p < 0.05).

The last line on stdout is one JSON object: run_id, model, version, alias, test_accuracy, and for
the champion before previous_run_id, previous_test_accuracy, only_previous and only_this (images
that only one of the two classifies correctly), p_value.
"""

import json
from pathlib import Path

from mlp_dist.console import command, progress


def main() -> None:
    parser = command.Parser(
        prog="python -m mlp_dist.promote",
        usage="python -m mlp_dist.promote RUN [FLAG ...]",
        description=__doc__,
    )
    parser.add_argument("run", metavar="RUN", help="a finished run's id, id prefix, or name")
    parser.add_argument(
        "--force",
        action="store_true",
        help="even if it is worse than the champion or was trained on another data set",
    )
    parser.add_argument(
        "--data-dir", metavar="DIR", type=Path, help="directory of the test images (the training's)"
    )
    args = parser.parse_args()
    # The imports take seconds; a mistyped flag is reported first.
    with progress.stages("finding the run"):
        from mlp_dist.tracking.champion import promote
        from mlp_dist.tracking.find import find_run

        run = find_run(args.run)
    print(f"promoting run {run.name} ({run.run_id}), trained on {run.dataset}", flush=True)
    with progress.stages("scoring it again"):
        result = promote(run, force=args.force, data_dir=args.data_dir)
    print(json.dumps(result))


if __name__ == "__main__":
    command.run(main)
