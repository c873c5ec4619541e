"""TorchServe's own ports: of this machine's tests one has them alone, or all share them.

Tests whose servers take others where these are taken share them, for as long as such a server runs. A plain
`torchserve --start` does not take others, so it is started alone.
"""

import fcntl
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serve.ports import is_free

PORTS = (7070, 7071, 8080, 8081, 8082)
_SECONDS = 200.0


@contextmanager
def shared() -> Iterator[None]:
    with _locked(fcntl.LOCK_SH):
        yield


@contextmanager
def alone() -> Iterator[None]:
    """They are free at the beginning, and must be taken at the end."""
    with _locked(fcntl.LOCK_EX):
        _wait(free=True)
        yield
        _wait(free=False)


@contextmanager
def _locked(how: int) -> Iterator[None]:
    with (Path(tempfile.gettempdir()) / f"mlp-test-ports-{os.getuid()}").open("a") as file:
        fcntl.flock(file, how)
        yield


def _wait(*, free: bool) -> None:
    deadline = time.monotonic() + _SECONDS
    while any(is_free(port) != free for port in PORTS):
        assert time.monotonic() < deadline, f"one of the ports {PORTS} is {'taken' if free else 'free'}"
        time.sleep(0.2)
