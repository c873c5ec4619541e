"""Probabilities -> the JSON that is sent back, in the form of the protocol that was spoken."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from mlp_dist.core.errors import ImageError
from serve.answering.requests import V1, V2, Request

_PLACES = 6


@dataclass(frozen=True)
class Answers:
    """Writes what one model answers. `rows` are probabilities in the order of `classes`, one row an image."""

    classes: tuple[str, ...]
    model_name: str
    model_version: str

    def write(self, request: Request, rows: Sequence[Sequence[float]], *, many: bool) -> bytes:
        """One object for one image; a list where the request was one."""
        top_k = request.options.get("top_k", len(self.classes))
        if request.protocol == V2:
            return to_json(self._tensors(request, rows, top_k))
        images = [self._ranked(row, top_k) if "top_k" in request.options else self._all(row) for row in rows]
        listed = images[0] if len(images) == 1 and not many else f"[{', '.join(images)}]"
        return (f'{{"predictions": {listed}}}' if request.protocol == V1 else listed).encode()

    def _all(self, row: Sequence[float]) -> str:
        return self._template % tuple(row)

    @cached_property
    def _template(self) -> str:
        """Text with a place for each class's number: json.dumps takes ten times as long."""
        names = (json.dumps(name, ensure_ascii=False).replace("%", "%%") for name in self.classes)
        return f"{{{', '.join(f'{name}: %.{_PLACES}f' for name in names)}}}"

    def _ranked(self, row: Sequence[float], top_k: int) -> str:
        """The most probable first."""
        return to_json({name: round(value, _PLACES) for name, value in self._best(row, top_k)}).decode()

    def _best(self, row: Sequence[float], top_k: int) -> list[tuple[str, float]]:
        return sorted(zip(self.classes, row, strict=True), key=lambda pair: -pair[1])[:top_k]

    def _tensors(self, request: Request, rows: Sequence[Sequence[float]], top_k: int) -> dict[str, Any]:
        best = [self._best(row, top_k) for row in rows]
        shape = [len(rows), len(best[0])]
        labels = [name for pairs in best for name, _ in pairs]
        values = [round(value, _PLACES) for pairs in best for _, value in pairs]
        answer = {
            "model_name": self.model_name,
            "model_version": self.model_version,
            "outputs": [
                {"name": "labels", "shape": shape, "datatype": "BYTES", "data": labels},
                {"name": "probabilities", "shape": shape, "datatype": "FP64", "data": values},
            ],
        }
        return answer if request.request_id is None else {**answer, "id": request.request_id}


def to_json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode(errors="replace")


def error_body(error: ImageError) -> bytes:
    return to_json({"error": {"type": type(error).__name__, "message": str(error)}})
