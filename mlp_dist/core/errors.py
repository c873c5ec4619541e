"""Exceptions for users. Messages name the wrong value and what to do."""

import difflib
from collections.abc import Iterable


class MlpDistError(Exception):
    """Base class; a command that raises one exits with `exit_code`."""

    exit_code = 1


class UsageError(MlpDistError, ValueError):
    """A wrong command line or configuration value."""

    exit_code = 2


class ImageError(MlpDistError, ValueError):
    """An image that cannot be read."""


class ImageTooLargeError(ImageError):
    """An image that takes too much memory or time to decode."""


class UnsupportedFormatError(ImageError):
    """A file in an unsupported format."""


class EmptyPageError(ImageError):
    """A picture without a digit on it."""


class BundleError(MlpDistError, ValueError):
    """A bundle that is incomplete, damaged or of another format."""


class DataError(MlpDistError):
    """A data set that is damaged or unavailable."""


class DownloadError(DataError):
    """A data set that cannot be downloaded. The message's first line is the reason."""


class CheckpointError(MlpDistError):
    """A checkpoint that is damaged or of another format."""


class TrainingError(MlpDistError):
    """A training that cannot continue."""


class ProcessLostError(TrainingError):
    """Another process of the training died. One survivor per machine, the `is_reporter`, prints it."""

    def __init__(self, lost: list[str], *, is_reporter: bool) -> None:
        super().__init__(f"{' and '.join(lost)} of this training died, so it cannot go on")
        self.is_reporter = is_reporter


class TrackingError(MlpDistError):
    """A run that MLflow lacks, or an MLflow store that cannot be used."""


class PromotionError(MlpDistError):
    """A run that does not qualify as champion."""


class PackagingError(MlpDistError):
    """A model archive that cannot be built or fails its check."""


class ServerError(MlpDistError):
    """A TorchServe that does not start, or an answer that is not a prediction."""


def unknown(kind: str, name: str, known: Iterable[str]) -> str:
    """The message for an unknown name, with the nearest known name and all known names."""
    known = list(known)
    return f"unknown {kind} {name!r}{did_you_mean(name, known)} (there are: {', '.join(known)})"


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message that suggests the nearest known name; "" if none is near."""
    by_case = {each.casefold(): each for each in known}
    nearest = difflib.get_close_matches(name.casefold(), by_case, n=1)
    return f"; did you mean {by_case[nearest[0]]}?" if nearest else ""
