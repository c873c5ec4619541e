"""The TorchServe handler: image in, class name -> probability out, a whole batch at once.

What it knows of the model it reads from the bundle beside it. Imports only mlp_dist.core, torch and the
standard library, so that the archive needs nothing else of the project.
"""

import base64
import binascii
import logging
from pathlib import Path
from typing import Any

import torch

from mlp_dist import core
from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import ImageError
from mlp_dist.core.images import decode_image

logger = logging.getLogger(__name__)

# TorchServe names a raw body "body" and a form's fields as the client did.
FIELDS = ("body", "data", "image", "file", "b64")


class MLPHandler:
    """One worker's model. TorchServe calls `initialize` once, then `handle` for each batch."""

    def initialize(self, context: Any) -> None:
        """Load the archive's bundle and see that it answers its golden image as when it was trained."""
        directory = Path(context.system_properties["model_dir"])
        if not Path(core.__file__).is_relative_to(directory):
            logger.warning("mlp_dist.core comes from %s, not from the archive: see PYTHONPATH", core.__file__)
        gpu = context.system_properties.get("gpu_id")
        use_gpu = gpu is not None and torch.cuda.is_available()
        self.device = torch.device(f"cuda:{gpu}" if use_gpu else "cpu")
        if not use_gpu:
            # Workers are many and a batch is small: more threads would only take each other's cores.
            torch.set_num_threads(1)
        self.bundle = load_bundle(directory)
        self.bundle.check_golden()
        self.bundle.model.to(self.device)

    def handle(self, data: list[dict[str, Any]], context: Any) -> list[dict[str, Any]]:
        """One answer a request: probabilities, or for a bad image an error, with its own status 400."""
        answers: list[dict[str, Any]] = [{} for _ in data]
        images = {}
        for position, row in enumerate(data):
            context.set_response_content_type(position, "application/json")
            if context.get_request_header(position, "describe") == "True":
                answers[position] = self.describe()
                continue
            if context.get_request_header(position, "explain") == "True":
                answers[position] = _error(
                    "NotImplemented", "this model has no explanations; ask /predictions"
                )
                context.set_response_status(501, "Not Implemented", position)
                continue
            try:
                images[position] = decode_image(_image_bytes(row), self.bundle.spec.image)
            except ImageError as error:
                answers[position] = _error("ImageError", str(error))
                context.set_response_status(400, "Bad Request", position)
        if images:
            pixels = torch.stack(list(images.values())).to(self.device)
            for position, row in zip(images, self.bundle.probabilities(pixels).tolist(), strict=True):
                answers[position] = dict(zip(self.bundle.spec.classes, row, strict=True))
        return answers

    def describe(self) -> dict[str, Any]:
        """What the management API tells of this model with `?customized=true`."""
        description = self.bundle.spec.to_json()
        del description["golden_probabilities"]
        return {**description, "num_parameters": self.bundle.spec.model.num_parameters}


def _error(kind: str, message: str) -> dict[str, Any]:
    return {"error": {"type": kind, "message": message}}


def _image_bytes(row: dict[str, Any]) -> bytes:
    """The image in a request: a raw body, a form's field, or base64 in JSON or text."""
    value = _field(row, "the form")
    if isinstance(value, dict):
        value = _field(value, "the JSON object")
    if isinstance(value, bytes | bytearray):
        return bytes(value)
    if isinstance(value, str):
        text = value.partition(",")[2] if value.startswith("data:") else value
        try:
            return base64.b64decode(text, validate=True)
        except (binascii.Error, ValueError) as error:
            raise ImageError(f"the text is not base64 ({error}): it starts with {value[:20]!r}") from error
    raise ImageError(
        f"found {type(value).__name__} where an image should be; send the file's bytes as the body or a "
        'form\'s field, or JSON {"data": base64}'
    )


def _field(fields: dict[str, Any], what: str) -> Any:
    for name in FIELDS:
        if name in fields:
            return fields[name]
    if len(fields) == 1:
        return next(iter(fields.values()))
    raise ImageError(
        f"{what} has the fields {sorted(fields)}; the image is looked for in {', '.join(FIELDS)}"
    )
