"""The worker processes of a sweep, which share this machine's cores or have a GPU each.

  python -m mlp_dist.sweep.worker DIR SESSION PID

trains trials until all are taken. DIR is the sweep's directory, SESSION identifies workers that run together,
PID is the process that started them. stdout and stderr go to the worker's log.
"""

import os
import subprocess
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from optuna import Study, Trial
from optuna.trial import TrialState

from mlp_dist.console import command
from mlp_dist.console.process import end_with, num_cores, use_cpu
from mlp_dist.core.errors import TrainingError
from mlp_dist.recipes import training_command
from mlp_dist.sweep.plan import Plan, load_plan, open_study, take_trial

if TYPE_CHECKING:
    from mlp_dist.training.report import Report

_STOP_SECONDS = 60.0
"""Time for a worker to write a checkpoint."""


@contextmanager
def started_workers(directory: Path, number: int, lock: int) -> Iterator[list["subprocess.Popen[bytes]"]]:
    """`number` workers for the sweep in `directory`, which are stopped at the end, or killed after a while.

    They inherit the descriptor `lock`, so that a resumed sweep waits for them if this process was killed.
    """
    module, session, workers = "mlp_dist.sweep.worker", uuid.uuid4().hex, []
    try:
        for index in range(number):
            with (directory / f"worker-{index}.log").open("ab") as log:
                worker = subprocess.Popen(
                    [sys.executable, "-m", module, str(directory), session, str(os.getpid())],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, **worker_environment(index, number)},
                    pass_fds=[lock],
                    # Ctrl-C then reaches only this process, which stops the workers.
                    start_new_session=True,
                )
            workers.append(worker)
        yield workers
    finally:
        for worker in workers:
            worker.terminate()
        try:
            with suppress(subprocess.TimeoutExpired):
                for worker in workers:
                    worker.wait(_STOP_SECONDS)
        finally:
            for worker in workers:
                worker.kill()
                worker.wait()


def worker_environment(index: int, number: int) -> dict[str, str]:
    """The variables that give worker `index` of `number` its share of this machine."""
    if gpus := visible_gpus():
        return {"CUDA_VISIBLE_DEVICES": gpus[index % len(gpus)]}
    return {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(max(1, num_cores() // number)))}


def visible_gpus() -> list[str]:
    """The GPUs' names for CUDA_VISIBLE_DEVICES; empty if training uses the CPU."""
    import torch

    if use_cpu():
        return []
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    return named.split(",") if named else [str(index) for index in range(torch.cuda.device_count())]


class Pruned(KeyboardInterrupt):
    """Raised to prune a trial; the training stops as it does on Ctrl-C, and its run ends as KILLED."""


def main() -> None:
    directory, session, parent = sys.argv[1:]
    end_with(int(parent))
    plan = load_plan(Path(directory))
    study = open_study(plan)
    while (trial := take_trial(study, plan, session)) is not None:
        train(study, trial, plan)


def train(study: Study, trial: Trial, plan: Plan) -> None:
    """Train a trial from its last checkpoint, if any. A training error fails only this trial."""
    import torch

    from mlp_dist.training.setup import start_training

    print(f"trial {trial.number}: {' '.join(plan.command(trial.params)[3:])}", flush=True)
    config = plan.config(trial.number, trial.params)
    training = start_training(
        config, resume="auto", parent=plan.directory, command=training_command(config, "experiment")
    )
    # The process may have been killed between a checkpoint and its report.
    for record in training.state.history[len(study.trials[trial.number].intermediate_values) :]:
        trial.report(record["val_accuracy"], record["epoch"])
    try:
        result = training.fit(partial(prune_if_hopeless, trial))
    except Pruned:
        study.tell(trial, state=TrialState.PRUNED)
    except (TrainingError, MemoryError, torch.OutOfMemoryError) as error:
        print(f"trial {trial.number} failed: {error}", flush=True)
        trial.set_user_attr("problem", str(error))
        study.tell(trial, state=TrialState.FAIL)
    else:
        for name in ("best_epoch", "test_accuracy"):
            trial.set_user_attr(name, result[name])
        study.tell(trial, result["val_accuracy"])


def prune_if_hopeless(trial: Trial, report: "Report") -> None:
    """Report an epoch; raise Pruned if the pruner says so, except after the last epoch."""
    state, record = report.state, report.record
    last, best = state.history[-1], state.history[state.kept]
    record.tags["trial"] = str(trial.number)
    trial.report(last["val_accuracy"], last["epoch"])
    if trial.should_prune() and not state.is_over:
        record.tags["pruned"] = f"after epoch {last['epoch']}"
        record.summary |= {"best_epoch": best["epoch"], "best_val_accuracy": best["val_accuracy"]}
        raise Pruned


if __name__ == "__main__":
    command.run(main, at_once=True)
