"""Decoded folders of images, kept from one start to the next under $XDG_CACHE_HOME or ~/.cache.

One file per folder and image size, valid as long as the names, sizes and times of the folder's files stay the
same.
"""

import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import PIL

from mlp_dist.console import progress
from mlp_dist.core.io import replacing_file

DECODING_VERSION = 2
"""Raise it with every change of the pixels that a file is decoded to, or of the cache file's layout."""


@dataclass(frozen=True)
class DecodedFiles:
    """`images`, uint8 (N, C, H, W), has a row for each file; the row of an unreadable file is arbitrary.

    `errors` has the index of each unreadable file and the reason.
    """

    images: np.ndarray
    errors: dict[int, str]
    cacheable: bool = True


def folder_key(image_size: int, files: Iterable[tuple[str, os.stat_result | None]]) -> str:
    """A digest of all that decides how `files` (path in the folder, status) decode.

    It includes the time of the last change of any kind (ctime), which cannot be set back as mtime can.
    """
    digest = hashlib.sha256(f"{DECODING_VERSION} {PIL.__version__} {image_size}\n".encode())
    for path, status in files:
        facts = status and (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(f"{json.dumps(path)} {facts}\n".encode())
    return digest.hexdigest()


def cached(directory: Path, image_size: int, key: str, decode: Callable[[], DecodedFiles]) -> DecodedFiles:
    """The cached result of `decode` for `directory` (absolute), or a new one, which is then cached.

    A damaged cache file is replaced. If none can be written, a line on stderr says so.
    """
    name = hashlib.sha256(f"{directory} {image_size}".encode(errors="surrogateescape")).hexdigest()[:32]
    try:
        path = _cache_directory() / f"{name}.npz"
        with path.open("rb") as entry, np.load(entry, allow_pickle=False) as kept:
            facts = json.loads(kept["facts"].tobytes())
            if facts["key"] == key:
                errors = {int(index): str(reason) for index, reason in facts["errors"].items()}
                return DecodedFiles(kept["images"], errors)
    # A damaged file makes zipfile, numpy and json raise errors of many kinds.
    except Exception:
        pass
    decoded = decode()
    if decoded.cacheable:
        facts = json.dumps({"key": key, "errors": decoded.errors}).encode()
        try:
            with (
                replacing_file(_cache_directory() / f"{name}.npz") as temporary,
                temporary.open("wb") as file,
            ):
                np.savez(file, images=decoded.images, facts=np.frombuffer(facts, np.uint8))
        except (OSError, RuntimeError) as error:
            progress.tell(f"cannot cache the decoded images of {directory} ({error})", sys.stderr)
    return decoded


def _cache_directory() -> Path:
    """Raises RuntimeError if there is no home directory."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "mlp_dist" / "folders"
