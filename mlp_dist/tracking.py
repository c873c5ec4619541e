"""Runs in MLflow: writing one, finding the best one. The one file that imports mlflow.

That takes seconds, so it is imported when it is needed first. A training's run is written by `recording`, a
process without torch: none is imported here.
"""

import fcntl
import hashlib
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlp_dist.config import TrainConfig
from mlp_dist.core.errors import MlpDistError, TrackingError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BUNDLE = "bundle"
CONFIG = "config.json"

VALIDATION_METRICS: dict[str, Callable[..., "StoredRun"]] = {"val_accuracy": max, "val_loss": min}
"""What a best run can be chosen by, and which is better. Test figures are not among them: a model
chosen by its test accuracy has none left to report."""

_EPOCH_METRICS = {
    "train_loss": "train/loss",
    "train_accuracy": "train/accuracy",
    "val_loss": "val/loss",
    "val_accuracy": "val/accuracy",
    "test_loss": "test/loss",
    "test_accuracy": "test/accuracy",
    "learning_rate": "learning_rate",
    "samples_per_second": "samples_per_second",
}
"""What MLflow calls an epoch's figures: it draws those with one prefix together, and `test_accuracy` stays
free for the kept weights'."""


def _mlflow() -> ModuleType:
    # MLflow reports usage from its import on, unless this is set; a user's own choice stands.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its own default of 7 makes a server that is not there a wait of four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    # A bar for a megabyte says nothing, and stays as a line of its own in logs.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    return mlflow


def import_ahead() -> None:
    """Import what opening a run will need."""
    if _mlflow().get_tracking_uri().startswith("sqlite"):
        import_module("mlflow.store.tracking.sqlalchemy_store")


@dataclass(frozen=True)
class OpenRun:
    """This thread's open run. When it was opened it had params where it `is_described`, and these `epochs`.

    `recorder.RunTracker` does from a training what this does here.
    """

    run_id: str
    is_described: bool = False
    epochs: frozenset[int] = frozenset()

    def log_config(self, config: dict[str, Any], facts: dict[str, str | int]) -> None:
        """`config` as a JSON artifact; both as params."""
        mlflow = _mlflow()
        mlflow.log_dict(config, CONFIG)
        mlflow.log_params({**config, **facts})

    def log_dataset(self, name: str, digest: str) -> None:
        mlflow = _mlflow()
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset

        source = CodeDatasetSource(tags={"dataset": name})
        # MLflow takes at most 36 characters of a digest, and 500 of a name.
        data = MetaDataset(source, name=name[:500], digest=digest[:32])  # type: ignore[abstract]
        mlflow.log_input(data, context="training")

    def log_epochs(self, history: list[dict[str, Any]]) -> None:
        """Each record's figures at its epoch and time; a record that MLflow has already changes nothing."""
        history = [record for record in history if record["epoch"] not in self.epochs]
        _mlflow()
        from mlflow.entities import Metric
        from mlflow.tracking import MlflowClient

        # Of the figures that are sent in several parts, those tell last that an epoch is there.
        metrics = [
            Metric("train/step_loss", step["loss"], step["timestamp_ms"], step["step"])
            for record in history
            for step in record.get("steps", [])
        ] + [
            Metric(shown, record[name], record["timestamp_ms"], record["epoch"])
            for record in history
            for name, shown in _EPOCH_METRICS.items()
            if record.get(name) is not None
        ]
        client = MlflowClient()
        for start in range(0, len(metrics), 1000):
            client.log_batch(self.run_id, metrics=metrics[start : start + 1000])

    def log_figure(self, name: str, figure: "Figure") -> None:
        # Compressing well takes a fifth of the time that all drawing does.
        fast = {"pil_kwargs": {"compress_level": 1}}
        _mlflow().log_figure(figure, f"figures/{name}.png", save_kwargs=fast)

    def log_checkpoint(self, directory: Path) -> None:
        _mlflow().log_artifacts(str(directory), "checkpoint")

    def log_bundle(self, bundle: Path) -> None:
        _mlflow().log_artifacts(str(bundle), BUNDLE)

    def log_summary(self, summary: dict[str, float | None]) -> None:
        """The figures that runs are compared by."""
        _mlflow().log_metrics({name: value for name, value in summary.items() if value is not None})

    def end(self, status: str) -> None:
        _mlflow().end_run(status)


def open_run(experiment: str, run_name: str | None, run_id: str | None = None) -> OpenRun:
    """A new run of `experiment`, or the run `run_id` opened again, in this thread.

    Raises TrackingError where MLflow cannot open it.
    """
    mlflow = _mlflow()
    with _one_asking_to(f"open run {run_id}" if run_id else f"open a run of the experiment {experiment!r}"):
        if run_id is None:
            mlflow.set_experiment(experiment)
        run = mlflow.start_run(run_id=run_id, run_name=None if run_id else run_name)
        found = _logged_epochs(run_id) if run_id else frozenset()
    return OpenRun(run.info.run_id, is_described=bool(run.data.params), epochs=found)


def _logged_epochs(run_id: str) -> frozenset[int]:
    _mlflow()
    from mlflow.tracking import MlflowClient

    *_, last = _EPOCH_METRICS.values()
    return frozenset(metric.step for metric in MlflowClient().get_metric_history(run_id, last))


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Two trainings that start together would both make a new database's tables, and one of them fail."""
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"mlp_dist-{os.getuid()}-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@dataclass(frozen=True)
class StoredRun:
    """A finished run as MLflow has it. `metrics` are the last values."""

    run_id: str
    name: str
    dataset: str
    metrics: dict[str, float]


def best_run(experiment: str, metric: str = "val_accuracy") -> StoredRun:
    """The finished run of `experiment` that is best by a validation metric; of equals the latest.

    Compared are the runs on the data set of the latest one. Where none of those held out validation images,
    the latest is taken: figures on the test images never choose. Both is told.
    Raises UsageError for a metric that does not choose, or an experiment that is not there; TrackingError
    where it has no finished run.
    """
    if metric not in VALIDATION_METRICS:
        raise UsageError(
            f"a run cannot be chosen by {metric!r}; there are: {', '.join(VALIDATION_METRICS)} "
            "(figures on the test images never choose a model)"
        )
    runs = _finished_runs(experiment)
    if not runs:
        raise TrackingError(
            f"the experiment {experiment!r} has no finished run; train one: accelerate launch launch/train.py"
        )
    latest = runs[0]
    comparable = [run for run in runs if run.dataset == latest.dataset]
    others = sorted({run.dataset for run in runs} - {latest.dataset})
    if others:
        _note(
            f"of the runs in the experiment {experiment!r}, those on {latest.dataset}, the data set of the "
            f"latest, are compared, and not those on {', '.join(others)}"
        )
    rated = [run for run in comparable if math.isfinite(run.metrics.get(f"best_{metric}", math.nan))]
    if not rated:
        _note(f"no run on {latest.dataset} held out validation images to choose by: this is the latest")
        return latest
    if latest not in rated:
        _note(f"the latest run, {latest.name} ({latest.run_id}), held out no validation images to compare")
    return VALIDATION_METRICS[metric](rated, key=lambda run: run.metrics[f"best_{metric}"])


def _note(text: str) -> None:
    print(f"note: {text}; --run-id names any run", flush=True)


def _finished_runs(experiment: str) -> list[StoredRun]:
    """Those of this package, the latest first."""
    mlflow = _mlflow()
    with _one_asking_to("be asked") as uri:
        found = mlflow.get_experiment_by_name(experiment)
        if found is None:
            names = sorted(experiment.name for experiment in mlflow.search_experiments())
            raise UsageError(
                f"MLflow at {uri} has no experiment {experiment!r} (there are: {', '.join(names)}); "
                "train first: accelerate launch launch/train.py"
            )
        runs = mlflow.search_runs(
            [found.experiment_id],
            filter_string="attributes.status = 'FINISHED' and metrics.best_epoch >= 1",
            order_by=["attributes.start_time DESC"],
            output_format="list",
        )
    return [_stored(run) for run in runs]


@contextmanager
def asking_to(what: str) -> Iterator[str]:
    """Makes a TrackingError of what a store raises that is damaged or cannot be reached; yields its URI."""
    uri = _mlflow().get_tracking_uri()
    try:
        yield uri
    except MlpDistError:
        raise
    # A damaged database is no MlflowException, but what the store's library makes of it.
    except Exception as error:
        reason = (str(error) or repr(error)).splitlines()[0]
        raise TrackingError(f"MLflow at {uri} cannot {what}: {reason}; see MLFLOW_TRACKING_URI") from error


@contextmanager
def _one_asking_to(what: str) -> Iterator[str]:
    with asking_to(what) as uri, _one_at_a_time(uri):
        yield uri


def get_run(run_id: str) -> StoredRun:
    """Raises UsageError for an id that MLflow does not know, TrackingError for a run that did not finish."""
    mlflow = _mlflow()
    with _one_asking_to("be asked") as uri:
        try:
            run = mlflow.get_run(run_id)
        except mlflow.MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
            raise UsageError(f"MLflow at {uri} has no run {run_id!r}") from error
    if run.info.status != "FINISHED":
        raise TrackingError(f"run {run_id} is {run.info.status}, not FINISHED: it has no model to use")
    return _stored(run)


def _stored(run: Any) -> StoredRun:
    return StoredRun(
        run_id=run.info.run_id,
        name=run.info.run_name,
        dataset=run.data.params.get("dataset", "unknown"),
        metrics=run.data.metrics,
    )


def download_bundle(run: StoredRun, directory: Path) -> Path:
    """Bring the run's bundle under `directory`; returns the bundle's own directory."""
    mlflow = _mlflow()
    try:
        mlflow.artifacts.download_artifacts(run_id=run.run_id, artifact_path=BUNDLE, dst_path=str(directory))
    except (mlflow.MlflowException, OSError) as error:
        raise TrackingError(f"run {run.run_id} ({run.name}) has no bundle to download: {error}") from error
    return directory / BUNDLE


def load_config(run: StoredRun) -> TrainConfig:
    """The configuration the run was trained with."""
    mlflow = _mlflow()
    try:
        return TrainConfig.from_json(mlflow.artifacts.load_dict(f"runs:/{run.run_id}/{CONFIG}"))
    except (mlflow.MlflowException, OSError) as error:
        raise TrackingError(f"run {run.run_id} ({run.name}) has no {CONFIG}: {error}") from error
