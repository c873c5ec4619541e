"""Responses in the protocol of their request."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from mlp_dist.core.errors import ImageError
from serve.inference.protocol import BINARY_HEADER, OUTPUTS, V1, V2, Request

_DIGITS = 6
"""Decimal places of a probability."""


@dataclass(frozen=True)
class ResponseWriter:
    """Writes a model's responses. `rows` are probabilities in the order of `classes`, one row per image."""

    classes: tuple[str, ...]
    model_name: str
    model_version: str

    def write(self, request: Request, rows: Sequence[Sequence[float]]) -> None:
        """Set the request's response: JSON, or for v2 JSON and perhaps the tensors' bytes."""
        top_k = request.options.get("top_k", len(self.classes))
        if request.protocol == V2:
            self._write_tensors(request, [self._best(row, top_k) for row in rows])
            return
        images = [self._ranked(row, top_k) if "top_k" in request.options else self._all(row) for row in rows]
        body = images[0] if len(images) == 1 and not request.many else f"[{', '.join(images)}]"
        request.response = (f'{{"predictions": {body}}}' if request.protocol == V1 else body).encode()

    def metadata(self) -> dict[str, Any]:
        """The model in the words of protocol v2."""
        rows = [-1, len(self.classes)]
        return {
            "name": self.model_name,
            "versions": [self.model_version],
            "platform": "pytorch",
            "inputs": [{"name": "image", "datatype": "BYTES", "shape": [-1]}],
            "outputs": [{"name": name, "datatype": kind, "shape": rows} for name, kind in OUTPUTS.items()],
        }

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

    def _write_tensors(self, request: Request, best: list[list[tuple[str, float]]]) -> None:
        labels = [name for pairs in best for name, _ in pairs]
        values = [round(value, _DIGITS) for pairs in best for _, value in pairs]
        outputs, binary = [], []
        for name, as_bytes in request.outputs.items():
            output = {"name": name, "shape": [len(best), len(best[0])], "datatype": OUTPUTS[name]}
            if as_bytes:
                binary.append(_packed(labels) if name == "labels" else np.array(values, "<f8").tobytes())
                outputs.append({**output, "parameters": {"binary_data_size": len(binary[-1])}})
            else:
                outputs.append({**output, "data": labels if name == "labels" else values})
        response = {"model_name": self.model_name, "model_version": self.model_version, "outputs": outputs}
        text = to_json(response if request.request_id is None else {**response, "id": request.request_id})
        request.response = b"".join((text, *binary))
        if binary:
            request.response_headers = {
                BINARY_HEADER: str(len(text)),
                "content-type": "application/octet-stream",
            }


def _packed(labels: Sequence[str]) -> bytes:
    """A BYTES tensor: each element after its length in 4 bytes."""
    encoded = [label.encode(errors="replace") for label in labels]
    return b"".join(len(each).to_bytes(4, "little") + each for each in encoded)


def to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="replace")


def error_body(error: ImageError, protocol: str) -> bytes:
    """Clients of v2 expect a text."""
    message: Any = {"type": type(error).__name__, "message": str(error)}
    return to_json({"error": str(error) if protocol == V2 else message})
