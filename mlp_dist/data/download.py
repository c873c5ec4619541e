"""Fetching a data set's files: several tries over the mirrors, in a bounded time, nothing half-done left."""

import hashlib
import queue
import sys
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from mlp_dist.console import progress
from mlp_dist.core.errors import DownloadError
from mlp_dist.core.io import replacing_file

PAUSES = (0.5, 1.0, 2.0, 4.0)
"""Seconds between one try and the next."""

TRIES = len(PAUSES) + 1

FIRST_ANSWER_SECONDS = 5.0
"""How long the mirrors may take until one answers at all: longer means that there is no network."""

STALL_SECONDS = 10.0
"""How long a download may bring nothing before it is given up."""

SLOWEST = 1000
"""Bytes a second: a download that after STALL_SECONDS brings fewer on average is given up."""

_CHUNK = 1 << 16


class _TryError(Exception):
    """A try that brought `name` from none of `mirrors`."""

    def __init__(self, name: str, reason: str, mirrors: Sequence[str]) -> None:
        super().__init__(f"cannot download {name} ({reason})")
        self.mirrors = mirrors


def download(files: dict[str, str], mirrors: Sequence[str], directory: Path) -> None:
    """Bring `files` (name -> md5) into `directory`, each from the mirror that answers first.

    Each is written under a temporary name and renamed once its md5 is right; what has arrived whole is kept
    from one try to the next, and a mirror that failed is left out of the next try where there are others.

    A try takes no longer than FIRST_ANSWER_SECONDS, and for each file 2 x STALL_SECONDS and the time that
    its bytes take at SLOWEST; where no mirror answers, all tries and pauses together take 33 seconds.

    Raises DownloadError, with the reason in its one line: after TRIES tries, or at once where `directory`
    cannot be written.
    """
    missing = dict(files)
    failed: Sequence[str] = ()
    for number, pause in enumerate((*PAUSES, None), start=2):
        try:
            _try(missing, [mirror for mirror in mirrors if mirror not in failed] or mirrors, directory)
            return
        except _TryError as error:
            if pause is None:
                raise DownloadError(f"{error}, tried {number - 1} times") from error
            progress.tell(f"{error}; try {number} of {TRIES} in {pause:g} s", sys.stderr)
            failed = error.mirrors
            time.sleep(pause)


def _try(missing: dict[str, str], mirrors: Sequence[str], directory: Path) -> None:
    """Download what is `missing` from the first of `mirrors` that answers, and take it out of `missing`."""
    seconds = FIRST_ANSWER_SECONDS
    for name, md5 in list(missing.items()):
        mirror, answer = _first_to_answer(mirrors, name, seconds)
        try:
            with answer:
                _save(answer, md5, directory / name)
        except _BrokenError as error:
            raise _TryError(name, str(error), [mirror]) from error
        except OSError as error:
            raise DownloadError(
                f"cannot write {directory / name} ({error.strerror or error}); make it possible to write "
                "there, or name another directory with --data-dir"
            ) from error
        del missing[name]
        mirrors, seconds = [mirror], STALL_SECONDS


# Asking


def _first_to_answer(mirrors: Sequence[str], name: str, seconds: float) -> tuple[str, HTTPResponse]:
    # Threads, since looking up a host name cannot be given a time limit; daemons, so that one which
    # hangs there does not keep the process.
    answers: queue.Queue[tuple[str, HTTPResponse | Exception]] = queue.Queue()
    taken = threading.Lock()

    def ask(mirror: str) -> None:
        try:
            answer = _open(f"{mirror}{name}", STALL_SECONDS)
        except (OSError, HTTPException) as error:
            answers.put((mirror, error))
            return
        if taken.acquire(blocking=False):
            answers.put((mirror, answer))
        else:
            answer.close()

    for mirror in mirrors:
        threading.Thread(target=ask, args=(mirror,), daemon=True).start()
    reason, end = "", time.monotonic() + seconds
    failed: list[str] = []
    while len(failed) < len(mirrors):
        try:
            mirror, answer = answers.get(timeout=max(0.0, end - time.monotonic()))
        except queue.Empty:
            if not taken.acquire(blocking=False):
                continue
            reason, failed = f"no answer within {seconds:.0f} seconds", list(mirrors)
            break
        if isinstance(answer, HTTPResponse):
            return mirror, answer
        reason = _reason(answer)
        failed.append(mirror)
    raise _TryError(name, reason, failed)


def _open(url: str, timeout: float) -> HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "mlp_dist"})
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise
    return answer


def _reason(error: Exception) -> str:
    """What `error` says, in one line."""
    said: object = error
    if isinstance(error, urllib.error.URLError) and not isinstance(error, urllib.error.HTTPError):
        said = error.reason
    return " ".join(str(said).split()) or type(error).__name__


# Saving


class _BrokenError(Exception):
    """An answer that is not the file: the network's or the mirror's fault, not the disk's."""


def _save(answer: HTTPResponse, md5: str, path: Path) -> None:
    """Raises _BrokenError; an OSError is one of writing."""
    digest = hashlib.md5(usedforsecurity=False)
    with (
        replacing_file(path) as temporary,
        temporary.open("wb") as file,
        progress.bar(path.name, answer.length, "B", unit_scale=True) as bar,
    ):
        for chunk in _chunks(answer):
            file.write(chunk)
            digest.update(chunk)
            bar.update(len(chunk))
        if digest.hexdigest() != md5:
            raise _BrokenError(
                f"{answer.url} has md5 {digest.hexdigest()}, expected {md5}: the download is damaged"
            )


def _chunks(answer: HTTPResponse) -> Iterator[bytes]:
    total, received, started = answer.length, 0, time.monotonic()
    while total is None or received < total:
        try:
            # Not `read`, which would wait for a whole chunk however slowly it comes.
            chunk = answer.read1(_CHUNK)
        except (OSError, HTTPException) as error:
            raise _BrokenError(_reason(error)) from error
        if not chunk:
            break
        yield chunk
        received += len(chunk)
        seconds = time.monotonic() - started
        if seconds > STALL_SECONDS and received < SLOWEST * seconds:
            raise _BrokenError(f"too slow: {received} bytes in {seconds:.0f} seconds")
    if total is not None and received < total:
        raise _BrokenError(f"the download broke off after {received} of {total} bytes")
