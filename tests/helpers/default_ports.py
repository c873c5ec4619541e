"""TorchServe's default ports, which tests in several processes share.

Most tests use other ports if these are taken, so they share the lock while their server runs. A plain
`torchserve --start` fails if they are taken, so its test holds the lock alone.
"""

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from filelock import ReadWriteLock

from serve.torchserve.ports import is_free

PORTS = (7070, 7071, 8080, 8081, 8082)
_SECONDS = 200.0


def shared() -> AbstractContextManager[None]:
    return _lock().read_lock()


@contextmanager
def alone() -> Iterator[None]:
    """All ports are free at the start, and must be taken at the end."""
    with _lock().write_lock():
        _wait(free=True)
        yield
        _wait(free=False)


def _lock() -> ReadWriteLock:
    return ReadWriteLock(Path(tempfile.gettempdir()) / f"mlp-test-ports-{os.getuid()}.lock")


def _wait(*, free: bool) -> None:
    deadline = time.monotonic() + _SECONDS
    while any(is_free(port) != free for port in PORTS):
        assert time.monotonic() < deadline, f"one of the ports {PORTS} is {'taken' if free else 'free'}"
        time.sleep(0.2)
