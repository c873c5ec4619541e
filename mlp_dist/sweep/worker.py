"""A worker process of a sweep: trains trials until all are taken. `workers.WorkerPool` starts it.

  python -m mlp_dist.sweep.worker DIR SESSION PID

DIR is the sweep's directory, SESSION identifies workers that run together, PID is the process that started
them. stdout and stderr go to the worker's log.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_dist.console import command
from mlp_dist.console.process import end_with
from mlp_dist.core.errors import TrainingError
from mlp_dist.sweep.plan import Plan, load_plan

if TYPE_CHECKING:
    from mlp_dist.sweep.study import Trial
    from mlp_dist.training.report import Report


class Pruned(KeyboardInterrupt):
    """Raised to prune a trial; the training stops as it does on Ctrl-C, and its run ends as KILLED."""


def main() -> None:
    directory, session, parent = sys.argv[1:]
    end_with(int(parent))
    from mlp_dist.sweep.study import Study

    plan = load_plan(Path(directory))
    study = Study(plan, session)
    while (trial := study.take()) is not None:
        train(trial, plan)


def train(trial: "Trial", plan: Plan) -> None:
    """Train a trial from its last checkpoint, if any. A training error fails only this trial."""
    import torch

    from mlp_dist.training.setup import start_training

    print(f"trial {trial.number}: {' '.join(plan.command(trial.values)[3:])}", flush=True)
    config = plan.config(trial.number, trial.values)
    training = start_training(config, resume="auto", parent=plan.directory)
    for record in training.state.history:
        trial.report(record["epoch"], record["val_accuracy"])
    try:
        result = training.fit(partial(prune_if_hopeless, trial))
    except Pruned:
        trial.prune()
    except (TrainingError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"trial {trial.number} failed: {error}", flush=True)
        trial.fail(str(error))
    else:
        trial.complete(
            result["val_accuracy"],
            best_epoch=result["best_epoch"],
            test_accuracy=result["test_accuracy"],
        )


def prune_if_hopeless(trial: "Trial", report: "Report") -> None:
    """Report an epoch; raise Pruned if the pruner says so, except after the last epoch."""
    state, record = report.state, report.record
    best, epoch = state.history[state.kept], len(state.history)
    record.tags["trial"] = str(trial.number)
    is_hopeless = trial.report(epoch, state.history[-1]["val_accuracy"])
    if is_hopeless and not state.is_over:
        record.tags["pruned"] = f"after epoch {epoch}"
        record.summary |= {"best_epoch": best["epoch"], "best_val_accuracy": best["val_accuracy"]}
        raise Pruned


if __name__ == "__main__":
    command.run(main, at_once=True)
