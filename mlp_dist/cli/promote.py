"""Make a run the champion: the model that python -m serve.package takes.

  python -m mlp_dist.promote "mnist seed=0"             by its name, its id, or the beginning of that
  python -m mlp_dist.promote "mnist seed=0" --force     even where it is worse

Its model becomes a version of the registered model mlp in MLflow, and the alias champion moves to
it. It is refused where it is worse than the champion on the same test images by more than chance
(McNemar's test, p < 0.05).

The last line on stdout is one JSON object: run_id, model, version, alias, test_accuracy, and of
the champion before previous_run_id, previous_test_accuracy, only_previous and only_this (images
that only the one or the other is right about), p_value.
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
    which = parser.add_argument_group("which run")
    which.add_argument("run", metavar="RUN", help="a finished run's id, the beginning of it, or its name")
    which.add_argument(
        "--force",
        action="store_true",
        help="even where it is worse than the champion, or was trained on another data set",
    )
    which.add_argument(
        "--data-dir", metavar="DIR", type=Path, help="where the test images are (where the run had them)"
    )
    args = parser.parse_args()
    # Both take seconds, which a mistyped flag need not wait for.
    with progress.stages("finding the run"):
        from mlp_dist.tracking.find import find_run
        from mlp_dist.tracking.promotion import promote

        run = find_run(args.run)
    print(f"promoting run {run.name} ({run.run_id}), trained on {run.dataset}", flush=True)
    with progress.stages("scoring it again"):
        result = promote(run, force=args.force, data_dir=args.data_dir)
    print(json.dumps(result))


if __name__ == "__main__":
    command.run(main)
