"""A TorchServe of one's own for as long as it is needed: free ports, its own directory, ended for certain."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from mlp_dist.core.errors import ServerError
from mlp_dist.core.spec import EXACT
from serve.client import Client
from serve.java import java_home
from serve.keys import KEY_FILE

CONFIG = Path(__file__).with_name("config.properties")

STOP_SECONDS = 20.0

WORKER_LINE = "MODEL_LOG - "
LOAD_FAILED = "Load model failed"


@contextmanager
def running(mar: Path, golden: bytes, *, seconds: float = 120.0) -> Iterator[Client]:
    """Serve `mar` on free loopback ports; yields a client once the image `golden` is really answered.

    Raises ServerError with the end of the server's log where that does not come to pass. On leaving, the
    server and its workers have ended.
    """
    with tempfile.TemporaryDirectory(prefix="mlp-") as name:
        directory = Path(name)
        (port, management), log = _configure(directory, mar), directory / "torchserve.log"
        client = Client(
            f"http://127.0.0.1:{port}",
            _model_name(mar),
            directory / KEY_FILE,
            f"http://127.0.0.1:{management}",
        )
        with log.open("wb") as output:
            process = _start(directory, mar, output.fileno())
        try:

            def check() -> None:
                if process.poll() is not None:
                    raise ServerError(f"it ended with code {process.returncode}")
                # TorchServe itself would start such a worker again for minutes, and call itself healthy.
                if LOAD_FAILED in log.read_text(errors="replace"):
                    raise ServerError("its worker died while it loaded the model")

            try:
                client.wait_and_predict(golden, seconds=seconds, preprocess=EXACT, check=check)
            except ServerError as error:
                raise ServerError(f"TorchServe did not come up: {error}\n{_tail(log)}") from error
            yield client
        finally:
            _stop(process)


def _model_name(mar: Path) -> str:
    """The name that TorchServe serves the archive under, whatever the file is called."""
    with zipfile.ZipFile(mar) as archive:
        name: str = json.loads(archive.read("MAR-INF/MANIFEST.json"))["model"]["modelName"]
        return name


def _configure(directory: Path, mar: Path) -> tuple[int, int]:
    """Write the project's settings with free ports into `directory`; returns those to ask and manage it."""
    ports = _free_ports(6)
    changed = {
        "model_store": str(mar.resolve().parent),
        "inference_address": f"http://127.0.0.1:{ports[0]}",
        "management_address": f"http://127.0.0.1:{ports[1]}",
        "metrics_address": f"http://127.0.0.1:{ports[2]}",
        "grpc_inference_port": ports[3],
        "grpc_management_port": ports[4],
        "initial_worker_port": ports[5],
    }
    kept = [line for line in CONFIG.read_text().splitlines() if line.partition("=")[0] not in changed]
    lines = kept + [f"{name}={value}" for name, value in changed.items()]
    (directory / CONFIG.name).write_text("\n".join(lines) + "\n")
    return ports[0], ports[1]


def _free_ports(number: int) -> list[int]:
    with ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(number)]
        for each in sockets:
            each.bind(("127.0.0.1", 0))
        return [each.getsockname()[1] for each in sockets]


def _start(directory: Path, mar: Path, log: int) -> subprocess.Popen[bytes]:
    temporary = directory / "tmp"
    temporary.mkdir()
    # TorchServe allows one server a temporary directory; its own lets it run beside others.
    places = {"TMPDIR": str(temporary), "TEMP": str(temporary), "TS_CONFIG_FILE": CONFIG.name}
    home = java_home()
    environment = {**os.environ, **places, **({"JAVA_HOME": home} if home else {})}
    # A checkout on PYTHONPATH would be used in place of what the archive brings.
    environment.pop("PYTHONPATH", None)
    torchserve = shutil.which(
        "torchserve", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if torchserve is None:
        raise ServerError("torchserve is not installed in this environment: make setup")
    command = [torchserve, "--start", "--foreground", "--models", mar.name]
    return subprocess.Popen(
        command,
        cwd=directory,
        env=environment,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def _stop(process: subprocess.Popen[bytes]) -> None:
    """End the server's whole process group: launcher, Java and workers."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_SECONDS
        try:
            os.killpg(process.pid, signum)
            while time.monotonic() < deadline:
                process.poll()
                os.killpg(process.pid, 0)
                time.sleep(0.05)
        except ProcessLookupError:
            return


def _tail(log: Path, lines: int = 25) -> str:
    """The last lines that the worker wrote, where it came so far; else the server's own."""
    everything = log.read_text(errors="replace").splitlines()
    worker = [line.partition(WORKER_LINE)[2] for line in everything if WORKER_LINE in line]
    return "\n".join((worker or everything)[-lines:])
