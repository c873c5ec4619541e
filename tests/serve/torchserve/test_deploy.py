"""New versions, and workers that die, while several ask all the time."""

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
from urllib.parse import urlsplit

import psutil
import pytest

from mlp_dist.core.errors import BundleError, ServerError, UsageError
from mlp_dist.core.spec import EXACT
from serve import deploy as deployment
from serve.archive import Archive, read_archive
from serve.deploy import deploy
from serve.torchserve.keys import STATE, read_key
from serve.torchserve.management import _send, ask, describe_version, versions
from serve.package import build_archive
from serve.torchserve.state import State
from serve.torchserve import client_of
from tests.helpers.launching import Trained, result, run

pytestmark = pytest.mark.slow

THREADS = 4

Asking = Callable[[], AbstractContextManager[Callable[[], str]]]
"""Opens what a thread asks through: a function that tells how one request went."""


def built(trained: Trained, version: str, directory: Path, bundle: Path | None = None) -> Path:
    (directory / version).mkdir()
    return build_archive(bundle or trained.bundle, "mlp", version, directory / version)


@pytest.fixture(scope="module")
def archives(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two versions of one model."""
    directory = tmp_path_factory.mktemp("archives")
    return [built(trained, version, directory) for version in ("one", "two")]


@pytest.fixture(scope="module")
def server(
    archives: list[Path], tmp_path_factory: pytest.TempPathFactory, shared_ports: None
) -> Iterator[State]:
    place = tmp_path_factory.mktemp("served")
    words = [sys.executable, "-m", "serve.server"]
    try:
        done = run([*words, "start", str(archives[0]), "--deployable"], place, timeout=60)
        assert done.returncode == 0, done.stderr
        state = State.load(place / STATE)
        assert state is not None
        yield state
    finally:
        assert result(run([*words, "stop"], place, timeout=60)) == {"stopped": True}


@pytest.fixture(autouse=True)
def here(server: State, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(server.directory.parent)


class Load:
    """THREADS threads that ask the golden image again and again; `told` counts what they were told.

    `slowest` is the longest that one of them waited, in seconds.
    """

    def __init__(self, ask: Asking) -> None:
        self.told: Counter[str] = Counter()
        self.slowest = 0.0
        self.ending = threading.Event()
        self.threads = [threading.Thread(target=self._run, args=(ask,)) for _ in range(THREADS)]

    def _run(self, ask: Asking) -> None:
        with ask() as one:
            while not self.ending.is_set():
                asked = time.monotonic()
                self.told[one()] += 1
                self.slowest = max(self.slowest, time.monotonic() - asked)

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


def raw(state: State, archive: Archive) -> Asking:
    """Asks over one kept connection, and never again for the same answer."""
    headers = {
        "Authorization": f"Bearer {read_key(state.key_file).value}",
        "Content-Type": "application/octet-stream",
        "X-Preprocess": EXACT,
    }

    @contextmanager
    def ask() -> Iterator[Callable[[], str]]:
        connection = http.client.HTTPConnection(urlsplit(state.url).netloc, timeout=20)

        def one() -> str:
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
            yield one

    return ask


def test_ten_deployments_lose_no_request(server: State, archives: list[Path]) -> None:
    with Load(raw(server, read_archive(archives[0]))) as load:
        seconds = []
        for number in range(1, 11):
            mar = archives[number % 2]
            done = deploy(mar)
            assert done["version"] == mar.parent.name
            assert versions(server) == {mar.parent.name}
            seconds.append(done["seconds"])
    assert set(load.told) == {"right"}
    # None waited until a worker was there, which is most of what a deployment takes.
    assert load.slowest < min(seconds) / 2


def test_as_many_workers_as_the_old_version_has(server: State, archives: list[Path]) -> None:
    old = describe_version(server)["modelVersion"]
    scale = "/models/mlp?min_worker={0}&max_worker={0}&synchronous=true"
    ask(server, scale.format(2), method="PUT")
    with Load(raw(server, read_archive(archives[0]))) as load:
        deploy(next(mar for mar in archives if mar.parent.name != old))
    workers = describe_version(server)["workers"]
    ask(server, scale.format(1), method="PUT")
    assert [worker["status"] for worker in workers] == ["READY", "READY"]
    assert set(load.told) == {"right"}


def test_what_goes_wrong_leaves_the_old_version_answering(
    server: State, archives: list[Path], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = describe_version(server)["modelVersion"]
    other = read_archive(next(mar for mar in archives if mar.parent.name != old))
    wrong = replace(other.spec, golden_probabilities=other.spec.golden_probabilities[::-1])
    shutil.copytree(trained.bundle, tmp_path / "bundle")
    (tmp_path / "bundle/bundle.json").write_text(json.dumps(wrong.to_json()))
    broken = built(trained, "broken", tmp_path, tmp_path / "bundle")
    drain, drained = deployment._drain, []

    def interrupted(*given: Any) -> None:
        drained.append(given)
        if len(drained) == 1:
            raise KeyboardInterrupt
        drain(*given)

    with Load(raw(server, read_archive(archives[0]))) as load:
        with pytest.raises(ServerError, match=rf"(?s)broken was not deployed, {old} goes on.*golden image"):
            deploy(broken)
        killed = subprocess.Popen([sys.executable, "-m", "serve.server", "deploy", str(other.path)])
        while killed.poll() is None and len(versions(server)) == 1:
            time.sleep(0.05)
        killed.kill()
        assert killed.wait() == -signal.SIGKILL
        assert versions(server) == {old, other.version}
        with monkeypatch.context() as patch:
            patch.setattr(deployment, "read_archive", lambda _: replace(other, spec=wrong))
            with pytest.raises(ServerError, match=rf"{other.version} was not deployed.*golden image"):
                deploy(other.path)
            patch.undo()
            patch.setattr(deployment, "_drain", interrupted)
            with pytest.raises(KeyboardInterrupt):
                deploy(other.path)
        assert versions(server) == {old}
    assert set(load.told) == {"right"}


def test_what_is_not_another_version_of_the_model(
    server: State, archives: list[Path], trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old = describe_version(server)["modelVersion"]
    with pytest.raises(UsageError, match=rf"version {old} is what is served"):
        deploy(next(mar for mar in archives if mar.parent.name == old))
    digits = build_archive(trained.bundle, "digits", "3", tmp_path)
    with pytest.raises(UsageError, match="holds the model 'digits', but 'mlp' is served"):
        deploy(digits)
    replace(server, deployable=False).save()
    with pytest.raises(UsageError, match="was not started with --deployable"):
        deploy(digits)
    server.save()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="no server runs that was started here"):
        deploy(digits)


def test_models_are_taken_with_the_management_key_alone(server: State) -> None:
    version = describe_version(server)["modelVersion"]
    for key in ("", read_key(server.key_file).value):
        for method, path in (("POST", "/models?url=mlp.mar"), ("DELETE", f"/models/mlp/{version}")):
            status, body = _send(server, path, method, key, 10)
            assert (status, json.loads(body)["type"]) == (400, "InvalidKeyException")
    key = read_key(server.key_file, "management").value
    status, body = _send(server, "/models?url=http://127.0.0.1:1/mlp.mar", "POST", key, 10)
    assert status == 404
    assert b"does not match any allowed URL" in body


def test_the_clients_lose_nothing_where_a_worker_is_killed(server: State, archives: list[Path]) -> None:
    archive = read_archive(archives[0])

    @contextmanager
    def patient() -> Iterator[Callable[[], str]]:
        client = client_of(server)

        def one() -> str:
            try:
                archive.check(client.predict(archive.golden, preprocess=EXACT))
                return "right"
            except (ServerError, BundleError) as error:
                return repr(error)

        yield one

    with Load(raw(server, archive)) as impatient, Load(patient) as load:
        [worker] = describe_version(server)["workers"]
        psutil.Process(worker["pid"]).send_signal(signal.SIGKILL)
        time.sleep(5)
    assert set(load.told) == {"right"}
    # So something was lost that a client which asks once would have missed.
    assert set(impatient.told) > {"right"}
