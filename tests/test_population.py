import json
import os
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from launching import DATASET, result, train
from variants import PLAIN, digits

from mlp_dist.checkpoint import load_checkpoint
from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import TrainingError, UsageError
from mlp_dist.engines.population import PopulationEngine
from mlp_dist.members import members
from mlp_dist.population import Population, beside, start_population
from mlp_dist.processes import Interrupted, StopSignals
from mlp_dist.start import settle
from mlp_dist.steps import Pace
from mlp_dist.trainer import Trainer

# In float32 Adam makes much of the last bits of a gradient that is close to 0; at a small rate less so.
ADAM = replace(PLAIN, optimizer="adam", lr=0.0003)
MEMBERS: dict[str, list[TrainConfig]] = {
    "seeds": [replace(PLAIN, seed=seed) for seed in range(3)],
    "sgd": [
        PLAIN,
        replace(PLAIN, seed=1, lr=0.2, hidden_sizes=(20, 50), weight_decay=0.1),
        replace(PLAIN, hidden_sizes=(64, 8), label_smoothing=0.2, schedule="cosine"),
    ],
    "adam": [
        ADAM,
        replace(ADAM, seed=1, lr=0.0006, hidden_sizes=(20, 50), schedule="one-cycle"),
        replace(ADAM, hidden_sizes=(64, 8), weight_decay=0.5, label_smoothing=0.1),
    ],
    "no hidden layer": [replace(PLAIN, hidden_sizes=(), lr=lr) for lr in (0.1, 0.3)],
}


@pytest.fixture(scope="module", autouse=True)
def mlflow_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    directory = tmp_path_factory.mktemp("mlflow")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{directory}/mlflow.db")
        yield


def trainers(configs: Sequence[TrainConfig], directory: Path, *, cpu: bool = True) -> list[Trainer]:
    AcceleratorState._reset_state(reset_partial_state=not cpu)
    accelerator = Accelerator(cpu=cpu)
    found: list[Trainer] = []
    for number, config in enumerate(configs):
        settled, data = settle(config, digits())
        output_dir = directory / f"{number}"
        output_dir.mkdir(parents=True)
        made = beside(found[0], settled, output_dir) if found else None
        found.append(made or Trainer(settled, data, accelerator, output_dir))
    return found


def train_epochs(population: Population) -> None:
    """Without reports."""
    for _ in range(2):
        population.take_steps(population.members, StopSignals())
        for member in population.members:
            trainer = member.trainer
            trainer.keep(trainer.train_epoch(StopSignals()) | trainer.evaluate())


def assert_equal(found: Trainer, expected: Trainer) -> None:
    weights = found.module.state_dict()
    for name, tensor in expected.module.state_dict().items():
        torch.testing.assert_close(weights[name], tensor, rtol=0, atol=1e-4)
    for record, wanted in zip(found.history, expected.history, strict=True):
        for name in ("train_loss", "train_accuracy", "val_loss", "learning_rate"):
            assert record[name] == pytest.approx(wanted[name], rel=1e-4, abs=1e-4)
    states = zip(
        *(each.torch_optimizer.state_dict()["state"].values() for each in (found, expected)), strict=True
    )
    for state, wanted in states:
        # torch's SGD keeps a momentum that is None.
        for name, tensor in wanted.items():
            if tensor is not None:
                torch.testing.assert_close(state[name], tensor, rtol=0, atol=1e-4)


def check(configs: Sequence[TrainConfig], directory: Path, *, cpu: bool) -> None:
    population = Population(trainers(configs, directory / "together", cpu=cpu), directory, together=True)
    train_epochs(population)
    for member, expected in zip(
        population.members, trainers(configs, directory / "one", cpu=cpu), strict=True
    ):
        for _ in range(2):
            expected.keep(expected.train_epoch(StopSignals()) | expected.evaluate())
        assert_equal(member.trainer, expected)


@pytest.mark.parametrize("configs", MEMBERS.values(), ids=MEMBERS)
def test_members_are_what_each_is_alone(configs: list[TrainConfig], tmp_path: Path) -> None:
    check(configs, tmp_path, cpu=True)


@pytest.mark.gpu
@pytest.mark.parametrize("configs", MEMBERS.values(), ids=MEMBERS)
def test_members_are_what_each_is_alone_on_a_gpu(configs: list[TrainConfig], tmp_path: Path) -> None:
    check(configs, tmp_path, cpu=False)


@pytest.mark.parametrize(
    ("change", "takes"),
    [
        ({"lr": 0.3, "seed": 5, "hidden_sizes": (9, 9), "weight_decay": 0.1, "schedule": "linear"}, True),
        ({"hidden_sizes": (9,)}, False),
        ({"optimizer": "adam"}, False),
        ({"batch_size": 7}, False),
        ({"dropout": 0.1}, False),
        ({"ema_decay": 0.9}, False),
        ({"model": "layers"}, False),
    ],
    ids=str,
)
def test_members_that_cannot_be_stacked(change: dict[str, Any], takes: bool, tmp_path: Path) -> None:
    made = trainers([PLAIN, replace(PLAIN, **change)], tmp_path)
    assert PopulationEngine.takes([each.job for each in made]) is takes


def run_of(trainer: Trainer) -> Any:
    from mlflow.tracking import MlflowClient

    client, key = MlflowClient(), trainer.run_key
    experiments = [each.experiment_id for each in client.search_experiments()]
    [found] = client.search_runs(experiments, f"tags.`mlp_dist.key` = '{key}'")
    return found


@pytest.mark.slow
def test_each_member_is_a_run_and_one_that_diverges_ends_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    quick = replace(PLAIN, epochs=1)
    made = trainers([replace(quick, lr=1e30), replace(quick, seed=1, lr=0.2)], tmp_path)
    found = Population(made, tmp_path).fit()
    output = capsys.readouterr().out
    assert "0 ends here, the others go on: the loss of step" in output
    assert "epoch 1/1  1 members" in output
    lost, kept = map(run_of, made)
    assert (lost.info.status, kept.info.status) == ("FAILED", "FINISHED")
    assert kept.data.params["lr"] == "0.2"
    assert kept.data.metrics["best_val_accuracy"] == found["val_accuracy"]
    assert (found["run_id"], found["run_ids"]) == (kept.info.run_id, [lost.info.run_id, kept.info.run_id])
    assert found["members"] == 2
    assert (tmp_path / "1/bundle").is_dir()


def test_a_population_of_which_none_is_left(tmp_path: Path) -> None:
    made = trainers([replace(PLAIN, lr=1e30)], tmp_path)
    with pytest.raises(TrainingError, match="no member is left: the loss of step"):
        Population(made, tmp_path).fit()
    assert run_of(made[0]).info.status == "FAILED"


@pytest.mark.parametrize("together", [True, False], ids=["together", "in turn"])
def test_an_interrupted_population_goes_on(
    together: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    AcceleratorState._reset_state()
    config = replace(PLAIN, output_dir=tmp_path / "population", log_every=5)
    population = start_population(config, population=2)
    population.together = together
    trainers = [member.trainer for member in population.members]
    after_steps = Trainer.after_steps

    def stopped(trainer: Trainer, number: int, signals: StopSignals) -> None:
        if trainer is trainers[1] and len(trainer.history) == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            trainer.pace = Pace()
        after_steps(trainer, number, signals)

    monkeypatch.setattr(Trainer, "after_steps", stopped)
    with pytest.raises(Interrupted):
        population.fit()
    monkeypatch.undo()
    assert [run_of(trainer).info.status for trainer in trainers] == ["KILLED", "KILLED"]
    saved = [load_checkpoint(trainer.output_dir)[0] for trainer in trainers]
    assert [each.progress for each in saved] == (
        ["step 5 of epoch 2"] * 2 if together else ["epoch 2", "step 5 of epoch 2"]
    )
    for checkpoint, interrupted in zip(saved, trainers, strict=True):
        pair = [
            Trainer(
                checkpoint.config,
                interrupted.data,
                interrupted.accelerator,
                interrupted.output_dir,
                checkpoint=each,
            )
            for each in (checkpoint, None)
        ]
        for trainer in pair:
            while len(trainer.history) < 2:
                trainer.keep(trainer.train_epoch(StopSignals()) | trainer.evaluate())
        assert_equal(*pair)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('[{"learning_rate": 0.1}]', "member 0: unknown field 'learning_rate'"),
        ('[{}, {"hiden_sizes": [5]}]', "member 1: unknown field 'hiden_sizes'; did you mean hidden_sizes?"),
        ('[{"dataset": "mnist"}]', "unknown field 'dataset'"),
        ('[{"lr": -1}]', "member 0: lr is -1; it must be a number above 0"),
        ('[{"lr": "high"}]', "member 0: lr is 'high'; it must be a number"),
        ('[{"hidden_sizes": 5}]', "hidden_sizes is 5; it must be a list of whole numbers as [256, 64]"),
        ('[{"seed": 0.5}]', "member 0: seed is 0.5; it must be a whole number"),
        ("{}", "is no sweep, which is a list as"),
        ("[]", "is no sweep, which is a list as"),
        ("[{", "cannot be read: Expecting property name"),
    ],
)
def test_what_is_no_sweep(content: str, message: str, tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.json"
    sweep.write_text(content)
    with pytest.raises(UsageError) as raised:
        members(PLAIN, None, sweep)
    assert message in str(raised.value)
    assert str(sweep) in str(raised.value)


def test_members_of_a_sweep(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.json"
    sweep.write_text('[{"lr": 0.5}, {"hidden_sizes": [7, 8], "seed": 3}]')
    wanted = [replace(PLAIN, lr=0.5), replace(PLAIN, hidden_sizes=(7, 8), seed=3)]
    assert members(PLAIN, None, sweep) == members(PLAIN, 2, sweep) == wanted
    assert members(replace(PLAIN, seed=4), 2, None) == [replace(PLAIN, seed=seed) for seed in (4, 5)]
    with pytest.raises(UsageError, match=r"population is 3, but .* has 2 members"):
        members(PLAIN, 3, sweep)
    with pytest.raises(UsageError, match="population is 0; it must be 1 or more"):
        members(PLAIN, 0, None)
    with pytest.raises(UsageError, match=r"cannot be read: .*No such file"):
        members(PLAIN, None, tmp_path / "none.json")


@pytest.mark.parametrize(
    ("changes", "environment", "message"),
    [
        ({"mixed_precision": "fp16"}, {}, "cannot train in fp16"),
        ({}, {"WORLD_SIZE": "2"}, "trains in one process"),
    ],
    ids=str,
)
def test_what_a_population_cannot_be(
    changes: dict[str, Any], environment: dict[str, str], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(UsageError, match=message):
        start_population(replace(PLAIN, **changes), population=2)


def test_to_go_on_a_population_needs_its_directory() -> None:
    with pytest.raises(UsageError, match="name its directory with --output-dir"):
        start_population(PLAIN, population=2, resume="yes")


def nested(cwd: Path, status: str) -> list[str]:
    """The runs that are nested in the one run that is not, which is `status`."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{cwd}/mlflow.db")
    runs = client.search_runs([each.experiment_id for each in client.search_experiments()])
    [parent] = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.status == status
    children = [run for run in runs if run.data.tags.get("mlflow.parentRunId") == parent.info.run_id]
    assert len(children) + 1 == len(runs)
    return sorted(run.info.run_id for run in children)


@pytest.mark.slow
@pytest.mark.usefixtures("store_at_hand")
def test_the_command_trains_a_sweep_and_goes_on_with_it(tmp_path: Path) -> None:
    sweep = tmp_path / "sweep.json"
    sweep.write_text(json.dumps([{"lr": 0.05}, {"lr": 0.1, "hidden_sizes": [20]}]))
    flags = (*DATASET, "--sweep", str(sweep), "--output-dir", "both")
    before = result(train(*flags, "--epochs", "1", cwd=tmp_path))
    after = result(train(*flags, "--epochs", "2", "--resume", cwd=tmp_path))
    assert (after["members"], after["epochs"]) == (2, 2)
    assert after["run_ids"] == before["run_ids"]
    assert nested(tmp_path, "FINISHED") == sorted(after["run_ids"])
    accuracies = []
    for number in range(2):
        directory = tmp_path / f"both/member-0{number}"
        assert {path.name for path in directory.iterdir()} >= {"last.pt", "metrics.jsonl", "bundle"}
        checkpoint, _ = load_checkpoint(directory)
        assert checkpoint.num_epochs == 2
        accuracies.append(checkpoint.history[checkpoint.kept]["val_accuracy"])
    assert after["val_accuracy"] == max(accuracies)
