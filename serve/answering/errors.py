"""What can be wrong with a request, and the HTTP status that tells it."""

from http import HTTPStatus

from mlp_dist.core.errors import ImageError, ImageTooLargeError, UnsupportedFormatError


class RequestError(ImageError):
    """A request in which no image is found, or an option that cannot be."""


class TooManyImagesError(ImageError):
    """A request with more images than others should wait for."""


MAX_IMAGES = 1000
"""Images of one request: while they are answered, others wait."""


def check_number(number: int) -> None:
    """Raise TooManyImagesError."""
    if number > MAX_IMAGES:
        raise TooManyImagesError(f"{number} images are in one request; send at most {MAX_IMAGES}")


class NotInstalledError(ImageError):
    """A question that needs a package which the server lacks."""


_STATUS = {
    ImageTooLargeError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    TooManyImagesError: HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
    UnsupportedFormatError: HTTPStatus.UNSUPPORTED_MEDIA_TYPE,
    NotInstalledError: HTTPStatus.NOT_IMPLEMENTED,
}


def status_of(error: ImageError) -> HTTPStatus:
    """400 for all that have none of their own."""
    return _STATUS.get(type(error), HTTPStatus.BAD_REQUEST)
