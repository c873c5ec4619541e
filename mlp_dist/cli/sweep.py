"""Search for the best values of a training's fields: many trials, one parent run in MLflow.

  python -m mlp_dist.sweep launch/sweeps/digits.toml
  python -m mlp_dist.sweep launch/sweeps/mnist.toml --trials 16 --workers 2
  python -m mlp_dist.sweep --resume --trials 30    continue, with more trials

Optuna chooses each trial's values from the results so far, and trials below the median stop early.
The last lines are the command that trains the best trial again, the next steps, and one JSON object
with the result.
"""

import argparse
import json
import shlex
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_dist.console import command, progress
from mlp_dist.console.process import StopSignals
from mlp_dist.core.errors import TrainingError, UsageError
from mlp_dist.tracking import next_steps
from mlp_dist.tracking.follow import Follower, followed

if TYPE_CHECKING:
    from mlp_dist.sweep.plan import Plan
    from mlp_dist.sweep.study import Study
    from mlp_dist.sweep.workers import WorkerPool

_POLL_SECONDS = 0.2


def _parse() -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m mlp_dist.sweep",
        usage="python -m mlp_dist.sweep [SPACE.toml] [FLAG ...]",
        description=__doc__,
        argument_default=argparse.SUPPRESS,
    )
    workers = "trials at a time (one per GPU, else 1; on the CPU they share the cores)"
    data_dir = "torchvision's root ($MLP_DIST_DATA, else data)"
    resume = "continue the sweep in --output-dir, else the newest under outputs"
    add = parser.add_argument_group("the sweep").add_argument
    add("space", metavar="SPACE.toml", type=Path, nargs="?", default=None, help="the search space")
    add("--trials", dest="num_trials", type=int, metavar="N", help="number of trials in all (20)")
    add("--seed", type=int, metavar="N", help="seed of the values that are tried (0)")
    add("--workers", type=int, metavar="N", help=workers)
    add("--data-dir", type=Path, metavar="DIR", help=data_dir)
    add("--output-dir", type=Path, metavar="DIR", default=None, help="(a new one under outputs)")
    add("--experiment", metavar="NAME", help="MLflow experiment (mlp_dist/DATASET)")
    add("--resume", action="store_true", default=False, help=resume)
    return parser.parse_args()


def _plan(args: argparse.Namespace) -> "tuple[Plan, int]":
    from mlp_dist.sweep.plan import new_plan, resumed_plan

    names = ("num_trials", "seed", "experiment", "data_dir")
    options = {name: value for name, value in vars(args).items() if name in names}
    if "data_dir" in options:
        options["data_dir"] = str(options["data_dir"].absolute())
    if args.resume:
        return resumed_plan(args.space, args.output_dir, options)
    if args.space is None:
        raise UsageError("no search space; name one: python -m mlp_dist.sweep SPACE.toml")
    return new_plan(args.space, args.output_dir, options)


def _follow(pool: "WorkerPool", study: "Study", signals: StopSignals) -> None:
    """Print trials as they end, until all workers have exited; a signal stops the workers."""
    from mlp_dist.sweep.outcome import ranked, trial_line
    from mlp_dist.sweep.study import UNFINISHED

    ended = {result.number for result in study.results() if result.state != UNFINISHED}
    is_running = True
    with progress.bar("searching", study.plan.num_trials, " trials", initial=len(ended)) as bar:
        while is_running:
            time.sleep(_POLL_SECONDS)
            bar.refresh()
            # In this order, so that the last results are printed too.
            is_running, results = pool.is_running, study.results()
            for result in results:
                if result.state != UNFINISHED and result.number not in ended:
                    ended.add(result.number)
                    bar.update()
                    progress.tell(trial_line(result, next(iter(ranked(results)), None)))
            for problem in pool.new_problems():
                progress.tell(f"warning: {problem}", sys.stderr)
            if signals.received and not pool.is_stopped:
                progress.tell("stopping: each worker writes a checkpoint first", sys.stderr)
                pool.stop()


def _search(plan: "Plan", lock: int, num_workers: int, follower: Follower) -> dict[str, Any]:
    """Run the trials; returns the final JSON. Raises TrainingError if not all trials could be started."""
    from mlp_dist.sweep import outcome
    from mlp_dist.sweep.study import Study
    from mlp_dist.sweep.workers import WorkerPool

    study = Study(plan)
    record = outcome.load_or_create_record(plan)
    with StopSignals() as signals, followed(plan.directory, record, follower):
        print(f"{plan.num_trials} trials, {num_workers} at a time, in {plan.directory}", flush=True)
        with WorkerPool(plan.directory, num_workers, lock) as pool:
            _follow(pool, study, signals)
        results = study.results()
        outcome.record_results(study, results, record)
        print(outcome.results_table(plan, results), flush=True)
        signals.check()
        outcome.check_results(plan, results)
    return outcome.summary(plan, results)


def main() -> None:
    args = _parse()
    if getattr(args, "workers", 1) < 1:
        raise UsageError(f"workers is {args.workers}; it must be 1 or more")
    plan, lock = _plan(args)
    # It imports mlflow while this process imports torch.
    follower = Follower(plan.directory)
    from mlp_dist.sweep.workers import visible_gpus

    num_workers = getattr(args, "workers", 0) or max(1, len(visible_gpus()))
    try:
        result = _search(plan, lock, min(num_workers, plan.num_trials), follower)
    except (KeyboardInterrupt, TrainingError) as stop:
        directory = shlex.quote(str(plan.directory))
        stop.add_note(f"continue with: python -m mlp_dist.sweep --resume --output-dir {directory}")
        raise
    print(f"to train the best trial again: {result['command']}")
    print(next_steps.after_training(result["best_run_id"], result["output_dir"], plan.experiment))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    command.run(main)
