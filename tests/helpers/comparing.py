"""Runs in MLflow, and their directories."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from mlp_dist.tracking.run_dir import files_of
from mlp_dist.tracking.upload import EPOCH_METRICS, STEP_LOSS


def client_of(directory: Path) -> Any:
    """MLflow's client for the store in `directory`."""
    from mlflow import MlflowClient

    return MlflowClient(f"sqlite:///{directory}/mlflow.db")


def runs_of(directory: Path) -> list[Any]:
    """All runs in the store, the latest first."""
    client = client_of(directory)
    return list(client.search_runs([each.experiment_id for each in client.search_experiments()]))


def statuses(directory: Path) -> list[str]:
    return [run.info.status for run in runs_of(directory)]


def logged(directory: Path, run_id: str, metric: str = "train/loss") -> list[tuple[int, float]]:
    """Step and value of each point of a metric."""
    points = client_of(directory).get_metric_history(run_id, metric)
    return sorted((point.step, point.value) for point in points)


def read_history(output: str | Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(output) / "metrics.jsonl").read_text().splitlines()]


def saved_state(output: str | Path) -> dict[str, Any]:
    """What the last checkpoint holds."""
    import torch

    state: dict[str, Any] = torch.load(Path(output) / "last.pt", weights_only=True)
    return state


def write_epochs(output: Path, epochs: Iterable[int]) -> None:
    """Append lines to metrics.jsonl as a training does."""
    with (output / "metrics.jsonl").open("a") as file:
        for epoch in epochs:
            line = {**dict.fromkeys(EPOCH_METRICS, 0.5), "epoch": epoch, "timestamp_ms": 1000 * epoch}
            file.write(json.dumps(line) + "\n")


def check_points(client: Any, run_id: str, output: Path, status: str = "FINISHED") -> None:
    """MLflow has the run once, with every point of every metric once, with its original time."""
    found = client.get_run(run_id)
    record = json.loads((output / "run.json").read_text())
    assert (found.info.status, found.info.end_time) == (status, record["ended_ms"])
    assert found.info.start_time == record["started_ms"]
    history = read_history(output)
    expected = {
        metric: [(line["epoch"], line[name], line["timestamp_ms"]) for line in history]
        for name, metric in EPOCH_METRICS.items()
    }
    steps = [step for line in history for step in line.get("steps", [])]
    if steps:
        expected[STEP_LOSS] = [(step["step"], step["loss"], step["timestamp_ms"]) for step in steps]
    ended = len(history), record["ended_ms"]
    expected |= {name: [(ended[0], value, ended[1])] for name, value in record["summary"].items()}
    assert set(found.data.metrics) == set(expected)
    for metric, points in expected.items():
        logged = [(p.step, p.value, p.timestamp) for p in client.get_metric_history(run_id, metric)]
        assert sorted(logged) == points, metric
    runs = client.search_runs([found.info.experiment_id], f"tags.`mlp_dist.key` = '{record['key']}'")
    assert [each.info.run_id for each in runs] == [run_id]


def check_all_is_there(client: Any, run_id: str, output: Path) -> None:
    """MLflow has the finished run with its points, files and model."""
    check_points(client, run_id, output)
    stored = {
        item.path
        for folder in (None, "figures", "tables")
        for item in client.list_artifacts(run_id, folder)
        if not item.is_dir
    }
    assert stored == {path.relative_to(output).as_posix() for path in files_of(output)}
    experiment = client.get_run(run_id).info.experiment_id
    [model] = client.search_logged_models([experiment], filter_string=f"source_run_id = '{run_id}'")
    assert str(model.status) == "READY"
    assert json.loads((output / "bundle/bundle.json").read_text())["run_id"] == run_id
