"""The servers of benchmarks/serving.py, each with its own processes, which have ended when it is left."""

import http.client
import importlib.metadata
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from benchmarks.serving_archives import Packaged
from benchmarks.serving_results import FASTAPI, LITSERVE, STOCK
from mlp_dist.core.errors import ServerError
from serve.server import running

_ROOT = Path(__file__).resolve().parents[1]
PATH = "/predictions/mlp"
NEEDS = {
    STOCK: ("captum", "torchvision"),
    FASTAPI: ("fastapi", "uvicorn", "httptools", "uvloop"),
    LITSERVE: ("litserve",),
}
"""The packages of each contestant that may not be there."""

_OWN_HEADERS = {"x-request-id", "pragma", "cache-control", "expires", "content-length", "connection"}
"""Those that TorchServe adds to each answer by itself."""


@dataclass(frozen=True)
class Served:
    """A server that answers; `process` is the parent of all of its."""

    port: int
    process: psutil.Process
    headers: dict[str, str] = field(default_factory=dict)

    def request(self, image: bytes) -> bytes:
        """The whole HTTP request that asks for one image."""
        fields = {
            "Host": "127.0.0.1",
            "Content-Type": "application/octet-stream",
            "Content-Length": str(len(image)),
        }
        head = "".join(f"{name}: {value}\r\n" for name, value in (fields | self.headers).items())
        return f"POST {PATH} HTTP/1.1\r\n{head}\r\n".encode() + image

    def ask(self, image: bytes) -> tuple[bytes, dict[str, str]]:
        """The body of an answer, and the headers that the handler gave it. Raises ServerError, OSError."""
        with closing(http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)) as connection:
            headers = {"Content-Type": "application/octet-stream", **self.headers}
            connection.request("POST", PATH, image, headers)
            answer = connection.getresponse()
            body = answer.read()
        if answer.status != 200:
            raise ServerError(f"answered with {answer.status}: {body[:500]!r}")
        given = {name: value for name, value in answer.getheaders() if name.lower() not in _OWN_HEADERS}
        return body, given

    def processes(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def cpu(self) -> float:
        """Seconds that all its processes have used."""
        return sum(times.user + times.system for times in (each.cpu_times() for each in self.processes()))

    def memory(self) -> tuple[float, float]:
        """(proportional set size of all its processes, resident one of that which holds the model), MiB."""
        processes = self.processes()
        holders = [each for each in processes if each.name() != "java"]
        worker = max(each.memory_info().rss for each in holders)
        return sum(each.memory_full_info().pss for each in processes) / 2**20, worker / 2**20


@contextmanager
def torchserve(mar: Path, golden: bytes) -> Iterator[Served]:
    before = set(psutil.Process().children())
    with running(mar, golden) as client:
        (process,) = set(psutil.Process().children()) - before
        assert client.key_file is not None
        key = json.loads(client.key_file.read_text())["inference"]["key"]
        port = int(client.url.rpartition(":")[2])
        yield Served(port, process, {"Authorization": f"Bearer {key}"})


@contextmanager
def rival(name: str, packaged: Packaged, golden: bytes) -> Iterator[Served]:
    """FastAPI or LitServe from benchmarks/rivals. Raises ServerError where it does not answer."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    words = [sys.executable, "-m", f"benchmarks.rivals.on_{name}", str(port), str(packaged.bundle)]
    with subprocess.Popen(
        words, cwd=_ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, start_new_session=True
    ) as process:
        try:
            served = Served(port, psutil.Process(process.pid))
            _wait(served, golden, lambda: process.poll() is not None)
            yield served
        finally:
            os.killpg(process.pid, signal.SIGKILL)


def _wait(served: Served, golden: bytes, ended: Callable[[], bool], *, seconds: float = 60.0) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            served.ask(golden)
            return
        except (OSError, http.client.HTTPException, ServerError) as error:
            if ended() or time.monotonic() > deadline:
                raise ServerError(f"a rival on port {served.port} does not answer: {error}") from error
        time.sleep(0.1)


def missing(name: str) -> list[str]:
    """The packages that a contestant needs and that are not installed."""
    return [package for package in NEEDS.get(name, ()) if importlib.util.find_spec(package) is None]


def versions() -> dict[str, str]:
    names = ("torch", "torchserve", "torchvision", "pillow", "fastapi", "uvicorn", "litserve")
    installed = {each.name.lower() for each in importlib.metadata.distributions()}
    return {name: importlib.metadata.version(name) for name in names if name in installed}
