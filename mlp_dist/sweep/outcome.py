"""What a sweep has found: lines and a table in the terminal, its run in MLflow, and the last line's JSON."""

import shlex
import sys
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from mlp_dist.core.errors import TrackingError, TrainingError
from mlp_dist.recipes import overrides, shown
from mlp_dist.sweep.plan import SPACE, Plan
from mlp_dist.sweep.study import COMPLETE, FAILED, PRUNED, UNFINISHED, Result, Study
from mlp_dist.tracking.plots import save
from mlp_dist.tracking.run_dir import RunRecord, write_json
from mlp_dist.training import identity
from mlp_dist.training.recorder import RunTracker

FIGURE = "figures/parallel_coordinates.png"
TABLE = "tables/trials.json"
_MOST_ROWS = 10


def told(result: Result, best: Result | None) -> str:
    """A trial that has ended, in a line."""
    values = "  ".join(f"{name} {shown(value)}" for name, value in result.values.items())
    if result.state == COMPLETE:
        is_best = best is not None and best.number == result.number
        how = f"val accuracy {result.value:.2%}{', the best so far' if is_best else ''}"
    elif result.state == PRUNED:
        how = f"pruned after epoch {result.epochs}, val accuracy {result.value:.2%}"
    else:
        how = f"failed: {result.facts.get('problem', 'nobody knows why')}"
    return f"trial {result.number}  {values}: {how}"


def ranked(results: Iterable[Result]) -> list[Result]:
    """The completed trials, the best first; of equals the earliest."""
    complete = [result for result in results if result.state == COMPLETE]
    return sorted(complete, key=lambda result: (-(result.value or 0), result.number))


def table(results: Sequence[Result], names: Sequence[str]) -> str:
    """The best of the `results`, a line each, and how many there are of which kind."""
    rows = [("trial", "val accuracy", "epoch", "test accuracy", *names)]
    for result in ranked(results)[:_MOST_ROWS]:
        facts = (
            f"{result.value:.4f}",
            str(result.facts["best_epoch"]),
            f"{result.facts['test_accuracy']:.4f}",
        )
        rows.append((str(result.number), *facts, *(shown(result.values[name]) for name in names)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines = lines if len(lines) > 1 else []
    counts = Counter(result.state for result in results)
    total = ", ".join(f"{counts[state]} {state}" for state in (COMPLETE, PRUNED, FAILED, UNFINISHED))
    return "\n".join([*lines, f"{len(results)} trials: {total}"])


def check(plan: Plan, results: Sequence[Result]) -> None:
    """Raises TrainingError where nothing was found, or the workers have ended before all was tried."""
    if len(results) < plan.num_trials:
        raise TrainingError(f"all workers ended when {len(results)} of {plan.num_trials} trials had begun")
    if not ranked(results):
        problem = next(
            (each.facts["problem"] for each in results if each.state == FAILED), "none was trained"
        )
        raise TrainingError(f"no trial came to its end: {problem}")


def summary(plan: Plan, results: Sequence[Result], run_id: str | None) -> dict[str, Any]:
    """The last line on stdout; there must be a completed trial."""
    best, counts = ranked(results)[0], Counter(result.state for result in results)
    return {
        "best_value": best.value,
        "best_trial": best.number,
        "best_run_id": best.facts["run_id"],
        "run_id": run_id,
        "num_trials": len(results),
        **{state: counts[state] for state in (COMPLETE, PRUNED, FAILED, UNFINISHED)},
        "command": best_command(plan, results),
        "output_dir": str(plan.directory),
    }


def best_command(plan: Plan, results: Sequence[Result]) -> str:
    """What trains the best trial again."""
    return shlex.join(plan.command(ranked(results)[0].values))


# Its run in MLflow


def record_of(plan: Plan) -> RunRecord:
    """The run that the trials' are nested in: the one there was, or a new one."""
    try:
        record = RunRecord.load(plan.directory)
    except TrackingError:
        return _new_record(plan)
    record.open()
    return record


def _new_record(plan: Plan) -> RunRecord:
    base, parameters = plan.space.base, plan.space.parameters
    fixed = {name: shown(value) for name, value in overrides(base).items()}
    names = ", ".join(parameter.name for parameter in parameters)
    return RunRecord(
        experiment=plan.experiment,
        name=f"sweep {base.recipe}: {names}",
        key=uuid.uuid4().hex,
        description=_description(plan),
        tags={**identity.started_by(["python", *sys.argv]), "recipe": base.recipe, "sweep": "parent"},
        params={
            **fixed,
            "recipe": base.recipe,
            "dataset": plan.dataset,
            "seed": plan.seed,
            "sampler": "TPE",
            "pruner": "median",
            **{f"space.{parameter.name}": str(parameter) for parameter in parameters},
        },
        artifacts=[SPACE],
    )


def _description(plan: Plan) -> str:
    lines = [f"- `{parameter.name}`: {parameter}" for parameter in plan.space.parameters]
    return "\n".join([f"A sweep over trainings of the recipe {plan.space.base.recipe}:\n", *lines])


def show(study: Study, results: Sequence[Result], run: RunTracker) -> None:
    """Bring the run to what the trials have come to: a table, a picture, and figures of the best."""
    plan = study.plan
    names = [parameter.name for parameter in plan.space.parameters]
    whole = [result for result in results if len(result.values) == len(names)]
    rows = [[_plain(result.values[name]) for name in names] for result in whole]
    write_json(plan.directory / TABLE, _columns(whole, names, rows))
    run.record.add(TABLE)
    if ranked(whole):
        found = summary(plan, results, None)
        run.record.description = (
            f"{_description(plan)}\n\nThe best of {len(results)} is trial {found['best_trial']}, with a "
            f"validation accuracy of {found['best_value']:.4f}:\n\n    {found['command']}"
        )
        counted = ("best_trial", "num_trials", PRUNED, FAILED)
        run.record.summary = {
            "best_trial_val_accuracy": found["best_value"],
            **{name if name in counted[:2] else f"num_{name}": found[name] for name in counted},
        }
        save(study.figure(), plan.directory / FIGURE)
        run.record.add(FIGURE)
    run.changed()


def _columns(
    results: Sequence[Result], names: Sequence[str], rows: Sequence[Sequence[Any]]
) -> dict[str, Any]:
    """In the format of MLflow's tables."""
    data = [
        [result.number, result.state, result.value, result.epochs, result.facts.get("test_accuracy"), *row]
        for result, row in zip(results, rows, strict=True)
    ]
    return {"columns": ["trial", "state", "val_accuracy", "epochs", "test_accuracy", *names], "data": data}


def _plain(value: Any) -> Any:
    return shown(value) if isinstance(value, tuple) else value
