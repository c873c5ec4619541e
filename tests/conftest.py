import functools
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

# libgomp reads it when torch is imported.
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

import torch
from filelock import FileLock

from mlp_dist.console.process import num_cores
from mlp_dist.data import datasets
from mlp_dist.data.arrays import Dataset
from mlp_dist.data.datasets import read_dataset
from serve.archive import read_archive
from serve.client import Client
from serve.server import running
from tests.helpers import calling, default_ports
from tests.helpers.calling import Call
from tests.helpers.launching import QUICK, Trained, launch, make_store, result, run

ROOT = Path(__file__).resolve().parents[1]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; nightly ones come last and count as slow, as do those that need a whole training.

    `--dist loadgroup` gives a file to one worker, and all files whose tests ask `served` to the same one.
    """
    served = {item.path for item in items if "served" in getattr(item, "fixturenames", ())}
    for item in items:
        item.add_marker(pytest.mark.xdist_group("served" if item.path in served else item.path.stem))
        needs_training = "trained" in getattr(item, "fixturenames", ())
        if needs_training or item.get_closest_marker("nightly") is not None:
            item.add_marker(pytest.mark.slow)
    items.sort(key=lambda item: [item.get_closest_marker(name) is not None for name in ("nightly", "slow")])
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu") is not None:
                item.add_marker(pytest.mark.skip(reason="needs a CUDA GPU"))


def _find_mnist() -> Path | None:
    directory = Path(os.environ.get("MLP_DIST_DATA") or ROOT / "data").resolve()
    return directory if (directory / "MNIST/raw/t10k-images-idx3-ubyte.gz").exists() else None


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Decoded folders are not kept where the user's are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(scope="session")
def mnist_dir() -> Path:
    """A data directory with the real MNIST files in it; nothing may be written there."""
    directory = _find_mnist()
    if directory is None:
        pytest.skip("MNIST is not at hand: set MLP_DIST_DATA to the directory that holds MNIST/raw")
    return directory


@pytest.fixture(scope="session")
def image_data() -> Dataset:
    """The data set of `trained`."""
    return read_dataset("digits", ROOT)


class Mirror:
    """A web server on 127.0.0.1 with `files`; `requests` has the names it was asked for.

    `manner`: "good"; "500" (an error); "half" (sends half of the file); "stalled" (hangs half way); "silent"
    (accepts the connection and never answers).
    After `num_bad` requests it is "good".
    """

    def __init__(self, files: dict[str, bytes], manner: str = "good", num_bad: int | None = None) -> None:
        self.files, self.manner, self.num_bad = files, manner, num_bad
        self.requests: list[str] = []
        self.closing = threading.Event()
        self.url = ""

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        name = request.path.removeprefix("/")
        is_good = self.num_bad is not None and len(self.requests) >= self.num_bad
        manner = "good" if is_good else self.manner
        self.requests.append(name)
        if manner == "silent":
            self.closing.wait()
            return
        if manner == "500" or name not in self.files:
            request.send_error(500 if manner == "500" else 404)
            return
        data = self.files[name]
        request.send_response(200)
        request.send_header("Content-Length", str(len(data)))
        request.end_headers()
        request.wfile.write(data[: len(data) // 2] if manner in ("half", "stalled") else data)
        request.wfile.flush()
        if manner == "stalled":
            self.closing.wait()


@contextmanager
def _serving(mirror: Mirror) -> Iterator[None]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            # The client may hang up at any time.
            with suppress(ConnectionError):
                mirror.answer(self)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        mirror.url = f"http://127.0.0.1:{server.server_port}/"
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield
        finally:
            mirror.closing.set()
            server.shutdown()
            thread.join()


@pytest.fixture(scope="module")
def shared_ports() -> Iterator[None]:
    """For servers that take TorchServe's default ports where these are free."""
    with default_ports.shared():
        yield


@pytest.fixture
def serve_files() -> Iterator[Callable[..., Mirror]]:
    """A function (files, manner, num_bad) -> a Mirror that is open until the test ends."""
    with ExitStack() as servers:

        def start(files: dict[str, bytes], manner: str = "good", num_bad: int | None = None) -> Mirror:
            mirror = Mirror(files, manner, num_bad)
            servers.enter_context(_serving(mirror))
            return mirror

        yield start


Once = Callable[[str, Callable[[Path], Any]], tuple[Path, Any]]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """A function (name, make) -> a new directory and `make(directory)`, made by one worker for all."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def made(name: str, make: Callable[[Path], Any]) -> tuple[Path, Any]:
        directory, value = root / name, root / f"{name}.json"
        with FileLock(root / f"{name}.lock"):
            if not value.exists():
                directory.mkdir(exist_ok=True)
                value.write_text(json.dumps(make(directory)))
        return directory, json.loads(value.read_text())

    return made


@pytest.fixture(scope="session")
def empty_store(once: Once) -> Path:
    """MLflow's database with no run in it, to be copied: to make its tables takes over a second."""
    directory, _ = once("store", lambda directory: make_store(directory / "mlflow.db"))
    return directory / "mlflow.db"


@pytest.fixture
def store_at_hand(empty_store: Path, tmp_path: Path) -> None:
    """The test's directory has MLflow's tables, as one has after its first training."""
    shutil.copy(empty_store, tmp_path)


@pytest.fixture
def mlflow(store_at_hand: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """mlflow with a store of its own."""
    import mlflow

    monkeypatch.chdir(tmp_path)
    mlflow.set_tracking_uri(f"sqlite:///{tmp_path}/mlflow.db")
    yield mlflow
    mlflow.set_tracking_uri(None)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy that refuses connections, and no pauses between tries."""
    for name, value in {"http_proxy": "http://127.0.0.1:9", "https_proxy": "http://127.0.0.1:9"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("no_proxy", raising=False)
    # urlopen keeps the proxies of its first call.
    monkeypatch.setattr("urllib.request._opener", None)
    monkeypatch.setattr(datasets, "PAUSES", (0.0,) * len(datasets.PAUSES))


@pytest.fixture
def call(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """A function that runs a command in this process, in `tmp_path`: `call("mlp_dist.train --epochs 3")`.

    Keyword arguments are another `cwd` and environment variables.
    """
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def run(line: str, cwd: Path = tmp_path, **variables: str) -> subprocess.CompletedProcess[str]:
        return calling.call(line, cwd, capfd, **variables)

    yield run
    calling.forget_precision()
    for signum, handler in before.items():
        signal.signal(signum, handler)


@pytest.fixture
def train_here(call: Call, store_at_hand: None, tmp_path: Path) -> Call:
    """`call` for the flags of a training; MLflow's store is mlflow.db in its directory."""

    def train(flags: str, cwd: Path = tmp_path, **variables: str) -> subprocess.CompletedProcess[str]:
        # Absolute, since MLflow caches relative stores.
        return call(
            f"mlp_dist.train {flags}", cwd, MLFLOW_TRACKING_URI=f"sqlite:///{cwd}/mlflow.db", **variables
        )

    return train


def _train(flags: Sequence[str], store: Path, directory: Path) -> dict[str, Any]:
    # On a busy machine, the training would end before MLflow has made its tables.
    shutil.copy(store, directory)
    config, threads = str(ROOT / "launch/configs/cpu.yaml"), str(num_cores())
    launcher = ("--config_file", config, "--num_cpu_threads_per_process", threads)
    return result(launch(*flags, cwd=directory, launcher=launcher))


def _package(directory: Path) -> dict[str, Any]:
    return result(run([sys.executable, "-m", "serve.package"], directory))


@pytest.fixture(scope="session")
def trained(once: Once, empty_store: Path) -> Trained:
    """mnist-quick, trained once for all tests, which must not change it: five epochs on the digits."""
    return Trained(*once("trained", functools.partial(_train, QUICK, empty_store)))


@pytest.fixture(scope="session")
def trained_on_mnist(once: Once, empty_store: Path, mnist_dir: Path) -> Trained:
    """mnist-quick as it stands, on MNIST: for the few tests that need a model of real quality."""
    flags = ("--recipe", "mnist-quick", "--data-dir", str(mnist_dir))
    return Trained(*once("trained-on-mnist", functools.partial(_train, flags, empty_store)))


@pytest.fixture(scope="session")
def packaged_result(once: Once, trained: Trained) -> dict[str, object]:
    """The last line of `python -m serve.package` for `trained`."""
    return once("packaged", lambda _: _package(trained.directory))[1]


@pytest.fixture(scope="session")
def packaged(trained: Trained, packaged_result: dict[str, object]) -> Path:
    """The archive of `trained`."""
    return trained.directory / str(packaged_result["mar"])


@pytest.fixture(scope="session")
def packaged_mnist(once: Once, trained_on_mnist: Trained) -> Path:
    """The archive of `trained_on_mnist`."""
    _, values = once("packaged-mnist", lambda _: _package(trained_on_mnist.directory))
    return trained_on_mnist.directory / str(values["mar"])


@pytest.fixture(scope="session")
def served(packaged: Path) -> Iterator[Client]:
    """A TorchServe with that archive; it must be left running."""
    with running(packaged, read_archive(packaged).golden) as client:
        yield client
