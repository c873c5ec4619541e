"""Requests and responses: plain, KServe v1 ({"instances": [...]}) and KServe v2 ({"inputs": [...]}).

A request is one entry of TorchServe's batch. An image is a file, sent as the body or as a form field, or
text or JSON with base64, data URLs or arrays.
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mlp_dist.core.errors import ImageError
from serve.inference.payload import Array, check_shape, decode_text, from_lists, from_tensor, is_text
from serve.inference.request_errors import RequestError, check_num_images

IMAGE_FIELDS = ("data", "body", "image", "file", "b64", "image_bytes", "bytes")
"""Field names of an image in a form or JSON object, by precedence. A single field may have any name."""

OPTIONS = ("top_k", "preprocess", "background")

PLAIN, V1, V2 = "plain", "v1", "v2"

_DIGITS = 6
"""Decimal places of a probability."""

_NON_TEXT = re.compile(rb"[^\t\n\r\x20-\x7e]")

_MAX_DEPTH = 4
"""Nesting of the objects around an image. {"data": {"b64": ...}} is common."""


@dataclass
class Request:
    """`parts` are image files and arrays of images. Of the `options`, only top_k is validated."""

    parts: list[bytes | Array]
    protocol: str = PLAIN
    request_id: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def only_file(self) -> bytes | None:
        """The image file of a plain request with one file and no options, else None."""
        part = self.parts[0]
        alone = len(self.parts) == 1 and self.protocol == PLAIN and not self.options
        return part if alone and isinstance(part, bytes) else None


def read_request(row: Mapping[str, Any], headers: Mapping[str, Any]) -> Request:
    """Parse one entry of TorchServe's batch: field name -> value, with the body in the field "body".

    Options in the body override the headers X-Top-K, X-Preprocess and X-Background. Raises ImageError.
    """
    body = row.get("body")
    if _starts_like_json(body):
        body = _parse(body)
    if isinstance(body, dict | list):
        request = _read_json(body)
    else:
        fields = {name: value for name, value in row.items() if name not in OPTIONS}
        where = "the body" if "body" in fields else "the form's field"
        request = Request([_image(part, where) for part in _uploads(fields)], options=_options(row))
    request.options = _options(_header_options(headers)) | request.options
    return request


def _starts_like_json(body: Any) -> bool:
    """Ignores the content type, since no image file starts like JSON."""
    if isinstance(body, str):
        body = body[:64].encode(errors="replace")
    if not isinstance(body, bytes | bytearray):
        return False
    return bytes(body[:64]).removeprefix(BOM_UTF8).lstrip()[:1] in (b"{", b"[")


def _parse(body: Any) -> Any:
    try:
        return json.loads(body.removeprefix("\ufeff") if isinstance(body, str) else body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body starts like JSON but is invalid: {error}") from error


def _read_json(body: dict[str, Any] | list[Any]) -> Request:
    if isinstance(body, list):
        return Request([from_lists(body, "the JSON array")])
    parameters = body.get("parameters")
    options = _options(parameters if isinstance(parameters, dict) else {}) | _options(body)
    if "instances" in body:
        instances = _images(body["instances"], "instances")
        parts = [_image(each, f"instances[{number}]", one=True) for number, each in enumerate(instances)]
        return Request(parts, V1, options=options)
    if "inputs" in body:
        inputs = _images(body["inputs"], "inputs")
        parts = [part for number, each in enumerate(inputs) for part in _input(each, f"inputs[{number}]")]
        request_id = body.get("id")
        return Request(parts, V2, None if request_id is None else str(request_id), options)
    fields = {name: value for name, value in body.items() if name not in (*OPTIONS, "parameters")}
    return Request([_image(_field(fields, "the JSON object"), "the JSON object")], options=options)


def _input(value: Any, where: str) -> list[bytes | Array]:
    """The images in a tensor of protocol v2."""
    if not isinstance(value, dict) or not {"shape", "datatype", "data"} <= set(value):
        binary = isinstance(value, dict) and "binary_data_size" in str(value.get("parameters"))
        hint = "; binary tensors are not supported: send the numbers as JSON" if binary else ""
        raise RequestError(f"{where} needs shape, datatype and data{hint}")
    if value["datatype"] == "BYTES":
        texts = _images(value["data"], f"{where}.data")
        check_shape(value["shape"], len(texts), where)
        return [_image(each, f"{where}.data[{number}]") for number, each in enumerate(texts)]
    return [from_tensor(value["data"], value["shape"], value["datatype"], where)]


def _image(value: Any, where: str, *, one: bool = False, depth: int = 1) -> bytes | Array:
    if isinstance(value, bytes | bytearray):
        data = bytes(value)
        return decode_text(data, where) if is_text(data) else data
    if isinstance(value, str):
        return decode_text(value, where)
    if isinstance(value, list):
        return from_lists(value, where, one=one)
    if isinstance(value, dict) and depth < _MAX_DEPTH:
        return _image(_field(value, where), where, one=one, depth=depth + 1)
    raise RequestError(
        f"{where} has {type(value).__name__} in place of an image; send the file's bytes as the body or a "
        'form field, or JSON: {"data": base64} or an array of numbers'
    )


def _uploads(fields: Mapping[str, Any]) -> list[Any]:
    """The images of a form: all files, if there are several fields; else the only field, or the named one."""
    images = [value for value in fields.values() if _is_binary(value)]
    return images if len(fields) > 1 and images else [_field(fields, "the form")]


def _is_binary(value: Any) -> bool:
    """Every image format has a byte that is not text near its start."""
    return isinstance(value, bytes | bytearray) and bool(_NON_TEXT.search(value[:16]))


def _field(fields: Mapping[str, Any], where: str) -> Any:
    for name in IMAGE_FIELDS:
        if name in fields:
            return fields[name]
    if len(fields) == 1:
        return next(iter(fields.values()))
    found = [str(name)[:40] for name in sorted(fields)[:20]]
    raise RequestError(f"{where} has the fields {found}; name the image {', '.join(IMAGE_FIELDS)}")


def _images(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise RequestError(f"{where} must be a list of images, not {type(value).__name__} or empty")
    check_num_images(len(value))
    return value


def _header_options(headers: Mapping[str, Any]) -> dict[str, Any]:
    """X-Top-K -> top_k and so on, in any case."""
    named = {name.lower().replace("-", "_"): value for name, value in headers.items()}
    return {option: named[f"x_{option}"] for option in OPTIONS if f"x_{option}" in named}


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in OPTIONS:
        value = values.get(name)
        if value is None or isinstance(value, dict):
            continue
        text = value.decode(errors="replace") if isinstance(value, bytes | bytearray) else value
        found[name] = _top_k(text) if name == "top_k" else str(text).strip()[:40].lower()
    return found


def _top_k(value: Any) -> int:
    number = value.strip() if isinstance(value, str) else value
    if isinstance(number, str) and number.isascii() and number.isdigit() and len(number) < 10:
        number = int(number)
    if type(number) is not int or number < 1:
        raise RequestError(f"top_k is {str(value)[:40]!r}; give a whole number of at least 1")
    return number


@dataclass(frozen=True)
class ResponseWriter:
    """Writes a model's responses. `rows` are probabilities in the order of `classes`, one row per image."""

    classes: tuple[str, ...]
    model_name: str
    model_version: str

    def write(self, request: Request, rows: Sequence[Sequence[float]], *, many: bool) -> bytes:
        """JSON in the request's protocol; with `many` a list even for one image."""
        top_k = request.options.get("top_k", len(self.classes))
        if request.protocol == V2:
            return to_json(self._tensors(request, rows, top_k))
        images = [self._ranked(row, top_k) if "top_k" in request.options else self._all(row) for row in rows]
        body = images[0] if len(images) == 1 and not many else f"[{', '.join(images)}]"
        return (f'{{"predictions": {body}}}' if request.protocol == V1 else body).encode()

    def _all(self, row: Sequence[float]) -> str:
        return self._template % tuple(row)

    @cached_property
    def _template(self) -> str:
        """A format string with a place for each class. json.dumps takes ten times as long."""
        names = (json.dumps(name, ensure_ascii=False).replace("%", "%%") for name in self.classes)
        return f"{{{', '.join(f'{name}: %.{_DIGITS}f' for name in names)}}}"

    def _ranked(self, row: Sequence[float], top_k: int) -> str:
        return to_json({name: round(value, _DIGITS) for name, value in self._best(row, top_k)}).decode()

    def _best(self, row: Sequence[float], top_k: int) -> list[tuple[str, float]]:
        return sorted(zip(self.classes, row, strict=True), key=lambda pair: -pair[1])[:top_k]

    def _tensors(self, request: Request, rows: Sequence[Sequence[float]], top_k: int) -> dict[str, Any]:
        best = [self._best(row, top_k) for row in rows]
        shape = [len(rows), len(best[0])]
        labels = [name for pairs in best for name, _ in pairs]
        values = [round(value, _DIGITS) for pairs in best for _, value in pairs]
        response = {
            "model_name": self.model_name,
            "model_version": self.model_version,
            "outputs": [
                {"name": "labels", "shape": shape, "datatype": "BYTES", "data": labels},
                {"name": "probabilities", "shape": shape, "datatype": "FP64", "data": values},
            ],
        }
        return response if request.request_id is None else {**response, "id": request.request_id}


def to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="replace")


def error_body(error: ImageError) -> bytes:
    return to_json({"error": {"type": type(error).__name__, "message": str(error)}})
