"""Decoded folders of images, kept from one start to the next under $XDG_CACHE_HOME or ~/.cache.

One file for each folder and image size; it counts only while its fingerprint is that of the folder.
"""

import fcntl
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
import PIL
import torch

from mlp_dist.console import progress
from mlp_dist.core.io import replacing_file
from mlp_dist.data.image_set import ImageSet

DECODING_VERSION = 1
"""To be raised with every change of the pixels that a file is decoded to, or of an entry's layout."""


@dataclass(frozen=True)
class DecodedFolder:
    """A folder's images before they are split or normalized; `test` is None where it has no test part.

    `bad` is why each file that is not an image could not be read, by its path in the folder. What is not
    `lasting` may be otherwise at the next start though no file has changed, as after a network disk's error.
    """

    train: ImageSet
    test: ImageSet | None
    bad: dict[str, str]
    lasting: bool = True


def folder_fingerprint(classes: Iterable[str], files: Iterable[tuple[str, os.stat_result | None]]) -> str:
    """sha256, in hexadecimal, over all that decides how a folder's `files` (path in it, status) decode.

    The time of a file's last change of any kind (ctime) is in it: it cannot be set back, as mtime can.
    """
    digest = hashlib.sha256(f"{DECODING_VERSION} {PIL.__version__} {json.dumps(list(classes))}\n".encode())
    for path, status in files:
        numbers = status and (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
        digest.update(f"{json.dumps(path)} {numbers}\n".encode())
    return digest.hexdigest()


def cached(
    directory: Path, image_size: int, fingerprint: str, decode: Callable[[], DecodedFolder]
) -> DecodedFolder:
    """The entry of `directory` (absolute) at `image_size`, or what `decode` returns, which becomes the entry.

    Of several processes that want it at once one decodes, and the others wait for it. An entry that cannot
    be written costs a line on stderr, one that is damaged nothing.
    """
    try:
        entry = _entry(directory, image_size)
        entry.parent.mkdir(parents=True, exist_ok=True)
    except (OSError, RuntimeError) as error:
        _tell(directory, error)
        return decode()
    found = _read(entry, image_size, fingerprint)
    if found is None:
        with _locked(entry.with_suffix(".lock")):
            found = _read(entry, image_size, fingerprint)
            if found is None:
                found = decode()
                if found.lasting:
                    _keep(entry, directory, fingerprint, found)
    return found


def cache_root() -> Path:
    """Where everything that is kept from one start to the next is. Raises RuntimeError without a home."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))
    return (home if home.is_absolute() else Path.home() / ".cache") / "mlp_dist"


def _entry(directory: Path, image_size: int) -> Path:
    name = hashlib.sha256(f"{json.dumps(str(directory))} {image_size}".encode()).hexdigest()[:32]
    return cache_root() / "folders" / f"{name}.npz"


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold a lock that ends with the process; where there can be none, go on without."""
    file: IO[bytes] | None = None
    try:
        with suppress(OSError):
            file = path.open("wb")
            fcntl.flock(file, fcntl.LOCK_EX)
        yield
    finally:
        if file is not None:
            with suppress(OSError):
                path.unlink()
            file.close()


def _tell(directory: Path, error: Exception) -> None:
    reason = " ".join(str(error).split())
    progress.tell(
        f"the next start decodes {directory} again: its images cannot be kept ({reason})", sys.stderr
    )


# Entries


def _read(entry: Path, image_size: int, fingerprint: str) -> DecodedFolder | None:
    """None for anything but a whole entry with that fingerprint."""
    try:
        with entry.open("rb") as file:
            arrays = np.load(file, allow_pickle=False)
            facts = _facts(arrays)
            if facts["fingerprint"] != fingerprint:
                return None
            train, test = (_image_set(arrays, part, image_size) for part in ("train", "test"))
        if train is None:
            return None
        return DecodedFolder(train, test, {str(path): str(reason) for path, reason in facts["bad"].items()})
    # Whatever a damaged or foreign file makes zipfile, numpy or json raise, the answer is to write it anew.
    except Exception:
        return None


def _facts(arrays: Any) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(arrays["facts"].tobytes())
    return facts


def _image_set(arrays: Any, part: str, image_size: int) -> ImageSet | None:
    if f"{part}_images" not in arrays:
        return None
    images, labels = (torch.from_numpy(arrays[f"{part}_{what}"]) for what in ("images", "labels"))
    expected = (len(labels), images.shape[1], image_size, image_size)
    if images.dtype != torch.uint8 or labels.dtype != torch.int64 or images.shape != expected:
        raise ValueError(f"{images.dtype} {tuple(images.shape)} are not the images of {len(labels)} labels")
    return ImageSet(images, labels)


def _keep(entry: Path, directory: Path, fingerprint: str, decoded: DecodedFolder) -> None:
    facts = {"directory": str(directory), "fingerprint": fingerprint, "bad": decoded.bad}
    arrays: dict[str, Any] = {"facts": np.frombuffer(json.dumps(facts).encode(), np.uint8)}
    for part, images in (("train", decoded.train), ("test", decoded.test)):
        if images is not None:
            arrays[f"{part}_images"] = images.images.numpy()
            arrays[f"{part}_labels"] = images.labels.numpy()
    try:
        _clear(entry.parent)
        with replacing_file(entry) as temporary, temporary.open("wb") as file:
            np.savez(file, **arrays)
    except OSError as error:
        _tell(directory, error)


def _clear(directory: Path) -> None:
    """Remove the entries of folders that are gone."""
    for path in directory.glob("*.npz"):
        with suppress(Exception), path.open("rb") as file:
            if not Path(_facts(np.load(file, allow_pickle=False))["directory"]).exists():
                path.unlink()
