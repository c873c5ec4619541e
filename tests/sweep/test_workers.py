"""The worker processes' environment, and what a worker does with a trial."""

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mlp_dist.console.hardware import num_cores
from mlp_dist.sweep import worker
from mlp_dist.sweep.plan import new_plan
from mlp_dist.sweep.study import FAILED, PRUNED, Study
from mlp_dist.sweep.workers import worker_environment
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


Sweep = Callable[[str], Study]


@pytest.fixture
def sweep(store_at_hand: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sweep:
    """A function: learning rates -> a study of trainings on the digits with six trials, five of them done."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["sweep"])

    def make(rates: str) -> Study:
        space = tmp_path / "space.toml"
        space.write_text(f'[fixed]\ndataset = "digits"\nepochs = 4\n[space]\nlr = {rates}\n')
        plan, _ = new_plan(space, tmp_path / "sweep", {"num_trials": 6})
        study = Study(plan)
        for trial in (study.take() for _ in range(5)):
            assert trial is not None
            for epoch in range(1, 5):
                trial.report(epoch, 0.9)
            trial.complete(0.9)
        return study

    return make


def train(study: Study) -> RunRecord:
    """Train the next trial; returns its run."""
    trial = study.take()
    assert trial is not None
    worker.train(trial, study.plan)
    record = RunRecord.load(study.plan.directory / "trial-0005")
    assert record.parent == str(study.plan.directory)
    assert record.tags["mlflow.source.name"].startswith("accelerate launch -m mlp_dist.train --recipe mnist")
    return record


@pytest.mark.slow
def test_hopeless_trial_is_pruned(sweep: Sweep) -> None:
    study = sweep("[1e-7, 2e-7]")
    record = train(study)
    result = study.results()[5]
    assert (result.state, result.epochs) == (PRUNED, 2)
    assert record.status == "KILLED"
    assert record.tags["pruned"] == "after epoch 2"
    assert record.summary["best_val_accuracy"] == result.value


@pytest.mark.slow
def test_diverging_trial_fails(sweep: Sweep) -> None:
    study = sweep("[1e30, 2e30]")
    assert train(study).status == "FAILED"
    result = study.results()[5]
    assert result.state == FAILED
    assert "is not finite at learning rate" in result.facts["problem"]
