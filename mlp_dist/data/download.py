"""Downloads by torchvision, with retries and in a bounded time."""

import contextlib
import math
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import wait
from pathlib import Path
from typing import Any

from mlp_dist.console import progress
from mlp_dist.console.process import in_thread
from mlp_dist.core.catalog import DatasetFacts
from mlp_dist.core.errors import DownloadError
from mlp_dist.core.io import replacing_file

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between one try and the next."""

STALL_SECONDS = 5.0
"""How long a download may bring nothing."""

RETRY_SECONDS = 20.0
"""How long a data set is tried; a download that brings data may take longer."""


def download(facts: DatasetFacts, data_dir: Path) -> None:
    """Download a data set into `data_dir`, in torchvision's layout.

    torchvision has the mirrors and checksums. Files appear in `data_dir` once all are complete.

    Raises DownloadError with the reason in one line.
    """
    end = time.monotonic() + RETRY_SECONDS
    for number, pause in enumerate((*PAUSES, math.inf), start=1):
        # Each try has a directory of its own, because one that was given up may still write.
        with tempfile.TemporaryDirectory(prefix="mlp_dist-", ignore_cleanup_errors=True) as directory:
            try:
                limit = min(STALL_SECONDS, max(0.0, end - time.monotonic()))
                _fetch(_source(facts, number - 1), facts.options, Path(directory), limit)
                return _move(Path(directory), data_dir)
            except DownloadError:
                raise
            # The errors of torchvision, urllib and http.client.
            except Exception as error:
                reason = " ".join(str(error).split()) or type(error).__name__
        if time.monotonic() + pause > end:
            break
        trying = f"try {number + 1} of {len(PAUSES) + 1} in {pause:g} s"
        progress.tell(f"cannot download {facts.title} ({reason}); {trying}", sys.stderr)
        time.sleep(pause)
    raise DownloadError(f"{reason}, tried {number} times")


def _source(facts: DatasetFacts, number: int) -> Any:
    """torchvision's class, whose mirrors, if it has some, are asked in another order at each try."""
    # Importing torchvision takes 1 to 2 seconds.
    from torchvision import datasets

    source = getattr(datasets, str(facts.source))
    mirrors = getattr(source, "mirrors", None) or [""]
    first = number % len(mirrors)
    return type(source.__name__, (source,), {"mirrors": mirrors[first:] + mirrors[:first]})


def _fetch(source: Any, options: Mapping[str, str], directory: Path, seconds: float) -> None:
    """Download into an empty directory; raises TimeoutError if nothing arrives for `seconds`."""

    def work() -> None:
        for train in (True, False):
            source(directory, train=train, download=True, **options)

    # torchvision sets no time limit, and a lookup of a host name cannot be stopped. It prints to stdout.
    with contextlib.redirect_stdout(sys.stderr):
        outcome, size, since = in_thread(work), -1, time.monotonic()
        while not wait([outcome], timeout=0.05).done:
            found = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
            if found > size:
                size, since = found, time.monotonic()
            elif time.monotonic() - since > seconds:
                raise TimeoutError(f"no answer for {seconds:.0f} seconds")
    outcome.result()


def _move(source: Path, target: Path) -> None:
    for path in sorted(path for path in source.rglob("*") if path.is_file()):
        place = target / path.relative_to(source)
        if place.exists():
            continue
        try:
            with replacing_file(place) as temporary:
                temporary.write_bytes(path.read_bytes())
        except OSError as error:
            raise DownloadError(
                f"cannot write {place} ({error.strerror or error}); make the directory writable or choose "
                "another one with --data-dir"
            ) from error
