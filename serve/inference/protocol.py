"""Requests: plain, KServe v1 ({"instances": [...]}) and KServe v2 ({"inputs": [...]}).

A request is one entry of TorchServe's batch. An image is a file, sent as the body or as a form field, or
text or JSON with base64, data URLs or arrays. Tensors of v2 may follow the JSON as bytes.
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass, field
from io import BytesIO
from typing import Any

import torch

from mlp_dist.core.errors import ImageError, ImageTooLargeError, UnsupportedFormatError
from serve.inference.limits import MAX_NUMBERS, RequestError, check_num_images
from serve.inference.payload import (
    Array,
    decode_text,
    from_lists,
    from_tensor,
    full_shape,
    holds_image,
    is_binary,
    is_text,
    texts,
    unpack,
)

IMAGE_FIELDS = ("data", "body", "composite", "image", "file", "b64", "image_bytes", "bytes")
"""Field names of an image in a form or JSON object, by precedence. A single field may have any name."""

OPTIONS = {"top_k": "x-top-k", "preprocess": "x-preprocess", "background": "x-background"}
"""Form fields and JSON keys, and their headers."""

PLAIN, V1, V2 = "plain", "v1", "v2"

OUTPUTS = {"labels": "BYTES", "probabilities": "FP64"}
"""The tensors of a v2 response and their datatypes."""

BINARY_HEADER = "Inference-Header-Content-Length"
"""The length of the JSON before the tensors' bytes, of a v2 request and response."""

_MAX_DEPTH = 4
"""Nesting of the objects around an image. {"data": {"b64": ...}} is common."""


@dataclass
class Request:
    """`parts` are image files and arrays of images. Of the `options`, only top_k is validated.

    `outputs` maps the tensors of a v2 response to whether they are sent as bytes. With `explain` an
    explanation is asked for. Decoding sets `pixels`, (N, C, H, W), uint8 or float32 from 0 to 1, and `many`:
    the response is then a list. At the end there is a `response` or an `error`.
    """

    parts: list[bytes | Array] = field(default_factory=list)
    protocol: str = PLAIN
    request_id: str | None = None
    options: dict[str, Any] = field(default_factory=dict)
    outputs: dict[str, bool] = field(default_factory=dict)
    explain: bool = False
    pixels: torch.Tensor | None = None
    many: bool = False
    error: ImageError | None = None
    response: bytes = b""
    response_headers: dict[str, str] = field(default_factory=dict)

    @property
    def only_file(self) -> bytes | None:
        """The image file of a plain request with one file and no options, else None."""
        if len(self.parts) != 1 or self.protocol != PLAIN or self.options:
            return None
        return self.parts[0] if isinstance(self.parts[0], bytes) else None


def read_request(row: Mapping[str, Any], headers: Mapping[str, str]) -> Request:
    """Parse one entry of TorchServe's batch: field name -> value, with the body in the field "body".

    Names of headers are in lower case. Options in the body override those in headers.
    """
    is_v2 = BINARY_HEADER.lower() in headers
    request = Request(protocol=V2 if is_v2 else PLAIN, explain=headers.get("explain") == "True")
    try:
        _read(request, row, headers)
    except ImageError as error:
        request.error = error
    return request


def _read(request: Request, row: Mapping[str, Any], headers: Mapping[str, str]) -> None:
    encoding = headers.get("content-encoding", "identity")
    if encoding != "identity":
        raise UnsupportedFormatError(f"the body has Content-Encoding: {encoding[:40]}; send it uncompressed")
    request.options = _options({name: headers[key] for name, key in OPTIONS.items() if key in headers})
    body = row.get("body")
    data = body.encode(errors="replace") if isinstance(body, str) else body
    tensors = BytesIO()
    if request.protocol == V2 and isinstance(data, bytes | bytearray):
        data, tensors = _split(bytes(data), headers[BINARY_HEADER.lower()])
    # No image file starts like JSON, so the content type does not matter.
    if isinstance(data, bytes | bytearray) and data[:64].removeprefix(BOM_UTF8).lstrip()[:1] in (b"{", b"["):
        data = _parse(request, data)
    if request.protocol == V2 or (isinstance(data, dict) and data.keys() & {"instances", "inputs"}):
        _read_kserve(request, _dict(data), tensors)
        return
    if isinstance(data, list):
        picked = _pick(data, "the JSON array")
    elif isinstance(data, dict):
        picked = _pick(_fields(request, data), "the JSON object")
    elif "body" in row:
        picked = [(body, "the body")]
    else:
        picked = _pick(_fields(request, row), "the form")
    request.parts = [_image(*each) for each in picked]


def _split(body: bytes, length: str) -> tuple[bytes, BytesIO]:
    """The JSON of a v2 request, and the bytes of its tensors."""
    if not length.isdigit() or int(length) > len(body):
        raise RequestError(f"{BINARY_HEADER} is {length[:40]!r}; give the length of the body's JSON")
    return body[: int(length)], BytesIO(body[int(length) :])


def _parse(request: Request, data: bytes | bytearray) -> Any:
    if data.count(b",") > MAX_NUMBERS:
        raise ImageTooLargeError(f"the JSON holds more than {MAX_NUMBERS} numbers; send image files")
    try:
        return json.loads(data.removeprefix(BOM_UTF8))
    except (ValueError, RecursionError) as error:
        request.protocol = V2 if b'"inputs"' in data else request.protocol
        raise RequestError(f"the body starts like JSON but is invalid: {error}") from error


def _fields(request: Request, fields: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of a form or an object without its options. An image editor's background is none."""
    request.options |= _options(_dict(fields.get("parameters"))) | _options(fields)
    names = (*OPTIONS, "parameters")
    found = {
        name: value for name, value in fields.items() if name not in names or holds_image(value, _MAX_DEPTH)
    }
    # curl -d sends JSON as a form.
    if any(name.lstrip()[:1] == "{" for name in found) or not fields.keys() - OPTIONS:
        raise RequestError(
            "there is no image; send a file as the body (curl -T FILE) or in a field (curl -F image=@FILE), "
            "and JSON with -H 'Content-Type: application/json'"
        )
    return found


def _read_kserve(request: Request, body: dict[str, Any], tensors: BytesIO) -> None:
    parameters = _dict(body.get("parameters"))
    request.protocol = V1 if "instances" in body else V2
    request.options |= _options(parameters) | _options(body)
    if request.protocol == V1:
        for number, each in enumerate(_several(body["instances"], "instances")):
            request.parts.append(_image(*_only(each, f"instances[{number}]"), one=True))
        return
    request.request_id = None if body.get("id") is None else str(body["id"])
    request.outputs = _outputs(body.get("outputs"), is_binary=bool(parameters.get("binary_data_output")))
    for number, each in enumerate(_several(body.get("inputs"), "inputs")):
        request.parts += _tensor(_dict(each), f"inputs[{number}]", tensors)


def _dict(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _outputs(asked: Any, *, is_binary: bool) -> dict[str, bool]:
    """The outputs that a v2 request asks for, all by default, and whether as bytes."""
    outputs = {}
    for each in map(_dict, asked if isinstance(asked, list) else []):
        name = each.get("name")
        if name not in OUTPUTS:
            raise RequestError(f"there is no output {str(name)[:40]!r}; ask for {' or '.join(OUTPUTS)}")
        outputs[name] = bool(_dict(each.get("parameters")).get("binary_data", is_binary))
    return outputs or dict.fromkeys(OUTPUTS, is_binary)


def _tensor(value: dict[str, Any], where: str, tensors: BytesIO) -> list[bytes | Array]:
    """The images in a tensor of protocol v2."""
    shape, datatype, data = (value.get(name) for name in ("shape", "datatype", "data"))
    size = _dict(value.get("parameters")).get("binary_data_size")
    if size is not None:
        data = tensors.read(size) if type(size) is int and size > 0 else b""
        if len(data) != size:
            raise RequestError(
                f"{where} has a binary_data_size of {str(size)[:40]}, but {len(data)} bytes follow the JSON, "
                f"whose length the header {BINARY_HEADER} gives"
            )
    if shape is None or datatype is None or data is None:
        raise RequestError(f"{where} needs shape, datatype and data")
    if datatype != "BYTES":
        return [from_tensor(data, shape, datatype, where)]
    elements = _several(texts(data) if size is None else unpack(data, where), f"{where}.data")
    full_shape(shape, len(elements), where)
    return [_image(*_only(each, f"{where}.data[{number}]")) for number, each in enumerate(elements)]


def _only(value: Any, where: str) -> tuple[Any, str]:
    [first, *others] = _pick(value, where)
    if others:
        raise RequestError(f"{where} holds {len(others) + 1} images; send one each")
    return first


def _pick(value: Any, where: str, depth: int = 1) -> list[tuple[Any, str]]:
    """The images inside nested objects and lists, each with its name for error messages."""
    inside: list[tuple[Any, str]] = []
    if isinstance(value, dict) and depth < _MAX_DEPTH:
        inside = [(each, where) for each in _chosen(value, where)]
    elif isinstance(value, list) and value and isinstance(value[0], str | dict):
        inside = [(each, f"{where}[{number}]") for number, each in enumerate(_several(value, where))]
    return [picked for each in inside for picked in _pick(*each, depth + 1)] or [(value, where)]


def _chosen(fields: Mapping[str, Any], where: str) -> list[Any]:
    """The values of a form's or an object's fields that are images."""
    values = [value for value in fields.values() if value is not None]
    if len(fields) == 1:
        return list(fields.values())
    files = [value for value in values if is_binary(value)]
    named = [fields[name] for name in IMAGE_FIELDS if fields.get(name) is not None]
    images = [value for value in values if holds_image(value, _MAX_DEPTH)]
    urls = [value for value in values if isinstance(value, str) and value.startswith(("http://", "https://"))]
    if chosen := files or named[:1] or images or urls:
        return chosen
    found = [str(name)[:40] for name in sorted(fields)[:20]]
    raise RequestError(f"{where} has the fields {found}; name the image {', '.join(IMAGE_FIELDS)}")


def _image(value: Any, where: str, *, one: bool = False) -> bytes | Array:
    if isinstance(value, bytes | bytearray):
        data = bytes(value)
        return decode_text(data, where) if is_text(data) else data
    if isinstance(value, str):
        return decode_text(value, where)
    if isinstance(value, list):
        return from_lists(value, where, one=one)
    raise RequestError(
        f"{where} has {type(value).__name__} in place of an image; send the file's bytes as the body or a "
        'form field, or JSON: {"data": base64} or an array of numbers'
    )


def _several(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise RequestError(f"{where} must be a list of images, not {type(value).__name__} or empty")
    check_num_images(len(value))
    return value


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in OPTIONS.keys() & values:
        value = values[name]
        # An image editor's background is no option.
        if value is None or isinstance(value, dict) or holds_image(value, 0):
            continue
        text = value.decode(errors="replace") if isinstance(value, bytes | bytearray) else value
        found[name] = _top_k(text) if name == "top_k" else str(text).strip()[:40].lower()
    return found


def _top_k(value: Any) -> int:
    number = str(value).strip()
    if not re.fullmatch(r"0*[1-9]\d{0,8}", number, re.ASCII):
        raise RequestError(f"top_k is {number[:40]!r}; give a whole number of at least 1")
    return int(number)
