"""The images of a request -> pixels for the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mlp_dist.core.bundle import Bundle
from mlp_dist.core.errors import ImageError, ImageTooLargeError
from mlp_dist.core.image import MAX_PIXELS, decode_image, decode_images, num_pixels
from mlp_dist.core.inputs import read_images
from serve.answering.arrays import Array
from serve.answering.errors import RequestError, check_number
from serve.answering.requests import PLAIN, Request

MAX_REQUEST_PIXELS = 4 * MAX_PIXELS
"""Of all image files of one request: while they are decoded, others wait."""


@dataclass(frozen=True)
class Pixels:
    """`images` are (N, C, H, W), uint8 or float32 from 0 to 1; `many`: the answer is a list, also of one."""

    images: torch.Tensor
    many: bool


@dataclass
class Batch:
    """The images of many requests, of which `shares` tells, in their order, how many are whose, and whether
    its answer is a list. The requests in `errors` have no images.
    """

    images: torch.Tensor
    shares: dict[int, tuple[int, bool]] = field(default_factory=dict)
    errors: dict[int, ImageError] = field(default_factory=dict)


def read_batch(requests: Mapping[int, Request], bundle: Bundle) -> Batch:
    """Those of one file each, as most are, are decoded at once."""
    files = {key: part for key, request in requests.items() if (part := request.only_file) is not None}
    images, errors = decode_images(list(files.values()), bundle.spec.image, bundle.reading())
    batch = Batch(images)
    for place, key in enumerate(files):
        if place in errors:
            batch.errors[key] = errors[place]
        else:
            batch.shares[key] = 1, False
    read = [images[[place for place in range(len(files)) if place not in errors]] if errors else images]
    for key, request in requests.items():
        if key not in files:
            try:
                pixels = read_pixels(request, bundle)
            except ImageError as error:
                batch.errors[key] = error
            else:
                read.append(pixels.images)
                batch.shares[key] = len(pixels.images), pixels.many
    batch.images = together(read)
    return batch


def read_pixels(request: Request, bundle: Bundle) -> Pixels:
    """Raises ImageError, which for one of several images names it."""
    spec = bundle.spec.image
    arrays = [part for part in request.parts if isinstance(part, Array)]
    files = [part for part in request.parts if isinstance(part, bytes)]
    check_number(len(files) + sum(part.number(spec) for part in arrays))
    _check_pixels(files)
    reading = bundle.reading(request.options.get("preprocess"), request.options.get("background"))
    many = request.protocol != PLAIN or len(request.parts) > 1
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
    return Pixels(together(read), many)


def together(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Batches (N, C, H, W) of uint8 or of float32 from 0 to 1 -> one, of uint8 if all are."""
    if len(batches) == 1:
        return batches[0]
    if any(each.is_floating_point() for each in batches):
        return torch.cat([each if each.is_floating_point() else each.float().div(255) for each in batches])
    return torch.cat(list(batches))


def _check_pixels(files: Sequence[bytes]) -> None:
    """Raise ImageTooLargeError for several files that have more pixels than MAX_REQUEST_PIXELS together."""
    number = sum(map(num_pixels, files)) if len(files) > 1 else 0
    if number > MAX_REQUEST_PIXELS:
        raise ImageTooLargeError(
            f"the images of the request have {number} pixels together; send at most {MAX_REQUEST_PIXELS}"
        )
