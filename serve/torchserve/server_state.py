"""The record of a server started by `serve.server`, kept in one directory."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Self

import psutil

from mlp_dist.core.errors import ServerError
from mlp_dist.core.io import replacing_file, try_to_lock

ROOT = Path(__file__).resolve().parents[2]
"""The project's root, where commands look after the current directory."""

KEY_FILE = "key_file.json"
"""TorchServe writes it to the directory it is started in."""

STATE = ".serve"
"""The directory of the server, in the directory where the server was started."""

FILE = "state.json"
LOG = "torchserve.log"
STORE = "model_store"

_JAVA_CLASS = "org.pytorch.serve.ModelServer"


@dataclass(frozen=True)
class ServerState:
    """A server: the processes of `session` that have `temporary` as their TEMP.

    `directory` holds all of its files. `started` is in seconds since the epoch.
    """

    directory: Path
    session: int
    temporary: str
    model: str
    url: str
    management_url: str
    metrics_url: str
    deployable: bool
    started: float

    @classmethod
    def load(cls, directory: Path) -> Self | None:
        """None if no server was started there or it was stopped. Raises ServerError."""
        path = directory / FILE
        try:
            return cls(directory=directory, **json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise ServerError(f"cannot read {path} ({error}); remove it: rm -r {directory}") from error

    def save(self) -> None:
        values = asdict(self)
        del values["directory"]
        with replacing_file(self.directory / FILE) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n")

    def clear(self) -> None:
        """Remove the record and the keys. The log stays."""
        for name in (FILE, KEY_FILE):
            (self.directory / name).unlink(missing_ok=True)

    @property
    def log(self) -> Path:
        return self.directory / LOG

    @property
    def key_file(self) -> Path:
        return self.directory / KEY_FILE

    def processes(self) -> list[psutil.Process]:
        """The running processes: launcher, Java and workers.

        TEMP tells them from processes that got the same session number after a crash or reboot.
        """
        found = []
        for pid in psutil.pids():
            try:
                if os.getsid(pid) == self.session:
                    process = psutil.Process(pid)
                    if process.environ().get("TEMP") == self.temporary:
                        found.append(process)
            except (OSError, psutil.Error):
                continue
        return found

    def is_running(self) -> bool:
        """True if TorchServe runs. A worker that outlived it does not count."""
        for process in self.processes():
            with suppress(psutil.Error):
                if process.pid == self.session or _JAVA_CLASS in process.cmdline():
                    return True
        return False


def find_state() -> ServerState | None:
    """The server of the current directory, else of the project's root. Raises ServerError."""
    for place in (Path.cwd(), ROOT):
        found = ServerState.load(place / STATE)
        if found is not None:
            return found
    return None


@contextmanager
def exclusive(directory: Path) -> Iterator[None]:
    """Hold the directory's lock. Raises ServerError if another command holds it."""
    directory.mkdir(mode=0o700, exist_ok=True)
    lock = try_to_lock(directory)
    if lock is None:
        raise ServerError(f"another start, stop or deploy is running in {directory}; wait for it")
    try:
        yield
    finally:
        os.close(lock)
