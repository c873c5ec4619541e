"""The exceptions a person can meet. Each message says what was wrong, with the value, and what to do."""

import difflib
from collections.abc import Iterable


class MlpDistError(Exception):
    """Base of them all; a command that ends with one exits with `exit_code`."""

    exit_code = 1


class UsageError(MlpDistError, ValueError):
    """A command, a flag or a configuration value that cannot be used."""

    exit_code = 2


class ImageError(MlpDistError, ValueError):
    """Bytes that are not an image this package reads."""


class ImageTooLargeError(ImageError):
    """An image that would take too much memory or time to decode."""


class UnsupportedFormatError(ImageError):
    """A file of a kind that is not read."""


class EmptyPageError(ImageError):
    """A picture with nothing drawn on it."""


class BundleError(MlpDistError, ValueError):
    """A bundle directory that is incomplete, damaged or of another format."""


class DataError(MlpDistError):
    """A data set that is damaged or cannot be had."""


class DownloadError(DataError):
    """A data set's files that are missing and cannot be downloaded. Its first line is the reason."""


class CheckpointError(MlpDistError):
    """A checkpoint that is damaged or not one of ours."""


class TrainingError(MlpDistError):
    """A training that cannot go on."""


class ProcessLostError(TrainingError):
    """Another process of the training has died; one survivor per machine `is_reporter`."""

    def __init__(self, lost: list[str], *, is_reporter: bool) -> None:
        super().__init__(f"{' and '.join(lost)} of this training died, so it cannot go on")
        self.is_reporter = is_reporter


class TrackingError(MlpDistError):
    """A run that MLflow does not have, or that lacks what was asked of it."""


class PromotionError(MlpDistError):
    """A run that is not to be the champion."""


class PackagingError(MlpDistError):
    """A model archive that could not be built or failed its check."""


class ServerError(MlpDistError):
    """A TorchServe that did not start, or an answer that was not a prediction."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for a misspelt name: the nearest known one, and all of them."""
    known = list(known)
    return f"unknown {kind} {name!r}{did_you_mean(name, known)} (there are: {', '.join(known)})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The question after the name that was probably meant, to end a message; "" where none is near."""
    by_case = {each.casefold(): each for each in known}
    nearest = difflib.get_close_matches(name.casefold(), by_case, n=1)
    return f"; did you mean {by_case[nearest[0]]}?" if nearest else ""
