"""Search for the best values of a training's fields: many trials, one run in MLflow.

  python -m mlp_dist.sweep launch/sweeps/digits.toml                     20 trials, a minute
  python -m mlp_dist.sweep launch/sweeps/mnist.toml --trials 16 --workers 2
  python -m mlp_dist.sweep --resume --trials 30                          goes on, and tries more

The values of a trial are chosen by what those before it came to, and one that is worse than half
of them is ended early. The last lines are the command that trains the best again, what to type
next, and one JSON object with the result.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_dist.config import DEFAULT_EXPERIMENT
from mlp_dist.console import command, progress
from mlp_dist.console.processes import StopSignals
from mlp_dist.core.errors import TrainingError, UsageError
from mlp_dist.tracking import next_steps
from mlp_dist.training import recorder

if TYPE_CHECKING:
    from mlp_dist.sweep.crew import Crew
    from mlp_dist.sweep.plan import Plan
    from mlp_dist.sweep.study import Study

POLL = 0.2
"""Seconds between two looks at what the workers have done."""


def parse() -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m mlp_dist.sweep",
        usage="python -m mlp_dist.sweep [SPACE.toml] [FLAG ...]",
        description=__doc__,
        argument_default=argparse.SUPPRESS,
    )
    what = parser.add_argument_group("what is tried")
    what.add_argument(
        "space", metavar="SPACE.toml", type=Path, nargs="?", default=None, help="the search space"
    )
    what.add_argument("--trials", dest="num_trials", type=int, metavar="N", help="in all (20)")
    what.add_argument("--seed", type=int, metavar="N", help="of the values that are tried (0)")
    where = parser.add_argument_group("where")
    where.add_argument(
        "--workers",
        type=int,
        metavar="N",
        help="trials at once (one a GPU, else 1; on the CPU they share the cores)",
    )
    where.add_argument(
        "--data-dir", type=Path, metavar="DIR", help="torchvision's root ($MLP_DIST_DATA, else data)"
    )
    where.add_argument("--output-dir", type=Path, metavar="DIR", help="(a new one under outputs)")
    where.add_argument("--experiment", metavar="NAME", help=f"MLflow experiment ({DEFAULT_EXPERIMENT})")
    where.add_argument(
        "--resume",
        action="store_true",
        default=False,
        help="go on in --output-dir, else in the newest under outputs",
    )
    return parser.parse_args()


def plan_of(args: argparse.Namespace) -> "tuple[Plan, int]":
    from mlp_dist.sweep.plan import continued_plan, new_plan

    names = ("num_trials", "seed", "experiment", "data_dir")
    asked = {name: value for name, value in vars(args).items() if name in names}
    if "data_dir" in asked:
        asked["data_dir"] = str(asked["data_dir"].absolute())
    where = args.space, getattr(args, "output_dir", None)
    if args.resume:
        return continued_plan(*where, asked)
    space, output_dir = where
    if space is None:
        raise UsageError("what is to be tried? name a search space: python -m mlp_dist.sweep SPACE.toml")
    return new_plan(space, output_dir, asked)


def follow(crew: "Crew", study: "Study", num_trials: int, signals: StopSignals) -> None:
    """Tell what the workers have done until all have ended; a signal stops them."""
    from mlp_dist.sweep.outcome import ranked, told
    from mlp_dist.sweep.study import UNFINISHED

    known = {result.number for result in study.results() if result.state != UNFINISHED}
    is_working = True
    with progress.bar("searching", num_trials, " trials", initial=len(known)) as bar:
        while is_working:
            time.sleep(POLL)
            bar.refresh()
            is_working, results = crew.is_working, study.results()
            for result in results:
                if result.state != UNFINISHED and result.number not in known:
                    known.add(result.number)
                    bar.update()
                    progress.tell(told(result, next(iter(ranked(results)), None)))
            for ending in crew.endings():
                progress.tell(f"warning: {ending}", sys.stderr)
            if signals.received and not crew.is_stopped:
                progress.tell("stopping: each worker writes a checkpoint first", sys.stderr)
                crew.stop()


def search(plan: "Plan", lock: int, number: int) -> dict[str, Any]:
    """Returns what the last line shows. Raises TrainingError where not all trials could be tried."""
    from mlp_dist.sweep import outcome
    from mlp_dist.sweep.crew import Crew
    from mlp_dist.sweep.study import Study

    study = Study(plan)
    with StopSignals() as signals, recorder.open_run(plan.directory, outcome.record_of(plan)) as run:
        print(f"{plan.num_trials} trials, {number} at once, in {plan.directory}", flush=True)
        with Crew(plan.directory, number, lock) as crew:
            follow(crew, study, plan.num_trials, signals)
        results = study.results()
        outcome.show(study, results, run)
        print(outcome.table(results, [parameter.name for parameter in plan.space.parameters]), flush=True)
        signals.check()
        outcome.check(plan, results)
        return outcome.summary(plan, results, run.run_id())


def main() -> None:
    args = parse()
    if getattr(args, "workers", 1) < 1:
        raise UsageError(f"workers is {args.workers}; it must be 1 or more")
    plan, lock = plan_of(args)
    # It imports mlflow while this process imports torch.
    recorder.start()
    from mlp_dist.sweep.crew import visible_gpus

    number = getattr(args, "workers", 0) or max(1, len(visible_gpus()))
    try:
        result = search(plan, lock, min(number, plan.num_trials))
    except (KeyboardInterrupt, TrainingError) as stop:
        directory = shlex.quote(str(plan.directory))
        stop.add_note(f"go on with: python -m mlp_dist.sweep --resume --output-dir {directory}")
        raise
    print(f"to train the best again: {result['command']}")
    print(next_steps.after_training(result["best_run_id"], result["output_dir"], plan.experiment))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    command.run(main)
