"""Errors of a request and their HTTP status codes."""

from http import HTTPStatus

from mlp_dist.core.errors import ImageError, ImageTooLargeError, UnsupportedFormatError

MAX_IMAGES = 1000
"""Images per request. Other requests wait while they are processed."""


class RequestError(ImageError):
    """A request without an image, or with an invalid option."""


class TooManyImagesError(ImageError):
    """A request with more images than the limit."""


class NotInstalledError(ImageError):
    """A request that needs a package missing on the server."""


_STATUS = {
    ImageTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    TooManyImagesError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedFormatError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    NotInstalledError: HTTPStatus.NOT_IMPLEMENTED,
}


def status_of(error: ImageError) -> HTTPStatus:
    return _STATUS.get(type(error), HTTPStatus.BAD_REQUEST)


def check_num_images(number: int) -> None:
    """Raise TooManyImagesError if a request holds more than MAX_IMAGES images."""
    if number > MAX_IMAGES:
        raise TooManyImagesError(f"the request has {number} images; send at most {MAX_IMAGES}")
