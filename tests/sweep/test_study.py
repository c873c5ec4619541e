"""Plans, studies and results of sweeps, without the trainings."""

import json
import os
from pathlib import Path

import pytest
from optuna import Study, Trial
from optuna.trial import TrialState

from mlp_dist.core.errors import TrainingError, UsageError
from mlp_dist.core.io import try_to_lock
from mlp_dist.sweep import plan as planning
from mlp_dist.sweep.outcome import check_results, ranked, results_table, summary, trial_line
from mlp_dist.sweep.plan import JOURNAL, Plan, load_plan, new_plan, open_study, resumed_plan, take_trial

SPACE = """
[fixed]
dataset = "digits"
epochs = 6

[space]
lr = { low = 0.01, high = 1.0, log = true }
hidden_sizes = [[16], [32, 16]]
"""


def write(tmp_path: Path, text: str = SPACE) -> Path:
    path = tmp_path / "space.toml"
    path.write_text(text)
    return path


@pytest.fixture
def plan(tmp_path: Path) -> Plan:
    made, _ = new_plan(write(tmp_path), tmp_path / "sweep", {"num_trials": 8, "seed": 3})
    return made


def take(study: Study, plan: Plan) -> Trial:
    trial = take_trial(study, plan, "now")
    assert trial is not None
    return trial


def train(study: Study, plan: Plan, *accuracies: float) -> bool:
    """Report the epochs of the next trial until it is pruned; returns whether it was."""
    trial = take(study, plan)
    for epoch, accuracy in enumerate(accuracies, 1):
        trial.report(accuracy, epoch)
        if trial.should_prune():
            study.tell(trial, state=TrialState.PRUNED)
            return True
    trial.set_user_attr("best_epoch", 1)
    trial.set_user_attr("test_accuracy", 0.5)
    study.tell(trial, max(accuracies))
    return False


def fail(study: Study, trial: Trial) -> None:
    trial.set_user_attr("problem", "the loss of step 3 is not finite")
    study.tell(trial, state=TrialState.FAIL)


def test_plan_is_saved_and_gives_trainings_and_commands(tmp_path: Path) -> None:
    options = {"data_dir": "/my data", "experiment": "digits"}
    plan, _ = new_plan(write(tmp_path), tmp_path / "sweep", options)
    assert load_plan(plan.directory) == plan
    config = plan.config(7, {"lr": 0.5})
    assert (config.lr, config.epochs, config.dataset, config.fallback_dataset) == (0.5, 6, "digits", None)
    assert config.output_dir == plan.directory / "trial-0007"
    words = plan.command({"lr": 0.5, "hidden_sizes": "32,16"})
    flags = "--hidden-sizes 32,16 --lr 0.5 --epochs 6 --dataset digits"
    assert " ".join(words[:-4]) == f"accelerate launch -m mlp_dist.train --recipe mnist {flags}"
    assert words[-4:] == ["--data-dir", "/my data", "--experiment", "digits"]


@pytest.mark.usefixtures("no_network")
def test_all_trials_use_the_fallback_if_the_download_fails(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    space = write(tmp_path, "[space]\nlr = [0.1, 0.2]")
    plan, _ = new_plan(space, tmp_path / "sweep", {"data_dir": str(tmp_path)})
    assert "; training on scikit-learn's handwritten digits instead" in capsys.readouterr().out
    assert load_plan(plan.directory).config(0, {}).dataset == "digits"


def test_rejects_directories_in_use(plan: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planning, "_EXIT_SECONDS", 0.1)
    with pytest.raises(UsageError, match="already holds a sweep: use --resume to continue it"):
        new_plan(write(tmp_path), plan.directory, {})
    with pytest.raises(UsageError, match="another sweep is running in"):
        resumed_plan(None, plan.directory, {})
    with pytest.raises(UsageError, match="holds no sweep to resume"):
        resumed_plan(None, tmp_path, {})


def test_resume_changes_only_the_number_of_trials(tmp_path: Path) -> None:
    path = write(tmp_path)
    before, lock = new_plan(path, tmp_path / "sweep", {})
    os.close(lock)
    after, lock = resumed_plan(path, before.directory, {"num_trials": 30, "seed": 0})
    assert after.num_trials == load_plan(before.directory).num_trials == 30
    assert try_to_lock(before.directory) is None
    os.close(lock)
    with pytest.raises(UsageError, match="was started with seed 0, not 1: leave --seed out"):
        resumed_plan(None, before.directory, {"seed": 1})
    other = write(tmp_path, SPACE.replace("epochs = 6", "epochs = 7"))
    with pytest.raises(UsageError, match="is not the search space of the sweep in"):
        resumed_plan(other, before.directory, {})


def test_trial_below_the_median_is_pruned(plan: Plan) -> None:
    study = open_study(plan)
    curves = [(0.5, 0.8, 0.81), (0.6, 0.9, 0.95), (0.4, 0.7, 0.9), (0.1, 0.85, 0.86), (0.1, 0.2, 0.99)]
    assert not any([train(study, plan, *curve) for curve in curves])
    # The medians are 0.4, 0.8 and 0.9.
    assert train(study, plan, 0.3, 0.79, 1.0)
    assert not train(study, plan, 0.1, 0.81, 0.9)
    fail(study, take(study, plan))
    assert take_trial(study, plan, "now") is None
    trials, (best, *_) = study.trials, ranked(study.trials)
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 5 + ["PRUNED", "COMPLETE", "FAIL"]
    assert (best.number, best.value) == (4, 0.99)
    assert trial_line(plan, trials[5], trials).endswith(": pruned after epoch 2, val accuracy 79.00%")
    assert trial_line(plan, trials[7], trials).endswith(": failed: the loss of step 3 is not finite")
    assert trial_line(plan, best, trials).endswith(": val accuracy 99.00%, the best so far")
    *_, last = results_table(plan, trials).splitlines()
    assert last == "8 trials: 6 complete, 1 pruned, 1 failed, 0 unfinished"


def test_values_do_not_depend_on_the_worker(plan: Plan, tmp_path: Path) -> None:
    study = open_study(plan)
    alone = [take(study, plan).params for _ in range(8)]
    other, _ = new_plan(write(tmp_path), tmp_path / "other", {"num_trials": 8, "seed": 3})
    assert [take(open_study(other), other).params for _ in range(8)] == alone
    assert len({str(values) for values in alone}) == 8


def test_unfinished_trials_of_an_earlier_session_are_taken_first(plan: Plan) -> None:
    before = open_study(plan)
    train(before, plan, 0.5)
    left = take_trial(before, plan, "before")
    after = open_study(plan)
    again = take(after, plan)
    assert left is not None
    assert (again.number, again.params) == (1, left.params)
    after.tell(again, 0.75)
    assert [(each.number, each.value) for each in after.trials] == [(0, 0.5), (1, 0.75)]
    assert take(after, plan).number == 2


def test_incomplete_line_of_a_killed_process_is_dropped(plan: Plan) -> None:
    train(open_study(plan), plan, 0.5)
    with (plan.directory / JOURNAL).open("a") as journal:
        journal.write('{"op_code":7,"worker')
    train(open_study(plan), plan, 0.75)
    assert [trial.value for trial in open_study(plan).trials] == [0.5, 0.75]
    assert all(json.loads(line) for line in (plan.directory / JOURNAL).read_text().splitlines())


def test_lost_trials_do_not_fail_the_sweep(plan: Plan) -> None:
    study = open_study(plan)
    _, failing = take(study, plan), take(study, plan)
    with pytest.raises(TrainingError, match="all workers exited after starting 2 of 8 trials"):
        check_results(plan, study.trials)
    fail(study, failing)
    for _ in range(6):
        train(study, plan, 0.5)
    check_results(plan, study.trials)
    assert summary(plan, study.trials)["unfinished"] == 1
