"""Deployments, and workers that die, under load."""

import http.client
import json
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import psutil
import pytest

from mlp_dist.core.errors import BundleError, ServerError, UsageError
from mlp_dist.core.spec import EXACT
from serve.archive import Archive, read_archive
from serve.client import Client
from serve.package import build_archive
from serve.torchserve import deploy as deployment
from serve.torchserve.api import ask, describe_version, read_key, registered_versions, send
from serve.torchserve.deploy import deploy
from serve.torchserve.server_state import STATE, ServerState
from tests.helpers.launching import Trained, result, run

pytestmark = pytest.mark.slow

THREADS = 4

Requests = Callable[[], AbstractContextManager[Callable[[], str]]]
"""Opened once per thread; the function sends a request and returns "right" or what went wrong."""


def build(trained: Trained, version: str, directory: Path, bundle: Path | None = None) -> Path:
    (directory / version).mkdir()
    return build_archive(bundle or trained.bundle, "mlp", version, directory / version)


@pytest.fixture(scope="module")
def archives(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions of one model."""
    directory = tmp_path_factory.mktemp("archives")
    return [build(trained, version, directory) for version in ("one", "two")]


@pytest.fixture(scope="module")
def server(
    archives: list[Path], tmp_path_factory: pytest.TempPathFactory, shared_ports: None
) -> Iterator[ServerState]:
    place, words = tmp_path_factory.mktemp("served"), [sys.executable, "-m", "serve.server"]
    try:
        result(run([*words, "start", str(archives[0]), "--deployable"], place))
        state = ServerState.load(place / STATE)
        assert state is not None
        yield state
    finally:
        assert result(run([*words, "stop"], place)) == {"stopped": True}


@pytest.fixture(autouse=True)
def current_directory(server: ServerState, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(server.directory.parent)


class Load:
    """THREADS threads that ask for the golden image all the time. `slowest` is in seconds."""

    def __init__(self, requests: Requests) -> None:
        self.results: Counter[str] = Counter()
        self.slowest = 0.0
        self.ending = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(requests,)) for _ in range(THREADS)]

    def _run(self, requests: Requests) -> None:
        with requests() as send:
            while not self.ending.is_set():
                started = time.monotonic()
                self.results[send()] += 1
                self.slowest = max(self.slowest, time.monotonic() - started)

    def __enter__(self) -> "Load":
        for thread in self.threads:
            thread.start()
        time.sleep(0.3)
        return self

    def __exit__(self, *_: object) -> None:
        time.sleep(0.3)
        self.ending.set()
        for thread in self.threads:
            thread.join()


def without_retries(state: ServerState, archive: Archive) -> Requests:
    """Requests over one kept connection."""
    headers = {
        "Authorization": f"Bearer {read_key(state.key_file).value}",
        "Content-Type": "application/octet-stream",
        "X-Preprocess": EXACT,
    }

    @contextmanager
    def requests() -> Iterator[Callable[[], str]]:
        connection = http.client.HTTPConnection(urlsplit(state.url).netloc, timeout=60)

        def send() -> str:
            try:
                connection.request("POST", "/predictions/mlp", archive.golden, headers)
                answer = connection.getresponse()
                body = answer.read()
                if answer.status != 200:
                    return f"{answer.status} {body[:100]!r}"
                archive.check(json.loads(body))
                return "right"
            except (OSError, http.client.HTTPException, ServerError, BundleError) as error:
                connection.close()
                return repr(error)

        with closing(connection):
            yield send

    return requests


@pytest.mark.parametrize("times", [1, pytest.param(10, marks=pytest.mark.nightly)])
def test_deployments_lose_no_request(server: ServerState, archives: list[Path], times: int) -> None:
    # With two workers, the old version's queue and both workers must be drained.
    ask(server, "/models/mlp?min_worker=2&max_worker=2&synchronous=true", method="PUT")
    seconds = []
    with Load(without_retries(server, read_archive(archives[0]))) as load:
        for _ in range(times):
            old = describe_version(server)["modelVersion"]
            done = deploy(next(mar for mar in archives if mar.parent.name != old))
            assert done["replaced"] == old
            assert registered_versions(server) == {done["version"]}
            seconds.append(done["seconds"])
    workers = describe_version(server)["workers"]
    ask(server, "/models/mlp?min_worker=1&max_worker=1&synchronous=true", method="PUT")
    assert [worker["status"] for worker in workers] == ["READY", "READY"]
    assert set(load.results) == {"right"}
    # No request waited for a worker to load, which is most of a deployment's time.
    assert load.slowest < min(seconds) / 2


def test_failed_deployment_keeps_the_old_version(
    server: ServerState,
    archives: list[Path],
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = describe_version(server)["modelVersion"]
    other = read_archive(next(mar for mar in archives if mar.parent.name != old))
    wrong = replace(other.spec, golden_probabilities=other.spec.golden_probabilities[::-1])
    shutil.copytree(trained.bundle, tmp_path / "bundle")
    (tmp_path / "bundle/bundle.json").write_text(json.dumps(wrong.to_json()))
    broken = build(trained, "broken", tmp_path, tmp_path / "bundle")
    drain, calls = deployment._drain, []

    def interrupt_once(*given: Any) -> None:
        calls.append(given)
        if len(calls) == 1:
            raise KeyboardInterrupt
        drain(*given)

    with Load(without_retries(server, read_archive(archives[0]))) as load:
        with pytest.raises(
            ServerError, match=rf"(?s)broken was not deployed; version {old} is.*golden image"
        ):
            deploy(broken)
        killed = subprocess.Popen([sys.executable, "-m", "serve.server", "deploy", str(other.path)])
        while killed.poll() is None and len(registered_versions(server)) == 1:
            time.sleep(0.05)
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        assert registered_versions(server) == {old, other.version}
        monkeypatch.setattr(deployment, "_drain", interrupt_once)
        with pytest.raises(KeyboardInterrupt):
            deploy(other.path)
        assert registered_versions(server) == {old}
    assert set(load.results) == {"right"}


def test_archive_or_server_does_not_fit(
    server: ServerState,
    archives: list[Path],
    trained: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    old = describe_version(server)["modelVersion"]
    with pytest.raises(UsageError, match=rf"version {old} is already served"):
        deploy(next(mar for mar in archives if mar.parent.name == old))
    digits = build_archive(trained.bundle, "digits", "3", tmp_path)
    with pytest.raises(UsageError, match="holds the model 'digits', but 'mlp' is served"):
        deploy(digits)
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no server is running here"):
        deploy(digits)


def test_models_come_from_the_own_store_with_the_management_key_only(
    server: ServerState, archives: list[Path], serve_files: Callable[..., Any], tmp_path: Path
) -> None:
    version = describe_version(server)["modelVersion"]
    for key in ("", read_key(server.key_file).value):
        for method, path in (("POST", "/models?url=mlp.mar"), ("DELETE", f"/models/mlp/{version}")):
            reply = send(f"{server.management_url}{path}", key, method=method)
            assert (reply.status, json.loads(reply.body)["type"]) == (400, "InvalidKeyException")
    mirror = serve_files({"other.mar": archives[0].read_bytes()})
    shutil.copy(archives[0], tmp_path / "other.mar")
    for place in (
        f"{mirror.url}other.mar",
        f"file://{tmp_path}/other.mar",
        f"{tmp_path}/other.mar",
        "../mlp.mar",
    ):
        path = f"/models?url={quote(place, safe='')}&model_name=other&initial_workers=1&synchronous=true"
        with pytest.raises(ServerError, match=r"was answered 40[034]"):
            ask(server, path, method="POST")
    assert mirror.requests == []
    assert [model["modelName"] for model in ask(server, "/models")["models"]] == ["mlp"]


def test_client_survives_a_killed_worker(server: ServerState, archives: list[Path]) -> None:
    archive = read_archive(archives[0])

    @contextmanager
    def with_retries() -> Iterator[Callable[[], str]]:
        client = Client.of(server)

        def send() -> str:
            try:
                archive.check(client.predict(archive.golden, preprocess=EXACT))
                return "right"
            except (ServerError, BundleError) as error:
                return repr(error)

        yield send

    with Load(with_retries) as load:
        [killed] = describe_version(server)["workers"]
        psutil.Process(killed["pid"]).send_signal(signal.SIGKILL)
        deadline = time.monotonic() + 100
        while (worker := describe_version(server)["workers"][0])["pid"] == killed["pid"] or (
            worker["status"] != "READY"
        ):
            assert time.monotonic() < deadline, worker
            time.sleep(0.05)
    assert set(load.results) == {"right"}
