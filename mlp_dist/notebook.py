"""What a notebook does with trained models: load one from wherever it is, save it whole to one file."""

import tempfile
from pathlib import Path

import torch

from mlp_dist.config import DEFAULT_EXPERIMENT
from mlp_dist.core.bundle import SPEC, Bundle, load_bundle, load_file, save_file
from mlp_dist.core.errors import UsageError

BEST = "best"


def load_model(
    source: str | Path = BEST,
    *,
    experiment: str = DEFAULT_EXPERIMENT,
    metric: str = "val_accuracy",
    device: torch.device | str = "cpu",
) -> Bundle:
    """A trained model, in evaluation mode on `device`.

    `source`: "best", the best finished run of `experiment` by the validation `metric`; the id of any finished
    run in MLflow; a bundle's directory, or an output directory with one in it; a file of `save_model`.

    Raises UsageError where it is none of these, TrackingError for a run without a model, BundleError for a
    bundle or a file that is damaged.
    """
    path = Path(source)
    if (path / SPEC).is_file():
        return load_bundle(path, device=device)
    if (path / "bundle" / SPEC).is_file():
        return load_bundle(path / "bundle", device=device)
    if path.is_file():
        return load_file(path, device=device)
    if isinstance(source, Path) or path.exists() or len(path.parts) > 1:
        raise UsageError(
            f"there is no model at {source}; give a bundle's directory, a file that save_model wrote, "
            f"the id of a run, or {BEST!r}"
        )
    # MLflow takes seconds to import, and a bundle or a file is loaded without it.
    from mlp_dist import tracking

    run = tracking.best_run(experiment, metric) if source == BEST else tracking.get_run(str(source))
    with tempfile.TemporaryDirectory(prefix="mlp_dist-") as directory:
        return load_bundle(tracking.download_bundle(run, Path(directory)), device=device)


def save_model(model: Bundle, path: str | Path) -> None:
    """Write the whole model to one file, for `load_model`, or for core.bundle.load_file where only
    mlp_dist/core is. An older file is replaced only when all of the new one is on disk.
    """
    save_file(model, Path(path))
