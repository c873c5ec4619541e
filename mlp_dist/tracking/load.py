"""The API for trained models: load one from MLflow, a directory or a file; save one to a file."""

import os
import tempfile
from contextlib import suppress
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
    - the id, id prefix or name of a finished run in MLflow;
    - a bundle's directory, or an output directory that contains one;
    - a file written by `save_model`.

    Raises UsageError if `source` is none of these, TrackingError for a run without a model, BundleError for
    a damaged bundle or file.
    """
    model = _load_from_disk(Path(source).expanduser(), device)
    if model is None:
        model = _load_from_mlflow(source, experiment, metric, device)
    model.check_golden()
    return model


def _load_from_disk(path: Path, device: torch.device | str) -> Bundle | None:
    # The name of a run may be too long for a path.
    with suppress(OSError):
        for directory in (path, path / "bundle"):
            if (directory / SPEC).is_file():
                return load_bundle(directory, device=device)
        return load_file(path, device=device) if path.is_file() else None
    return None


def _load_from_mlflow(
    source: str | Path, experiment: str | None, metric: str | None, device: torch.device | str
) -> Bundle:
    if source != BEST and (isinstance(source, Path) or os.sep in source):
        raise UsageError(
            f"there is no model at {source}; give a bundle's directory, a file written by save_model, "
            f"a run id, or {BEST!r}"
        )
    # Late, since importing mlflow takes seconds.
    from mlp_dist.tracking import champion, find

    run = champion.chosen_run(experiment, metric) if source == BEST else find.find_run(source)
    with tempfile.TemporaryDirectory(prefix="mlp_dist-") as directory:
        return load_bundle(find.download_bundle(run, Path(directory)), device=device)


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
