"""Makes MLflow's run equal to a run's directory.

What MLflow lacks is asked of MLflow each time, so it does not matter what happened to either since.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_dist.core.errors import TrackingError, UsageError
from mlp_dist.core.io import try_to_lock
from mlp_dist.core.spec import SPEC
from mlp_dist.tracking import models, plots
from mlp_dist.tracking.models import Point
from mlp_dist.tracking.run_dir import (
    BUNDLE,
    KILLED,
    RUNNING,
    TABLES,
    RunRecord,
    Uploaded,
    files_of,
    last_written_ms,
    parent_of,
    read_history,
    write_json,
)
from mlp_dist.tracking.store import TrashedError, creating_tables, load_mlflow, machine_lock, tracking_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment, Run

KEY, ERROR = "mlp_dist.key", "error"

EPOCH_METRICS = {
    "train_loss": "train/loss",
    "train_accuracy": "train/accuracy",
    "val_loss": "val/loss",
    "val_accuracy": "val/accuracy",
    "learning_rate": "learning_rate",
    "samples_per_second": "samples_per_second",
}
"""Names in metrics.jsonl and in MLflow, whose charts show names with a slash first."""

STEP_LOSS = "train/step_loss"

_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Otherwise MLflow's page treats the experiment as one with language models."""

_LONGEST_NAME = 250
"""Characters of a run's name that MLflow's PostgreSQL column holds."""

Part = tuple[str, Callable[[], object]]
"""What MLflow lacks of a run, and what sends it."""


def sync(directory: Path) -> tuple[RunRecord, str, list[str]]:
    """Upload one run that no training works on; returns its record, its id in MLflow, and what was sent.

    A run that is RUNNING, although no process holds its lock, was killed: it becomes KILLED, at the time of
    its last write. Raises UsageError if a training runs there, and the errors of `upload`.
    """
    lock = try_to_lock(directory)
    if lock is None:
        raise UsageError(f"a training runs in {directory} and uploads itself")
    try:
        record = RunRecord.load(directory)
        if record.status == RUNNING:
            record.end(KILLED, reason="the process was killed", at_ms=last_written_ms(directory))
            record.save(directory)
        sent: list[str] = []
        return record, upload(directory, sent.append), sent
    finally:
        os.close(lock)


def upload(directory: Path, progressed: Callable[[str], None] = lambda part: None) -> str:
    """Draw the run's pictures and send what MLflow lacks; returns the run's id there.

    A run that has ended is read back. `progressed` is called with each part that was sent. Raises
    TrackingError if a part fails, TrashedError if MLflow's run is in its trash.
    """
    plots.draw(directory)
    record = RunRecord.load(directory)
    with tracking_errors("cannot take the run") as uri:
        mlflow = load_mlflow()
        with creating_tables(uri):
            client = mlflow.MlflowClient()
        run = _run(client, directory, record)
        found = Uploaded(record.key, run_id := str(run.info.run_id), run.info.experiment_id)
        if Uploaded.load(directory).run_id != run_id:
            found.save(directory)
        for what, send in list(_lacking(client, directory, record, run_id)):
            send()
            progressed(what)
        if record.status != RUNNING:
            if left := [what for what, _ in _lacking(client, directory, record, run_id)]:
                raise TrackingError(f"MLflow accepted the run {run_id}, but does not have its {left[0]}")
            replace(found, ended_ms=record.ended_ms).save(directory)
    return run_id


# The run


def _run(client: "MlflowClient", directory: Path, record: RunRecord) -> "Run":
    """The run, which is created if necessary. Raises TrashedError."""
    tags, parent = {KEY: record.key}, parent_of(directory, record)
    if parent is not None:
        tags["mlflow.parentRunId"] = _run(client, parent, RunRecord.load(parent)).info.run_id
    # Processes of nested runs may create their parent, too.
    with machine_lock(record.key):
        run = _find_run(client, record)
        if run is None:
            experiment_id = _experiment(client, record).experiment_id
            run = client.create_run(experiment_id, record.started_ms, tags, record.name[:_LONGEST_NAME])
    if run.info.lifecycle_stage == "deleted":
        raise TrashedError(run.info.run_id, record.name)
    return run


def _find_run(client: "MlflowClient", record: RunRecord) -> "Run | None":
    """The run with the record's id or key, also in the trash."""
    mlflow = load_mlflow()
    if record.run_id:
        return client.get_run(record.run_id)
    experiment, everywhere = _experiment(client, record), mlflow.entities.ViewType.ALL
    found = client.search_runs([experiment.experiment_id], f"tags.`{KEY}` = '{record.key}'", everywhere)
    return next(iter(found), None)


def _experiment(client: "MlflowClient", record: RunRecord) -> "Experiment":
    """The run's experiment, after it was created if necessary. Raises TrackingError if it was deleted."""
    name = record.experiment
    found: Experiment | None
    if record.experiment_id:
        found = client.get_experiment(record.experiment_id)
    else:
        found = client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.get_experiment(client.create_experiment(name, tags=_EXPERIMENT_TAGS))
        # Another training created it in the meantime.
        except load_mlflow().MlflowException:
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    if found.lifecycle_stage != "active":
        raise TrackingError(
            f"MLflow cannot take the run: its experiment {found.name!r} was deleted; restore it by "
            f"mlflow experiments restore --experiment-id {found.experiment_id}"
        )
    return found


# What MLflow lacks


def _lacking(client: "MlflowClient", directory: Path, record: RunRecord, run_id: str) -> Iterator[Part]:
    """In the order MLflow requires: a model copies the run's params and data set, and the status is last."""
    from mlflow.entities import Param, RunTag

    run, history = client.get_run(run_id), read_history(directory)
    # The status is sent last: where it is right, so are the files that were sent before.
    is_over = (run.info.status, run.info.end_time) == (record.status, record.ended_ms)
    # A run of MLFLOW_RUN_ID has its name already.
    if not record.run_id and (title := record.name[:_LONGEST_NAME]) != run.info.run_name:
        yield "name", lambda: client.update_run(run_id, name=title)
    tags = _tags(directory, record)
    if changed := sorted(tags.items() - run.data.tags.items()):
        yield "tags", lambda: client.log_batch(run_id, tags=[RunTag(*each) for each in changed])
    # Of an end before the run was resumed.
    if ERROR in run.data.tags and ERROR not in tags:
        yield "tags", lambda: client.delete_tag(run_id, ERROR)
    # MLflow keeps the first value of a param.
    if params := [name for name in record.params if name not in run.data.params]:
        new = [Param(name, str(record.params[name])) for name in params]
        yield "params", lambda: client.log_batch(run_id, params=new)
    if record.dataset is not None and not (run.inputs and run.inputs.dataset_inputs):
        yield "data set", lambda: _log_dataset(client, run_id, record.dataset or {})
    if points := _new_points(client, run_id, record, history):
        yield "metrics", lambda: _log_points(client, run_id, points)
    sizes = dict(_artifact_sizes(client, run_id))
    for path in files_of(directory):
        file = path.relative_to(directory).as_posix()
        if sizes.get(file) != path.stat().st_size or not (is_over or record.status == RUNNING):
            yield file, lambda path=path: _log_file(client, run_id, directory, path)  # type: ignore[misc]
    if record.status != RUNNING and (directory / BUNDLE / SPEC).is_file() and "best_epoch" in record.summary:
        yield from _lacking_model(client, directory, record, run, history)
    if not is_over:
        yield "status", lambda: _set_status(client, run_id, record)


def _tags(directory: Path, record: RunRecord) -> dict[str, str]:
    failed = f"\n\n{record.status}: {record.reason}" if record.reason else ""
    tags = {KEY: record.key, **record.tags, "mlflow.note.content": f"{record.description}{failed}"}
    if record.reason:
        tags[ERROR] = record.reason
    # The page opens the first one, per_class.
    names = sorted((path.name for path in (directory / TABLES).glob("*.json")), reverse=True)
    if names:
        tables = [{"path": f"{TABLES}/{name}", "type": "table"} for name in names]
        tags["mlflow.loggedArtifacts"] = json.dumps(tables)
    return tags


def _log_dataset(client: "MlflowClient", run_id: str, data: dict[str, Any]) -> None:
    from mlflow.entities import Dataset, DatasetInput, InputTag

    # MLflow's limits: 500 characters of a name, 36 of a digest.
    dataset = Dataset(
        name=data["name"][:500],
        digest=data["digest"][:32],
        source_type="code",
        source=json.dumps({"tags": {"dataset": data["name"]}}),
        profile=json.dumps({name: data[name] for name in data if name not in ("name", "digest")}),
    )
    inputs = [DatasetInput(dataset, [InputTag("mlflow.data.context", "training")])]
    try:
        client.log_inputs(run_id, inputs)
    # Another training stored the same data set in the meantime; now MLflow finds it.
    except load_mlflow().MlflowException:
        client.log_inputs(run_id, inputs)


def _new_points(
    client: "MlflowClient", run_id: str, record: RunRecord, history: list[dict[str, Any]]
) -> list[Point]:
    points = _points(record, history, history)
    known = {
        (name, point.step)
        for name in {name for name, *_ in points}
        for point in client.get_metric_history(run_id, name)
    }
    return [point for point in points if (point[0], point[3]) not in known]


def _points(record: RunRecord, history: list[dict[str, Any]], lines: Iterable[dict[str, Any]]) -> list[Point]:
    """Those of `lines` of the history, and of the summary, which may have the last epoch's test metrics."""
    found = (*_summary_points(record, history), *_epoch_points(lines))
    return list({(point[0], point[3]): point for point in found}.values())


def _epoch_points(history: Iterable[dict[str, Any]]) -> Iterator[Point]:
    for line in history:
        for step in line.get("steps", []):
            yield STEP_LOSS, step["loss"], step["timestamp_ms"], step["step"]
        # Without validation images the last epoch's weights are kept, so these lead up to the run's own.
        tests = () if line.get("val_loss") is not None else ("test_loss", "test_accuracy")
        for name, metric in {**EPOCH_METRICS, **{name: name for name in tests}}.items():
            if line.get(name) is not None:
                yield metric, line[name], line["timestamp_ms"], line["epoch"]


def _summary_points(record: RunRecord, history: list[dict[str, Any]]) -> Iterator[Point]:
    if record.ended_ms is not None:
        for name, value in record.summary.items():
            # 0.1.0 had a metric for each class.
            if "/" not in name:
                yield name, value, record.ended_ms, len(history)


def _log_points(client: "MlflowClient", run_id: str, points: list[Point]) -> None:
    from mlflow.entities import Metric

    client.log_batch(run_id, metrics=[Metric(*point) for point in points])


def _artifact_sizes(
    client: "MlflowClient", run_id: str, directory: str | None = None
) -> Iterator[tuple[str, int]]:
    for each in client.list_artifacts(run_id, directory):
        if each.is_dir:
            yield from _artifact_sizes(client, run_id, each.path)
        else:
            yield each.path, each.file_size or 0


def _log_file(client: "MlflowClient", run_id: str, directory: Path, path: Path) -> None:
    parent = path.parent.relative_to(directory).as_posix()
    client.log_artifact(run_id, str(path), None if parent == "." else parent)


def _lacking_model(
    client: "MlflowClient", directory: Path, record: RunRecord, run: "Run", history: list[dict[str, Any]]
) -> Iterator[Part]:
    bundle, run_id, epoch = directory / BUNDLE, str(run.info.run_id), int(record.summary["best_epoch"])
    spec = json.loads((bundle / SPEC).read_text())
    # The id was unknown when the bundle was written.
    if spec["run_id"] != run_id:
        write_json(bundle / SPEC, {**spec, "run_id": run_id})
    model = models.find_model(client, run)
    if model is None or not models.is_complete(client, model, bundle):
        points = _points(record, history, (line for line in history if line["epoch"] == epoch))
        points = [point for point in points if point[0] != STEP_LOSS]
        yield (
            "model",
            lambda: models.log_model(client, run_id, record.name, bundle, step=epoch, points=points),
        )


def _set_status(client: "MlflowClient", run_id: str, record: RunRecord) -> None:
    if record.status == RUNNING:
        client.update_run(run_id, RUNNING)
    else:
        client.set_terminated(run_id, record.status, record.ended_ms)
