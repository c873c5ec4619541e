"""The handler with the trained model, without TorchServe; test_server asks for predictions."""

import base64
from pathlib import Path

import numpy as np
import pytest
from ts.context import RequestProcessor

from mlp_dist.core.image import encode_png
from mlp_dist.data.arrays import Dataset
from serve.handler import MLPHandler
from tests.helpers.handlers import ask_handler, load_handler, make_context
from tests.helpers.launching import Trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def handler(trained: Trained) -> MLPHandler:
    return load_handler(trained.bundle)


@pytest.fixture(scope="module")
def files(image_data: Dataset) -> list[bytes]:
    return [encode_png(image) for image in image_data.test.images[:8]]


def test_describe_within_a_batch(handler: MLPHandler, files: list[bytes], trained: Trained) -> None:
    context = make_context(Path(), 2)
    context.request_processor[0] = RequestProcessor({"describe": "True"})
    [description, answer] = handler.handle([{"body": bytearray(files[0])}] * 2, context)
    assert b"run_id" not in answer
    assert trained.result["run_id"].encode() in description
    [values], _ = ask_handler(handler, {}, headers={"describe": "True"})
    assert values["num_parameters"] == trained.result["num_parameters"]
    assert values["classes"] == list("0123456789")
    assert values["metrics"]["test_accuracy"] == trained.result["test_accuracy"]


def test_explanations(handler: MLPHandler, files: list[bytes]) -> None:
    file = bytearray(files[5])
    instance = {"b64": base64.b64encode(file).decode()}
    [answer], _ = ask_handler(handler, {"body": file})
    rows = [{"body": file}, {"body": {"instances": [instance, instance]}}]
    (one, several), statuses = ask_handler(handler, *rows, headers={"explain": "True"})
    assert statuses == [200, 200]
    assert answer[one["class"]] == max(answer.values()) == one["probability"]
    for each in several["explanations"]:
        assert each["class"] == one["class"]
        np.testing.assert_allclose(each["attributions"], one["attributions"], rtol=0, atol=1e-5)


@pytest.mark.gpu
def test_uses_the_gpu(handler: MLPHandler, files: list[bytes], trained: Trained) -> None:
    on_gpu = load_handler(trained.bundle, gpu_id=0)
    assert on_gpu.worker.device.type == "cuda"
    rows = [{"body": bytearray(file)} for file in files]
    found, _ = ask_handler(on_gpu, *rows)
    expected, _ = ask_handler(handler, *rows)
    for answer, other in zip(found, expected, strict=True):
        assert answer == pytest.approx(other, abs=2e-6)
