"""Requests of each protocol, to a handler with an untrained model."""

import base64
import gzip
import io
import json
import re
import struct
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mlp_dist.core.bundle import load_bundle
from serve.handler import MLPHandler
from serve.inference.limits import MAX_IMAGES
from tests.helpers.fuzz_inputs import squared_page
from tests.helpers.handlers import ask_handler, load_handler, make_context, write_bundle

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)


def png(image: np.ndarray | Image.Image) -> bytes:
    file = io.BytesIO()
    (image if isinstance(image, Image.Image) else Image.fromarray(image)).save(file, "PNG")
    return file.getvalue()


FILES = [png(array) for array in PIXELS]
FILE = FILES[0]
TEXTS = [base64.b64encode(file).decode() for file in FILES]
TEXT = TEXTS[0]
URL = f"data:image/png;base64,{TEXT}"
LISTS = PIXELS.tolist()


def drawing() -> Image.Image:
    """A dark seven on a light page, off-centre."""
    image = Image.new("L", (300, 200), 230)
    ImageDraw.Draw(image).line([(180, 60), (240, 60), (205, 160)], fill=40, width=14)
    return image


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "gray")


@pytest.fixture(scope="module")
def handler(directory: Path) -> MLPHandler:
    return load_handler(directory)


@pytest.fixture(scope="module")
def expected(directory: Path) -> list[dict[str, float]]:
    """predict_proba's answers for the same images."""
    return load_bundle(directory).predict_proba(list(PIXELS))


def is_close(answer: Any, wanted: dict[str, float]) -> bool:
    return bool(list(answer) == list(wanted) and answer == pytest.approx(wanted, abs=1e-6))


ONE = {
    "raw": {"body": bytearray(FILE)},
    "any field": {"picture of mine": bytearray(FILE)},
    "base64 in a form": {"image": bytearray(TEXT.encode()), "comment": bytearray(b"data: a five")},
    "JSON as text": {"body": json.dumps({"data": TEXT})},
    "JSON after a BOM": {"body": bytearray(b"\xef\xbb\xbf \n" + json.dumps(LISTS[0]).encode())},
    "base64 in lines": {"body": "\n".join(TEXT[start : start + 76] for start in range(0, len(TEXT), 76))},
    "url-safe without padding": {"body": TEXT.replace("+", "-").replace("/", "_").rstrip("=")},
    "escaped data URL": {"body": "data:image/png," + "".join(f"%{byte:02X}" for byte in FILE)},
    "nested": {"body": {"data": {"b64": TEXT}}},
    "beside an ID": {"body": {"img": TEXT, "id": 5, "tags": ["a", "b"], "size": [28, 28]}},
    "beside an object": {"body": {"base64": TEXT, "metadata": {"of": "0123456789abcdef01234567"}}},
    "data URL beside another": {"body": {"id": "https://example.org/5", "drawing": URL}},
    "an editor's": {"body": {"background": URL, "layers": [URL], "composite": URL}},
    "a file of Gradio": {"body": {"data": [{"path": None, "url": URL, "orig_name": "a.png"}]}},
    "rows beside an ID": {"body": {"pixels": LISTS[0], "id": 5}},
    "base64 beside text in a form": {"photo": bytearray(TEXT.encode()), "id": bytearray(b"5")},
    "sample of TorchServe": {"body": {"data": TEXT, "target": 0}},
    "784": {"body": PIXELS[0].flatten().tolist()},
    "floats": {"body": (PIXELS[0] / 255).tolist()},
}


@pytest.mark.parametrize("row", ONE.values(), ids=ONE)
def test_one_image(handler: MLPHandler, expected: list[dict[str, float]], row: dict[str, Any]) -> None:
    [answer], [status] = ask_handler(handler, row)
    assert status == 200
    assert is_close(answer, expected[0])


SEVERAL = {
    "3x28x28": {"body": LISTS},
    "3x28x28x1 as data": {"body": {"data": PIXELS[..., None].tolist()}},
    "data URLs": {"body": {"data": [f"data:image/png;base64,{text}" for text in TEXTS]}},
    "form": {
        "image": bytearray(FILE),
        "second": bytearray(base64.b64decode(TEXTS[1])),
        "third": bytearray(base64.b64decode(TEXTS[2])),
        "comment": bytearray(b"three"),
    },
}


@pytest.mark.parametrize("row", SEVERAL.values(), ids=SEVERAL)
def test_several_images_give_a_list(
    handler: MLPHandler, expected: list[dict[str, float]], row: dict[str, Any]
) -> None:
    [answers], [status] = ask_handler(handler, row)
    assert status == 200
    assert len(answers) == 3
    assert all(map(is_close, answers, expected))


def test_protocol_v1(handler: MLPHandler, expected: list[dict[str, float]]) -> None:
    instances = [{"data": TEXTS[0], "target": 0}, LISTS[1], {"image_bytes": {"b64": TEXTS[2]}, "key": "1"}]
    rows = [{"body": {"instances": instances}}, {"body": {"instances": instances[:1]}}]
    [answer, one], statuses = ask_handler(handler, *rows)
    assert statuses == [200, 200]
    assert list(answer) == ["predictions"]
    assert len(answer["predictions"]) == 3
    assert all(map(is_close, answer["predictions"], expected))
    assert one == {"predictions": answer["predictions"][:1]}


def tensor(shape: Any, datatype: str, data: Any) -> dict[str, Any]:
    return {"name": "x", "shape": shape, "datatype": datatype, "data": data}


INPUTS = {
    "bytes": [tensor([3], "BYTES", TEXTS)],
    "any number": [tensor([-1], "BYTES", TEXTS)],
    "nested bytes": [tensor([3, 1], "BYTES", [[text] for text in TEXTS])],
    "texts alone": [tensor(-1, "BYTES", text) for text in TEXTS],
    "any number of rows": [tensor([-1, 28, 28], "UINT8", LISTS)],
    "flat": [tensor([3, 784], "INT32", PIXELS.flatten().tolist())],
    "fp32": [tensor([3, 1, 28, 28], "FP32", (PIXELS / 255).tolist())],
    "uint16": [tensor([3, 28, 28], "UINT16", (PIXELS.astype(int) * 257).tolist())],
    "two": [tensor([1, 28, 28], "UINT8", LISTS[0]), tensor([2], "BYTES", TEXTS[1:])],
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_protocol_v2(handler: MLPHandler, expected: list[dict[str, float]], inputs: list[Any]) -> None:
    [answer], [status] = ask_handler(handler, {"body": {"id": "a", "inputs": inputs}})
    assert status == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("mlp", "1.5", "a")
    labels, probabilities = answer["outputs"]
    assert (labels["name"], labels["datatype"], labels["shape"]) == ("labels", "BYTES", [3, 10])
    assert (probabilities["name"], probabilities["datatype"]) == ("probabilities", "FP64")
    assert probabilities["shape"] == [3, 10]
    for number, wanted in enumerate(expected):
        part = slice(10 * number, 10 * number + 10)
        found = dict(zip(labels["data"][part], probabilities["data"][part], strict=True))
        assert found == pytest.approx(wanted, abs=1e-6)
        assert probabilities["data"][part] == sorted(found.values(), reverse=True)


def binary(values: np.ndarray | list[bytes], shape: list[int], datatype: str) -> tuple[dict[str, Any], bytes]:
    """A tensor as kserve and tritonclient send it: its description, and the bytes after the JSON."""
    if isinstance(values, list):
        data = b"".join(struct.pack("<I", len(each)) + each for each in values)
    else:
        data = values.tobytes()
    described = {"name": "x", "shape": shape, "datatype": datatype}
    return {**described, "parameters": {"binary_data_size": len(data)}}, data


def ask_v2(
    handler: MLPHandler, tensors: list[tuple[dict[str, Any], bytes]], **more: Any
) -> tuple[dict[str, Any], bytes, Any]:
    """The JSON of the response, the bytes after it, and its context."""
    text = json.dumps({"id": "a", "inputs": [each for each, _ in tensors], **more}).encode()
    body = bytearray(text + b"".join(data for _, data in tensors))
    context = make_context(Path(), 1, {"inference-header-content-length": str(len(text))})
    [answer] = handler.handle([{"body": body}], context)
    length = int(context.get_response_headers(0).get("Inference-Header-Content-Length", len(answer)))
    return json.loads(answer[:length]), answer[length:], context


BINARY = {
    "files": [binary(FILES, [3], "BYTES")],
    "base64": [binary([text.encode() for text in TEXTS], [3, 1], "BYTES")],
    "fp32": [binary((PIXELS / 255).astype(np.float32), [3, 1, 28, 28], "FP32")],
    "two": [binary(PIXELS[:1], [1, 28, 28], "UINT8"), binary(PIXELS[1:].astype("<i8"), [2, 784], "INT64")],
}


@pytest.mark.parametrize("tensors", BINARY.values(), ids=BINARY)
def test_binary_tensors(handler: MLPHandler, expected: list[dict[str, float]], tensors: list[Any]) -> None:
    answer, data, context = ask_v2(handler, tensors, parameters={"binary_data_output": True})
    assert context.get_response_headers(0)["content-type"] == "application/octet-stream"
    labels, probabilities = answer["outputs"]
    assert not {"data"} & {*labels, *probabilities}
    size = labels["parameters"]["binary_data_size"]
    assert size == len(data) - 8 * 30
    values = np.frombuffer(data[size:], "<f8").reshape(probabilities["shape"])
    names = np.array([data[start + 4 : start + 5].decode() for start in range(0, size, 5)]).reshape(3, 10)
    for row, own, wanted in zip(values.tolist(), names.tolist(), expected, strict=True):
        assert dict(zip(own, row, strict=True)) == pytest.approx(wanted, abs=1e-6)


def test_outputs_that_are_asked_for(handler: MLPHandler, expected: list[dict[str, float]]) -> None:
    names = [{"name": "probabilities", "parameters": {"binary_data": False}}, {"name": "labels"}]
    answer, data, context = ask_v2(handler, BINARY["files"], outputs=names)
    assert [each["name"] for each in answer["outputs"]] == ["probabilities", "labels"]
    assert answer["outputs"][0]["data"][0] == pytest.approx(max(expected[0].values()), abs=1e-6)
    assert context.get_response_headers(0)["content-type"] == "application/json"
    answer, data, _ = ask_v2(
        handler, BINARY["files"], outputs=[{"name": "labels", "parameters": {"binary_data": True}}]
    )
    assert [each["name"] for each in answer["outputs"]] == ["labels"]
    assert len(data) == 3 * 10 * 5


WRONG_V2 = {
    "another output": (
        BINARY["files"],
        {"outputs": [{"name": "predict"}]},
        "ask for labels or probabilities",
    ),
    "cut off": ([(BINARY["fp32"][0][0], b"x" * 20)], {}, "20 bytes follow the JSON"),
    "half an element": (
        [binary([b"abc"], [1], "BYTES")],
        {"inputs": [{**binary([b""], [1], "BYTES")[0], "parameters": {"binary_data_size": 6}}]},
        "cut off",
    ),
    "odd bytes": ([binary(PIXELS[0].ravel()[:7], [7], "FP32")], {}, "not numbers of FP32"),
    "no image": ([binary([b"abc"], [1], "BYTES")], {}, "3 bytes are not a PNG"),
}


@pytest.mark.parametrize(("tensors", "more", "message"), WRONG_V2.values(), ids=WRONG_V2)
def test_errors_of_v2_are_texts(
    handler: MLPHandler, tensors: list[Any], more: dict[str, Any], message: str
) -> None:
    answer, _, context = ask_v2(handler, tensors, **more)
    assert list(answer) == ["error"]
    assert message in answer["error"]
    assert context.get_response_status(0)[0] == 400


def test_metadata_of_v2(handler: MLPHandler) -> None:
    [values], [status] = ask_handler(handler, {"body": bytearray()}, headers={"describe": "KServe"})
    assert status == 200
    assert (values["name"], values["versions"]) == ("mlp", ["1.5"])
    assert [each["name"] for each in values["outputs"]] == ["labels", "probabilities"]


def test_time_is_shared(handler: MLPHandler, monkeypatch: pytest.MonkeyPatch) -> None:
    """Squared paper takes long to frame. A request with few pages is answered beside one with many."""
    text = base64.b64encode(squared_page()).decode()
    rows = [
        {"body": {"instances": [text] * number, "parameters": {"preprocess": "auto"}}}
        for number in (MAX_IMAGES, 1)
    ]
    started = time.monotonic()
    answers, statuses = ask_handler(handler, *rows, {"body": bytearray(FILE)})
    assert time.monotonic() - started < 10
    assert statuses[1:] == [200, 200]
    assert statuses[0] == 413
    assert (found := re.search(r"of which (\d+) fit .*; send at most \1$", answers[0]["error"]["message"]))
    assert 1 <= int(found[1]) < MAX_IMAGES

    large = bytearray(png(Image.new("1", (5000, 5000))))
    _, statuses = ask_handler(handler, *[{"body": large}] * 8, {"body": bytearray(FILE)})
    # Decoding cannot be interrupted: a second one would take the time of others.
    assert sorted(statuses[:8]) == [200] + [503] * 7
    assert statuses[8] == 200
    assert ask_handler(handler, {"body": large})[1] == [200]
    # Others that take all of the time are to be waited for.
    monkeypatch.setattr("serve.inference.limits.Budget.is_spent", True)
    large = png(np.zeros((1100, 1100), np.uint8))
    [answer], [status] = ask_handler(handler, {"body": bytearray(large)})
    assert (status, answer["error"]["type"]) == (503, "BusyError")


TOP_K = {
    "field": ({"image": bytearray(FILE), "top_k": bytearray(b"3")}, {}),
    "header": ({"body": bytearray(FILE)}, {"x-top-k": "3"}),
    "key before header": ({"body": {"data": TEXT, "top_k": 3}}, {"X-Top-K": "5"}),
}


@pytest.mark.parametrize(("row", "headers"), TOP_K.values(), ids=TOP_K)
def test_top_k(
    handler: MLPHandler, expected: list[dict[str, float]], row: dict[str, Any], headers: dict[str, str]
) -> None:
    [answer], _ = ask_handler(handler, row, headers=headers)
    best = sorted(expected[0], key=expected[0].__getitem__, reverse=True)[:3]
    assert list(answer) == best
    assert answer == pytest.approx({name: expected[0][name] for name in best}, abs=1e-6)


def test_preprocess_and_background(handler: MLPHandler, directory: Path, tmp_path: Path) -> None:
    file = tmp_path / "page.png"
    file.write_bytes(png(drawing()))
    bundle = load_bundle(directory)
    [exact], [auto] = bundle.predict_proba(file), bundle.predict_proba(file, preprocess="auto")
    assert exact != pytest.approx(auto, abs=1e-3)
    page = bytearray(file.read_bytes())
    [answer], _ = ask_handler(handler, {"body": page})
    assert is_close(answer, exact)
    rows = [{"image": page, "preprocess": bytearray(b"auto")}, {"body": np.asarray(drawing()).tolist()}]
    answers, _ = ask_handler(handler, *rows, headers={"X-Preprocess": "AUTO"})
    assert all(is_close(answer, auto) for answer in answers)
    image = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (8, 4, 20, 24))
    file.write_bytes(png(image))
    [white] = bundle.predict_proba(file, background="white")
    row = {"image": bytearray(file.read_bytes()), "background": bytearray(b"white")}
    assert is_close(ask_handler(handler, row)[0][0], white)
    default = load_handler(write_bundle(tmp_path / "auto", preprocess="auto"))
    [answer], _ = ask_handler(default, {"body": page})
    assert is_close(answer, auto)


def test_probabilities_have_six_digits_and_sum_to_one(handler: MLPHandler) -> None:
    [body] = handler.handle([{"body": bytearray(FILE)}], make_context(Path(), 1))
    numbers = body.decode().strip("{}").split(", ")
    assert all(len(number.split(": ")[1]) == len("0.123456") for number in numbers)
    assert sum(json.loads(body).values()) == pytest.approx(1, abs=1e-5)


def test_class_names_are_escaped(tmp_path: Path) -> None:
    names = ('say "%s"', "5% back\\", "größer", "\n", "数", "6", "7", "8", "9", "10")
    handler = load_handler(write_bundle(tmp_path / "names", classes=names))
    rows = [{"body": bytearray(FILE)}, {"body": {"data": TEXT, "top_k": 10}}]
    [answer, ranked], _ = ask_handler(handler, *rows)
    assert list(answer) == list(names)
    assert answer == ranked


def test_colour_images(tmp_path: Path) -> None:
    handler = load_handler(write_bundle(tmp_path / "colour", channels=3))
    image = np.random.default_rng(1).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    rows = [
        {"body": bytearray(png(image))},
        {"body": image.tolist()},
        {"body": image.transpose(2, 0, 1).tolist()},
        {"body": {"instances": [image.tolist()]}},
    ]
    (first, last, planes, v1), statuses = ask_handler(handler, *rows)
    assert statuses == [200] * 4
    assert first == last == planes == v1["predictions"][0]


def test_batch_does_not_change_an_answer(tmp_path: Path) -> None:
    handler = load_handler(write_bundle(tmp_path / "auto", preprocess="auto"))
    page = bytearray(png(drawing()))
    rows = [
        {"body": bytearray(FILE)},
        {"body": bytearray(FILE[:-30])},
        {"body": page},
        {"body": {"instances": [np.asarray(drawing()).tolist(), {"b64": TEXT}]}},
        {"body": bytearray(FILE), "preprocess": bytearray(b"exact")},
        {"body": bytearray(b"none")},
        {"body": [[0.5] * 28] * 28},
    ]
    alone = [ask_handler(handler, row) for row in rows]
    for order in (range(len(rows)), range(len(rows) - 1, -1, -1)):
        answers, statuses = ask_handler(handler, *(rows[place] for place in order))
        assert statuses == [alone[place][1][0] for place in order]
        for place, answer in zip(order, answers, strict=True):
            wanted = alone[place][0][0]
            if "predictions" in wanted:
                assert all(map(is_close, answer["predictions"], wanted["predictions"]))
            else:
                assert answer == wanted if "error" in wanted else is_close(answer, wanted)


def test_headers_name_the_model(handler: MLPHandler) -> None:
    context = make_context(Path(), 2)
    handler.handle([{"body": bytearray(FILE)}, {"body": bytearray(b"none")}], context)
    for position in range(2):
        headers = context.get_response_headers(position)
        assert headers["content-type"] == "application/json"
        assert (headers["X-Model-Name"], headers["X-Model-Version"]) == ("mlp", "1.5")
        assert headers["X-Run-Id"] == "0123456789abcdef"


STATUS = {"ImageTooLargeError": 413, "TooManyImagesError": 413, "UnsupportedFormatError": 415}
PAGE = base64.b64encode(png(Image.new("L", (200, 200), 240))).decode()
NESTED = {"data": {"data": {"data": {"data": {"data": "x"}}}}}
BODIES: list[tuple[Any, str, str]] = [
    (bytearray(), "ImageError", "the image is empty"),
    (bytearray(b"no image at all"), "ImageError", "15 bytes are not a PNG"),
    (bytearray(b"\0\0\0\x18ftypheic" + bytes(8)), "UnsupportedFormatError", "HEIC"),
    (bytearray(b'{"data": '), "RequestError", "starts like JSON but is invalid"),
    (bytearray(png(np.zeros((1, 70_000), np.uint8))), "ImageTooLargeError", "70000"),
    ("*** no base64", "RequestError", "not base64"),
    ({"x": "1", "y": "2"}, "RequestError", "the JSON object has the fields ['x', 'y'"),
    (bytearray(gzip.compress(FILE)), "UnsupportedFormatError", "but gzip; send it uncompressed"),
    (bytearray(b"version https://git-lfs.github.com/spec/v1\noid"), "UnsupportedFormatError", "git lfs pull"),
    (bytearray(b"https://example.org/5.png"), "UnsupportedFormatError", "but a URL; nothing is downloaded"),
    ({"data": "https://example.org/5.png"}, "UnsupportedFormatError", "but a URL"),
    ({"url": "https://example.org/5.png", "id": 5}, "UnsupportedFormatError", "but a URL"),
    (bytearray(b"[0" + b",0" * (2**20 + 1) + b"]"), "ImageTooLargeError", "more than 1048576 numbers"),
    ({"instances": [[TEXT, TEXT]]}, "RequestError", "instances[0] holds 2 images"),
    (NESTED, "RequestError", "dict in place of an image"),
    ({"data": TEXT, "top_k": True}, "RequestError", "top_k is 'True'"),
    ({"data": TEXT, "preprocess": "x"}, "ImageError", "exact or auto"),
    ({"data": TEXT, "background": "red"}, "ImageError", "black or white"),
    ({"data": PAGE, "preprocess": "auto"}, "EmptyPageError", "the page is empty"),
    ({"instances": []}, "RequestError", "instances must be a list"),
    ({"instances": [TEXT, "AAAA"]}, "ImageError", "image 1: 3 bytes are not"),
    ({"instances": ["AAAA"] * (MAX_IMAGES + 1)}, "TooManyImagesError", "1001 images"),
    ([[1, 2], [3]], "RequestError", "is not an array of numbers"),
    ([[float("nan")] * 28] * 28, "ImageError", "nan"),
    (["a" * 10**6, *"b" * 10**5], "TooManyImagesError", "100001 images"),
    ([[0], *["a" * 10**6] * 9], "RequestError", "no numbers"),
    ({"inputs": [tensor([1], "BOOL", [1])]}, "RequestError", "one of BYTES"),
    ({"inputs": [tensor([2, 28, 28], "UINT8", LISTS[0])]}, "RequestError", "needs 1568"),
    ({"inputs": [tensor([2], "UINT8", [0.5, float("inf")])]}, "RequestError", "fractional or too large"),
]


@pytest.mark.parametrize(("body", "kind", "message"), BODIES, ids=[body[2] for body in BODIES])
def test_bad_request_fails_alone(handler: MLPHandler, body: Any, kind: str, message: str) -> None:
    answers, statuses = ask_handler(handler, {"body": bytearray(FILE)}, {"body": body}, {"body": LISTS[1]})
    assert statuses == [200, STATUS.get(kind, 400), 200]
    assert list(answers[1]) == ["error"]
    if isinstance(body, dict) and "inputs" in body:
        assert message in answers[1]["error"]
        return
    assert list(answers[1]["error"]) == ["type", "message"]
    assert answers[1]["error"]["type"] == kind
    assert message in answers[1]["error"]["message"]


def test_compressed_body(handler: MLPHandler) -> None:
    body = bytearray(gzip.compress(json.dumps({"data": TEXT}).encode()))
    [answer], [status] = ask_handler(handler, {"body": body}, headers={"Content-Encoding": "gzip"})
    assert status == 415
    assert "Content-Encoding: gzip; send it uncompressed" in answer["error"]["message"]


@pytest.mark.parametrize("row", [{}, {"top_k": bytearray(b"3")}, {'{"data": "iVBO': bytearray(b'="}')}])
def test_empty_form(handler: MLPHandler, row: dict[str, Any]) -> None:
    [answer], [status] = ask_handler(handler, row)
    assert status == 400
    for hint in ("curl -T FILE", "Content-Type: application/json"):
        assert hint in answer["error"]["message"]
