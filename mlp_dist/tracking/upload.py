"""Makes MLflow's run equal to a run's directory.

What MLflow lacks is asked of MLflow each time, so it does not matter what happened to either since.
"""

import json
import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_dist.core.errors import TrackingError, UsageError
from mlp_dist.core.io import try_to_lock
from mlp_dist.core.spec import SPEC
from mlp_dist.tracking import models
from mlp_dist.tracking.draw import draw
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
from mlp_dist.tracking.store import TrashedError, load_mlflow, opened_store

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
    draw(directory)
    record = RunRecord.load(directory)
    with opened_store("cannot take the run", create=True) as client:
        run = _open(client, directory, record)
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


def _open(client: "MlflowClient", directory: Path, record: RunRecord) -> "Run":
    """The run with the record's id or key, which is created if necessary. Raises TrashedError."""
    if record.run_id:
        run = client.get_run(record.run_id)
    else:
        tags, parent = {KEY: record.key}, parent_of(directory, record)
        if parent is not None:
            tags["mlflow.parentRunId"] = _open(client, parent, RunRecord.load(parent)).info.run_id
        home, everywhere = _experiment(client, record).experiment_id, load_mlflow().entities.ViewType.ALL
        found = client.search_runs([home], f"tags.`{KEY}` = '{record.key}'", everywhere)
        name = record.name[:_LONGEST_NAME]
        run = found[0] if found else client.create_run(home, record.started_ms, tags, name)
    if run.info.lifecycle_stage == "deleted":
        raise TrashedError(run.info.run_id, record.name)
    return run


def _experiment(client: "MlflowClient", record: RunRecord) -> "Experiment":
    """The run's experiment, which is created if necessary. Raises TrackingError if it was deleted."""
    name, known = record.experiment, record.experiment_id
    found: Experiment | None = client.get_experiment(known) if known else client.get_experiment_by_name(name)
    if found is None:
        try:
            return client.get_experiment(client.create_experiment(name))
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


def _lacking(client: "MlflowClient", directory: Path, record: RunRecord, run_id: str) -> Iterator[Part]:
    """In the order MLflow requires: a model copies the run's params and data set, and the status is last."""
    from mlflow.entities import Metric, Param, RunTag

    run, points = client.get_run(run_id), _points(record, read_history(directory))
    # The status is sent last: where it is right, so are the files that were sent before.
    is_over = (run.info.status, run.info.end_time) == (record.status, record.ended_ms)
    # A run of MLFLOW_RUN_ID has its name already.
    if not record.run_id and (title := record.name[:_LONGEST_NAME]) != run.info.run_name:
        yield "name", partial(client.update_run, run_id, name=title)
    tags, log = _tags(directory, record), partial(client.log_batch, run_id)
    if changed := sorted(tags.items() - run.data.tags.items()):
        yield "tags", partial(log, tags=[RunTag(*each) for each in changed])
    # Of an end before the run was resumed.
    if ERROR in run.data.tags and ERROR not in tags:
        yield "tags", partial(client.delete_tag, run_id, ERROR)
    # MLflow keeps the first value of a param.
    if params := [name for name in record.params if name not in run.data.params]:
        yield "params", partial(log, params=[Param(name, str(record.params[name])) for name in params])
    if record.dataset is not None and not (run.inputs and run.inputs.dataset_inputs):
        yield "data set", partial(_log_dataset, client, run_id, record.dataset)
    known = {
        (name, point.step)
        for name in {name for name, *_ in points}
        for point in client.get_metric_history(run_id, name)
    }
    if new := [Metric(*point) for point in points if (point[0], point[3]) not in known]:
        yield "metrics", partial(log, new)
    sizes = models.stored_sizes(partial(client.list_artifacts, run_id))
    for path in files_of(directory):
        file = path.relative_to(directory)
        if sizes.get(str(file)) != path.stat().st_size or not (is_over or record.status == RUNNING):
            yield str(file), partial(client.log_artifact, run_id, str(path), file.parent.name or None)
    if record.status != RUNNING and (directory / BUNDLE / SPEC).is_file() and "best_epoch" in record.summary:
        yield from _lacking_model(client, directory / BUNDLE, record, run, points)
    if not is_over:
        ended = partial(client.set_terminated, run_id, record.status, record.ended_ms)
        yield "status", partial(client.update_run, run_id, RUNNING) if record.status == RUNNING else ended


def _lacking_model(
    client: "MlflowClient", bundle: Path, record: RunRecord, run: "Run", points: list[Point]
) -> Iterator[Part]:
    run_id, epoch = str(run.info.run_id), int(record.summary["best_epoch"])
    spec = json.loads((bundle / SPEC).read_text())
    # The id was unknown when the bundle was written.
    if spec["run_id"] != run_id:
        write_json(bundle / SPEC, {**spec, "run_id": run_id})
    model = models.find_model(client, run)
    if model is None or not models.is_complete(client, model, bundle):
        # The kept epoch's metrics, and those of the whole run.
        kept = [point for point in points if epoch == point[3] or point[2] == record.ended_ms]
        kept = [point for point in kept if point[0] != STEP_LOSS]
        yield "model", partial(models.log_model, client, run_id, record.name, bundle, step=epoch, points=kept)


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


def _points(record: RunRecord, history: list[dict[str, Any]]) -> list[Point]:
    """The metrics of each epoch and of the whole run.

    Without validation images the last epoch's weights are kept, so the test metrics of the epochs lead up to
    the run's own.
    """
    found: dict[tuple[str, int], Point] = {}

    def add(name: str, value: float | None, timestamp_ms: int, step: int) -> None:
        if value is not None:
            found[name, step] = name, value, timestamp_ms, step

    for name, value in record.summary.items() if record.ended_ms is not None else ():
        # 0.1.0 had a metric for each class.
        if "/" not in name:
            add(name, value, record.ended_ms or 0, len(history))
    for line in history:
        for step in line.get("steps", ()):
            add(STEP_LOSS, step["loss"], step["timestamp_ms"], step["step"])
        for name, metric in EPOCH_METRICS.items():
            add(metric, line.get(name), line["timestamp_ms"], line["epoch"])
        for name in ("test_loss", "test_accuracy") if line.get("val_loss") is None else ():
            add(name, line.get(name), line["timestamp_ms"], line["epoch"])
    return list(found.values())
