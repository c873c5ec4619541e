"""Atomic replacement of files and directories, and locks between processes."""

import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_TEMPORARY = re.compile(r"\.(.+)\.\d+(?:-[0-9a-f]{8})?\.(tmp|old)")
"""Names of temporary files: the target's name and the kind."""


@contextmanager
def replacing_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; on success sync it and rename it to `path`, else remove it.

    A crash at any moment leaves the old file or the new one.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replacing_directory(path: Path) -> Iterator[Path]:
    """Yield a new directory beside `path`; on success sync it and replace `path` by it, else remove it.

    The old directory is moved aside first, because only an empty one can be replaced by renaming. After a
    crash in between, `remove_left` moves it back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    aside = temporary.with_suffix(".old")
    temporary.mkdir()
    try:
        yield temporary
        for file in temporary.iterdir():
            _sync(file)
        _sync(temporary)
        if path.exists():
            path.replace(aside)
        try:
            temporary.replace(path)
        except BaseException:
            if aside.exists():
                aside.replace(path)
            raise
        _sync(path.parent)
        shutil.rmtree(aside, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _temporary(path: Path) -> Path:
    # Processes in two containers may have the same ID.
    return path.with_name(f".{path.name}.{os.getpid()}-{secrets.token_hex(4)}.tmp")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock file `path`, after waiting for other threads and processes; remove it afterwards.

    The lock ends with the process. Raises OSError if `path` is a symbolic link.
    """
    # Not at the top: the model archive contains this module, and a serving environment may lack filelock.
    from filelock import FileLock

    with FileLock(path, mode=0o600):
        try:
            yield
        finally:
            # Waiters check that the file they locked still exists, and otherwise create it again.
            path.unlink(missing_ok=True)


def try_to_lock(directory: Path) -> int | None:
    """Lock `directory` without a lock file; None if it is locked already.

    Returns a descriptor, which holds the lock until it and all inherited copies are closed.
    """
    from filelock import lock_descriptor

    descriptor = os.open(directory, os.O_RDONLY)
    if lock_descriptor(descriptor, blocking=False):
        return descriptor
    os.close(descriptor)
    return None


def remove_left(directory: Path) -> None:
    """Remove temporary files of killed writers from a directory without writers.

    A directory that was moved aside but not replaced is moved back.
    """
    for left in list(directory.glob(".*")):
        if not (found := _TEMPORARY.fullmatch(left.name)):
            continue
        name, kind = found.groups()
        if kind == "old" and not (directory / name).exists():
            left.replace(directory / name)
        elif left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
