"""A real TorchServe: its answers over HTTP, its keys and ports, and `serve.server` from start to stop."""

import contextlib
import http.client
import json
import re
import stat
import sys
import time
import urllib.error
import urllib.request
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from ipaddress import ip_address
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil
import pytest
import torch

from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import ServerError, UsageError
from mlp_dist.core.image import encode_png
from mlp_dist.data.arrays import Dataset
from serve import server
from serve.archive import read_archive
from serve.client import Client, InvalidKeyError, NotReadyError, UnknownModelError
from serve.server import running
from serve.torchserve.api import ask, describe_version, read_key
from serve.torchserve.server_state import STATE, ServerState
from tests.helpers.fuzz_inputs import many_pages
from tests.helpers.launching import ROOT, Trained, result, run
from tests.helpers.servers import state_of

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def files(image_data: Dataset) -> list[bytes]:
    return [encode_png(image) for image in image_data.test.images[:100]]


def post(
    client: Client, body: bytes, content_type: str, path: str = "/predictions/mlp"
) -> tuple[int, str | None, Any]:
    """Status, content type and JSON of an answer."""
    connection = http.client.HTTPConnection(urlsplit(client.url).netloc, timeout=60)
    assert client.key_file is not None
    headers = {"Content-Type": content_type, "Authorization": f"Bearer {read_key(client.key_file).value}"}
    with contextlib.closing(connection):
        connection.request("POST", path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], json.loads(answer.read())


def test_probabilities_match_the_trained_model(
    served: Client, files: list[bytes], image_data: Dataset, trained: Trained
) -> None:
    expected = load_bundle(trained.bundle).probabilities(image_data.test.images[:100])
    for file, row in zip(files, expected, strict=True):
        answer = served.predict(file)
        assert list(answer) == list("0123456789")
        found = torch.tensor(list(answer.values()), dtype=torch.float64)
        torch.testing.assert_close(found, row, rtol=0, atol=1e-6)


def test_form_json_and_explanation(served: Client, files: list[bytes]) -> None:
    answer = served.ask(files[0])
    form = (
        b'--x\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\n\r\n'
        + files[0]
        + b"\r\n--x--\r\n"
    )
    ok = (200, "application/json", answer.values)
    assert post(served, form, "multipart/form-data; boundary=x") == ok
    status, content_type, explanation = post(served, files[0], "image/png", "/explanations/mlp")
    assert (status, content_type) == (200, "application/json")
    assert explanation["probability"] == pytest.approx(max(answer.values.values()), abs=2e-6)
    assert len(served.predict(files[0], top_k=2, preprocess="auto", background="white")) == 2
    asked = served.ask(files[0], "explanations")
    assert asked.values == explanation
    assert asked.run_id == answer.run_id != ""


def test_requests_that_take_long_do_not_delay_others(served: Client, files: list[bytes]) -> None:
    """A thousand pages of squared paper would take longer than `responseTimeout`."""
    workers = describe_version(state_of(served))["workers"]
    path = "/v1/models/mlp:predict"
    with ThreadPoolExecutor() as pool:
        heavy = [
            pool.submit(post, served, many_pages(number), "application/json", path)
            for number in (1000, 200, 1000, 200)
        ]
        waits = []
        while not waits or not all(each.done() for each in heavy):
            started = time.monotonic()
            assert len(served.predict(files[0])) == 10
            waits.append(time.monotonic() - started)
    for status, _, answer in (each.result() for each in heavy):
        assert (status, answer["error"]["type"]) in ((413, "TooManyImagesError"), (503, "BusyError"))
    # Two batches, on a busy machine.
    assert max(waits) < 10
    assert describe_version(state_of(served))["workers"][0]["pid"] == workers[0]["pid"]


def test_wrong_key_and_unknown_model(served: Client, files: list[bytes], tmp_path: Path) -> None:
    (tmp_path / "key_file.json").write_text('{"inference": {"key": "abc"}}')
    for key_file in (tmp_path / "key_file.json", tmp_path / "missing.json"):
        with pytest.raises(
            InvalidKeyError, match=r"InvalidKeyException: .*; the key is read from key_file\.json"
        ):
            Client(served.url, "mlp", key_file).predict(files[0])
    with pytest.raises(UnknownModelError, match=r"ModelNotFoundException: .*; name the served model with --"):
        Client(served.url, "other", served.key_file).predict(files[0])


def test_client_command(served: Client, files: list[bytes], tmp_path: Path) -> None:
    assert served.key_file is not None
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(files[number] if number != 1 else b"not an image")
    words = [sys.executable, "-m", "serve.client", *(str(tmp_path / f"{number}.png") for number in range(3))]
    # The key file is found in the current directory.
    done = run([*words, "--url", served.url], served.key_file.parent)
    assert done.returncode == 1
    assert re.search(r"1\.png: .*not a PNG", done.stderr)
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["0.png", "2.png"]
    for line in lines:
        assert set(line) == {"image", "label", "probability", "probabilities"}
        assert line["probability"] == max(line["probabilities"].values())
        assert line["probabilities"][line["label"]] == line["probability"]


def test_all_ports_are_on_loopback(served: Client) -> None:
    found = [
        each.laddr
        for process in state_of(served).processes()
        for each in process.net_connections(kind="inet")
        if each.status == "LISTEN"
    ]
    assert len(found) >= 3
    for address in found:
        ip = ip_address(address.ip)
        assert (getattr(ip, "ipv4_mapped", None) or ip).is_loopback, address


def test_keys_are_private_and_required(served: Client) -> None:
    assert served.key_file is not None
    assert stat.S_IMODE(served.key_file.stat().st_mode) == 0o600
    state = state_of(served)
    for url in (f"{state.url}/ping", f"{state.url}/models", f"{state.management_url}/models"):
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(url, timeout=60)
        with refused.value as error:
            assert error.code >= 400
            assert b"Healthy" not in error.read()
    # Even the management key does not change models.
    for method, path in (("POST", "/models?url=other.mar"), ("DELETE", "/models/mlp")):
        with pytest.raises(ServerError, match="was answered 405"):
            ask(state, path, method=method)


def test_safe_settings() -> None:
    lines = (ROOT / "serve/config.properties").read_text().splitlines()
    settings = dict(line.split("=", 1) for line in lines if line and line[0] != "#")
    assert settings["allowed_urls"] == ""
    for name in ("enable_model_api", "enable_envvars_config", "install_py_dep_per_model"):
        assert settings[name] == "false", name
    assert settings["disable_token_authorization"] == "false"
    assert settings["token_expiration_min"] == "1440"
    assert settings["max_request_size"] == str(10 * 2**20)


def test_expired_keys_are_renewed_and_every_process_ends(packaged: Path) -> None:
    golden = read_archive(packaged).golden
    with running(packaged, golden, token_expiration_min=0.03) as client:
        state = state_of(client)
        old = {kind: read_key(state.key_file, kind) for kind in ("inference", "management")}
        while not all(key.has_expired for key in old.values()):
            time.sleep(0.1)
        client.predict(golden)
        assert describe_version(state)["modelName"] == "mlp"
        for kind, key in old.items():
            assert read_key(state.key_file, kind).value != key.value
        processes = state.processes()
    assert not any(each.is_running() and each.status() != psutil.STATUS_ZOMBIE for each in processes)
    assert not state.directory.exists()
    with pytest.raises(NotReadyError, match=r"start the server: torchserve --start --models mlp\.mar"):
        client.predict(golden)


def test_failing_handler_is_reported(packaged: Path, tmp_path: Path) -> None:
    # The worker catches this error and dies of another.
    line, broken = b"raise RuntimeError('at import')\n", tmp_path / "mlp.mar"
    with zipfile.ZipFile(packaged) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            new.writestr(name, (line if name == "handler.py" else b"") + old.read(name))
    raises = pytest.raises(ServerError, match=r"(?s)did not start: the worker died.*RuntimeError: at import")
    with raises, running(broken, b"x"):
        pass


@pytest.fixture
def place(tmp_path: Path, shared_ports: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A current directory whose server is stopped at the end."""
    monkeypatch.chdir(tmp_path)
    yield tmp_path
    server.stop()


def test_from_start_to_stop(
    packaged: Path, place: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    words = [sys.executable, "-m", "serve.server", "start", str(packaged), "--low-latency"]
    started = result(run(words, place))
    assert (started["running"], started["ready"], started["workers"]) == (True, True, 1)
    archive = read_archive(packaged)
    assert (started["version"], started["run_id"]) == (archive.version, archive.spec.run_id)
    assert (place / STATE).stat().st_mode & 0o777 == 0o700

    def call(*words: str) -> tuple[int | None, str]:
        """Exit code and stdout of another `python -m serve.server`."""
        monkeypatch.setattr(sys, "argv", ["serve.server", *words])
        return server.main(), capfd.readouterr().out

    with pytest.raises(UsageError, match=f"a server is already running here, at {started['url']}"):
        call("start", str(packaged))
    url = started["url"].replace("127.0.0.1", "localhost") + "/"
    words = [sys.executable, "-m", "serve.client", f"{STATE}/golden.png", "--url", url]
    archive.check(result(run(words, place))["probabilities"])
    assert "Torch worker started" in call("logs")[1]

    state = ServerState.load(place / STATE)
    assert state is not None
    assert describe_version(state)["batchSize"] == 1
    [java] = [process for process in state.processes() if process.name() == "java"]
    java.kill()
    # The worker lives longer than Java and the launcher.
    while state.is_running():
        time.sleep(0.05)
    code, out = call("status")
    assert (code, json.loads(out.splitlines()[-1])) == (1, {"running": False, "ready": False})
    call("stop")
    assert state.processes() == []
    assert json.loads(call("stop")[1].splitlines()[-1]) == {"stopped": False}
