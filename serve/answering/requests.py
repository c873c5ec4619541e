"""A row of TorchServe's batch -> the images in it and what is asked of them.

Taken are an image file as the body or a form's field; base64 or a data URL as text, in a form or in JSON;
JSON arrays; and the inference protocols that KServe speaks: v1 ({"instances": [...]}) and v2
({"inputs": [...]}).
"""

import json
import re
from codecs import BOM_UTF8
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from serve.answering.arrays import Array, check_shape, from_lists, from_tensor
from serve.answering.errors import RequestError, check_number
from serve.answering.texts import decode_text, is_text

IMAGE_FIELDS = ("data", "body", "image", "file", "b64", "image_bytes", "bytes")
"""Where an image is looked for in a form or a JSON object, in this order; else it is the only field."""

OPTIONS = ("top_k", "preprocess", "background")

PLAIN, V1, V2 = "plain", "v1", "v2"

_NO_LETTERS = re.compile(rb"[^\t\n\r\x20-\x7e]")

_IMAGE_TEXTS = (b"data:image/", b"iVBORw0KGgo", b"/9j/", b"_9j_", b"R0lGOD", b"UklGR", b"SUkqA", b"TU0AK")
"""How an image's data URL begins, and base64 of PNG, JPEG, GIF, WebP and TIFF; BMP's begins as a word may."""

_DEEPEST = 4
"""How far an image may lie inside objects in objects: {"data": {"b64": ...}} is usual."""


@dataclass
class Request:
    """`parts` are the bytes of image files and arrays of images; options that are not given are None."""

    parts: list[bytes | Array]
    protocol: str = PLAIN
    request_id: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def only_file(self) -> bytes | None:
        """Where it is one image file and nothing else is asked."""
        part = self.parts[0]
        alone = len(self.parts) == 1 and self.protocol == PLAIN and not self.options
        return part if alone and isinstance(part, bytes) else None


def read_request(row: Mapping[str, Any], headers: Mapping[str, Any]) -> Request:
    """What a client sent: `row` is by field, the body in one of that name; of `headers` X-Top-K,
    X-Preprocess and X-Background are options, before which go those in the body.

    Raises ImageError, mostly of its kind RequestError.
    """
    body = row.get("body")
    if _begins_like_json(body):
        body = _parsed(body)
    if isinstance(body, dict | list):
        request = _read_json(body)
    else:
        fields = {name: value for name, value in row.items() if name not in OPTIONS}
        where = "the body" if "body" in fields else "the form's field"
        request = Request([_image(part, where) for part in _uploads(fields)], options=_options(row))
    request.options = _options(_header_options(headers)) | request.options
    return request


def _begins_like_json(body: Any) -> bool:
    """As no image does, whatever content type it was sent with."""
    if isinstance(body, str):
        body = body[:64].encode(errors="replace")
    return isinstance(body, bytes | bytearray) and _begun(body)[:1] in (b"{", b"[")


def _begun(body: bytes | bytearray) -> bytes:
    return bytes(body[:64]).removeprefix(BOM_UTF8).lstrip()


def _parsed(body: Any) -> Any:
    try:
        return json.loads(body.removeprefix("\ufeff") if isinstance(body, str) else body)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the body begins like JSON but is none: {error}") from error


def _read_json(body: dict[str, Any] | list[Any]) -> Request:
    if isinstance(body, list):
        return Request([from_lists(body, "the JSON array")])
    parameters = body.get("parameters")
    options = _options(parameters if isinstance(parameters, dict) else {}) | _options(body)
    if "instances" in body:
        instances = _listed(body["instances"], "instances")
        parts = [_image(each, f"instances[{number}]", one=True) for number, each in enumerate(instances)]
        return Request(parts, V1, options=options)
    if "inputs" in body:
        inputs = _listed(body["inputs"], "inputs")
        parts = [part for number, each in enumerate(inputs) for part in _input(each, f"inputs[{number}]")]
        request_id = body.get("id")
        return Request(parts, V2, None if request_id is None else str(request_id), options)
    fields = {name: value for name, value in body.items() if name not in (*OPTIONS, "parameters")}
    return Request([_image(_field(fields, "the JSON object"), "the JSON object")], options=options)


def _input(value: Any, where: str) -> list[bytes | Array]:
    """The images of a tensor of protocol v2."""
    if not isinstance(value, dict) or not {"shape", "datatype", "data"} <= set(value):
        binary = isinstance(value, dict) and "binary_data_size" in str(value.get("parameters"))
        told = "; binary tensors are not taken: send the numbers as JSON" if binary else ""
        raise RequestError(f"{where} needs shape, datatype and data{told}")
    if value["datatype"] == "BYTES":
        texts = _listed(value["data"], f"{where}.data")
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
    if isinstance(value, dict) and depth < _DEEPEST:
        return _image(_field(value, where), where, one=one, depth=depth + 1)
    raise RequestError(
        f"found {type(value).__name__} where an image should be in {where}; send the file's bytes as the "
        'body or a form\'s field, or JSON: {"data": base64} or an array of numbers'
    )


def _uploads(fields: Mapping[str, Any]) -> list[Any]:
    """The images of a form: where it has several fields those that begin like one, else its only field's."""
    images = [value for value in fields.values() if _is_file(value) or _begins_like_image_text(value)]
    return images if len(fields) > 1 and images else [_field(fields, "the form")]


def _is_file(value: Any) -> bool:
    """Whether these are no letters: within its first bytes each kind of image has others."""
    return isinstance(value, bytes | bytearray) and bool(_NO_LETTERS.search(value[:16]))


def _begins_like_image_text(value: Any) -> bool:
    if not isinstance(value, str | bytes | bytearray):
        return False
    begun = value[:64].encode(errors="replace") if isinstance(value, str) else bytes(value[:64])
    return begun.lstrip().startswith(_IMAGE_TEXTS)


def _field(fields: Mapping[str, Any], where: str) -> Any:
    for name in IMAGE_FIELDS:
        if name in fields:
            return fields[name]
    if len(fields) == 1:
        return next(iter(fields.values()))
    found = [str(name)[:40] for name in sorted(fields)[:20]]
    raise RequestError(
        f"{where} has the fields {found}; the image is looked for in {', '.join(IMAGE_FIELDS)}"
    )


def _listed(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise RequestError(f"{where} must be a list of images, not {type(value).__name__} or empty")
    check_number(len(value))
    return value


def _header_options(headers: Mapping[str, Any]) -> dict[str, Any]:
    """HTTP's headers are named in any case."""
    found = {}
    for name, value in headers.items():
        if name[:2] in ("x-", "X-"):
            option = name[2:].lower().replace("-", "_")
            if option in OPTIONS:
                found[option] = value
    return found


def _options(values: Mapping[str, Any]) -> dict[str, Any]:
    """Those that are given, checked but for their names' values, which Reading knows."""
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
        raise RequestError(f"top_k is {str(value)[:40]!r}; it is a whole number from 1")
    return number
