"""The worker processes' environment, and what a worker does with a trial."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from optuna import Study, Trial
from optuna.trial import FrozenTrial, TrialState

from mlp_dist.console.process import num_cores
from mlp_dist.sweep import worker
from mlp_dist.sweep.plan import Plan, new_plan, open_study, take_trial
from mlp_dist.sweep.worker import worker_environment
from mlp_dist.tracking.run_dir import RunRecord


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.delenv("ACCELERATE_USE_CPU", raising=False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def environments(number: int) -> list[dict[str, str]]:
    return [worker_environment(index, number) for index in range(number)]


@pytest.mark.usefixtures("four_gpus")
def test_workers_take_gpus_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    assert environments(6) == [{"CUDA_VISIBLE_DEVICES": name} for name in "012301"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,GPU-8f")
    assert environments(3) == [{"CUDA_VISIBLE_DEVICES": name} for name in ("2", "GPU-8f", "2")]


@pytest.mark.usefixtures("four_gpus")
def test_workers_on_the_cpu_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACCELERATE_USE_CPU", "true")
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert environments(2) == [{"OMP_NUM_THREADS": str(max(1, num_cores() // 2))}] * 2
    monkeypatch.setenv("OMP_NUM_THREADS", "3")
    assert environments(2) == [{"OMP_NUM_THREADS": "3"}] * 2


Train = Callable[[str], tuple[RunRecord, FrozenTrial]]


@pytest.fixture
def train(store_at_hand: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Train:
    """A function: learning rates -> the run and the result of the sixth trial, on the digits, after five with
    an accuracy of 0.9.
    """
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep"])

    def sixth(rates: str) -> tuple[RunRecord, FrozenTrial]:
        space = tmp_path / "space.toml"
        space.write_text(
            f'[fixed]\nrecipe = "mnist-quick"\ndataset = "digits"\nepochs = 4\n[space]\nlr = {rates}\n'
        )
        plan, _ = new_plan(space, tmp_path / "sweep", {"num_trials": 6})
        study = open_study(plan)
        for trial in (taken(study, plan) for _ in range(5)):
            for epoch in range(1, 5):
                trial.report(0.9, epoch)
            study.tell(trial, 0.9)
        worker.train(study, taken(study, plan), plan)
        record = RunRecord.load(plan.directory / "trial-0005")
        assert record.parent == str(plan.directory)
        source = record.tags["mlflow.source.name"]
        assert source.startswith("accelerate launch -m mlp_dist.train --recipe mnist-quick")
        return record, study.trials[5]

    return sixth


def taken(study: Study, plan: Plan) -> Trial:
    trial = take_trial(study, plan, "now")
    assert trial is not None
    return trial


@pytest.mark.slow
def test_hopeless_trial_is_pruned(train: Train) -> None:
    record, trial = train("[1e-7, 2e-7]")
    assert (trial.state, trial.last_step) == (TrialState.PRUNED, 2)
    assert record.status == "KILLED"
    assert record.tags["pruned"] == "after epoch 2"
    assert record.summary["best_val_accuracy"] == max(trial.intermediate_values.values())


@pytest.mark.slow
def test_diverging_trial_fails(train: Train) -> None:
    record, trial = train("[1e30, 2e30]")
    assert (record.status, trial.state) == ("FAILED", TrialState.FAIL)
    assert "is not finite at learning rate" in trial.user_attrs["problem"]
