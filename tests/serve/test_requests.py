"""What can be sent, by each protocol, to a handler with a model that was not trained."""

import base64
import io
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw

from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.digits.framing import as_mnist
from mlp_dist.core.errors import ImageError
from serve.inference.request_errors import MAX_IMAGES
from serve.inference.payload import is_text
from serve.handler import MLPHandler
from tests.helpers.asking import ask, context, loaded, write_bundle

PIXELS = np.random.default_rng(0).integers(0, 256, (3, 28, 28), dtype=np.uint8)


def png(array: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, "PNG")
    return file.getvalue()


FILE = png(PIXELS[0])
FILES = [png(array) for array in PIXELS]
TEXT = base64.b64encode(FILE).decode()
TEXTS = [base64.b64encode(file).decode() for file in FILES]
LISTS = PIXELS.tolist()
STRIP = png(np.zeros((1, 70_000), np.uint8))
LARGE = base64.b64encode(png(np.zeros((4000, 6000), np.uint8))).decode()


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bundle(tmp_path_factory.mktemp("bundle") / "gray")


@pytest.fixture(scope="module")
def handler(directory: Path) -> MLPHandler:
    return loaded(directory)


@pytest.fixture(scope="module")
def expected(directory: Path) -> list[dict[str, float]]:
    """What a notebook says of the same three images."""
    return load_bundle(directory).predict_proba(list(PIXELS))


def close(answer: Any, wanted: dict[str, float]) -> bool:
    return bool(list(answer) == list(wanted) and answer == pytest.approx(wanted, abs=1e-6))


ONE = {
    "raw": {"body": bytearray(FILE)},
    "any field": {"picture of mine": bytearray(FILE)},
    "field and others": {"image": bytearray(FILE), "comment": bytearray(b"a five?")},
    "base64 in any field and others": {
        "photo": bytearray(TEXT.encode()),
        "comment": bytearray(b"data: a five"),
    },
    "data URL in any field and others": {
        "pad": f"data:image/png;base64,{TEXT}",
        "token": bytearray(b"x" * 32),
    },
    "any field and a token": {"upload": bytearray(FILE), "csrf_token": bytearray(b"x" * 32)},
    "JSON as text": {"body": json.dumps({"data": TEXT})},
    "JSON behind blanks": {"body": bytearray(b"\xef\xbb\xbf \n" + json.dumps(LISTS[0]).encode())},
    "data URL behind a blank": {"body": f" data:image/png;base64,{TEXT}\n"},
    "base64 in a field": {"data": bytearray(TEXT.encode())},
    "data URL in a field": {"data": bytearray(f"data:image/png;base64,{TEXT}".encode())},
    "text": {"body": TEXT},
    "text in lines": {"body": "\n".join(TEXT[start : start + 76] for start in range(0, len(TEXT), 76))},
    "url-safe without padding": {"body": TEXT.replace("+", "-").replace("/", "_").rstrip("=")},
    "data URL": {"body": f"data:image/png;base64,{TEXT}"},
    "data URL as bytes": {"body": bytearray(f"data:image/png;base64,{TEXT}".encode())},
    "escaped data URL": {"body": "data:image/png," + "".join(f"%{byte:02X}" for byte in FILE)},
    "data": {"body": {"data": TEXT}},
    "image": {"body": {"image": TEXT}},
    "only key": {"body": {"picture": TEXT}},
    "nested": {"body": {"data": {"b64": TEXT}}},
    "28x28": {"body": LISTS[0]},
    "784": {"body": PIXELS[0].flatten().tolist()},
    "28x28 as data": {"body": {"data": LISTS[0]}},
    "floats": {"body": (PIXELS[0] / 255).tolist()},
    "JSON as bytes": {"body": bytearray(json.dumps({"data": LISTS[0]}).encode())},
}


@pytest.mark.parametrize("row", ONE.values(), ids=ONE)
def test_one_image(handler: MLPHandler, expected: list[dict[str, float]], row: dict[str, Any]) -> None:
    [answer], [status] = ask(handler, row)
    assert status == 200
    assert close(answer, expected[0])


SEVERAL = {
    "3x28x28": LISTS,
    "3x784": PIXELS.reshape(3, -1).tolist(),
    "3x1x28x28": PIXELS[:, None].tolist(),
    "3x28x28x1 as data": {"data": PIXELS[..., None].tolist()},
}


@pytest.mark.parametrize("body", SEVERAL.values(), ids=SEVERAL)
def test_an_array_of_images_is_answered_by_a_list(
    handler: MLPHandler, expected: list[dict[str, float]], body: Any
) -> None:
    [answers], [status] = ask(handler, {"body": body})
    assert status == 200
    assert all(map(close, answers, expected))
    assert len(answers) == 3


def test_a_form_of_images_in_any_shape_is_answered_by_a_list(
    handler: MLPHandler, expected: list[dict[str, float]]
) -> None:
    texts = [bytearray(text.encode()) for text in TEXTS]
    url = bytearray(b"data:image/png;base64,") + texts[2]
    row = {"image": bytearray(FILE), "second": texts[1], "third": url, "comment": bytearray(b"three")}
    [answers], [status] = ask(handler, row)
    assert status == 200
    assert all(map(close, answers, expected))
    assert len(answers) == 3


def test_an_array_of_one_image_is_answered_by_a_list_of_one(handler: MLPHandler) -> None:
    [answer], _ = ask(handler, {"body": LISTS[:1]})
    assert [len(each) for each in answer] == [10]


INSTANCES = {
    "b64": [{"b64": text} for text in TEXTS],
    "data": [{"data": text} for text in TEXTS],
    "image_bytes": [{"image_bytes": {"b64": text}} for text in TEXTS],
    "texts": TEXTS,
    "arrays": LISTS,
    "flat": PIXELS.reshape(3, -1).tolist(),
    "mixed": [{"b64": TEXTS[0]}, LISTS[1], (PIXELS[2] / 255).tolist()],
}


@pytest.mark.parametrize("instances", INSTANCES.values(), ids=INSTANCES)
def test_protocol_v1(handler: MLPHandler, expected: list[dict[str, float]], instances: list[Any]) -> None:
    [answer, one], statuses = ask(
        handler, {"body": {"instances": instances}}, {"body": {"instances": instances[:1]}}
    )
    assert statuses == [200, 200]
    assert list(answer) == ["predictions"]
    assert all(map(close, answer["predictions"], expected))
    assert len(answer["predictions"]) == 3
    assert one == {"predictions": answer["predictions"][:1]}


INPUTS = {
    "bytes": [{"name": "x", "shape": [3], "datatype": "BYTES", "data": TEXTS}],
    "uint8": [{"name": "x", "shape": [3, 28, 28], "datatype": "UINT8", "data": LISTS}],
    "255.0": [
        {"name": "x", "shape": [3, 28, 28], "datatype": "UINT8", "data": PIXELS.astype(float).tolist()}
    ],
    "flat": [{"name": "x", "shape": [3, 784], "datatype": "INT32", "data": PIXELS.flatten().tolist()}],
    "fp32": [{"name": "x", "shape": [3, 1, 28, 28], "datatype": "FP32", "data": (PIXELS / 255).tolist()}],
    "uint16": [
        {"name": "x", "shape": [3, 28, 28], "datatype": "UINT16", "data": (PIXELS.astype(int) * 257).tolist()}
    ],
    "two": [
        {"name": "x", "shape": [1, 28, 28], "datatype": "UINT8", "data": LISTS[0]},
        {"name": "y", "shape": [2], "datatype": "BYTES", "data": TEXTS[1:]},
    ],
}


@pytest.mark.parametrize("inputs", INPUTS.values(), ids=INPUTS)
def test_protocol_v2(handler: MLPHandler, expected: list[dict[str, float]], inputs: list[Any]) -> None:
    [answer], [status] = ask(handler, {"body": {"id": "a", "inputs": inputs}})
    assert status == 200
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("mlp", "1.5", "a")
    labels, probabilities = answer["outputs"]
    assert (labels["name"], labels["datatype"], labels["shape"]) == ("labels", "BYTES", [3, 10])
    assert (probabilities["name"], probabilities["datatype"], probabilities["shape"]) == (
        "probabilities",
        "FP64",
        [3, 10],
    )
    for number, wanted in enumerate(expected):
        part = slice(10 * number, 10 * number + 10)
        found = dict(zip(labels["data"][part], probabilities["data"][part], strict=True))
        assert found == pytest.approx(wanted, abs=1e-6)
        assert probabilities["data"][part] == sorted(found.values(), reverse=True)


TOP_K = {
    "field": ({"image": bytearray(FILE), "top_k": bytearray(b"3")}, {}),
    "key": ({"body": {"data": TEXT, "top_k": 3}}, {}),
    "parameter": ({"body": {"data": TEXT, "parameters": {"top_k": 3}}}, {}),
    "header": ({"body": bytearray(FILE)}, {"x-top-k": "3"}),
    "key before header": ({"body": {"data": TEXT, "top_k": 3}}, {"X-Top-K": "5"}),
}


@pytest.mark.parametrize(("row", "headers"), TOP_K.values(), ids=TOP_K)
def test_top_k_is_the_most_probable_first(
    handler: MLPHandler, expected: list[dict[str, float]], row: dict[str, Any], headers: dict[str, str]
) -> None:
    [answer], _ = ask(handler, row, headers=headers)
    best = sorted(expected[0], key=expected[0].__getitem__, reverse=True)[:3]
    assert list(answer) == best
    assert answer == pytest.approx({name: expected[0][name] for name in best}, abs=1e-6)


def test_top_k_of_more_than_there_are_is_all_of_several(handler: MLPHandler) -> None:
    [v1, v2, lists], _ = ask(
        handler,
        {"body": {"instances": TEXTS, "top_k": 50}},
        {"body": {"inputs": INPUTS["bytes"], "parameters": {"top_k": 2}}},
        {"body": {"data": LISTS, "top_k": 1}},
    )
    assert [len(each) for each in v1["predictions"]] == [10, 10, 10]
    assert v2["outputs"][0]["shape"] == [3, 2]
    assert [len(each) for each in lists] == [1, 1, 1]


def transparent() -> bytes:
    image = Image.new("RGBA", (28, 28), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (8, 4, 20, 24))
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize("background", ["white", "black"])
def test_what_is_transparent_is_shown_over_the_background_that_is_asked_for(
    handler: MLPHandler, directory: Path, tmp_path: Path, background: str
) -> None:
    file = tmp_path / "transparent.png"
    file.write_bytes(transparent())
    wanted = load_bundle(directory).predict_proba(file, background=background)[0]
    image = bytearray(file.read_bytes())
    [answer], _ = ask(handler, {"image": image, "background": bytearray(background.encode())})
    assert close(answer, wanted)
    [by_header], _ = ask(handler, {"body": image}, headers={"X-Background": background})
    assert by_header == answer


def test_probabilities_have_six_digits_and_sum_to_one(handler: MLPHandler) -> None:
    made = context(Path(), 1)
    [body] = handler.handle([{"body": bytearray(FILE)}], made)
    numbers = body.decode().strip("{}").split(", ")
    assert all(len(number.split(": ")[1]) == len("0.123456") for number in numbers)
    assert sum(json.loads(body).values()) == pytest.approx(1, abs=1e-5)


def test_names_that_json_escapes(tmp_path: Path) -> None:
    names = ('say "%s"', "5% back\\", "größer", "\n", "数", "6", "7", "8", "9", "10")
    handler = loaded(write_bundle(tmp_path / "names", classes=names))
    [answer, ranked], _ = ask(handler, {"body": bytearray(FILE)}, {"body": {"data": TEXT, "top_k": 10}})
    assert list(answer) == list(names)
    assert answer == ranked


def test_colour_images(tmp_path: Path) -> None:
    handler = loaded(write_bundle(tmp_path / "colour", channels=3))
    image = np.random.default_rng(1).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    rows = [
        {"body": bytearray(png(image))},
        {"body": image.tolist()},
        {"body": image.transpose(2, 0, 1).tolist()},
        {"body": {"instances": [image.tolist()]}},
        {"body": image[None].tolist()},
    ]
    (first, last, planes, v1, listed), statuses = ask(handler, *rows)
    assert statuses == [200] * 5
    [refused], [status] = ask(handler, rows[0], headers={"X-Preprocess": "auto"})
    assert status == 400
    assert "this model takes RGB" in refused["error"]["message"]
    assert first == last == planes == v1["predictions"][0] == listed[0]


def test_every_request_of_a_batch_is_answered_as_if_it_were_alone(tmp_path: Path) -> None:
    handler = loaded(write_bundle(tmp_path / "auto", preprocess="auto"))
    file = io.BytesIO()
    page().save(file, "PNG")
    rows = [
        {"body": bytearray(FILE)},
        {"body": bytearray(FILE[:-30])},
        {"body": bytearray(file.getvalue())},
        {"body": {"instances": [np.asarray(page()).tolist(), {"b64": base64.b64encode(FILE).decode()}]}},
        {"body": bytearray(FILE), "top_k": bytearray(b"1")},
        {"body": bytearray(FILE), "preprocess": bytearray(b"exact")},
        {"body": bytearray(b"none")},
        {"body": [[0.5] * 28] * 28},
        {"body": bytearray(FILE), "top_k": bytearray(b"0")},
        {"body": bytearray(file.getvalue())},
    ]
    alone = [ask(handler, row) for row in rows]
    for order in (range(len(rows)), range(len(rows) - 1, -1, -1), (1, 6), (6, 0)):
        answers, statuses = ask(handler, *(rows[place] for place in order))
        assert statuses == [alone[place][1][0] for place in order]
        for place, answer in zip(order, answers, strict=True):
            assert_close(answer, alone[place][0][0])


def assert_close(answer: Any, expected: Any) -> None:
    if isinstance(expected, dict):
        assert list(answer) == list(expected)
    if isinstance(expected, float):
        assert answer == pytest.approx(expected, abs=2e-6)
    elif isinstance(expected, dict | list):
        for one, other in zip(
            *(each.values() if isinstance(each, dict) else each for each in (answer, expected)), strict=True
        ):
            assert_close(one, other)
    else:
        assert answer == expected


def test_headers_say_which_model_it_was(handler: MLPHandler) -> None:
    made = context(Path(), 2)
    handler.handle([{"body": bytearray(FILE)}, {"body": bytearray(b"none")}], made)
    for position in range(2):
        headers = made.get_response_headers(position)
        assert headers["content-type"] == "application/json"
        assert headers["X-Model-Name"] == "mlp"
        assert headers["X-Model-Version"] == "1.5"
        assert headers["X-Run-Id"] == "0123456789abcdef"


def page(ink: int = 40, paper: int = 230) -> Image.Image:
    """A dark seven on light paper, away from the middle."""
    image = Image.new("L", (300, 200), paper)
    ImageDraw.Draw(image).line([(180, 60), (240, 60), (205, 160)], fill=ink, width=14)
    return image


def test_a_drawing_is_framed_where_that_is_asked_for(
    handler: MLPHandler, directory: Path, tmp_path: Path
) -> None:
    file = tmp_path / "page.png"
    page().save(file)
    bundle = load_bundle(directory)
    [exact], [auto] = bundle.predict_proba(file), bundle.predict_proba(file, preprocess="auto")
    assert exact != pytest.approx(auto, abs=1e-3)
    image = bytearray(file.read_bytes())
    rows = [{"image": image, "preprocess": bytearray(b"auto")}, {"body": np.asarray(page()).tolist()}]
    answers, _ = ask(handler, {"body": image})
    assert close(answers[0], exact)
    answers, _ = ask(handler, *rows, headers={"X-Preprocess": "AUTO"})
    assert all(close(answer, auto) for answer in answers)


def test_a_model_may_frame_drawings_by_default(tmp_path: Path) -> None:
    directory = write_bundle(tmp_path / "auto", preprocess="auto")
    handler = loaded(directory)
    file = io.BytesIO()
    page().save(file, "PNG")
    [auto], _ = ask(handler, {"body": bytearray(file.getvalue())})
    (tmp_path / "page.png").write_bytes(file.getvalue())
    bundle = load_bundle(directory)
    assert close(auto, bundle.predict_proba(tmp_path / "page.png")[0])
    [exact], _ = ask(handler, {"body": bytearray(file.getvalue())}, headers={"X-Preprocess": "exact"})
    assert close(exact, bundle.predict_proba(tmp_path / "page.png", preprocess="exact")[0])


def test_an_image_that_is_framed_keeps_its_pixels(directory: Path) -> None:
    bundle = load_bundle(directory)
    framed = as_mnist(np.asarray(page()))
    [exact, auto] = [bundle.predict_proba(framed / 255, preprocess=each) for each in ("exact", "auto")]
    assert exact == auto


def test_an_empty_page_is_no_digit(handler: MLPHandler) -> None:
    file = io.BytesIO()
    Image.new("L", (200, 200), 240).save(file, "PNG")
    answers, statuses = ask(
        handler,
        {"image": bytearray(file.getvalue()), "preprocess": bytearray(b"auto")},
        {"body": bytearray(FILE)},
    )
    assert statuses == [400, 200]
    assert answers[0]["error"]["type"] == "EmptyPageError"
    assert "the page is empty" in answers[0]["error"]["message"]


def test_black_ink_on_nothing_is_seen(handler: MLPHandler) -> None:
    """As a browser's canvas gives it."""
    canvas = page(ink=0).convert("RGBA")
    canvas.putalpha(Image.fromarray(np.where(np.asarray(page()) < 128, 255, 0).astype(np.uint8)))
    drawn, ink = io.BytesIO(), io.BytesIO()
    canvas.save(drawn, "PNG")
    page(ink=0, paper=255).save(ink, "PNG")
    [on_nothing, on_white], _ = ask(
        handler,
        {"body": bytearray(drawn.getvalue())},
        {"body": bytearray(ink.getvalue())},
        headers={"X-Preprocess": "auto"},
    )
    assert on_nothing == on_white


HEIC = bytearray(b"\0\0\0\x18ftypheic" + bytes(8))
BAD = {
    "heic": ({"body": HEIC}, 415, "UnsupportedFormatError", "HEIC"),
    "top_k 0": ({"body": {"data": TEXT, "top_k": 0}}, 400, "RequestError", "top_k is '0'; it is a whole"),
    "top_k true": ({"body": {"data": TEXT, "top_k": True}}, 400, "RequestError", "top_k is 'True'"),
    "top_k 1.5": ({"image": bytearray(FILE), "top_k": bytearray(b"1.5")}, 400, "RequestError", "'1.5'"),
    "preprocess": ({"body": {"data": TEXT, "preprocess": "x"}}, 400, "ImageError", "exact or auto"),
    "background": ({"body": {"data": TEXT, "background": "red"}}, 400, "ImageError", "black or white"),
    "not JSON": ({"body": bytearray(b'{"data": ')}, 400, "RequestError", "begins like JSON but is none"),
    "deep": ({"body": bytearray(b"[" * 100_000)}, 400, "RequestError", "begins like JSON"),
    "no instances": ({"body": {"instances": []}}, 400, "RequestError", "instances must be a list"),
    "instances": ({"body": {"instances": "x"}}, 400, "RequestError", "instances must be a list"),
    "one bad": ({"body": {"instances": [TEXT, "AAAA"]}}, 400, "ImageError", "image 1: 3 bytes are not"),
    "two in one": ({"body": {"instances": [LISTS]}}, 400, "RequestError", "instances[0] holds 3 images"),
    "ragged": ({"body": [[1, 2], [3]]}, 400, "RequestError", "is no array of numbers"),
    "texts": ({"body": [["a", "b"]]}, 400, "RequestError", "no numbers where an image should be"),
    "booleans": ({"body": [[True, False]]}, 400, "RequestError", "no numbers"),
    "huge": ({"body": [[10**30]]}, 400, "RequestError", "no numbers"),
    "NaN": ({"body": [[float("nan")] * 28] * 28}, 400, "ImageError", "values from nan"),
    "too light": ({"body": [[300] * 28] * 28}, 400, "ImageError", "300 to 300, not 0 to 255"),
    "empty list": ({"body": []}, 400, "RequestError", "no numbers"),
    "five deep": ({"body": [[[[[1]]]]]}, 400, "RequestError", "5 dimensions"),
    "no tensor": ({"body": {"inputs": [5]}}, 400, "RequestError", "inputs[0] needs shape, datatype and data"),
    "datatype": (
        {"body": {"inputs": [{"shape": [1], "datatype": "BOOL", "data": [1]}]}},
        400,
        "RequestError",
        "the datatype 'BOOL'; give one of BYTES",
    ),
    "shape": (
        {"body": {"inputs": [{"shape": [2, 28, 28], "datatype": "UINT8", "data": LISTS[0]}]}},
        400,
        "RequestError",
        "784 elements, but its shape [2, 28, 28] needs 1568",
    ),
    "negative shape": (
        {"body": {"inputs": [{"shape": [-1], "datatype": "UINT8", "data": [1]}]}},
        400,
        "RequestError",
        "numbers above 0",
    ),
    "binary": (
        {"body": {"inputs": [{"shape": [1], "datatype": "UINT8", "parameters": {"binary_data_size": 784}}]}},
        400,
        "RequestError",
        "needs shape, datatype and data; binary tensors are not taken: send the numbers as JSON",
    ),
    "shape of bytes": (
        {"body": {"inputs": [{"shape": [2], "datatype": "BYTES", "data": [TEXT]}]}},
        400,
        "RequestError",
        "1 elements, but its shape [2] needs 2",
    ),
    "beyond numbers": (
        {"body": {"inputs": [{"shape": [2], "datatype": "UINT8", "data": [float("inf"), float("nan")]}]}},
        400,
        "RequestError",
        "numbers that are not whole",
    ),
    "not whole": (
        {"body": {"inputs": [{"shape": [1, 1], "datatype": "UINT8", "data": [0.5]}]}},
        400,
        "RequestError",
        "numbers that are not whole",
    ),
    "many": ({"body": {"instances": ["AAAA"] * (MAX_IMAGES + 1)}}, 413, "TooManyImagesError", "1001 images"),
    "letters in an array": ({"body": [[1, 2], ["a", 2]]}, 400, "RequestError", '{"instances": [{"b64": ...'),
    "a long text in an array": ({"body": ["a" * 10**6, *"b" * 10**5]}, 400, "RequestError", "no numbers"),
    "a strip": (
        {"body": bytearray(STRIP)},
        413,
        "ImageTooLargeError",
        "70000 pixels long; send at most 65535",
    ),
    "pixels together": (
        {"body": {"instances": [LARGE] * 5}},
        413,
        "ImageTooLargeError",
        "have 120000000 pixels together; send at most 100000000",
    ),
    "large array": ({"body": np.zeros((1001, 784)).tolist()}, 413, "TooManyImagesError", "1001 images"),
}


@pytest.mark.parametrize(("row", "status", "kind", "message"), BAD.values(), ids=BAD)
def test_bad_requests_are_told_alone(
    handler: MLPHandler, row: dict[str, Any], status: int, kind: str, message: str
) -> None:
    answers, statuses = ask(handler, {"body": bytearray(FILE)}, row, {"body": LISTS[1]})
    assert statuses == [200, status, 200]
    assert list(answers[1]) == ["error"]
    assert answers[1]["error"]["type"] == kind
    assert message in answers[1]["error"]["message"]


def test_a_form_with_several_files_is_answered_for_each(
    handler: MLPHandler, expected: list[dict[str, float]]
) -> None:
    [answer], statuses = ask(handler, {"one": bytearray(FILES[0]), "two": bytearray(FILES[1])})
    assert statuses == [200]
    assert len(answer) == 2
    assert all(map(close, answer, expected[:2]))


def test_blanks_are_seen_to_be_no_base64_at_once() -> None:
    started = time.perf_counter()
    assert not is_text(b" " * 10**6 + b"*")
    assert not is_text(b"a " * 10**6 + b"*")
    # A pattern that tries each way to divide them takes hours.
    assert time.perf_counter() - started < 10


def test_a_notebook_is_told_the_same(directory: Path, handler: MLPHandler, tmp_path: Path) -> None:
    (tmp_path / "a.heic").write_bytes(HEIC)
    with pytest.raises(ImageError) as raised:
        load_bundle(directory).predict_proba(tmp_path / "a.heic")
    [answer], _ = ask(handler, {"body": HEIC})
    assert str(raised.value).endswith(answer["error"]["message"])
