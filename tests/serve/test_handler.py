import base64
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from ts.context import RequestProcessor

from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.image import encode_png
from mlp_dist.data.image_set import Dataset
from serve.handler import MLPHandler
from tests.helpers.asking import ask, context, loaded
from tests.helpers.launching import Trained

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def handler(trained: Trained) -> MLPHandler:
    return loaded(trained.bundle)


@pytest.fixture(scope="module")
def png(image_data: Dataset) -> bytes:
    return encode_png(image_data.test.images[5])


def test_probabilities_are_the_trained_models(
    handler: MLPHandler, image_data: Dataset, trained: Trained
) -> None:
    images = image_data.test.images[:300]
    expected = load_bundle(trained.bundle).probabilities(images)
    answers, statuses = ask(handler, *({"body": bytearray(encode_png(image))} for image in images))
    assert set(statuses) == {200}
    assert [list(answer) for answer in answers] == [list("0123456789")] * len(images)
    found = torch.tensor([list(answer.values()) for answer in answers], dtype=torch.float64)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert (found.sum(dim=1) - 1).abs().max() < 1e-5


def test_all_ways_to_send_an_image_give_the_same_answer(handler: MLPHandler, png: bytes) -> None:
    text = base64.b64encode(png).decode()
    rows = [
        {"body": bytearray(png)},
        {"data": bytearray(png)},
        {"image": bytearray(png), "comment": bytearray(b"a five?")},
        {"picture.png": bytearray(png)},
        {"body": {"data": text}},
        {"body": {"image": text}},
        {"body": {"b64": text, "comment": 5}},
        {"body": text},
        {"body": {"data": f"data:image/png;base64,{text}"}},
    ]
    answers, statuses = ask(handler, *rows)
    assert statuses == [200] * len(rows)
    for answer in answers[1:]:
        assert answer == pytest.approx(answers[0], abs=1e-12)


@pytest.mark.parametrize("mode", ["1", "L", "P", "LA", "RGB", "RGBA", "I;16", "CMYK"])
@pytest.mark.parametrize("size", [(28, 28), (1, 1), (300, 200)])
def test_any_mode_and_size_is_answered(handler: MLPHandler, mode: str, size: tuple[int, int]) -> None:
    file = io.BytesIO()
    Image.new(mode, size).save(file, format="TIFF" if mode == "CMYK" else "PNG")
    # There is nothing on it, which is an error where what is drawn on it is looked for.
    [answer], [status] = ask(handler, {"body": bytearray(file.getvalue())}, headers={"X-Preprocess": "exact"})
    assert status == 200
    assert sum(answer.values()) == pytest.approx(1, abs=1e-5)


def test_a_corrupt_image_in_a_batch_of_eight_is_refused_alone(
    handler: MLPHandler, image_data: Dataset, png: bytes
) -> None:
    files = [encode_png(image) for image in image_data.test.images[:8]]
    expected, _ = ask(handler, *({"body": bytearray(file)} for file in files))
    files[3] = files[3][: len(files[3]) // 2]
    answers, statuses = ask(handler, *({"body": bytearray(file)} for file in files))
    assert statuses == [200, 200, 200, 400, 200, 200, 200, 200]
    assert answers[3]["error"]["type"] == "ImageError"
    assert "damaged" in answers[3]["error"]["message"]
    for position in (0, 1, 2, 4, 5, 6, 7):
        assert answers[position] == pytest.approx(expected[position], abs=1e-9)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"body": bytearray()}, "the image is empty"),
        (
            {"body": bytearray(b"no image at all")},
            "15 bytes are not a PNG, JPEG, GIF, BMP, WEBP or TIFF image",
        ),
        ({"body": "*** not base64"}, "not base64"),
        ({"body": {"data": 5}}, "found int where an image should be"),
        ({"body": {"data": None}}, "found NoneType"),
        ({"body": [1, 2, 3]}, "(3,) is not the shape of images"),
        ({"body": {"x": "1", "y": "2"}}, r"the JSON object has the fields ['x', 'y']"),
        ({"x": bytearray(b"1"), "y": bytearray(b"2")}, r"the form has the fields ['x', 'y']"),
        ({}, "the form has the fields []"),
        ({"body": {}}, "the JSON object has the fields []"),
        ({"body": {"data": {"data": "x"}}}, "not base64"),
        ({"body": {"data": {"data": {"data": {"data": {"data": "x"}}}}}}, "found dict"),
    ],
)
def test_bad_input_is_a_400_that_says_why(
    handler: MLPHandler, row: dict[str, Any], message: str, png: bytes
) -> None:
    answers, statuses = ask(handler, row, {"body": bytearray(png)})
    assert statuses == [400, 200]
    assert list(answers[0]) == ["error"]
    assert list(answers[0]["error"]) == ["type", "message"]
    assert message in answers[0]["error"]["message"]


def test_describe(handler: MLPHandler, trained: Trained) -> None:
    [description], _ = ask(handler, {}, headers={"describe": "True"})
    assert description["run_id"] == trained.result["run_id"]
    assert description["num_parameters"] == 397510
    assert description["classes"] == list("0123456789")
    assert description["metrics"]["test_accuracy"] == trained.result["test_accuracy"]


def test_a_description_asked_for_in_a_batch_is_one_rows_answer(handler: MLPHandler, png: bytes) -> None:
    made = context(Path(), 3)
    made.request_processor[0] = RequestProcessor({"describe": "True"})
    answers = [json.loads(answer) for answer in handler.handle([{"body": bytearray(png)}] * 3, made)]
    assert [len(answer) for answer in answers[1:]] == [10, 10]
    assert "run_id" in answers[0]


def test_explanations_tell_what_decided_the_answers(handler: MLPHandler, png: bytes) -> None:
    text = base64.b64encode(png).decode()
    [answer], _ = ask(handler, {"body": bytearray(png)})
    rows = [{"body": bytearray(png)}, {"body": {"instances": [{"b64": text}, {"b64": text}]}}]
    (one, several), statuses = ask(handler, *rows, headers={"explain": "True"})
    assert statuses == [200, 200]
    assert answer[one["class"]] == max(answer.values()) == one["probability"]
    assert np.array(one["attributions"]).shape == (28, 28)
    for each in several["explanations"]:
        assert each["class"] == one["class"]
        np.testing.assert_allclose(each["attributions"], one["attributions"], rtol=0, atol=1e-5)


def test_explanations_where_they_cannot_be(
    handler: MLPHandler, png: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "captum.attr", None)
    rows = [{"body": bytearray(png)}, {"body": bytearray(png[:99])}]
    answers, statuses = ask(handler, *rows, headers={"explain": "True"})
    assert statuses == [501, 400]
    assert "pip install captum" in answers[0]["error"]["message"]


@pytest.mark.gpu
def test_on_a_gpu_the_same_archive_uses_it(trained: Trained, image_data: Dataset) -> None:
    asked = context(trained.bundle, 0)
    asked.system_properties["gpu_id"] = 0
    on_gpu = MLPHandler()
    on_gpu.initialize(asked)
    assert next(on_gpu.worker.bundle.model.parameters()).device == torch.device("cuda:0")
    rows = [{"body": bytearray(encode_png(image))} for image in image_data.test.images[:64]]
    found, statuses = ask(on_gpu, *rows)
    assert statuses == [200] * 64
    expected, _ = ask(loaded(trained.bundle), *rows)
    for answer, other in zip(found, expected, strict=True):
        assert answer == pytest.approx(other, abs=2e-6)
