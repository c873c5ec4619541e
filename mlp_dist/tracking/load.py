"""The API for trained models: load one from MLflow, a directory or a file; save one to a file."""

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

    `source` is one of
    - "best": the model `python -m serve.package` would take. That is the champion, or the best finished run
      if there is no champion, or if `experiment` ("mlp_dist") or the validation `metric` ("val_accuracy") is
      given;
    - the id of a finished run in MLflow;
    - a bundle's directory, or an output directory that contains one;
    - a file written by `save_model`.

    Raises UsageError if `source` is none of these, TrackingError for a run without a model, BundleError for
    a damaged bundle or file.
    """
    _check_device(device)
    model = _load_from_disk(Path(source).expanduser(), device)
    if model is None and source != BEST and _is_path(source):
        raise UsageError(
            f"there is no model at {source}; give a bundle's directory, a file written by save_model, "
            f"a run id, or {BEST!r}"
        )
    model = model or _load_from_mlflow(str(source), experiment, metric, device)
    model.check_golden()
    return model


def _load_from_disk(path: Path, device: torch.device | str) -> Bundle | None:
    try:
        for directory in (path, path / "bundle"):
            if (directory / SPEC).is_file():
                return load_bundle(directory, device=device)
        return load_file(path, device=device) if path.is_file() else None
    # The name is too long for a path.
    except OSError:
        return None


def _is_path(source: str | Path) -> bool:
    return isinstance(source, Path) or len(Path(source).parts) != 1 or Path(source).exists()


def _load_from_mlflow(
    source: str, experiment: str | None, metric: str | None, device: torch.device | str
) -> Bundle:
    # Late, since importing mlflow takes seconds.
    from mlp_dist.tracking import champion, find

    run = champion.chosen_run(experiment, metric) if source == BEST else find.get_run(source)
    with tempfile.TemporaryDirectory(prefix="mlp_dist-") as directory:
        return load_bundle(find.download_bundle(run, Path(directory)), device=device)


def _check_device(device: torch.device | str) -> None:
    try:
        torch.empty(0, device=device)
    # AssertionError if torch was compiled without CUDA.
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise UsageError(
            f"the device {str(device)!r} cannot be used: {reason}; 'cpu' always works"
        ) from error


def save_model(model: Bundle, path: str | Path) -> None:
    """Write the whole model to one file, for `load_model` or `mlp_dist.core.bundle.load_file`.

    An existing file is replaced once the new one is complete. Raises UsageError if `model` is not a Bundle,
    BundleError if the file cannot be written.
    """
    if not isinstance(model, Bundle):
        raise UsageError(
            f"save_model takes a model from load_model, not {type(model).__name__}; "
            "save_state_dict writes the weights of any module"
        )
    save_file(model, Path(path))
