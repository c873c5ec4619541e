"""Good and bad requests for the fuzzer."""

import base64
import io
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

Random = np.random.Generator

FORMATS = ("PNG", "JPEG", "GIF", "BMP", "WEBP", "TIFF")
BINARY = "application/octet-stream"


@dataclass
class Input:
    """One request. `image` is the index of its good image, None if it may be refused."""

    kind: str
    body: bytes
    content_type: str = BINARY
    headers: dict[str, str] = field(default_factory=dict)
    path: str = "/predictions/mlp"
    image: int | None = None


def good_images(random: Random, number: int = 40) -> list[bytes]:
    """Image files of many sizes, polarities and formats."""
    return [_file(_drawing(random), FORMATS[each % len(FORMATS)]) for each in range(number)]


def _drawing(random: Random) -> Image.Image:
    size = int(random.integers(28, 200))
    paper, ink = (int(random.integers(200, 256)), 0) if random.random() < 0.5 else (0, 255)
    image = Image.new("L", (size, size), paper)
    points = [tuple(size * (0.2 + 0.6 * value)) for value in random.random((4, 2))]
    ImageDraw.Draw(image).line(points, fill=ink, width=max(2, size // 10))
    return image


def squared_page() -> bytes:
    """A seven on squared paper, in some 1,000 bytes. It takes a thousand times as long as a framed digit."""
    image = Image.new("L", (280, 280), 255)
    draw = ImageDraw.Draw(image)
    for at in range(10, 280, 20):
        draw.line([(0, at), (280, at)], 180)
        draw.line([(at, 0), (at, 280)], 180)
    draw.line([(85, 75), (195, 75), (130, 215)], 20, width=16)
    return _file(image, "PNG", optimize=True)


def _file(image: Image.Image, name: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, name, **options)
    return file.getvalue()


def inputs(number: int, files: list[bytes], random: Random) -> Iterator[Input]:
    """A third of them are good, sent in every supported way."""
    kinds = list(WRONG)
    for each in range(number):
        image = int(random.integers(len(files)))
        if each % 3 == 0:
            yield _good(files[image], image, each // 3)
        else:
            kind = kinds[int(random.integers(len(kinds)))]
            made = WRONG[kind](files[image], random)
            made.kind = kind
            yield made


def _good(file: bytes, image: int, turn: int) -> Input:
    text = base64.b64encode(file).decode()
    ways = (
        lambda: Input("raw", file),
        lambda: Input("form", _form({"any": file}), FORM),
        lambda: Input("data", json.dumps({"data": text}).encode(), "application/json"),
        lambda: Input("data URL", f"data:image/png;base64,{text}".encode(), "text/plain"),
        lambda: Input("top_k", file, headers={"X-Top-K": "10"}),
        lambda: Input("instances", _json({"instances": [{"b64": text}]}), "application/json"),
        lambda: Input("v1", _json({"instances": [text]}), "application/json", path="/v1/models/mlp:predict"),
        lambda: Input("v2", _v2([1], "BYTES", [text]), "application/json", path="/v2/models/mlp/infer"),
    )
    made = ways[turn % len(ways)]()
    made.image = image
    return made


FORM = "multipart/form-data; boundary=fuzz"


def _form(fields: dict[str, bytes]) -> bytes:
    parts = [
        b'--fuzz\r\nContent-Disposition: form-data; name="%s"; filename="x"\r\n\r\n%s\r\n'
        % (name.encode(), value)
        for name, value in fields.items()
    ]
    return b"".join(parts) + b"--fuzz--\r\n"


def _json(value: Any) -> bytes:
    return json.dumps(value).encode()


def _v2(shape: Any, datatype: Any, data: Any) -> bytes:
    return _json({"inputs": [{"name": "x", "shape": shape, "datatype": datatype, "data": data}]})


def _changed(file: bytes, random: Random) -> Input:
    """Half of the changed bytes are in the header."""
    data = bytearray(file)
    for _ in range(int(random.integers(1, 12))):
        end = len(data) if random.random() < 0.5 else min(len(data), 64)
        data[int(random.integers(end))] = int(random.integers(256))
    return Input("", bytes(data))


def _cut(file: bytes, random: Random) -> Input:
    return Input("", file[: int(random.integers(len(file)))])


def _large(file: bytes, random: Random) -> Input:
    """Millions of pixels in some kilobytes."""
    side = int(random.choice([3000, 6000, 12_000, 30_000]))
    if side > 6000:
        # Only the header: writing all pixels would take too long.
        header = bytearray(_file(Image.new("L", (1, 1)), "BMP"))
        header[18:26] = side.to_bytes(4, "little") * 2
        return Input("", bytes(header))
    return Input("", _file(Image.new("1", (side, side)), "PNG"))


def _random_bytes(file: bytes, random: Random) -> Input:
    data = random.bytes(int(random.integers(2000)))
    return Input("", data if random.random() < 0.5 else file[:12] + data)


def _wrong_type(file: bytes, random: Random) -> Input:
    types = ("application/json", "text/plain", "text/html; charset=utf-16", "image/png", "none/of/them")
    return Input("", file, str(random.choice(types)))


def _strange_form(file: bytes, random: Random) -> Input:
    fields = [
        {"a": file, "b": file},
        {"image": b""},
        {"image": file, "top_k": b"-1"},
        {"image": file, "preprocess": b"\xff\xfe"},
        {"describe": file},
        {"Inference-Header-Content-Length": b"3", "explain": file},
        {"\u00e4 b c": file[:30]},
        {},
    ]
    return Input("", _form(fields[int(random.integers(len(fields)))]), FORM)


def _bad_base64(file: bytes, random: Random) -> Input:
    text = base64.b64encode(file).decode()
    at = int(random.integers(len(text)))
    wrong = (text[:at] + "*", "data:image/png;base64", text[:at], text + "=" * 9, "data:,", "\u6570" * 30)
    chosen = wrong[int(random.integers(len(wrong)))]
    return Input("", _json({"data": chosen}), "application/json")


def _deep(_: bytes, random: Random) -> Input:
    depth = int(random.choice([5, 60, 900, 5000, 100_000]))
    opened, closed = (b'{"data":', b"}") if random.random() < 0.5 else (b"[", b"]")
    return Input("", opened * depth + b"1" + closed * depth, "application/json")


def _strange_json(file: bytes, random: Random) -> Input:
    values: list[Any] = [
        *(None, True, 5, -1e308, "", [], {}, [[]], [{}], {"data": None}, {"data": {}}, {"instances": {}}),
        *([1, 2, 3], [[1, 2], [3]], [["a"]], [[float("nan")] * 28] * 28, [[1e400] * 28] * 28, [10**40]),
        *({"instances": [None]}, {"instances": [[]] * 50}, {"inputs": []}, {"inputs": [{}]}, {"top_k": 3}),
        {"data": [[0] * 28] * 28, "top_k": float("inf")},
        {"data": [[0] * 28] * 28, "preprocess": ["auto"], "background": {"a": 1}},
        {"instances": [base64.b64encode(file).decode(), "AAAA"]},
        {"data": [[0.5] * 2000] * 40},
        [[[0] * 28] * 28] * 1100,
    ]
    return Input("", _json(values[int(random.integers(len(values)))]), "application/json")


def _strange_tensor(_: bytes, random: Random) -> Input:
    shapes: list[Any] = [[1, 784], [784], [10**12, 10**12], [0], [-1], "x", None, [1] * 100, [1.5], [28, 28]]
    types: list[Any] = ["UINT8", "FP32", "BYTES", "BOOL", "INT64", None, 5, "UINT16"]
    data: list[Any] = [[0] * 784, [[0.1] * 784], [300] * 784, "x", [], [[[]]], ["AAAA"], [None] * 784]
    chosen = (each[int(random.integers(len(each)))] for each in (shapes, types, data))
    return Input("", _v2(*chosen), "application/json", path="/v2/models/mlp/infer")


@cache
def many_pages(number: int) -> bytes:
    """Squared pages in the JSON of protocol v1."""
    text = base64.b64encode(squared_page()).decode()
    return _json({"instances": [{"b64": text}] * number, "parameters": {"preprocess": "auto"}})


@cache
def _rows(side: int, number: int) -> bytes:
    rows = b"[%s]" % b",".join([b"[%s]" % b",".join([b"7"] * side)] * side)
    return b"[%s]" % b",".join([rows] * max(1, min(number, 9_000_000 // len(rows))))


def _many_pages(_: bytes, random: Random) -> Input:
    """More pages than fit into the time of a request, in some of its bytes."""
    body = many_pages(int(random.choice([1, 2, 3, 5, 200, 1000])))
    return Input("", body, "application/json", path="/v1/models/mlp:predict")


def _many_numbers(_: bytes, random: Random) -> Input:
    body = _rows(int(random.choice([28, 60, 1000])), int(random.choice([1, 1, 2, 900])))
    return Input("", body, "application/json", headers={"X-Preprocess": "auto"})


def _binary_tensor(file: bytes, random: Random) -> Input:
    """A tensor of v2 after the JSON, with lengths that may be wrong."""
    size, length = (int(random.choice([0, -1, 3, 10**9, len(file) + 4])) for _ in range(2))
    tensor = {"name": "x", "shape": [1], "datatype": "BYTES", "parameters": {"binary_data_size": size}}
    text = _json({"inputs": [tensor]})
    body = text + len(file).to_bytes(4, "little") + file
    headers = {"Inference-Header-Content-Length": str(length if random.random() < 0.3 else len(text))}
    return Input("", body, headers=headers, path="/v2/models/mlp/infer")


def _explained(file: bytes, random: Random) -> Input:
    data = file if random.random() < 0.3 else file[: int(random.integers(len(file)))]
    return Input("", data, path="/explanations/mlp")


WRONG: dict[str, Callable[[bytes, Random], Input]] = {
    "changed": _changed,
    "cut": _cut,
    "large": _large,
    "random bytes": _random_bytes,
    "wrong type": _wrong_type,
    "strange form": _strange_form,
    "bad base64": _bad_base64,
    "deep": _deep,
    "strange JSON": _strange_json,
    "strange tensor": _strange_tensor,
    "many pages": _many_pages,
    "many numbers": _many_numbers,
    "binary tensor": _binary_tensor,
    "explained": _explained,
}
