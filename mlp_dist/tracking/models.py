"""A run's LoggedModel: its kept weights as an MLflow model, which loads where this package is missing."""

import hashlib
import json
import math
import platform
import tempfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlp_dist
from mlp_dist.core.spec import GOLDEN, SPEC, STATE_DICT, weights_file

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel, Run

Point = tuple[str, float, int, int]
"""A metric's name, value, milliseconds since 1970, step."""

BUNDLE_TAG = "mlp_dist.bundle"
"""Names bundle.json's sha256, and through it the weights."""

_INVALID = str.maketrans({"/": "-", ":": "-", "%": "-", ".": "·", "'": "", '"': ""})
_LONGEST_NAME = 250
_INPUT = {"type": "any", "name": "image", "required": True}
_REQUIREMENTS = ("mlflow", "numpy", "opencv-python-headless", "Pillow", "torch")


def log_model(
    client: "MlflowClient", run_id: str, name: str, bundle: Path, *, step: int, points: Sequence[Point] = ()
) -> None:
    """Make the bundle the run's only LoggedModel, called `name` as far as MLflow allows.

    Completes a model whose upload was interrupted, and sends files that MLflow lost. The run's other models
    are deleted unless they are registered. `step` is the epoch, and `points` are metrics that the run has,
    too; non-finite ones are left out, since MLflow ranks NaN as 0. The run must already have its params and
    its data set.

    Raises mlflow.MlflowException.
    """
    from mlflow.entities import LoggedModelOutput, LoggedModelStatus, Metric

    run = client.get_run(run_id)
    models = _models(client, run)
    model = next((each for each in models if each.tags.get(BUNDLE_TAG) == _digest(bundle)), None)
    model = model or client.create_logged_model(
        run.info.experiment_id,
        name=name.translate(_INVALID)[:_LONGEST_NAME],
        source_run_id=run_id,
        tags={BUNDLE_TAG: _digest(bundle)},
        params={**run.data.params, "epoch": str(step)},
        model_type="image_classifier",
    )
    # MLflow rejects a second output of the same model.
    if model.model_id not in [each.model_id for each in (run.outputs.model_outputs if run.outputs else ())]:
        client.log_outputs(run_id, [LoggedModelOutput(model.model_id, step)])
    with tempfile.TemporaryDirectory(prefix="mlp_dist-") as directory:
        for file, content in _files(model, bundle).items():
            path = Path(directory, file)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        client.log_model_artifacts(model.model_id, directory)
    data = [each.dataset for each in run.inputs.dataset_inputs][:1] if run.inputs else []
    linked = (model.model_id, *(part for each in data for part in (each.name, each.digest)))
    client.log_batch(run_id, [Metric(*point, *linked) for point in points if math.isfinite(point[1])])
    client.finalize_logged_model(model.model_id, LoggedModelStatus.READY)
    others = [each for each in models if each.model_id != model.model_id]
    registered = {each.source for each in client.search_model_versions(f"run_id = '{run_id}'") if others}
    for other in others:
        if other.model_uri not in registered:
            client.delete_logged_model(other.model_id)


def find_model(client: "MlflowClient", run: "Run") -> "LoggedModel | None":
    """The run's newest READY model, else one whose upload was interrupted."""
    models = [each for each in _models(client, run) if BUNDLE_TAG in each.tags]
    return next((each for each in models if str(each.status) == "READY"), models[0] if models else None)


def is_complete(client: "MlflowClient", model: "LoggedModel", bundle: Path) -> bool:
    """True if the model is READY and made of `bundle`, and MLflow lists all its files with their sizes."""
    if str(model.status) != "READY" or model.tags[BUNDLE_TAG] != _digest(bundle):
        return False
    stored = stored_sizes(partial(client.list_logged_model_artifacts, model.model_id))
    return all(stored.get(name) == len(content) for name, content in _files(model, bundle).items())


def stored_sizes(listing: Callable[[str | None], Any], folder: str | None = None) -> dict[str, int]:
    """The paths and sizes of all files that MLflow lists under `folder`."""
    sizes: dict[str, int] = {}
    for each in listing(folder):
        sizes |= stored_sizes(listing, each.path) if each.is_dir else {each.path: each.file_size or 0}
    return sizes


def _models(client: "MlflowClient", run: "Run") -> "list[LoggedModel]":
    """The run's models, newest first; those of version 0.1.0 have no BUNDLE_TAG."""
    of_run = f"source_run_id = '{run.info.run_id}'"
    found = client.search_logged_models([run.info.experiment_id], filter_string=of_run)
    return sorted(found, key=lambda model: -model.creation_timestamp)


def _digest(bundle: Path) -> str:
    return hashlib.sha256((bundle / SPEC).read_bytes()).hexdigest()


def _files(model: "LoggedModel", bundle: Path) -> dict[str, bytes]:
    """The MLflow model: the bundle, the code that reads it, and what MLflow has to know."""
    from mlflow.models import Model, ModelSignature

    spec, package = (bundle / SPEC).read_bytes(), Path(mlp_dist.__file__).parent
    code = [package / "__init__.py", *sorted((package / "core").rglob("*.py"))]
    outputs = [{"type": "double", "name": name, "required": True} for name in json.loads(spec)["classes"]]
    schemas = {"inputs": json.dumps([_INPUT]), "outputs": json.dumps(outputs)}
    signature = ModelSignature.from_dict(schemas)
    about = Model(run_id=model.source_run_id, model_id=model.model_id, signature=signature)
    about.add_flavor(
        "python_function",
        loader_module="mlp_dist.core.pyfunc",
        code="code",
        config={"output": "probabilities"},
        env={"virtualenv": "python_env.yaml"},
        python_version=platform.python_version(),
    )
    environment = {"python": platform.python_version(), "dependencies": ["-r requirements.txt"]}
    return {
        SPEC: spec,
        GOLDEN: (bundle / GOLDEN).read_bytes(),
        STATE_DICT: weights_file(bundle).read_bytes(),
        "MLmodel": about.to_yaml().encode(),
        "python_env.yaml": json.dumps(environment).encode(),
        "requirements.txt": "\n".join(_REQUIREMENTS).encode(),
        **{f"code/mlp_dist/{path.relative_to(package)}": path.read_bytes() for path in code},
    }
