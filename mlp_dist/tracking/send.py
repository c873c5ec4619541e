"""Runs in MLflow: writing one. `recording` does, a process without torch: none is imported here."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mlp_dist.tracking.client import BUNDLE, CONFIG, load_mlflow, one_asking_to

if TYPE_CHECKING:
    from matplotlib.figure import Figure

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
        mlflow = load_mlflow()
        mlflow.log_dict(config, CONFIG)
        mlflow.log_params({**config, **facts})

    def log_dataset(self, name: str, digest: str) -> None:
        mlflow = load_mlflow()
        from mlflow.data.code_dataset_source import CodeDatasetSource
        from mlflow.data.meta_dataset import MetaDataset

        source = CodeDatasetSource(tags={"dataset": name})
        # MLflow takes at most 36 characters of a digest, and 500 of a name.
        data = MetaDataset(source, name=name[:500], digest=digest[:32])  # type: ignore[abstract]
        mlflow.log_input(data, context="training")

    def log_epochs(self, history: list[dict[str, Any]]) -> None:
        """Each record's figures at its epoch and time; a record that MLflow has already changes nothing."""
        history = [record for record in history if record["epoch"] not in self.epochs]
        load_mlflow()
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
        load_mlflow().log_figure(figure, f"figures/{name}.png", save_kwargs=fast)

    def log_checkpoint(self, directory: Path) -> None:
        load_mlflow().log_artifacts(str(directory), "checkpoint")

    def log_bundle(self, bundle: Path) -> None:
        load_mlflow().log_artifacts(str(bundle), BUNDLE)

    def log_summary(self, summary: dict[str, float | None]) -> None:
        """The figures that runs are compared by."""
        load_mlflow().log_metrics({name: value for name, value in summary.items() if value is not None})

    def end(self, status: str) -> None:
        load_mlflow().end_run(status)


def open_run(experiment: str, run_name: str | None, run_id: str | None = None) -> OpenRun:
    """A new run of `experiment`, or the run `run_id` opened again, in this thread.

    Raises TrackingError where MLflow cannot open it.
    """
    mlflow = load_mlflow()
    with one_asking_to(f"open run {run_id}" if run_id else f"open a run of the experiment {experiment!r}"):
        if run_id is None:
            mlflow.set_experiment(experiment)
        run = mlflow.start_run(run_id=run_id, run_name=None if run_id else run_name)
        found = _logged_epochs(run_id) if run_id else frozenset()
    return OpenRun(run.info.run_id, is_described=bool(run.data.params), epochs=found)


def _logged_epochs(run_id: str) -> frozenset[int]:
    load_mlflow()
    from mlflow.tracking import MlflowClient

    *_, last = _EPOCH_METRICS.values()
    return frozenset(metric.step for metric in MlflowClient().get_metric_history(run_id, last))
