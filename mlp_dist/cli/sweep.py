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
import signal
import subprocess
import sys
import time
from pathlib import Path

from optuna import Study

from mlp_dist.console import command, progress
from mlp_dist.console.process import StopSignals
from mlp_dist.core.errors import TrainingError, UsageError
from mlp_dist.sweep.plan import Plan, new_plan, open_study, resumed_plan
from mlp_dist.sweep.worker import started_workers, visible_gpus
from mlp_dist.tracking import next_steps
from mlp_dist.tracking.follow import Follower, followed

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


def _plan(args: argparse.Namespace) -> tuple[Plan, int]:
    """The sweep's plan and its directory's lock."""
    options = dict(vars(args))
    space, output_dir, is_resumed = (options.pop(name) for name in ("space", "output_dir", "resume"))
    for name, flag, least in (("num_trials", "trials", 1), ("seed", "seed", 0), ("workers", "workers", 1)):
        if (number := options.get(name, least)) < least:
            raise UsageError(f"{flag} is {number}; it must be {least} or more")
    options.pop("workers", None)
    if "data_dir" in options:
        options["data_dir"] = str(options["data_dir"].absolute())
    if is_resumed:
        return resumed_plan(space, output_dir, options)
    if space is None:
        raise UsageError("no search space; name one: python -m mlp_dist.sweep SPACE.toml")
    return new_plan(space, output_dir, options)


def _follow(plan: Plan, study: Study, workers: list["subprocess.Popen[bytes]"], signals: StopSignals) -> None:
    """Print trials as they end, until all workers have exited. Raises Interrupted on a signal."""
    from mlp_dist.sweep.outcome import trial_line

    running = dict(enumerate(workers))
    ended = {trial.number for trial in study.trials if trial.state.is_finished()}
    with progress.bar("searching", plan.num_trials, " trials", initial=len(ended)) as bar:
        while running:
            time.sleep(_POLL_SECONDS)
            bar.refresh()
            # Before the trials are read, so that the last ones are printed too.
            exited = [index for index, worker in running.items() if worker.poll() is not None]
            trials = study.get_trials(deepcopy=False)
            for trial in trials:
                if trial.state.is_finished() and trial.number not in ended:
                    ended.add(trial.number)
                    bar.update()
                    progress.tell(trial_line(plan, trial, trials))
            for index in exited:
                worker = running.pop(index)
                if code := worker.returncode:
                    killed = f"was killed by {signal.Signals(-code).name}" if code < 0 else ""
                    end = killed or f"exited with code {code}"
                    name, log = f"worker {index} (pid {worker.pid})", plan.directory / f"worker-{index}.log"
                    progress.tell(f"warning: {name} {end}; see {log}", sys.stderr)
            if signals.received:
                progress.tell("stopping: each worker writes a checkpoint first", sys.stderr)
            signals.check()


def main() -> None:
    args = _parse()
    plan, lock = _plan(args)
    # It imports mlflow while this process imports torch.
    follower = Follower(plan.directory)
    from mlp_dist.sweep import outcome

    number = min(getattr(args, "workers", 0) or max(1, len(visible_gpus())), plan.num_trials)
    study = open_study(plan)
    record = outcome.load_or_create_record(plan)
    try:
        with StopSignals() as signals, followed(plan.directory, record, follower):
            print(f"{plan.num_trials} trials, {number} at a time, in {plan.directory}", flush=True)
            try:
                with started_workers(plan.directory, number, lock) as workers:
                    _follow(plan, study, workers, signals)
            finally:
                outcome.record_results(plan, study, record)
                print(outcome.results_table(plan, study.trials), flush=True)
            outcome.check_results(plan, study.trials)
    except (KeyboardInterrupt, TrainingError) as stop:
        directory = shlex.quote(str(plan.directory))
        stop.add_note(f"continue with: python -m mlp_dist.sweep --resume --output-dir {directory}")
        raise
    result = outcome.summary(plan, study.trials)
    print(f"to train the best trial again: {result['command']}")
    print(next_steps.after_training(result["best_run_id"], result["output_dir"], plan.experiment))
    print(json.dumps(result), flush=True)


if __name__ == "__main__":
    command.run(main)
