"""LoggedModels: the weights a run kept, ranked in MLflow's Models tab."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from mlp_dist.tracking.store import load_mlflow

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Metric, Run

BEST, LAST = "best", "last"
MODEL_TYPE = "pytorch_state_dict"

RUN_PARAMS = (
    *("recipe", "dataset", "model", "layer_sizes", "num_parameters", "optimizer", "lr", "batch_size"),
    *("epochs", "seed"),
)
"""The run's params that its models have, too."""

FIGURES = ("val/accuracy", "test/accuracy", "val/loss", "test/loss", "train/accuracy", "train/loss")
"""An epoch's metrics that its weights have, too, in the order of the Models tab's columns."""


def log_model(
    client: "MlflowClient", run_id: str, name: str, directory: Path, *, epoch: int, points: "Iterable[Metric]"
) -> str:
    """Log the files in `directory` as the run's LoggedModel of `name` and `epoch`; returns its id.

    Idempotent: a second call finds the model, and completes one interrupted by a crash. `points` are the
    run's metrics of that epoch; those in FIGURES are linked to the model, without a second point in the run.
    Non-finite values are left out, since MLflow ranks NaN as 0. The run must already have its params and its
    data set.

    Raises mlflow.MlflowException.
    """
    load_mlflow()
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus

    run = client.get_run(run_id)
    model = find_model(client, run, name, epoch) or _create(client, run, name, epoch)
    model_id = str(model.model_id)
    if model.status == LoggedModelStatus.READY:
        return model_id
    # MLflow rejects a second output of the same model.
    outputs = run.outputs.model_outputs if run.outputs else []
    if model_id not in [output.model_id for output in outputs]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, epoch)])
    client.log_model_artifacts(model_id, str(directory))
    _link_metrics(client, run, model_id, points)
    client.finalize_logged_model(model_id, LoggedModelStatus.READY)
    return model_id


def find_model(client: "MlflowClient", run: "Run", name: str, epoch: int) -> "LoggedModel | None":
    """The run's model of that name and epoch, READY or not."""
    wanted = f"source_run_id = '{run.info.run_id}' AND name = '{name}'"
    found = client.search_logged_models([run.info.experiment_id], filter_string=wanted)
    return next((model for model in found if model.params.get("epoch") == str(epoch)), None)


def _create(client: "MlflowClient", run: "Run", name: str, epoch: int) -> "LoggedModel":
    params = {param: run.data.params[param] for param in RUN_PARAMS if param in run.data.params}
    return client.create_logged_model(
        run.info.experiment_id,
        name=name,
        source_run_id=run.info.run_id,
        params={**params, "epoch": str(epoch)},
        model_type=MODEL_TYPE,
    )


def _link_metrics(client: "MlflowClient", run: "Run", model_id: str, points: "Iterable[Metric]") -> None:
    from mlflow.entities import Metric

    datasets = [each.dataset for each in run.inputs.dataset_inputs] if run.inputs else []
    linked = {"model_id": model_id}
    if datasets:
        linked |= {"dataset_name": datasets[0].name, "dataset_digest": datasets[0].digest}
    by_name = {point.key: point for point in points if math.isfinite(point.value)}
    metrics = [
        Metric(point.key, point.value, point.timestamp, point.step, **linked)
        for point in (by_name[name] for name in FIGURES if name in by_name)
    ]
    client.log_batch(run.info.run_id, metrics=metrics)
