"""Results of a sweep: lines and a table for the terminal, its run in MLflow, and the final JSON."""

import shlex
import sys
import uuid
import warnings
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import optuna
from optuna.trial import FrozenTrial, TrialState

from mlp_dist.config import OPTIONS
from mlp_dist.core.errors import TrackingError, TrainingError
from mlp_dist.recipes import changes
from mlp_dist.sweep.plan import Plan
from mlp_dist.sweep.space import in_words
from mlp_dist.tracking.run_dir import FIGURES, RunRecord, Uploaded
from mlp_dist.training import identity

_MOST_ROWS = 10
_STATES = {
    "complete": TrialState.COMPLETE,
    "pruned": TrialState.PRUNED,
    "failed": TrialState.FAIL,
    "unfinished": TrialState.RUNNING,
}


def trial_line(plan: Plan, trial: FrozenTrial, trials: Sequence[FrozenTrial]) -> str:
    """One line about one of the trials, which has ended."""
    if trial.state == TrialState.FAIL:
        text = f"failed: {trial.user_attrs['problem']}"
    elif trial.state == TrialState.PRUNED:
        accuracy = max(trial.intermediate_values.values())
        text = f"pruned after epoch {trial.last_step}, val accuracy {accuracy:.2%}"
    else:
        is_best = trial in ranked(trials)[:1]
        text = f"val accuracy {trial.value:.2%}{', the best so far' if is_best else ''}"
    return f"{plan.config(trial.number, trial.params).run_name}: {text}"


def ranked(trials: Sequence[FrozenTrial]) -> list[FrozenTrial]:
    """The completed trials, the best first; ties in order of their numbers."""
    complete = [trial for trial in trials if trial.state == TrialState.COMPLETE]
    return sorted(complete, key=lambda trial: trial.value or 0, reverse=True)


def results_table(plan: Plan, trials: Sequence[FrozenTrial]) -> str:
    """The best trials, one per line, and the number of trials in each state."""
    names = list(plan.space.distributions)
    rows = [["trial", "val accuracy", "epoch", "test accuracy", *names]]
    for trial in ranked(trials)[:_MOST_ROWS]:
        config, facts = plan.config(trial.number, trial.params), trial.user_attrs
        figures = [f"{trial.value:.4f}", str(facts["best_epoch"]), f"{facts['test_accuracy']:.4f}"]
        values = [OPTIONS[name].text(getattr(config, name)) for name in names]
        rows.append([str(trial.number), *figures, *values])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.rjust, row, widths)) for row in rows]
    counts = ", ".join(f"{number} {state}" for state, number in _count(trials).items())
    return "\n".join([*(lines if len(lines) > 1 else []), f"{len(trials)} trials: {counts}"])


def _count(trials: Sequence[FrozenTrial]) -> dict[str, int]:
    return {name: sum(trial.state == state for trial in trials) for name, state in _STATES.items()}


def check_results(plan: Plan, trials: Sequence[FrozenTrial]) -> None:
    """Raise TrainingError if no trial completed, or the workers exited before starting all trials."""
    if len(trials) < plan.num_trials:
        raise TrainingError(f"all workers exited after starting {len(trials)} of {plan.num_trials} trials")
    if not ranked(trials):
        problems = (trial.user_attrs["problem"] for trial in trials if trial.state == TrialState.FAIL)
        raise TrainingError(f"no trial completed: {next(problems, 'all were interrupted')}")


def summary(plan: Plan, trials: Sequence[FrozenTrial]) -> dict[str, Any]:
    """The last line on stdout. At least one trial must be complete."""
    best = ranked(trials)[0]
    best_dir = plan.config(best.number, best.params).output_dir or plan.directory
    return {
        "best_value": best.value,
        "best_trial": best.number,
        "best_run_id": Uploaded.load(best_dir).run_id or None,
        "run_id": Uploaded.load(plan.directory).run_id or None,
        "num_trials": len(trials),
        **_count(trials),
        "command": shlex.join(plan.command(best.params)),
        "output_dir": str(plan.directory),
    }


def load_or_create_record(plan: Plan) -> RunRecord:
    """The sweep's run, the parent of the trials' runs."""
    with suppress(TrackingError):
        record = RunRecord.load(plan.directory)
        record.open()
        return record
    base, varied = plan.space.base, plan.space.distributions
    return RunRecord(
        experiment=plan.experiment or identity.default_experiment(plan.dataset),
        name=f"sweep {base.recipe}: {', '.join(varied)}",
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
            **{f"space.{name}": in_words(each) for name, each in varied.items()},
        },
    )


def _description(plan: Plan) -> str:
    lines = [f"- `{name}`: {in_words(each)}" for name, each in plan.space.distributions.items()]
    return "\n".join([f"A sweep of the recipe {plan.space.base.recipe}:\n", *lines])


def record_results(plan: Plan, study: optuna.Study, record: RunRecord) -> None:
    """Add the best trial, if any is complete, and a figure of all trials to the sweep's run."""
    trials = study.trials
    if best := next(iter(ranked(trials)), None):
        record.description = (
            f"{_description(plan)}\n\nThe best of {len(trials)} trials is trial {best.number}, with a "
            f"validation accuracy of {best.value:.4f}:\n\n    {shlex.join(plan.command(best.params))}"
        )
        count = _count(trials)
        record.summary = {
            "best_val_accuracy": best.value or 0.0,
            "best_trial": best.number,
            "num_trials": len(trials),
            "num_pruned": count["pruned"],
            "num_failed": count["failed"],
        }
        draw(study, plan.directory / FIGURES / "parallel_coordinates.png")


def draw(study: optuna.Study, path: Path) -> None:
    """Optuna's parallel coordinates of the completed trials."""
    from matplotlib import pyplot
    from optuna.visualization.matplotlib import plot_parallel_coordinate

    from mlp_dist.tracking.plots import save

    pyplot.switch_backend("agg")
    with warnings.catch_warnings():
        # The function is experimental, and matplotlib warns about an axis with a single value.
        warnings.simplefilter("ignore")
        plot_parallel_coordinate(study, target_name="val accuracy")
    figure = pyplot.gcf()
    # Optuna's lightest lines are white.
    figure.axes[0].collections[0].set_cmap("viridis_r")
    figure.set_size_inches(max(7.0, 4 + 1.7 * len(study.best_params)), 5)
    figure.subplots_adjust(left=0.1, right=0.98, bottom=0.2, top=0.9)
    save(figure, path)
    pyplot.close(figure)
