"""Runs in MLflow without a training."""

import tempfile
from pathlib import Path
from typing import Any

import torch

from mlp_dist.config import TrainConfig
from mlp_dist.core.bundle import save_bundle, to_probabilities
from mlp_dist.core.image import normalize
from mlp_dist.core.model import build_model
from mlp_dist.core.spec import BundleSpec, ModelSpec
from mlp_dist.data.datasets import read_dataset
from mlp_dist.data.evaluate import predict
from mlp_dist.recipes import get_recipe
from mlp_dist.tracking.models import log_model

ROOT = Path(__file__).resolve().parents[2]


def start_run(experiment: str, name: str, params: dict[str, Any], *, parent: str | None = None) -> str:
    """Returns the id of a RUNNING run."""
    import mlflow
    from mlflow.entities import Param

    client = mlflow.MlflowClient()
    found = client.get_experiment_by_name(experiment)
    experiment_id = found.experiment_id if found else client.create_experiment(experiment)
    tags = {"mlflow.parentRunId": parent} if parent else {}
    run_id = str(client.create_run(experiment_id, tags=tags, run_name=name).info.run_id)
    client.log_batch(run_id, params=[Param(key, str(value)) for key, value in params.items()])
    return run_id


def end_run(run_id: str, status: str = "FINISHED", **metrics: float) -> str:
    import mlflow

    client = mlflow.MlflowClient()
    for name, value in metrics.items():
        client.log_metric(run_id, name, value)
    client.update_run(run_id, status)
    return run_id


def digits_run(
    experiment: str,
    name: str,
    *,
    noise: float,
    val_accuracy: float,
    reported: float | None = None,
    **params: Any,
) -> str:
    """A finished run whose model is ridge regression on scikit-learn's digits, with noise on its weights.

    It has a LoggedModel, a configuration and metrics of two epochs.
    """
    import mlflow
    from mlflow.entities import Metric

    config = TrainConfig.from_json({**get_recipe("mnist-quick").to_json(), "dataset": "digits", **params})
    run_id = start_run(experiment, name, config.to_json())
    client = mlflow.MlflowClient()
    points = [Metric(key, val_accuracy, 1000, 3) for key in ("val/accuracy", "val/loss", "train/step_loss")]
    client.log_batch(run_id, [*points, Metric("val/accuracy", val_accuracy - 0.1, 2000, 4)])
    client.log_dict(run_id, config.to_json(), "config.json")
    with tempfile.TemporaryDirectory() as directory:
        test_accuracy = write_bundle(Path(directory) / "bundle", run_id, noise, reported)
        log_model(client, run_id, name, Path(directory) / "bundle", step=3)
    return end_run(run_id, best_epoch=3, best_val_accuracy=val_accuracy, test_accuracy=test_accuracy)


def write_bundle(directory: Path, run_id: str, noise: float, reported: float | None = None) -> float:
    """Returns the test accuracy; `reported` is the one in the bundle, if that is another."""
    data = read_dataset("digits", ROOT)
    spec = ModelSpec((data.image.num_features, len(data.classes)), "module")
    model = build_model(spec)
    inputs = normalize(data.train.images, data.image).double()
    targets = torch.nn.functional.one_hot(data.train.labels).double()
    ridge = inputs.T @ inputs + 100 * torch.eye(inputs.shape[1], dtype=torch.float64)
    weights = torch.linalg.solve(ridge, inputs.T @ targets).T.float()
    generator = torch.Generator().manual_seed(0)
    weights += noise * weights.std() * torch.randn(weights.shape, generator=generator)
    state = {"weight": weights, "bias": torch.zeros(len(weights))}
    model.load_state_dict(
        {key: state[key.rpartition(".")[2]].view_as(value) for key, value in model.state_dict().items()}
    )
    golden = data.test.images[0]
    classes = predict(model, data.test.images, data.image).argmax(dim=1)
    accuracy = (classes == data.test.labels).double().mean().item()
    bundle = BundleSpec(
        model=spec,
        image=data.image,
        classes=data.classes,
        dataset="digits",
        recipe="mnist-quick",
        run_id=run_id,
        metrics={"val_accuracy": None, "test_accuracy": reported or accuracy, "test_loss": None},
        golden_probabilities=tuple(to_probabilities(predict(model, golden[None], data.image))[0].tolist()),
        weights_sha256="",
        versions={},
    )
    save_bundle(directory, bundle, model.state_dict(), golden)
    return accuracy
