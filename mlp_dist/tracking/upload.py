"""Uploads a run's directory to MLflow; sent.json remembers what MLflow already has.

Uploading again changes nothing, even without sent.json: MLflow keeps one point of a metric for each step,
time and value, and the run is found by its key.
"""

import json
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_dist.core.errors import TrackingError, UsageError
from mlp_dist.core.io import try_to_lock
from mlp_dist.core.spec import SPEC
from mlp_dist.tracking.models import FIGURES, log_model
from mlp_dist.tracking.run_dir import (
    BUNDLE,
    KILLED,
    METRICS,
    RECORD,
    RUNNING,
    RunRecord,
    Sent,
    has_record,
    write_json,
)
from mlp_dist.tracking.store import creating_tables, hide_password, load_mlflow, machine_lock, tracking_errors

if TYPE_CHECKING:
    from mlflow.entities import Metric

KEY = "mlp_dist.key"

EPOCH_METRICS = {
    "train_loss": "train/loss",
    "train_accuracy": "train/accuracy",
    "learning_rate": "train/learning_rate",
    "val_loss": "val/loss",
    "val_accuracy": "val/accuracy",
    "test_loss": "test/loss",
    "test_accuracy": "test/accuracy",
    "samples_per_second": "throughput/samples_per_second",
    "train_seconds": "throughput/train_seconds",
    "evaluate_seconds": "throughput/evaluate_seconds",
    "images_seen": "throughput/images_seen",
    "steps_taken": "throughput/steps_taken",
}
"""Names in metrics.jsonl and in MLflow, which groups charts by prefix. `test_accuracy` without a prefix is
that of the kept weights.
"""

_EXPERIMENT_TAGS = {"mlflow.experimentKind": "custom_model_development"}
"""Otherwise MLflow's page treats the experiment as one with language models."""

_LONGEST_NAME = 250
"""Characters of a run's name that MLflow's PostgreSQL column holds."""


def runs_in(directory: Path) -> list[Path]:
    """The directories of the run in `directory` and of those nested in it, parents first.

    Raises UsageError if there is none.
    """
    found = sorted(path.parent.absolute() for path in directory.rglob(RECORD))
    if not found:
        raise UsageError(
            f"{directory} holds no run: there is no {RECORD} in it; name a training's --output-dir"
        )
    return found


def sync(directory: Path) -> tuple[RunRecord, str]:
    """Upload one run that no training works on; returns its record and its id in MLflow.

    A run that is RUNNING, although no process holds its lock, was killed: it becomes KILLED, at the time of
    its last write. Raises UsageError if a training runs there, TrackingError if the upload fails.
    """
    lock = try_to_lock(directory)
    if lock is None:
        raise UsageError(f"a training runs in {directory} and uploads itself")
    try:
        record = RunRecord.load(directory)
        if record.status == RUNNING:
            written = max(path.stat().st_mtime_ns for path in directory.iterdir() if path.is_file())
            record.end(KILLED, written // 1_000_000)
            record.save(directory)
        return record, send(directory)
    finally:
        os.close(lock)


def send(directory: Path, progressed: Callable[[], None] = lambda: None) -> str:
    """Upload what MLflow does not have yet; returns the run's id there.

    `progressed` is called after each part. Raises TrackingError if a part fails; finished parts are
    remembered.
    """
    record = RunRecord.load(directory)
    with tracking_errors("cannot take the run") as uri:
        uploading = _Upload(directory, record, Sent.load(directory, hide_password(uri), record.key))
        try:
            for part in uploading.parts():
                part()
                progressed()
        finally:
            uploading.remember()
    return uploading.sent.run_id


class _Upload:
    def __init__(self, directory: Path, record: RunRecord, sent: Sent) -> None:
        mlflow = load_mlflow()
        self.directory, self.record, self.sent = directory, record, sent
        self._remembered = asdict(sent)
        with creating_tables(mlflow.get_tracking_uri()):
            self.client = mlflow.MlflowClient()

    def parts(self) -> tuple[Callable[[], None], ...]:
        """In the order MLflow requires: a model copies the run's params and data set."""
        return (
            self.open,
            self.log_tags,
            self.log_params,
            self.log_dataset,
            self.log_epochs,
            self.log_files,
            self.log_models,
            self.log_summary,
            self.log_status,
        )

    def remember(self) -> None:
        if asdict(self.sent) != self._remembered:
            self.sent.save(self.directory)

    # The run

    def open(self) -> None:
        if self.sent.run_id and not self._exists(self.sent.run_id):
            # The store was emptied, or the run was deleted.
            self.sent = Sent(self.sent.uri, self.sent.key)
        if not self.sent.run_id:
            parent = self._parent()
            tags = {"mlflow.parentRunId": self._id_of(parent)} if parent is not None else {}
            # Processes of nested runs may create their parent, too.
            with machine_lock(self.record.key):
                self.sent.run_id = self._find() or self._create(tags)
            self.remember()

    def _exists(self, run_id: str) -> bool:
        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except load_mlflow().MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _parent(self) -> Path | None:
        """The directory of the parent: the enclosing one, even if both were moved."""
        if self.record.parent is None:
            return None
        enclosing = self.directory.parent
        return enclosing if has_record(enclosing) else Path(self.record.parent)

    def _id_of(self, directory: Path) -> str:
        record = RunRecord.load(directory)
        other = _Upload(directory, record, Sent.load(directory, self.sent.uri, record.key))
        other.open()
        return other.sent.run_id

    def _experiment(self) -> str:
        name = self.record.experiment
        found = self.client.get_experiment_by_name(name)
        if found is None:
            try:
                return str(self.client.create_experiment(name, tags=_EXPERIMENT_TAGS))
            # Another training created it in the meantime.
            except load_mlflow().MlflowException:
                found = self.client.get_experiment_by_name(name)
                if found is None:
                    raise
        if found.lifecycle_stage != "active":
            raise TrackingError(
                f"MLflow cannot take the run: its experiment {name!r} was deleted; restore it by "
                f"mlflow experiments restore --experiment-id {found.experiment_id}"
            )
        return str(found.experiment_id)

    def _find(self) -> str:
        """The run's id, if it was created before and the answer was lost."""
        found = self.client.search_runs([self._experiment()], f"tags.`{KEY}` = '{self.record.key}'")
        return str(found[0].info.run_id) if found else ""

    def _create(self, tags: dict[str, str]) -> str:
        record = self.record
        tags, name = {KEY: record.key, **tags}, record.name[:_LONGEST_NAME]
        run = self.client.create_run(self._experiment(), record.started_ms, tags, name)
        self.sent.name = record.name
        return str(run.info.run_id)

    def log_tags(self) -> None:
        from mlflow.entities import RunTag

        record, sent = self.record, self.sent
        if sent.name != record.name:
            self.client.update_run(sent.run_id, name=record.name[:_LONGEST_NAME])
            sent.name = record.name
        tags = {**record.tags, "mlflow.note.content": record.description}
        tables = [{"path": name, "type": "table"} for name in record.artifacts if name.startswith("tables/")]
        if tables:
            tags["mlflow.loggedArtifacts"] = json.dumps(tables)
        new = sorted(tags.items() - sent.tags.items())
        self.client.log_batch(sent.run_id, tags=[RunTag(*each) for each in new])
        sent.tags = tags

    def log_params(self) -> None:
        """New params only, since MLflow rejects a changed value."""
        from mlflow.entities import Param

        new = [name for name in self.record.params if name not in self.sent.params]
        params = [Param(name, str(self.record.params[name])) for name in new]
        self.client.log_batch(self.sent.run_id, params=params)
        self.sent.params += new

    def log_dataset(self) -> None:
        data = self.record.dataset
        if data is None or "dataset" in self.sent.files:
            return
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
            self.client.log_inputs(self.sent.run_id, inputs)
        # Another training stored the same data set in the meantime; now MLflow finds it.
        except load_mlflow().MlflowException:
            self.client.log_inputs(self.sent.run_id, inputs)
        self.sent.files["dataset"] = []

    # Metrics

    def log_epochs(self) -> None:
        """Steps before epochs: with several batches, an epoch's point shows that its steps are complete."""
        history = _read_lines(self.directory / METRICS)
        new = history[self.sent.epochs :]
        steps = [
            ("train/step_loss", step["loss"], step["timestamp_ms"], step["step"])
            for record in new
            for step in record.get("steps", [])
        ]
        epochs = [point for record in new for point in _epoch_metrics(record)]
        self.client.log_batch(self.sent.run_id, metrics=[*_metrics(steps), *epochs])
        self.sent.epochs = max(self.sent.epochs, len(history))

    def log_summary(self) -> None:
        record = self.record
        if record.ended_ms is not None:
            new = dict(record.summary.items() - self.sent.summary.items())
            metrics = _metrics([(name, value, record.ended_ms, 0) for name, value in new.items()])
            self.client.log_batch(self.sent.run_id, metrics=metrics)
            self.sent.summary |= new

    # Files

    def log_files(self) -> None:
        self._write_run_id()
        for path in self._files():
            name = str(path.relative_to(self.directory))
            stat = path.stat()
            if self.sent.files.get(name) != (state := [stat.st_size, stat.st_mtime_ns]):
                parent = str(path.parent.relative_to(self.directory))
                self.client.log_artifact(self.sent.run_id, str(path), None if parent == "." else parent)
                self.sent.files[name] = state

    def _files(self) -> list[Path]:
        """The artifacts that exist; hidden files are still being written."""
        named = [self.directory / name for name in self.record.artifacts]
        found = [path for each in named for path in (sorted(each.rglob("*")) if each.is_dir() else [each])]
        return [path for path in found if path.is_file() and not path.name.startswith(".")]

    def _write_run_id(self) -> None:
        """Add to the bundle the run id, which was unknown if MLflow could not be reached in time."""
        path = self.directory / BUNDLE / SPEC
        if BUNDLE in self.record.artifacts and path.is_file():
            values = json.loads(path.read_text())
            if values["run_id"] != self.sent.run_id:
                write_json(path, {**values, "run_id": self.sent.run_id})

    def log_models(self) -> None:
        history = {record["epoch"]: record for record in _read_lines(self.directory / METRICS)}
        for model in self.record.models[:1]:
            epoch = model["epoch"]
            if str(epoch) not in self.sent.models:
                points = _epoch_metrics(history[epoch])
                self.sent.models[str(epoch)] = log_model(
                    self.client,
                    self.sent.run_id,
                    self.record.name,
                    self.directory / BUNDLE,
                    step=epoch,
                    metrics={point.key: point.value for point in points if point.key in FIGURES},
                    timestamp_ms=history[epoch]["timestamp_ms"],
                )

    def log_status(self) -> None:
        record = self.record
        if record.status != (self.sent.status or RUNNING):
            if record.status == RUNNING:
                self.client.update_run(self.sent.run_id, RUNNING)
            else:
                self.client.set_terminated(self.sent.run_id, record.status, record.ended_ms)
        self.sent.status = record.status


def _epoch_metrics(record: dict[str, Any]) -> list["Metric"]:
    """The metrics of a line of metrics.jsonl."""
    return _metrics(
        [
            (metric, record[name], record["timestamp_ms"], record["epoch"])
            for name, metric in EPOCH_METRICS.items()
            if record.get(name) is not None
        ]
    )


def _metrics(points: list[tuple[str, float, int, int]]) -> list["Metric"]:
    from mlflow.entities import Metric

    return [Metric(*point) for point in points]


def _read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in the complete lines of a file that may still be written. Raises TrackingError."""
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    found = []
    for number, line in enumerate(lines, start=1):
        try:
            found.append(dict(json.loads(line.decode())))
        except (ValueError, TypeError) as error:
            raise TrackingError(
                f"{path}:{number}: the line is damaged ({error}); remove it and run the command again"
            ) from error
    return found
