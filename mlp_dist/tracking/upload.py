"""A run's directory -> MLflow. What has been sent stands in sent.json, and is not sent again.

Done again from the start it changes nothing: MLflow keeps one point of a metric for each step, time and
value, and a run is found by its key.
"""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_dist.core.errors import TrackingError
from mlp_dist.core.spec import SPEC
from mlp_dist.tracking.models import log_model
from mlp_dist.tracking.run_dir import BUNDLE, RUNNING, SYSTEM, RunRecord, has_record, write_json
from mlp_dist.tracking.sent import Sent
from mlp_dist.tracking.store import asking_to, load_mlflow, making_tables, one_at_a_time, shown

if TYPE_CHECKING:
    from mlflow.entities import Metric

METRICS = "metrics.jsonl"
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
"""What MLflow calls an epoch's figures: it draws those with one prefix together, and `test_accuracy` stays
free for the kept weights'."""

_KIND = {"mlflow.experimentKind": "custom_model_development"}
"""Of trainings: MLflow's page takes other experiments for conversations with language models."""

_LONGEST_NAME = 250
"""Characters of a run's name that PostgreSQL takes."""

_AT_ONCE = {"metrics": 1000, "params": 100, "tags": 100}
"""What MLflow takes in one batch."""


def send(directory: Path, advanced: Callable[[], None] = lambda: None) -> str:
    """Bring MLflow to what is in the directory; returns the run's id there.

    `advanced` is called after each part that was sent.
    Raises TrackingError where that cannot be done; what was sent until then is remembered.
    """
    record = RunRecord.load(directory)
    with asking_to("take the run") as uri:
        sending = _Sending(directory, record, Sent.load(directory, shown(uri), record.key))
        try:
            for part in sending.parts():
                part()
                advanced()
        finally:
            sending.remember()
    return sending.sent.run_id


class _Sending:
    """The parts of a run, in the order that MLflow's pages want."""

    def __init__(self, directory: Path, record: RunRecord, sent: Sent) -> None:
        mlflow = load_mlflow()
        from mlflow import MlflowClient

        self.directory, self.record, self.sent = directory, record, sent
        self._remembered = asdict(sent)
        with making_tables(mlflow.get_tracking_uri()):
            self.client: MlflowClient = MlflowClient()

    def parts(self) -> tuple[Callable[[], None], ...]:
        return (
            self.open,
            self.log_tags,
            self.log_params,
            self.log_dataset,
            self.log_epochs,
            self.log_system,
            self.log_files,
            self.log_models,
            self.log_summary,
            self.log_status,
        )

    def remember(self) -> None:
        if asdict(self.sent) != self._remembered:
            self.sent.save(self.directory)

    # What it is

    def open(self) -> None:
        if self.sent.run_id and not self._is_there(self.sent.run_id):
            # The store was removed or emptied, or somebody has deleted the run.
            self.sent = Sent(self.sent.uri, self.sent.key)
        if not self.sent.run_id:
            parent = self._parent()
            tags = {"mlflow.parentRunId": self._id_of(parent)} if parent is not None else {}
            # Those that are nested in it may have come to it first, from processes of their own.
            with one_at_a_time(self.record.key):
                self.sent.run_id = self._found() or self._created(tags)
            self.remember()

    def _is_there(self, run_id: str) -> bool:
        mlflow = load_mlflow()
        try:
            return bool(self.client.get_run(run_id).info.lifecycle_stage == "active")
        except mlflow.MlflowException as error:
            if error.error_code != "RESOURCE_DOES_NOT_EXIST":
                raise
            return False

    def _parent(self) -> Path | None:
        """The directory of the run it is nested in: the one that it lies in, also where both were moved."""
        if self.record.parent is None:
            return None
        around = self.directory.parent
        return around if has_record(around) else Path(self.record.parent)

    def _experiment(self) -> str:
        name = self.record.experiment
        if found := self.client.get_experiment_by_name(name):
            if found.lifecycle_stage != "active":
                raise TrackingError(
                    f"MLflow cannot take the run: its experiment {name!r} was deleted; bring it back by "
                    f"mlflow experiments restore --experiment-id {found.experiment_id}"
                )
            return str(found.experiment_id)
        try:
            return str(self.client.create_experiment(name, tags=_KIND))
        # Another training was quicker.
        except load_mlflow().MlflowException:
            if found := self.client.get_experiment_by_name(name):
                return str(found.experiment_id)
            raise

    def _found(self) -> str:
        """The run where it was created before, and the answer got lost."""
        found = self.client.search_runs([self._experiment()], f"tags.`{KEY}` = '{self.record.key}'")
        return str(found[0].info.run_id) if found else ""

    def _created(self, tags: dict[str, str]) -> str:
        record = self.record
        tags = {KEY: record.key, **tags}
        name = record.name[:_LONGEST_NAME]
        run = self.client.create_run(self._experiment(), record.started_ms, tags, name)
        self.sent.name = record.name
        return str(run.info.run_id)

    def _id_of(self, directory: Path) -> str:
        record = RunRecord.load(directory)
        other = _Sending(directory, record, Sent.load(directory, self.sent.uri, record.key))
        other.open()
        return other.sent.run_id

    def log_tags(self) -> None:
        from mlflow.entities import RunTag

        if self.sent.name != self.record.name:
            self.client.update_run(self.sent.run_id, name=self.record.name[:_LONGEST_NAME])
            self.sent.name = self.record.name
        wanted = {**self.record.tags, "mlflow.note.content": self.record.description}
        named = [each for each in self.record.artifacts if each.startswith("tables/")]
        tables = [{"path": each, "type": "table"} for each in named]
        if tables:
            wanted["mlflow.loggedArtifacts"] = json.dumps(tables)
        new = wanted.items() - self.sent.tags.items()
        self._log(tags=[RunTag(*each) for each in sorted(new)])
        self.sent.tags = wanted

    def log_params(self) -> None:
        """Once each: MLflow takes no other value later."""
        from mlflow.entities import Param

        new = [name for name in self.record.params if name not in self.sent.params]
        self._log(params=[Param(name, str(self.record.params[name])) for name in new])
        self.sent.params += new

    def log_dataset(self) -> None:
        data = self.record.dataset
        if data is None or "dataset" in self.sent.files:
            return
        from mlflow.entities import Dataset, DatasetInput, InputTag

        # MLflow takes at most 500 characters of a name, and 36 of a digest.
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
        # Another training on the same images was quicker: now MLflow finds what that one stored.
        except load_mlflow().MlflowException:
            self.client.log_inputs(self.sent.run_id, inputs)
        self.sent.files["dataset"] = []

    # Its figures

    def log_epochs(self) -> None:
        """Those of the epochs that are new; of the figures that go in several parts, these tell last that
        an epoch is there."""
        history = _lines(self.directory / METRICS)
        new = history[self.sent.epochs :]
        steps = [
            ("train/step_loss", step["loss"], step["timestamp_ms"], step["step"])
            for record in new
            for step in record.get("steps", [])
        ]
        self._log(metrics=[*_metrics(steps), *(point for record in new for point in epoch_metrics(record))])
        self.sent.epochs = max(self.sent.epochs, len(history))

    def log_system(self) -> None:
        samples = _lines(self.directory / SYSTEM)
        new = list(enumerate(samples))[self.sent.system :]
        points = [
            (f"system/{name}", value, sample["timestamp_ms"], number)
            for number, sample in new
            for name, value in sample.items()
            if name != "timestamp_ms"
        ]
        self._log(metrics=_metrics(points))
        self.sent.system = len(samples)

    def log_summary(self) -> None:
        """At the end, once."""
        record = self.record
        if record.ended_ms is not None:
            new = dict(record.summary.items() - self.sent.summary.items())
            self._log(metrics=_metrics([(name, value, record.ended_ms, 0) for name, value in new.items()]))
            self.sent.summary |= new

    def _log(self, **entities: Any) -> None:
        for kind, found in entities.items():
            size = _AT_ONCE[kind]
            for start in range(0, len(found), size):
                self.client.log_batch(self.sent.run_id, **{kind: found[start : start + size]})

    # Its files

    def log_files(self) -> None:
        self._name_bundle()
        for path in self._files():
            name = str(path.relative_to(self.directory))
            stat = path.stat()
            if self.sent.files.get(name) != (state := [stat.st_size, stat.st_mtime_ns]):
                parent = str(path.parent.relative_to(self.directory))
                self.client.log_artifact(self.sent.run_id, str(path), None if parent == "." else parent)
                self.sent.files[name] = state

    def _files(self) -> list[Path]:
        """What belongs to it and is there; hidden files are still being written."""
        named = [self.directory / name for name in self.record.artifacts]
        found = [path for each in named for path in (sorted(each.rglob("*")) if each.is_dir() else [each])]
        return [path for path in found if path.is_file() and not path.name.startswith(".")]

    def _name_bundle(self) -> None:
        """Where MLflow was another, or could not be reached, the bundle does not know its run's id here."""
        path = self.directory / BUNDLE / SPEC
        if BUNDLE in self.record.artifacts and path.is_file():
            values = json.loads(path.read_text())
            if values["run_id"] != self.sent.run_id:
                write_json(path, {**values, "run_id": self.sent.run_id})

    def log_models(self) -> None:
        history = {record["epoch"]: record for record in _lines(self.directory / METRICS)}
        for model in self.record.models:
            name, epoch = model["name"], model["epoch"]
            if f"{name} {epoch}" not in self.sent.models:
                self.sent.models[f"{name} {epoch}"] = log_model(
                    self.client,
                    self.sent.run_id,
                    name,
                    self.directory / model["files"],
                    epoch=epoch,
                    points=epoch_metrics(history[epoch]),
                )

    def log_status(self) -> None:
        if self.record.status != (self.sent.status or RUNNING):
            if self.record.status == RUNNING:
                self.client.update_run(self.sent.run_id, RUNNING)
            else:
                self.client.set_terminated(self.sent.run_id, self.record.status, self.record.ended_ms)
        self.sent.status = self.record.status


def epoch_metrics(record: dict[str, Any]) -> list["Metric"]:
    """A line of metrics.jsonl as MLflow's metrics."""
    return _metrics(
        [
            (shown, record[name], record["timestamp_ms"], record["epoch"])
            for name, shown in EPOCH_METRICS.items()
            if record.get(name) is not None
        ]
    )


def _metrics(points: list[tuple[str, float, int, int]]) -> list["Metric"]:
    from mlflow.entities import Metric

    return [Metric(*point) for point in points]


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file that another process may be writing. Raises TrackingError for others."""
    if not path.exists():
        return []
    return [
        _object(line, f"{path}:{number}")
        for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], 1)
    ]


def _object(line: bytes, where: str) -> dict[str, Any]:
    try:
        if isinstance(found := json.loads(line.decode()), dict):
            return found
        problem = f"{found!r} is no object"
    except ValueError as error:
        problem = str(error)
    raise TrackingError(f"{where}: the line is damaged ({problem}); remove it, and send the run again")
