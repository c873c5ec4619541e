"""What a request may hold, how long it may take, and the errors of requests with their HTTP status."""

import time
from http import HTTPStatus
from threading import Semaphore

from mlp_dist.core.errors import ImageError, ImageTooLargeError, UnsupportedFormatError

BATCH_SECONDS = 0.4
"""Time for reading the images of one batch. A request waits at most for the batch before it and its own."""

PIXEL_SECONDS = 2e-8
"""Estimate for a pixel of a large image. One core takes 0.1 to 0.6 s for 25 million."""

MAX_IMAGES = 1000
"""Images per request."""

MAX_NUMBERS = 2**20
"""Numbers in a request's JSON. Parsing more of them takes too long."""


class RequestError(ImageError):
    """A request without an image, or with an invalid option."""


class TooManyImagesError(ImageError):
    """A request with more images than the limit, or than can be read in time."""


class BusyError(ImageError):
    """A request that could not be read in time because of others."""


_STATUS = {
    ImageTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    TooManyImagesError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedFormatError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    BusyError: HTTPStatus.SERVICE_UNAVAILABLE,
}


def status_of(error: ImageError) -> HTTPStatus:
    return _STATUS.get(type(error), HTTPStatus.BAD_REQUEST)


def check_num_images(number: int) -> None:
    """Raise TooManyImagesError if a request holds more than MAX_IMAGES images."""
    if number > MAX_IMAGES:
        raise TooManyImagesError(f"the request has {number} images; send at most {MAX_IMAGES}")


class Budget:
    """The time of one batch, from now on. `exceptions` are the images that may exceed it."""

    def __init__(self, seconds: float = BATCH_SECONDS, exceptions: int = 1) -> None:
        self._end = time.monotonic() + seconds
        self._exceptions = Semaphore(exceptions)

    @property
    def is_spent(self) -> bool:
        return time.monotonic() > self._end

    def allows(self, pixels: int) -> bool:
        """True if an image of so many pixels fits into the time left, or else is one of the exceptions.

        Decoding cannot be interrupted, and images of 25 million pixels need an exception.
        """
        left = self._end - time.monotonic()
        return left > 0 and (pixels * PIXEL_SECONDS <= left or self._exceptions.acquire(blocking=False))


def late_error(number: int, done: int, seconds: float) -> ImageError:
    """The error of a request of which only `done` of `number` images were read, in `seconds` of its own."""
    fitting = int(done * BATCH_SECONDS / seconds) if done else number
    if fitting >= number:
        read = f"{done} of the request's {number} images were read in time"
        return BusyError(f"{read}, because of other requests; send it again")
    # The time varies.
    fitting = max(1, 3 * fitting // 4)
    return TooManyImagesError(
        f"the request has {number} images, of which {fitting} fit into the {BATCH_SECONDS} s that a request "
        f"may take; send at most {fitting}"
    )
