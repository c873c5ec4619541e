"""Downloading a data set's files by torchvision, with retries and in a bounded time."""

import queue
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError, URLError

from mlp_dist.console import progress
from mlp_dist.core.errors import DownloadError
from mlp_dist.core.io import replacing_file

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between one try and the next."""

STALL_SECONDS = 5.0
"""How long one request may bring nothing."""

SILENCE_SECONDS = 20.0
"""How long all tries together may bring nothing."""


class _TryError(Exception):
    """A request that failed; `received` tells whether any bytes arrived."""

    def __init__(self, reason: str, *, received: bool) -> None:
        super().__init__(reason)
        self.received = received


def download(source: str, names: Sequence[str], directory: Path) -> None:
    """Download the files `names` of `source`, a class in torchvision.datasets, into `directory`.

    torchvision has the mirrors and checksums. A file appears in `directory` once it is complete and its
    checksum is right.

    Raises DownloadError with the reason in one line.
    """
    # Importing torchvision takes 1 to 2 seconds.
    from torchvision import datasets

    dataset = getattr(datasets, source)
    checksums = dict(dataset.resources)
    for name in names:
        with tempfile.TemporaryDirectory(prefix="mlp_dist-") as temporary:
            arrived = _download(name, checksums[name], dataset.mirrors, Path(temporary))
            try:
                with replacing_file(directory / name) as path:
                    shutil.copyfile(arrived, path)
            except OSError as error:
                raise DownloadError(
                    f"cannot write {directory / name} ({error.strerror or error}); "
                    "make the directory writable or choose another one with --data-dir"
                ) from error


def _download(name: str, md5: str, mirrors: Sequence[str], directory: Path) -> Path:
    """Try all mirrors in turn, five times, until SILENCE_SECONDS pass without a byte."""
    end = time.monotonic() + SILENCE_SECONDS
    for number, pause in enumerate((*PAUSES, None), start=1):
        for mirror in mirrors:
            # Each request has its own file: one that was given up may still write to its own.
            path = directory / f"{time.monotonic_ns()}.gz"
            try:
                _fetch(f"{mirror}{name}", md5, path, min(STALL_SECONDS, end - time.monotonic()))
                return path
            except _TryError as error:
                reason = str(error)
                if error.received:
                    end = time.monotonic() + SILENCE_SECONDS
            if time.monotonic() > end:
                break
        if pause is None or time.monotonic() + pause > end:
            break
        progress.tell(
            f"cannot download {name} ({reason}); try {number + 1} of {len(PAUSES) + 1} in {pause:g} s",
            sys.stderr,
        )
        time.sleep(pause)
    raise DownloadError(f"{name}: {reason}, tried {number} times")


def _fetch(url: str, md5: str, path: Path, seconds: float) -> None:
    """Download `url`, or raise _TryError if it fails or nothing arrives for `seconds`."""
    from torchvision.datasets.utils import download_url

    outcome: queue.SimpleQueue[Exception | None] = queue.SimpleQueue()

    def work() -> None:
        try:
            download_url(url, path.parent, path.name, md5)
        except (OSError, HTTPException, RuntimeError) as error:
            outcome.put(error)
        else:
            outcome.put(None)

    # torchvision sets no time limit, and a lookup of a host name cannot be stopped.
    threading.Thread(target=work, daemon=True).start()
    size, since = 0, time.monotonic()
    while True:
        try:
            error = outcome.get(timeout=0.05)
            break
        except queue.Empty:
            found = path.stat().st_size if path.exists() else 0
            if found > size:
                size, since = found, time.monotonic()
            elif time.monotonic() - since > seconds:
                raise _TryError(f"no answer for {max(seconds, 0):.0f} seconds", received=size > 0) from None
    if error is not None:
        raise _TryError(_reason(error), received=path.exists()) from error


def _reason(error: Exception) -> str:
    if isinstance(error, HTTPError):
        error.close()
    elif isinstance(error, URLError):
        return str(error.reason)
    return " ".join(str(error).split()) or type(error).__name__
