"""A real, empty PostgreSQL on this machine."""

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from tests.helpers.mlflow_servers import free_port

_START_SECONDS = 60

PASSWORD = "never-printed"
"""PostgreSQL accepts any."""


def find_programs() -> Path | None:
    """The directory of initdb and postgres, which Debian does not put on PATH."""
    found = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
    on_path = shutil.which("initdb")
    return found[-1].parent if found else Path(on_path).resolve().parent if on_path else None


@contextmanager
def running_postgres(programs: Path) -> Iterator[str]:
    """The URI of a new cluster's database on loopback; the server stops at the end."""
    # PostgreSQL refuses to run as root.
    user: dict[str, Any] = {}
    directory = Path(tempfile.mkdtemp(prefix="mlp_dist-postgres-"))
    if os.getuid() == 0:
        entry = pwd.getpwnam("postgres")
        user = {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        os.chown(directory, entry.pw_uid, entry.pw_gid)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, directory)
        yield _start(stack, programs, directory, user)


def _start(stack: ExitStack, programs: Path, directory: Path, user: dict[str, Any]) -> str:
    """Start the server until `stack` closes; returns its URI."""
    port, data, log = free_port(), directory / "data", directory / "log"
    words = [programs / "initdb", "--pgdata", data, "--username", "mlflow", "--auth", "trust", "--no-sync"]
    environment = {**os.environ, "LC_ALL": "C.UTF-8"}
    subprocess.run(
        words, cwd=directory, env=environment, check=True, capture_output=True, timeout=_START_SECONDS, **user
    )
    words = [programs / "postgres", "-D", data, "-h", "127.0.0.1", "-p", str(port), "-k", directory, "-F"]
    with log.open("w") as output:
        server = subprocess.Popen(
            words,
            cwd=directory,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            **user,
        )
    stack.callback(_stop, server)
    _wait(programs, port, server, log)
    return f"postgresql://mlflow:{PASSWORD}@127.0.0.1:{port}/postgres"


def _stop(server: "subprocess.Popen[bytes]") -> None:
    # SIGTERM would wait for clients to disconnect.
    server.send_signal(signal.SIGINT)
    try:
        server.wait(20)
    except subprocess.TimeoutExpired:
        # SIGKILL would leave its children behind.
        server.send_signal(signal.SIGQUIT)
        server.wait(20)


def _wait(programs: Path, port: int, server: "subprocess.Popen[bytes]", log: Path) -> None:
    asked = [programs / "pg_isready", "-h", "127.0.0.1", "-p", str(port)]
    deadline = time.monotonic() + _START_SECONDS
    while subprocess.run(asked, capture_output=True, timeout=10).returncode:
        assert server.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
