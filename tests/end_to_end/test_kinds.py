"""Perceptrons in raw tensors and of written-out layers go all the way that those of nn.Module go."""

import json
import sys
from pathlib import Path

import pytest

from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.image import encode_png
from mlp_dist.data.datasets import read_dataset
from serve.server import running
from tests.helpers.launching import DATASET, Trained, result, run, train

pytestmark = pytest.mark.slow

RECIPES = {"tensor": "mnist-tensor", "layers": "mnist-scratch-256-64"}


def flags(kind: str, epochs: int, output_dir: str) -> list[str]:
    small_steps = ["--lr", "0.001", "--batch-size", "359"]
    recipe = ["--recipe", RECIPES[kind], *DATASET, *small_steps]
    return [*recipe, "--epochs", str(epochs), "--output-dir", output_dir]


@pytest.fixture(scope="module", params=RECIPES)
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def alone(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    directory = tmp_path_factory.mktemp(kind)
    return Trained(directory, result(train(*flags(kind, 2, "alone"), cwd=directory)))


def test_packaged_and_served_it_answers_as_trained(kind: str, alone: Trained) -> None:
    words = ["--run-id", alone.result["run_id"], "--model-name", kind]
    packaged = result(run([sys.executable, "-m", "serve.package", *words], alone.directory))
    bundle = load_bundle(alone.bundle)
    assert bundle.spec.model.kind == kind
    images = read_dataset("digits", Path("unused")).test.images[:20]
    expected = bundle.predict_proba(images)
    with running(alone.directory / str(packaged["mar"]), bundle.golden_image) as client:
        for image, answer in zip(images, expected, strict=True):
            assert client.predict(encode_png(image)) == pytest.approx(answer, abs=1e-6)
    spec = json.loads((alone.bundle / "bundle.json").read_text())
    assert spec["model"]["kind"] == kind
