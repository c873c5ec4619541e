"""A real TorchServe, asked over HTTP."""

import base64
import contextlib
import http.client
import json
import os
import subprocess
import sys
import threading
import time
import zipfile
from datetime import timedelta
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import torch

from mlp_dist.core.bundle import load_bundle
from mlp_dist.core.errors import ServerError
from mlp_dist.core.image import encode_png
from mlp_dist.data.image_set import Dataset
from serve.client import Client, NotReadyError, UnknownModelError
from serve.java import MINIMUM, java_home
from serve.torchserve.keys import read_key
from serve.torchserve.management import describe_version
from serve.server import running
from serve.torchserve.state import State
from tests.helpers.launching import Trained, run

pytestmark = pytest.mark.slow


@pytest.fixture
def server(served: Client) -> Client:
    return served


def post(
    client: Client, body: bytes, content_type: str, *, key: bool = True, path: str = "/predictions/mlp"
) -> tuple[int, str | None, object]:
    connection = http.client.HTTPConnection(urlsplit(client.url).netloc, timeout=30)
    assert client.key_file is not None
    authorization = {"Authorization": f"Bearer {read_key(client.key_file).value}"} if key else {}
    with contextlib.closing(connection):
        connection.request("POST", path, body, {"Content-Type": content_type, **authorization})
        answer = connection.getresponse()
        return answer.status, answer.headers["Content-Type"], json.loads(answer.read())


def test_probabilities_over_http_are_the_trained_models(
    server: Client, image_data: Dataset, trained: Trained
) -> None:
    images = image_data.test.images[:200]
    expected = load_bundle(trained.bundle).probabilities(images)
    for image, row in zip(images, expected, strict=True):
        answer = server.predict(encode_png(image))
        assert list(answer) == list("0123456789")
        torch.testing.assert_close(
            torch.tensor(list(answer.values()), dtype=torch.float64), row, rtol=0, atol=1e-6
        )


def test_explanations_over_http(server: Client, image_data: Dataset) -> None:
    png = encode_png(image_data.test.images[0])
    status, content_type, answer = post(server, png, "image/png", path="/explanations/mlp")
    assert (status, content_type) == (200, "application/json")
    assert isinstance(answer, dict)
    assert answer["probability"] == pytest.approx(max(server.predict(png).values()), abs=2e-6)
    assert base64.b64decode(answer["heat_map"].partition(",")[2])[:4] == b"\x89PNG"
    asked = server.ask(png, "explanations")
    assert asked.values == answer
    assert asked.run_id == server.ask(png).run_id != ""


def test_raw_form_and_json_are_answered_the_same(server: Client, image_data: Dataset) -> None:
    png = encode_png(image_data.test.images[0])
    form = (
        b'--x\r\nContent-Disposition: form-data; name="data"; filename="a.png"\r\n\r\n'
        + png
        + b"\r\n--x--\r\n"
    )
    text = json.dumps({"data": base64.b64encode(png).decode()}).encode()
    answers = [
        post(server, png, "image/png"),
        post(server, form, "multipart/form-data; boundary=x"),
        post(server, text, "application/json"),
    ]
    for status, content_type, answer in answers:
        assert (status, content_type) == (200, "application/json")
        assert answer == pytest.approx(answers[0][2], abs=1e-9)


def test_eight_at_once_and_one_of_them_corrupt(server: Client, image_data: Dataset) -> None:
    files = [encode_png(image) for image in image_data.test.images[:8]]
    expected = [server.predict(file) for file in files]
    files[3] = files[3][:60]
    for _ in range(5):
        answers: list[tuple[int, str | None, object] | None] = [None] * 8

        def ask(position: int, into: list[tuple[int, str | None, object] | None] = answers) -> None:
            into[position] = post(server, files[position], "image/png")

        threads = [threading.Thread(target=ask, args=(position,)) for position in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for position, answer in enumerate(answers):
            assert answer is not None
            status, content_type, body = answer
            assert content_type == "application/json"
            if position == 3:
                assert status == 400
                assert body["error"]["type"] == "ImageError"  # type: ignore[index]
            else:
                assert status == 200
                assert body == pytest.approx(expected[position], abs=1e-6)


@pytest.mark.parametrize(
    ("body", "content_type", "message"),
    [
        (b"", "image/png", "the image is empty"),
        (b"not an image", "image/png", "are not a PNG"),
        (b'{"data": 5}', "application/json", "found int"),
        (b'{"data": "***"}', "application/json", "not base64"),
    ],
)
def test_bad_input_is_a_400(server: Client, body: bytes, content_type: str, message: str) -> None:
    status, answered, answer = post(server, body, content_type)
    assert (status, answered) == (400, "application/json")
    assert message in answer["error"]["message"]  # type: ignore[index]


def test_without_its_key_nothing_is_answered(server: Client, image_data: Dataset) -> None:
    png = encode_png(image_data.test.images[0])
    status, _, answer = post(server, png, "image/png", key=False)
    assert status == 400
    assert answer["type"] == "InvalidKeyException"  # type: ignore[index]


def test_the_client_command(server: Client, image_data: Dataset, tmp_path: Path) -> None:
    assert server.key_file is not None
    for number in range(3):
        (tmp_path / f"{number}.png").write_bytes(encode_png(image_data.test.images[number]))
    (tmp_path / "1.png").write_text("not an image")
    words = [sys.executable, "-m", "serve.client", *(str(tmp_path / f"{number}.png") for number in range(3))]
    # The key file is found where the command is typed.
    done = run([*words, "--url", server.url], server.key_file.parent)
    assert done.returncode == 1
    assert "1.png" in done.stderr
    assert "not a PNG" in done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [Path(line["image"]).name for line in lines] == ["0.png", "2.png"]
    for line in lines:
        assert set(line) == {"image", "label", "probability", "probabilities"}
        assert line["probability"] == max(line["probabilities"].values())
        assert line["probabilities"][line["label"]] == line["probability"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["missing.png"], 2, "no such file: missing.png"),
        ([], 2, "IMAGE"),
        (["here.png", "--url", "http://127.0.0.1:1"], 1, "no answer from http://127.0.0.1:1"),
        (["here.png", "--ulr", "x"], 2, "did you mean --url?"),
    ],
)
def test_the_clients_mistakes(flags: list[str], code: int, message: str, tmp_path: Path) -> None:
    (tmp_path / "here.png").write_bytes(b"x")
    done = run([sys.executable, "-m", "serve.client", *flags], tmp_path)
    assert done.returncode == code
    assert message in done.stderr
    assert "Traceback" not in done.stderr


def test_a_model_that_cannot_load_ends_the_wait_with_the_workers_error(
    packaged: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "mlp.mar"
    with zipfile.ZipFile(packaged) as old, zipfile.ZipFile(broken, "w") as new:
        for name in old.namelist():
            new.writestr(name, b"damaged" if name == "weights.pt" else old.read(name))
    with pytest.raises(ServerError, match=r"(?s)did not come up.*weights.pt was changed"):
        running(broken, b"x", seconds=25).__enter__()


def test_keys_that_have_expired_are_renewed(packaged: Path, image_data: Dataset) -> None:
    with zipfile.ZipFile(packaged) as archive:
        golden = archive.read("golden.png")
    with running(packaged, golden, token_expiration_min=0.03) as client:
        assert client.key_file is not None
        state = State.load(client.key_file.parent)
        assert state is not None
        old = {kind: read_key(client.key_file, kind) for kind in ("inference", "management")}
        while not all(key.expires_within(timedelta()) for key in old.values()):
            time.sleep(0.1)
        client.predict(golden)
        assert describe_version(state)["modelName"] == "mlp"
        for kind, key in old.items():
            assert read_key(client.key_file, kind).value != key.value


def test_leaving_ends_every_process(packaged: Path) -> None:
    with zipfile.ZipFile(packaged) as archive:
        golden = archive.read("golden.png")
    with running(packaged, golden) as client:
        assert client.key_file is not None
        directory = str(client.key_file.parent)
        assert directory in processes()
    assert directory not in processes()
    assert not Path(directory).exists()
    with pytest.raises(NotReadyError, match=r"start the server: torchserve --start --models mlp\.mar"):
        client.predict(golden)


def processes() -> str:
    """Command lines and working directories of all processes."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                found += [(entry / "cmdline").read_text(), str((entry / "cwd").readlink())]
            except OSError:
                continue
    return "\n".join(found)


def test_a_machine_without_java_gets_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("JAVA_HOME", raising=False)
    home = java_home()
    assert home is not None
    version = subprocess.run([f"{home}/bin/java", "-version"], capture_output=True, text=True).stderr
    assert int(version.split('"')[1].split(".")[0]) >= MINIMUM
    monkeypatch.setenv("JAVA_HOME", home)
    assert java_home() is None


def test_an_old_java_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = tmp_path / "java"
    old.write_text("#!/bin/sh\necho 'openjdk version \"1.8.0_392\"' >&2\n")
    old.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("JAVA_HOME", raising=False)
    assert java_home() is not None


def test_a_key_or_a_model_that_the_server_does_not_know(
    server: Client, image_data: Dataset, tmp_path: Path
) -> None:
    png = encode_png(image_data.test.images[0])
    (tmp_path / "key_file.json").write_text('{"inference": {"key": "abc"}}')
    stranger = Client(server.url, "mlp", tmp_path / "key_file.json")
    with pytest.raises(ServerError, match=r"InvalidKeyException: .*; the key is read from key_file\.json in"):
        stranger.predict(png)
    other = Client(server.url, "other", server.key_file)
    with pytest.raises(
        UnknownModelError, match=r"ModelNotFoundException: .*; name the one that is served with --"
    ):
        other.predict(png)
