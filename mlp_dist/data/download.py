"""Fetching a data set's files: nothing half-done is left behind, and a missing network is noticed soon."""

import hashlib
import queue
import threading
import urllib.error
import urllib.request
from collections.abc import Sequence
from http.client import HTTPException, HTTPResponse
from pathlib import Path

from tqdm import tqdm

from mlp_dist.core.errors import DownloadError
from mlp_dist.core.files import replacing_file

FIRST_ANSWER_SECONDS = 10.0
"""How long any mirror may take to answer at all: longer means that there is no network."""

STALL_SECONDS = 10.0
"""How long a download may bring nothing before it is given up."""

_CHUNK = 1 << 16


def download(files: dict[str, str], mirrors: Sequence[str], directory: Path) -> None:
    """Bring `files` (name -> md5) into `directory` from the first mirror that answers.

    Each is written under a temporary name and renamed once its md5 is right. Raises DownloadError.
    """
    mirror = _first_to_answer(mirrors, next(iter(files)))
    for name, md5 in files.items():
        _download_file(f"{mirror}{name}", md5, directory / name)


def _first_to_answer(mirrors: Sequence[str], name: str) -> str:
    # Threads, since looking up a host name cannot be given a time limit; daemons, so that one which
    # hangs there does not keep the process.
    answers: queue.Queue[tuple[str, Exception | None]] = queue.Queue()

    def ask(mirror: str) -> None:
        try:
            with _open(f"{mirror}{name}", FIRST_ANSWER_SECONDS):
                answers.put((mirror, None))
        except (OSError, HTTPException) as error:
            answers.put((mirror, error))

    for mirror in mirrors:
        threading.Thread(target=ask, args=(mirror,), daemon=True).start()
    reason = f"no answer within {FIRST_ANSWER_SECONDS:.0f} seconds"
    try:
        for _ in mirrors:
            mirror, error = answers.get(timeout=FIRST_ANSWER_SECONDS)
            if error is None:
                return mirror
            reason = str(getattr(error, "reason", error))
    except queue.Empty:
        pass
    raise DownloadError(f"cannot download {name} ({reason})")


def _download_file(url: str, md5: str, path: Path) -> None:
    digest = hashlib.md5(usedforsecurity=False)
    try:
        with (
            replacing_file(path) as temporary,
            temporary.open("wb") as file,
            _open(url, STALL_SECONDS) as answer,
        ):
            with tqdm(
                total=answer.length, desc=path.name, unit="B", unit_scale=True, disable=None, leave=False
            ) as bar:
                while chunk := answer.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    bar.update(len(chunk))
            if digest.hexdigest() != md5:
                raise DownloadError(
                    f"{url} has md5 {digest.hexdigest()}, expected {md5}: the download is damaged"
                )
    except (OSError, HTTPException) as error:
        raise DownloadError(f"cannot download {path.name} ({error})") from error


def _open(url: str, timeout: float) -> HTTPResponse:
    request = urllib.request.Request(url, headers={"User-Agent": "mlp_dist"})
    try:
        answer: HTTPResponse = urllib.request.urlopen(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        error.close()
        raise
    return answer
