"""What a notebook does with trained models: load one from wherever it is, save it whole to one file."""

import tempfile
from pathlib import Path

import torch

from mlp_dist.core.bundle import Bundle, load_bundle, load_file, save_file
from mlp_dist.core.errors import UsageError
from mlp_dist.core.spec import SPEC

BEST = "best"


def load_model(
    source: str | Path = BEST,
    *,
    experiment: str | None = None,
    metric: str | None = None,
    device: torch.device | str = "cpu",
) -> Bundle:
    """A trained model, in evaluation mode on `device`.

    `source`: "best", what `python -m serve.package` would take: the champion where there is one, else, or
    where `experiment` ("mlp_dist") or the validation `metric` ("val_accuracy") is named, the best finished
    run; the id of any finished run in MLflow; a bundle's directory, or an output directory with one in it; a
    file of `save_model`.

    Raises UsageError where it is none of these, TrackingError for a run without a model, BundleError for a
    bundle or a file that is damaged.
    """
    _check_device(device)
    model = _load_from_disk(Path(source).expanduser(), device)
    if model is None and source != BEST and _is_path(source):
        raise UsageError(
            f"there is no model at {source}; give a bundle's directory, a file that save_model wrote, "
            f"the id of a run, or {BEST!r}"
        )
    model = model or _load_from_mlflow(str(source), experiment, metric, device)
    model.check_golden()
    return model


def _load_from_disk(path: Path, device: torch.device | str) -> Bundle | None:
    """None where nothing there is a model."""
    try:
        for directory in (path, path / "bundle"):
            if (directory / SPEC).is_file():
                return load_bundle(directory, device=device)
        return load_file(path, device=device) if path.is_file() else None
    # A name that is too long to be one.
    except OSError:
        return None


def _is_path(source: str | Path) -> bool:
    return isinstance(source, Path) or len(Path(source).parts) != 1 or Path(source).exists()


def _load_from_mlflow(
    source: str, experiment: str | None, metric: str | None, device: torch.device | str
) -> Bundle:
    # MLflow takes seconds to import, and a bundle or a file is loaded without it.
    from mlp_dist.tracking import find, registry

    run = registry.chosen_run(experiment, metric) if source == BEST else find.get_run(source)
    with tempfile.TemporaryDirectory(prefix="mlp_dist-") as directory:
        return load_bundle(find.download_bundle(run, Path(directory)), device=device)


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    # CUDA that is not compiled in is an AssertionError.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(f"the device {str(device)!r} cannot be used: {reason}; 'cpu' always can") from error


def save_model(model: Bundle, path: str | Path) -> None:
    """Write the whole model to one file, for `load_model`, or for core.bundle.load_file where only
    mlp_dist/core is. An older file is replaced only when all of the new one is on disk.

    Raises UsageError for what is not a model of `load_model`, BundleError where the file cannot be written.
    """
    if not isinstance(model, Bundle):
        raise UsageError(
            f"save_model takes what load_model gave, not {type(model).__name__}; "
            "save_state_dict writes the weights of any module"
        )
    save_file(model, Path(path))
