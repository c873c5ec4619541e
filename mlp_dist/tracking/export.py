"""Downloads a run's bundle and scores it on the test images before it is used."""

from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from mlp_dist.config import TrainConfig
from mlp_dist.core.bundle import Bundle, load_bundle
from mlp_dist.core.errors import BundleError
from mlp_dist.core.spec import BundleSpec
from mlp_dist.data.arrays import Dataset
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset
from mlp_dist.data.evaluate import predict
from mlp_dist.data.scores import Evaluation, evaluate
from mlp_dist.tracking.find import StoredRun, download_bundle
from mlp_dist.tracking.run_dir import CONFIG
from mlp_dist.tracking.store import load_mlflow

ACCURACY_TOLERANCE = 1e-3
"""Test accuracies of the same weights differ by less between devices and machines."""


@dataclass(frozen=True)
class Export:
    """The bundle in `directory`, with the test images' `labels`, int64 (N,), and which of them the model
    classifies correctly, bool (N,).
    """

    directory: Path
    bundle: Bundle
    labels: torch.Tensor
    correct: torch.Tensor
    test: Evaluation


def export_run(run: StoredRun, directory: Path, data_dir: Path | None = None) -> Export:
    """Download the run's bundle under `directory` and score it again.

    Raises TrackingError if the run has no bundle, BundleError if it is damaged or misses the test accuracy
    that the run reports, DataError if the test images are not available.
    """
    bundle_directory = download_bundle(run, directory)
    bundle = load_bundle(bundle_directory)
    bundle.check_golden()
    data = run_dataset(run, bundle.spec, data_dir)
    logits = predict(bundle.model, data.test, bundle.spec.image).cpu()
    test = evaluate(logits.numpy(), data.test.labels.numpy(), temperature=bundle.spec.temperature)
    reported = bundle.spec.metrics["test_accuracy"]
    if reported is None or abs(test.accuracy - reported) > ACCURACY_TOLERANCE:
        raise BundleError(
            f"run {run.run_id} reports a test accuracy of {reported}, but its bundle scores "
            f"{test.accuracy}: the weights or the test images are not the ones it was trained with"
        )
    return Export(bundle_directory, bundle, data.test.labels, logits.argmax(dim=1) == data.test.labels, test)


def run_dataset(
    run: StoredRun, spec: BundleSpec, data_dir: Path | None = None, *, download: bool = True
) -> Dataset:
    """The data set of the run's bundle, from `data_dir` or else the directory the training used.

    Missing files are downloaded if `download`. Raises DataError if they are not available.
    """
    mlflow = load_mlflow()
    # The run may not be in MLflow any more.
    with suppress(mlflow.MlflowException, OSError):
        config = TrainConfig.from_json(mlflow.artifacts.load_dict(f"runs:/{run.run_id}/{CONFIG}"))
        data_dir = data_dir or (config.data_dir if config.data_dir and config.data_dir.is_dir() else None)
    data_dir = data_dir or default_data_dir()
    if download:
        prepare_dataset(spec.dataset, data_dir)
    # Without any, all were read.
    return read_dataset(spec.dataset, data_dir, image_size=spec.image.height, skip_bad_images=True)
