"""Images of a batch of requests -> pixels for the model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch

from mlp_dist.core.bundle import Bundle
from mlp_dist.core.errors import ImageError, ImageTooLargeError
from mlp_dist.core.image import MAX_PIXELS, decode_image, decode_images, num_pixels
from mlp_dist.core.inputs import read_images
from serve.inference.payload import Array
from serve.inference.protocol import PLAIN, Request
from serve.inference.request_errors import RequestError, check_num_images

MAX_REQUEST_PIXELS = 4 * MAX_PIXELS
"""Pixels of all files of one request. Other requests wait while they are decoded."""


@dataclass(frozen=True)
class Pixels:
    """`images` (N, C, H, W), uint8 or float32 from 0 to 1. With `many` the response is a list."""

    images: torch.Tensor
    many: bool


@dataclass
class DecodedBatch:
    """`images` of several requests. `shares` maps a request's position to (number of images, many), in the
    order of the images; `errors` holds the requests without images.
    """

    images: torch.Tensor
    shares: dict[int, tuple[int, bool]] = field(default_factory=dict)
    errors: dict[int, ImageError] = field(default_factory=dict)


def read_batch(requests: Mapping[int, Request], bundle: Bundle) -> DecodedBatch:
    """Decode requests with a single file together, since most are, and the others one by one."""
    files = {key: part for key, request in requests.items() if (part := request.only_file) is not None}
    images, errors = decode_images(list(files.values()), bundle.spec.image, bundle.reading())
    batch = DecodedBatch(images)
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
    batch.images = _concatenated(read)
    return batch


def read_pixels(request: Request, bundle: Bundle) -> Pixels:
    """Decode one request. Raises ImageError; for one of several images it names the image."""
    spec = bundle.spec.image
    arrays = [part for part in request.parts if isinstance(part, Array)]
    files = [part for part in request.parts if isinstance(part, bytes)]
    check_num_images(len(files) + sum(part.num_images(spec) for part in arrays))
    total = sum(map(num_pixels, files)) if len(files) > 1 else 0
    if total > MAX_REQUEST_PIXELS:
        raise ImageTooLargeError(
            f"the request's images have {total} pixels in total; send at most {MAX_REQUEST_PIXELS}"
        )
    reading = bundle.reading(request.options.get("preprocess"), request.options.get("background"))
    many = request.protocol != PLAIN or len(request.parts) > 1
    read = []
    for number, part in enumerate(request.parts):
        try:
            if isinstance(part, Array):
                many = many or part.is_batch(spec)
                images = read_images(part.values, spec, reading)
                if part.one and len(images) > 1:
                    raise RequestError(f"{part.where} holds {len(images)} images; send one each")
                read.append(images)
            else:
                read.append(decode_image(part, spec, reading)[None])
        except ImageError as error:
            if len(request.parts) == 1:
                raise
            raise type(error)(f"image {number}: {error}") from error
    return Pixels(_concatenated(read), many)


def _concatenated(batches: Sequence[torch.Tensor]) -> torch.Tensor:
    """Batches (N, C, H, W), uint8 or float32 from 0 to 1, as one: uint8 only if all are."""
    if any(each.is_floating_point() for each in batches):
        batches = [each if each.is_floating_point() else each.float().div(255) for each in batches]
    return batches[0] if len(batches) == 1 else torch.cat(list(batches))
