"""A run -> its bundle, scored again on the test images before it is accepted."""

from dataclasses import dataclass
from pathlib import Path

import torch

from mlp_dist.config import TrainConfig
from mlp_dist.core.bundle import Bundle, load_bundle, recalibrate
from mlp_dist.core.errors import BundleError
from mlp_dist.data.batches import split_validation
from mlp_dist.data.calibration import model_temperature
from mlp_dist.data.datasets import default_data_dir, prepare_dataset, read_dataset
from mlp_dist.data.evaluate import Evaluation, evaluate, predict
from mlp_dist.data.image_set import Dataset
from mlp_dist.tracking.find import StoredRun, download_bundle, load_config

ACCURACY_TOLERANCE = 1e-3
"""Test accuracies of the same weights, on another device or machine, agree to this."""


@dataclass(frozen=True)
class Export:
    """`directory` holds the bundle; of the test images, whose `labels` are int64 (N,), those that it answered
    rightly just now are True in `correct`, bool (N,).
    """

    directory: Path
    bundle: Bundle
    labels: torch.Tensor
    correct: torch.Tensor
    test: Evaluation

    @property
    def test_accuracy(self) -> float:
        return self.test.accuracy


def export_run(run: StoredRun, directory: Path, data_dir: Path | None = None) -> Export:
    """Download the run's bundle under `directory` and score it again.

    That of a run without a temperature, from before they were fitted, is given one here.

    Raises TrackingError where the run has none, BundleError where it is damaged or does not reach the
    test accuracy that its run reports, DataError where the test images cannot be had.
    """
    bundle_directory = download_bundle(run, directory)
    bundle = load_bundle(bundle_directory)
    if bundle.spec.run_id != run.run_id:
        raise BundleError(f"the bundle of run {run.run_id} is of another run, {bundle.spec.run_id}")
    bundle.check_golden()
    config = load_config(run)
    data = _read(config, data_dir)
    logits = predict(bundle.model, data.test, bundle.spec.image)
    accuracy = evaluate(logits, data.test.labels).accuracy
    reported = bundle.spec.metrics["test_accuracy"]
    if reported is None or abs(accuracy - reported) > ACCURACY_TOLERANCE:
        raise BundleError(
            f"run {run.run_id} reports a test accuracy of {reported}, but its bundle scores "
            f"{accuracy}: the weights or the test images are not the ones it was trained with"
        )
    if "temperature" not in run.metrics:
        _, val = split_validation(data.train, config.val_size or 0)
        temperature = model_temperature(bundle.model, val, bundle.spec.image)
        bundle = recalibrate(bundle_directory, bundle, temperature)
    test = evaluate(logits, data.test.labels, temperature=bundle.spec.temperature)
    return Export(bundle_directory, bundle, data.test.labels, logits.argmax(dim=1) == data.test.labels, test)


def run_dataset(run: StoredRun, data_dir: Path | None = None, *, download: bool = True) -> Dataset:
    """The data set a run was trained on: from `data_dir`, else from where the run had it.

    What is missing is downloaded. Raises DataError where it cannot be had, or `download` is False.
    """
    return _read(load_config(run), data_dir, download=download)


def _read(config: TrainConfig, data_dir: Path | None, *, download: bool = True) -> Dataset:
    if data_dir is None:
        trained_from = config.data_dir
        data_dir = trained_from if trained_from and trained_from.is_dir() else default_data_dir()
    if download:
        prepare_dataset(config.dataset, data_dir)
    return read_dataset(
        config.dataset, data_dir, image_size=config.image_size, skip_bad_images=config.skip_bad_images
    )
