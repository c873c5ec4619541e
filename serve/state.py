"""What is known of a server that serve.server started: one directory, found again from another shell."""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Self

import psutil

from mlp_dist.core.errors import ServerError
from mlp_dist.core.io import replacing_file, try_to_lock
from serve.keys import KEY_FILE, STATE

FILE = "state.json"
LOG = "torchserve.log"
STORE = "model_store"

_JAVA = "org.pytorch.serve.ModelServer"


@dataclass(frozen=True)
class State:
    """A server: its processes are those of session `session` that were given `temporary` for their files.

    `directory` holds all that is the server's own. `started` is in seconds since 1970.
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
        """None where no server was started there, or it was stopped. Raises ServerError."""
        path = directory / FILE
        try:
            return cls(directory=directory, **json.loads(path.read_text()))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise ServerError(f"{path} cannot be read ({error}); remove it: rm -r {directory}") from error

    def save(self) -> None:
        values: dict[str, Any] = {name: value for name, value in asdict(self).items() if name != "directory"}
        with replacing_file(self.directory / FILE) as temporary:
            temporary.write_text(json.dumps(values, indent=1) + "\n")

    def forget(self) -> None:
        """As if it had never been started; the log stays."""
        for name in (FILE, KEY_FILE):
            (self.directory / name).unlink(missing_ok=True)

    @property
    def log(self) -> Path:
        return self.directory / LOG

    @property
    def key_file(self) -> Path:
        return self.directory / KEY_FILE

    def processes(self) -> list[psutil.Process]:
        """Launcher, Java and workers, as far as they run.

        After a crash or a restart of the machine others may have their numbers, but not what they were given.
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

    def runs(self) -> bool:
        """Whether TorchServe is there, and not only a worker that outlived it."""
        for process in self.processes():
            with suppress(psutil.Error):
                if process.pid == self.session or _JAVA in process.cmdline():
                    return True
        return False


def find_state() -> State | None:
    """That of the current directory, else of the project's root. Raises ServerError."""
    for place in (Path.cwd(), Path(__file__).resolve().parents[1]):
        found = State.load(place / STATE)
        if found is not None:
            return found
    return None


@contextmanager
def alone(directory: Path) -> Iterator[None]:
    """No other command changes the server meanwhile. Raises ServerError where one does."""
    directory.mkdir(mode=0o700, exist_ok=True)
    lock = try_to_lock(directory)
    if lock is None:
        raise ServerError(f"another start, stop or deploy is at work in {directory}; wait until it is done")
    try:
        yield
    finally:
        os.close(lock)
