"""Downloading a data set's files by torchvision, with retries and in a bounded time."""

import math
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import Future, wait
from http.client import HTTPException
from pathlib import Path
from urllib.error import HTTPError

from mlp_dist.console import progress
from mlp_dist.core.errors import DownloadError
from mlp_dist.core.io import replacing_file

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between one try and the next."""

STALL_SECONDS = 5.0
"""How long one request may bring nothing."""

RETRY_SECONDS = 20.0
"""How long a file is tried; a request that brings data may take longer."""


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
    """Try all mirrors in turn, five times, within RETRY_SECONDS."""
    end = time.monotonic() + RETRY_SECONDS
    for number, pause in enumerate((*PAUSES, math.inf), start=1):
        for mirror in mirrors:
            # Each request has its own file, because one that was given up may still write.
            path = directory / f"{time.monotonic_ns()}.gz"
            try:
                _fetch(f"{mirror}{name}", md5, path, min(STALL_SECONDS, max(0.0, end - time.monotonic())))
                return path
            # The errors of torchvision, urllib and http.client.
            except (OSError, RuntimeError, HTTPException) as error:
                reason = " ".join(str(error).split()).removeprefix("<urlopen error ").removesuffix(">")
        if time.monotonic() + pause > end:
            break
        trying = f"try {number + 1} of {len(PAUSES) + 1} in {pause:g} s"
        progress.tell(f"cannot download {name} ({reason}); {trying}", sys.stderr)
        time.sleep(pause)
    raise DownloadError(f"{name}: {reason}, tried {number} times")


def _fetch(url: str, md5: str, path: Path, seconds: float) -> None:
    """Download `url`; raises TimeoutError if nothing arrives for `seconds`."""
    from torchvision.datasets.utils import download_url

    outcome: Future[None] = Future()

    def work() -> None:
        try:
            outcome.set_result(download_url(url, path.parent, path.name, md5))
        except Exception as error:
            if isinstance(error, HTTPError):
                error.close()
            outcome.set_exception(error)

    # torchvision sets no time limit, and a lookup of a host name cannot be stopped.
    threading.Thread(target=work, daemon=True).start()
    size, since = -1, time.monotonic()
    while not wait([outcome], timeout=0.05).done:
        found = path.stat().st_size if path.exists() else 0
        if found > size:
            size, since = found, time.monotonic()
        elif time.monotonic() - since > seconds:
            raise TimeoutError(f"no answer for {seconds:.0f} seconds")
    outcome.result()
