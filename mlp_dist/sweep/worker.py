"""A worker of a sweep: trains trials one after the other until all are taken. `crew.Crew` starts it.

  python -m mlp_dist.sweep.worker DIR SESSION PID

DIR is the sweep's directory, SESSION names those that work at once, PID is the process that started them.
What is told goes to the log that stdout and stderr are.
"""

import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_dist.console import command, processes
from mlp_dist.core.errors import TrainingError
from mlp_dist.sweep.plan import Plan, load_plan
from mlp_dist.training import recorder
from mlp_dist.training.directories import release

if TYPE_CHECKING:
    from mlp_dist.sweep.study import Trial
    from mlp_dist.training.report import Report


class Pruned(KeyboardInterrupt):
    """The trial is not worth going on with. It is stopped in order, as by Ctrl-C: its run ends KILLED."""


def main() -> None:
    directory, session, parent = sys.argv[1:]
    processes.end_with(int(parent))
    # It imports mlflow while this process imports torch.
    recorder.start()
    from mlp_dist.sweep.study import Study

    plan = load_plan(Path(directory))
    study = Study(plan, session)
    while (trial := study.take()) is not None:
        train(trial, plan)


def train(trial: "Trial", plan: Plan) -> None:
    """From its last checkpoint, if there is one, to its end; one that cannot be trained ends alone."""
    import torch

    from mlp_dist.training.start import start_training

    # What its run says that starts it.
    sys.argv = plan.command(trial.values)[2:]
    print(f"trial {trial.number}: {' '.join(sys.argv)}", flush=True)
    config = plan.config(trial.number, trial.values)
    training = start_training(config, resume="auto", parent=plan.directory)
    for record in training.history:
        trial.tell(record["epoch"], record["val_accuracy"])
    try:
        result = training.fit(partial(end_if_hopeless, trial))
    except Pruned:
        trial.prune()
    except (TrainingError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"trial {trial.number} failed: {error}", flush=True)
        trial.fail(str(error))
    else:
        known = ("best_epoch", "test_accuracy", "run_id")
        trial.complete(result["val_accuracy"], **{name: result[name] for name in known})
    release(training.output_dir)


def end_if_hopeless(trial: "Trial", report: "Report") -> None:
    """After an epoch; the last one is not ended before the test."""
    trainer, record = report.trainer, report.run.record
    best, epoch = trainer.history[trainer.kept], len(trainer.history)
    record.tags["trial"] = str(trial.number)
    is_hopeless = trial.tell(epoch, trainer.history[-1]["val_accuracy"])
    if is_hopeless and not trainer.config.is_over(epoch, trainer.kept):
        record.tags["pruned"] = f"after epoch {epoch}"
        record.summary |= {"best_epoch": best["epoch"], "best_val_accuracy": best["val_accuracy"]}
        raise Pruned


if __name__ == "__main__":
    command.run(main, at_once=True)
