"""A run's LoggedModel: made of its bundle, kept whole, and loaded with MLflow's own tools."""

import base64
import json
import math
import os
import shutil
import subprocess
import sys
import time
import urllib.error
import urllib.request
import venv
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.image import encode_png
from mlp_dist.core.spec import SPEC, STATE_DICT, check_probabilities
from mlp_dist.data.arrays import Dataset
from mlp_dist.tracking.models import find_model, is_complete, log_model
from mlp_dist.tracking.store import load_mlflow
from tests.helpers.launching import environment, free_port, result
from tests.helpers.stored_runs import write_bundle

# mlflow.pyfunc warns about its own type hints when it is imported.
pytestmark = pytest.mark.filterwarnings("ignore:.*type hint is inferred as AnyType")

FIGURES = {"val/accuracy": 0.75, "val/loss": 0.25}
HOUR_MS = 3600_000


@pytest.fixture(scope="module")
def client(empty_store: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """The client of a store of its own, which `mlflow` uses too."""
    directory = tmp_path_factory.mktemp("store")
    shutil.copy(empty_store, directory)
    mlflow = load_mlflow()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(directory)
        # MLflow puts the code of the models it loads there.
        patch.setattr(sys, "path", [*sys.path])
        mlflow.set_tracking_uri(f"sqlite:///{directory}/mlflow.db")
        yield mlflow.MlflowClient()
        mlflow.set_tracking_uri(None)


@pytest.fixture
def experiment(client: Any, request: pytest.FixtureRequest) -> str:
    return str(client.create_experiment(request.node.name))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("run") / "bundle"
    write_bundle(directory, "", noise=0.0)
    return directory


@pytest.fixture(scope="module")
def logged(client: Any, bundle: Path) -> str:
    """The address of a registered model."""
    run_id = new_run(client, str(client.create_experiment("logged")))
    model_id = log(client, run_id, bundle)
    client.create_registered_model("mlp")
    client.create_model_version("mlp", f"models:/{model_id}", run_id, model_id=model_id)
    client.set_registered_model_alias("mlp", "champion", "1")
    return "models:/mlp@champion"


@pytest.fixture(scope="module")
def loaded(logged: str) -> Any:
    return load_mlflow().pyfunc.load_model(logged)


def new_run(client: Any, experiment: str) -> str:
    from mlflow.data.code_dataset_source import CodeDatasetSource
    from mlflow.data.meta_dataset import MetaDataset
    from mlflow.entities import DatasetInput, Metric, Param

    run_id = str(client.create_run(experiment).info.run_id)
    points = [Metric(name, value, step * HOUR_MS, step) for name, value in FIGURES.items() for step in (1, 2)]
    client.log_batch(run_id, points, [Param("lr", "0.1")])
    data = MetaDataset(CodeDatasetSource({}), name="mnist", digest="abc")
    client.log_inputs(run_id, [DatasetInput(data._to_mlflow_entity())])
    return run_id


def log(client: Any, run_id: str, bundle: Path, step: int = 1, **figures: float) -> str:
    """Returns the model's id."""
    metrics = {**FIGURES, **{name.replace("_", "/"): value for name, value in figures.items()}}
    name = "lr=0.3 · folder:/a/'b'"
    points = [(key, value, step * HOUR_MS, step) for key, value in metrics.items()]
    log_model(client, run_id, name, bundle, step=step, points=points)
    return str(find_model(client, client.get_run(run_id)).model_id)


def changed(bundle: Path, directory: Path) -> Path:
    """A copy of the bundle with other metrics, as after a resumed training."""
    shutil.copytree(bundle, directory)
    values = json.loads((directory / SPEC).read_text())
    (directory / SPEC).write_text(json.dumps({**values, "metrics": {"val_accuracy": 0.5}}))
    return directory


def golden(bundle: Path) -> dict[str, float]:
    spec = load_bundle(bundle).spec
    return dict(zip(spec.classes, spec.golden_probabilities, strict=True))


def golden_text(bundle: Path) -> str:
    return base64.b64encode((bundle / "golden.png").read_bytes()).decode()


def test_model_has_its_run_epoch_and_metrics(client: Any, experiment: str, bundle: Path) -> None:
    run_id = new_run(client, experiment)
    # MLflow would store NaN as 0, the smallest loss.
    model_id = log(client, run_id, bundle, test_loss=math.nan)
    assert log(client, run_id, bundle) == model_id
    [model] = client.search_logged_models([experiment])
    assert {(point.key, point.value, point.timestamp, point.step) for point in model.metrics} == {
        (name, value, HOUR_MS, 1) for name, value in FIGURES.items()
    }
    assert {(point.dataset_name, point.dataset_digest) for point in model.metrics} == {("mnist", "abc")}
    assert (model.name, str(model.status)) == ("lr=0·3 · folder--a-b", "READY")
    assert model.params == {"lr": "0.1", "epoch": "1"}
    run = client.get_run(run_id)
    assert [(output.model_id, output.step) for output in run.outputs.model_outputs] == [(model_id, 1)]
    assert len(client.get_metric_history(run_id, "val/loss")) == 2
    assert find_model(client, run).model_id == model_id


def test_resumed_run_keeps_one_model_and_registered_ones(
    client: Any, experiment: str, bundle: Path, tmp_path: Path
) -> None:
    run_id = new_run(client, experiment)
    # As version 0.1.0 stored it.
    client.create_logged_model(experiment, name="best", source_run_id=run_id, params={"epoch": "1"})
    first = log(client, run_id, bundle)
    assert [each.model_id for each in client.search_logged_models([experiment])] == [first]
    resumed = changed(bundle, tmp_path / "resumed")
    assert not is_complete(client, client.get_logged_model(first), resumed)
    second = log(client, run_id, resumed, step=2)
    [model] = client.search_logged_models([experiment])
    assert (model.model_id, model.params["epoch"]) == (second, "2") != (first, "2")
    client.create_registered_model("kept")
    client.create_model_version("kept", model.model_uri, run_id, model_id=second)
    third = log(client, run_id, bundle)
    assert {each.model_id for each in client.search_logged_models([experiment])} == {second, third}
    assert find_model(client, client.get_run(run_id)).model_id == third


def test_interrupted_model_is_completed(client: Any, experiment: str, bundle: Path) -> None:
    run_id = new_run(client, experiment)
    # A file in place of the directory makes the upload fail.
    location = Path(client.get_experiment(experiment).artifact_location)
    location.mkdir(parents=True)
    (location / "models").touch()
    with pytest.raises(OSError, match="models"):
        log(client, run_id, bundle)
    begun = find_model(client, client.get_run(run_id))
    assert (str(begun.status), is_complete(client, begun, bundle)) == ("PENDING", False)
    (location / "models").unlink()
    assert log(client, run_id, bundle) == begun.model_id
    [model] = client.search_logged_models([experiment])
    assert (is_complete(client, model, bundle), len(model.metrics)) == (True, len(FIGURES))


@pytest.mark.parametrize("lost", [".", "code/mlp_dist/core/model.py", "MLmodel", "golden.png"])
def test_lost_and_shortened_files_are_sent_again(
    client: Any, experiment: str, bundle: Path, lost: str
) -> None:
    run_id = new_run(client, experiment)
    log(client, run_id, bundle)
    model = find_model(client, client.get_run(run_id))
    place = Path(model.artifact_location) / lost
    if lost == "golden.png":
        place.write_bytes(b"")
    else:
        shutil.rmtree(place) if place.is_dir() else place.unlink()
    assert not is_complete(client, model, bundle)
    assert log(client, run_id, bundle) == model.model_id
    assert is_complete(client, model, bundle)


def test_stored_files_are_a_bundle_and_a_state_dict(logged: str, bundle: Path, tmp_path: Path) -> None:
    mlflow = load_mlflow()
    stored = Path(mlflow.artifacts.download_artifacts(logged, dst_path=str(tmp_path)))
    load_bundle(stored).check_golden()
    suffixes = {path.suffix for path in stored.rglob("*") if path.is_file()}
    assert suffixes <= {"", ".json", ".png", ".pth", ".py", ".txt", ".yaml"}
    assert len(list(stored.rglob(STATE_DICT))) == 1
    weights = mlflow.pytorch.load_state_dict(logged)
    assert all(map(torch.equal, weights.values(), load_bundle(bundle).model.state_dict().values()))


def test_pyfunc_answers_the_golden_image(loaded: Any, bundle: Path) -> None:
    file, text = (bundle / "golden.png").read_bytes(), golden_text(bundle)
    pixels = np.asarray(Image.open(bundle / "golden.png"))
    cells = [file, text, f"data:image/png;base64,{text}", pixels, pixels.tolist(), pixels.flatten().tolist()]
    batch = np.stack([pixels] * 3)
    arrays = [batch, batch.reshape(3, -1), batch[:, None], (batch / 255).astype(np.float32)]
    for images in ([*cells, pixels[None], (pixels / 255).tolist()], [text] * 3, *arrays):
        answers = loaded.predict({"image": images}).to_dict("records")
        assert len(answers) == len(images)
        for answer in answers:
            check_probabilities(answer, golden(bundle))


@pytest.mark.parametrize(
    ("cell", "message"),
    [
        ("*** no base64", "image is not base64"),
        (b"GIF89a", "the image is damaged|6 bytes are not"),
        (base64.b64encode(b"%PDF-1.4 and more").decode(), "but PDF; save it as PNG or JPEG"),
        ([[0.0, 700.0]], "hold values from 0 to 700"),
        ([[1, 2], [3]], "different lengths"),
        (None, "an array of object holds no image"),
    ],
)
def test_wrong_images_are_explained(loaded: Any, cell: Any, message: str) -> None:
    from mlflow.exceptions import MlflowException
    from pandas import DataFrame

    with pytest.raises(MlflowException, match=message) as caught:
        loaded.predict(DataFrame({"image": [cell]}))
    assert caught.value.get_http_status_code() == 400


def test_unknown_output_is_refused(logged: str) -> None:
    mlflow = load_mlflow()
    with pytest.raises(mlflow.MlflowException, match="output is 'logits'; it can be probabilities or label"):
        mlflow.pyfunc.load_model(logged, model_config={"output": "logits"})


@pytest.fixture(scope="module")
def elsewhere(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The variables of an environment with this one's packages, but without this project."""
    directory = tmp_path_factory.mktemp("elsewhere")
    venv.create(directory, symlinks=True)
    [packages] = directory.glob("lib/*/site-packages")
    # Python does not read the .pth files in a folder that a .pth file names; one of them names this project.
    (packages / "shared.pth").write_text(str(Path(load_mlflow().__file__).parents[1]))
    server = directory / "bin/uvicorn"
    server.write_text(f"#!{directory}/bin/python\nfrom uvicorn.main import main\nmain()\n")
    server.chmod(0o755)
    kept = environment(MLFLOW_ALLOW_PICKLE_DESERIALIZATION="false")
    return {**kept, "PATH": f"{directory}/bin{os.pathsep}{kept['PATH']}"}


ELSEWHERE = """
import importlib.util, json, sys
assert importlib.util.find_spec("mlp_dist") is None
import mlflow, pandas
address, images = sys.argv[1], pandas.read_json(sys.argv[2], dtype=False)
model = mlflow.pyfunc.load_model(address)
probabilities = model.predict(images[["image"]])
import mlp_dist
print(json.dumps({
    "code": mlp_dist.__file__,
    "signature": mlflow.models.get_model_info(address).signature.to_dict(),
    "golden": probabilities.iloc[0].to_dict(),
    "right": (probabilities.idxmax(axis=1) == images["label"]).mean(),
    "evaluated": mlflow.models.evaluate(
        address, images, targets="label", model_type="classifier", model_config={"output": "label"}
    ).metrics["accuracy_score"],
}))
"""


@pytest.mark.slow
def test_model_loads_without_this_package(
    client: Any, logged: str, bundle: Path, image_data: Dataset, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    files = [base64.b64encode(encode_png(image)).decode() for image in image_data.test.images[:100]]
    labels = [image_data.classes[label] for label in image_data.test.labels[:100].tolist()]
    images = [{"image": file, "label": label} for file, label in zip(files, labels, strict=True)]
    (tmp_path / "images.json").write_text(json.dumps(images))
    words = ["python", "-c", ELSEWHERE, logged, str(tmp_path / "images.json")]
    variables = {**elsewhere, "MLFLOW_TRACKING_URI": client.tracking_uri}
    found = result(subprocess.run(words, cwd=tmp_path, env=variables, capture_output=True, text=True))
    assert "/artifacts/code/mlp_dist/" in found["code"]
    # The golden image is the first test image.
    check_probabilities(found["golden"], golden(bundle))
    assert found["evaluated"] == found["right"] > 0.8
    assert json.loads(found["signature"]["inputs"]) == [{"type": "any", "name": "image", "required": True}]
    assert [each["name"] for each in json.loads(found["signature"]["outputs"])] == list(image_data.classes)


def answers_ping(url: str) -> bool:
    with suppress(OSError), urllib.request.urlopen(f"{url}/ping", timeout=5):
        return True
    return False


@pytest.mark.slow
def test_model_is_served_without_this_package(
    client: Any, logged: str, bundle: Path, elsewhere: dict[str, str], tmp_path: Path
) -> None:
    url, text = f"http://127.0.0.1:{free_port()}", golden_text(bundle)
    words = ["python", "-m", "mlflow", "models", "serve", "-m", logged, "--env-manager", "local"]
    variables = {**elsewhere, "MLFLOW_TRACKING_URI": client.tracking_uri}

    def ask(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        headers = {"Content-Type": "application/json"}
        request = urllib.request.Request(f"{url}/invocations", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=30) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            return error.code, json.load(error)

    with (tmp_path / "log").open("wb") as log:
        server = subprocess.Popen(
            [*words, "--port", url.rpartition(":")[2]], cwd=tmp_path, env=variables, stdout=log, stderr=log
        )
    try:
        deadline = time.monotonic() + 300
        while not answers_ping(url):
            assert server.poll() is None, (tmp_path / "log").read_text()
            assert time.monotonic() < deadline, (tmp_path / "log").read_text()
            time.sleep(0.2)
        for body in (
            {"dataframe_split": {"columns": ["image"], "data": [[text]]}},
            {"dataframe_records": [{"image": f"data:image/png;base64,{text}"}]},
            {"inputs": [text]},
            {"instances": [{"image": np.asarray(Image.open(bundle / "golden.png")).tolist()}]},
        ):
            status, answer = ask(body)
            assert (status, len(answer["predictions"])) == (200, 1)
            check_probabilities(answer["predictions"][0], golden(bundle))
        status, answer = ask({"inputs": ["JVBERi0xLjQgYW5kIG1vcmU="]})
        assert (status, "but PDF; save it as PNG or JPEG" in answer["message"]) == (400, True)
        assert "Traceback" not in json.dumps(answer)
    finally:
        server.terminate()
        server.wait(timeout=30)
