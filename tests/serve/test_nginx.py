"""serve/nginx.conf, as docs/serving.md describes it, over TLS."""

import base64
import http.client
import json
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlp_dist.core.image import encode_png
from mlp_dist.data.arrays import Dataset
from serve.client import Client
from serve.torchserve.api import read_key
from tests.helpers.launching import run
from tests.helpers.nginx import ORIGIN, PROGRAM, TOKENS, Proxy, running_nginx

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no nginx: install the package `nginx-light`"),
]


@pytest.fixture(scope="module")
def proxy(served: Client, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Proxy]:
    with running_nginx(served, tmp_path_factory.mktemp("nginx")) as started:
        yield started


@pytest.fixture(scope="module")
def png(image_data: Dataset) -> bytes:
    return encode_png(image_data.test.images[0])


@pytest.fixture
def connection(proxy: Proxy) -> Iterator[http.client.HTTPSConnection]:
    opened = http.client.HTTPSConnection("localhost", proxy.port, timeout=30, context=proxy.trust)
    yield opened
    opened.close()


def ask(
    connection: http.client.HTTPSConnection,
    path: str,
    body: bytes | None = None,
    content_type: str = "image/png",
    token: str | None = TOKENS["first"],
) -> tuple[int, Any]:
    """Status and JSON of an answer."""
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    if body is not None:
        headers["Content-Type"] = content_type
    connection.request("GET" if body is None else "POST", path, body, headers)
    answer = connection.getresponse()
    text = answer.read()
    assert text.startswith((b"{", b"[")), text
    return answer.status, json.loads(text)


def test_answers_are_torchserves(connection: http.client.HTTPSConnection, served: Client, png: bytes) -> None:
    expected = served.predict(png)
    assert ask(connection, "/predictions/mlp", png) == (200, expected)
    body = json.dumps({"instances": [{"b64": base64.b64encode(png).decode()}]}).encode()
    answer = ask(connection, "/v1/models/mlp:predict", body, "application/json")
    assert answer == (200, {"predictions": [expected]})
    status, answer = ask(connection, "/predictions/mlp", b"no image")
    assert (status, answer["error"]["type"]) == (400, "ImageError")
    assert ask(connection, "/healthz", token=None) == (200, {"status": "Healthy"})


def test_pages_of_known_origins_may_ask(proxy: Proxy) -> None:
    for origin, allowed in ((ORIGIN, ORIGIN), ("https://other.example", None)):
        connection = http.client.HTTPSConnection("localhost", proxy.port, timeout=30, context=proxy.trust)
        for method, status in (("OPTIONS", 204), ("POST", 401)):
            connection.request(method, "/predictions/mlp", headers={"Origin": origin})
            answer = connection.getresponse()
            answer.read()
            assert (answer.status, answer.headers["Access-Control-Allow-Origin"]) == (status, allowed)
            assert "Authorization" in answer.headers["Access-Control-Allow-Headers"]
        connection.close()


def test_health_and_metadata_of_v2(connection: http.client.HTTPSConnection) -> None:
    assert ask(connection, "/v2/health/live") == (200, {"live": True})
    assert ask(connection, "/v2/health/ready") == (200, {"ready": True})
    assert ask(connection, "/v2")[0] == 200
    for path in ("/v2/models/mlp", "/v2/models/mlp/ready"):
        status, answer = ask(connection, path)
        assert (status, answer["name"], answer["inputs"][0]["datatype"]) == (200, "mlp", "BYTES")
        assert ask(connection, path, token=None)[0] == 401
    assert ask(connection, "/v2/models/other/ready")[0] == 404


def test_token_is_required(connection: http.client.HTTPSConnection, served: Client) -> None:
    assert served.key_file is not None
    for token in (None, read_key(served.key_file).value):
        status, answer = ask(connection, "/predictions/mlp", b"x", token=token)
        assert (status, answer["error"]["type"]) == (401, "AuthorizationError")


@pytest.mark.parametrize("path", ["/models", "/token?type=inference", "/metrics", "/predictions/../models"])
def test_other_paths_are_not_found(connection: http.client.HTTPSConnection, path: str) -> None:
    status, answer = ask(connection, path)
    assert (status, answer["error"]["type"]) == (404, "NotFoundError")


def test_bodies_are_limited(connection: http.client.HTTPSConnection, png: bytes) -> None:
    status, answer = ask(connection, "/predictions/mlp", png, "application/x-www-form-urlencoded")
    assert (status, answer["error"]["type"]) == (415, "UnsupportedFormatError")
    connection.putrequest("POST", "/predictions/mlp")
    connection.putheader("Authorization", f"Bearer {TOKENS['first']}")
    connection.putheader("Content-Length", str(10 * 1024 * 1024 + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["error"]["type"]) == (413, "RequestTooLargeError")


def test_rate_is_limited_by_client(connection: http.client.HTTPSConnection, png: bytes) -> None:
    answers: Counter[int] = Counter()
    deadline = time.monotonic() + 100
    while not answers[429] and time.monotonic() < deadline:
        status, _ = ask(connection, "/predictions/mlp", png, token=TOKENS["second"])
        answers[status] += 1
    assert set(answers) == {200, 429}
    assert answers[200] >= 100
    assert ask(connection, "/predictions/mlp", png)[0] == 200


def test_client_command(proxy: Proxy, served: Client, png: bytes, tmp_path: Path) -> None:
    (tmp_path / "one.png").write_bytes(png)
    (tmp_path / "key.json").write_text(json.dumps({"inference": {"key": TOKENS["first"]}}))
    words = [sys.executable, "-m", "serve.client", "one.png", "--url", proxy.url, "--key-file", "key.json"]
    done = run(words, tmp_path, SSL_CERT_FILE=str(proxy.directory / "certificate.pem"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["probabilities"] == served.predict(png)
