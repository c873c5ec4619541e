"""The images of a request -> pixels for the model."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from mlp_dist.core.bundle import Bundle
from mlp_dist.core.errors import ImageError
from mlp_dist.core.images import decode_image
from mlp_dist.core.inputs import read_images
from serve.answering.arrays import Array
from serve.answering.errors import RequestError, TooManyImagesError
from serve.answering.requests import PLAIN, Request

MAX_IMAGES = 1000
"""Images of one request: while they are answered, others wait."""


@dataclass(frozen=True)
class Pixels:
    """`images` are (N, C, H, W), uint8 or float32 from 0 to 1; `many`: the answer is a list, also of one."""

    images: torch.Tensor
    many: bool


def read_pixels(request: Request, bundle: Bundle) -> Pixels:
    """Raises ImageError, which for one of several images names it."""
    if len(request.parts) > MAX_IMAGES:
        raise _too_many(len(request.parts))
    reading = bundle.reading(request.options.get("preprocess"), request.options.get("background"))
    spec = bundle.spec.image
    many = request.protocol != PLAIN
    read = []
    for number, part in enumerate(request.parts):
        try:
            if isinstance(part, Array):
                many = many or part.holds_many(spec)
                images = read_images(part.values, spec, reading)
                if part.one and len(images) > 1:
                    raise RequestError(f"{part.where} holds {len(images)} images; give each by itself")
                read.append(images)
            else:
                read.append(decode_image(part, spec, reading)[None])
        except ImageError as error:
            if len(request.parts) == 1:
                raise
            raise type(error)(f"image {number}: {error}") from error
    images = together(read)
    if len(images) > MAX_IMAGES:
        raise _too_many(len(images))
    return Pixels(images, many)


def together(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Batches (N, C, H, W) of uint8 or of float32 from 0 to 1 -> one, of uint8 if all are."""
    if len(batches) == 1:
        return batches[0]
    if any(each.is_floating_point() for each in batches):
        return torch.cat([each if each.is_floating_point() else each.float().div(255) for each in batches])
    return torch.cat(list(batches))


def _too_many(number: int) -> TooManyImagesError:
    return TooManyImagesError(f"{number} images are in one request; send at most {MAX_IMAGES}")
