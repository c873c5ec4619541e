"""Results of a sweep: lines and a table for the terminal, its run in MLflow, and the final JSON."""

import shlex
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from contextlib import suppress
from typing import Any

from mlp_dist.config import OPTIONS
from mlp_dist.core.errors import TrackingError, TrainingError
from mlp_dist.recipes import changes
from mlp_dist.sweep.plan import Plan
from mlp_dist.sweep.study import COMPLETE, FAILED, PRUNED, STATES, Study, TrialResult
from mlp_dist.tracking.run_dir import FIGURES, RunRecord, Uploaded
from mlp_dist.training import identity

FIGURE = f"{FIGURES}/parallel_coordinates.png"
_MOST_ROWS = 10


def trial_line(result: TrialResult, best: TrialResult | None) -> str:
    """One line about a trial that has ended."""
    values = "  ".join(f"{name} {OPTIONS[name].text(value)}" for name, value in result.values.items())
    if result.state == COMPLETE:
        is_best = best is not None and best.number == result.number
        text = f"val accuracy {result.value:.2%}{', the best so far' if is_best else ''}"
    elif result.state == PRUNED:
        text = f"pruned after epoch {result.epochs}, val accuracy {result.value:.2%}"
    else:
        text = f"failed: {result.facts.get('problem', 'no error recorded')}"
    return f"trial {result.number}  {values}: {text}"


def ranked(results: Iterable[TrialResult]) -> list[TrialResult]:
    """The completed trials, the best first; ties in order of their numbers."""
    complete = [result for result in results if result.state == COMPLETE]
    return sorted(complete, key=lambda result: (-(result.value or 0), result.number))


def results_table(plan: Plan, results: Sequence[TrialResult]) -> str:
    """The best trials, one per line, and the number of trials in each state."""
    names = [parameter.name for parameter in plan.space.parameters]
    rows = [("trial", "val accuracy", "epoch", "test accuracy", *names)]
    for result in ranked(results)[:_MOST_ROWS]:
        facts = result.facts
        figures = (f"{result.value:.4f}", str(facts["best_epoch"]), f"{facts['test_accuracy']:.4f}")
        rows.append(
            (str(result.number), *figures, *(OPTIONS[name].text(result.values[name]) for name in names))
        )
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    counts = ", ".join(f"{number} {state}" for state, number in _count(results).items())
    return "\n".join([*(lines if len(lines) > 1 else []), f"{len(results)} trials: {counts}"])


def _count(results: Sequence[TrialResult]) -> dict[str, int]:
    counts = Counter(result.state for result in results)
    return {state: counts[state] for state in STATES}


def check_results(plan: Plan, results: Sequence[TrialResult]) -> None:
    """Raise TrainingError if no trial completed, or the workers exited before starting all trials."""
    if len(results) < plan.num_trials:
        raise TrainingError(f"all workers exited after starting {len(results)} of {plan.num_trials} trials")
    if not ranked(results):
        problems = [result.facts["problem"] for result in results if result.state == FAILED]
        raise TrainingError(f"no trial completed: {next(iter(problems), 'all were interrupted')}")


def summary(plan: Plan, results: Sequence[TrialResult]) -> dict[str, Any]:
    """The last line on stdout. At least one trial must be complete."""
    best = ranked(results)[0]
    directories = (plan.config(best.number, best.values).output_dir or plan.directory, plan.directory)
    best_run_id, run_id = (Uploaded.load(each).run_id or None for each in directories)
    return {
        "best_value": best.value,
        "best_trial": best.number,
        "best_run_id": best_run_id,
        "run_id": run_id,
        "num_trials": len(results),
        **_count(results),
        "command": shlex.join(plan.command(best.values)),
        "output_dir": str(plan.directory),
    }


def load_or_create_record(plan: Plan) -> RunRecord:
    """The sweep's run, the parent of the trials' runs."""
    with suppress(TrackingError):
        record = RunRecord.load(plan.directory)
        record.open()
        return record
    base, parameters = plan.space.base, plan.space.parameters
    return RunRecord(
        experiment=plan.experiment or identity.default_experiment(plan.dataset),
        name=f"sweep {base.recipe}: {', '.join(parameter.name for parameter in parameters)}",
        key=uuid.uuid4().hex,
        description=_description(plan),
        tags={**identity.started_by(["python", *sys.argv]), "recipe": base.recipe, "sweep": "parent"},
        params={
            **{name: OPTIONS[name].text(value) for name, value in changes(base).items()},
            "recipe": base.recipe,
            "dataset": plan.dataset,
            "seed": plan.seed,
            "sampler": "TPE",
            "pruner": "median",
            **{f"space.{parameter.name}": str(parameter) for parameter in parameters},
        },
    )


def _description(plan: Plan) -> str:
    lines = [f"- `{parameter.name}`: {parameter}" for parameter in plan.space.parameters]
    return "\n".join([f"A sweep of the recipe {plan.space.base.recipe}:\n", *lines])


def record_results(study: Study, results: Sequence[TrialResult], record: RunRecord) -> None:
    """Add the best trial and a figure of all trials to the sweep's run."""
    # Imports matplotlib.
    from mlp_dist.tracking.plots import save

    plan = study.plan
    if ranked(results):
        found = summary(plan, results)
        record.description = (
            f"{_description(plan)}\n\nThe best of {len(results)} trials is trial {found['best_trial']}, "
            f"with a validation accuracy of {found['best_value']:.4f}:\n\n    {found['command']}"
        )
        record.summary = {
            "best_val_accuracy": found["best_value"],
            "best_trial": found["best_trial"],
            "num_trials": found["num_trials"],
            "num_pruned": found[PRUNED],
            "num_failed": found[FAILED],
        }
        save(study.figure(), plan.directory / FIGURE)
