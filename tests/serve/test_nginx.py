"""The reverse proxy of docs/serving.md, asked over TLS."""

import base64
import http.client
import json
import ssl
import stat
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from mlp_dist.core.image import encode_png
from mlp_dist.data.image_set import Dataset
from serve.client import Client
from serve.torchserve.keys import read_key
from tests.helpers.launching import run
from tests.helpers.nginx import PROGRAM, TOKENS, Proxy, running_nginx

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
    client: str | None = "first",
    **headers: str,
) -> tuple[int, Any]:
    """The status and the JSON that came."""
    token = {"Authorization": f"Bearer {TOKENS[client]}"} if client else {}
    connection.request("GET" if body is None else "POST", path, body, {**token, **headers})
    answer = connection.getresponse()
    text = answer.read()
    assert text.startswith((b"{", b"[")), text
    return answer.status, json.loads(text)


def test_predictions_over_tls_are_torchserves(
    connection: http.client.HTTPSConnection, served: Client, png: bytes
) -> None:
    expected = served.predict(png)
    status, answer = ask(connection, "/predictions/mlp", png, **{"Content-Type": "image/png"})
    assert (status, answer) == (200, expected)
    first = connection.sock
    one = {"instances": [{"b64": base64.b64encode(png).decode()}]}
    status, answer = ask(
        connection, "/v1/models/mlp:predict", json.dumps(one).encode(), **{"Content-Type": "application/json"}
    )
    assert (status, answer) == (200, {"predictions": [expected]})
    tensor = {"name": "image", "shape": [1], "datatype": "BYTES", "data": [one["instances"][0]["b64"]]}
    status, answer = ask(
        connection,
        "/v2/models/mlp/infer",
        json.dumps({"inputs": [tensor]}).encode(),
        **{"Content-Type": "application/json"},
    )
    assert (status, answer["outputs"][0]["data"][0]) == (200, max(expected, key=expected.__getitem__))
    # The connection is kept.
    assert connection.sock is first is not None


def test_a_bad_image_is_told_by_the_handler(connection: http.client.HTTPSConnection) -> None:
    status, answer = ask(connection, "/predictions/mlp", b"no image", **{"Content-Type": "image/png"})
    assert status == 400
    assert "not a PNG" in answer["error"]["message"]


def test_what_torchserve_cannot_decode_is_told_before_it(
    connection: http.client.HTTPSConnection, png: bytes
) -> None:
    for kind in ("application/x-www-form-urlencoded", "application/x-www-form-urlencoded; charset=UTF-8"):
        status, answer = ask(connection, "/predictions/mlp", png, **{"Content-Type": kind})
        assert (status, answer["error"]["type"]) == (415, "UnsupportedFormatError")


@pytest.mark.parametrize("client", [None, "first"])
def test_who_may_ask(connection: http.client.HTTPSConnection, client: str | None, served: Client) -> None:
    """Neither no token nor TorchServe's own key."""
    assert served.key_file is not None
    wrong = {} if client is None else {"Authorization": f"Bearer {read_key(served.key_file).value}"}
    status, answer = ask(connection, "/predictions/mlp", b"x", None, **wrong)
    assert (status, answer["error"]["type"]) == (401, "AuthorizationError")


@pytest.mark.parametrize(
    "path",
    [
        *("/", "/models", "/models/mlp", "/token?type=inference", "/metrics", "/api-description", "/ping"),
        *(
            "/invocations",
            "/wfpredict/mlp",
            "/workflows",
            "/predictions/../models",
            "/predictions/%2e%2e/metrics",
        ),
    ],
)
def test_nothing_else_is_reached(connection: http.client.HTTPSConnection, path: str) -> None:
    for body in (None, b"x"):
        status, answer = ask(connection, path, body)
        assert (status, answer["error"]["type"]) == (404, "NotFoundError")


def test_health_needs_no_token(connection: http.client.HTTPSConnection) -> None:
    assert ask(connection, "/healthz", client=None) == (200, {"status": "Healthy"})


def test_a_body_that_is_too_large(connection: http.client.HTTPSConnection) -> None:
    connection.putrequest("POST", "/predictions/mlp")
    connection.putheader("Authorization", f"Bearer {TOKENS['first']}")
    connection.putheader("Content-Length", str(10 * 1024 * 1024 + 1))
    connection.endheaders()
    answer = connection.getresponse()
    assert (answer.status, json.load(answer)["error"]["type"]) == (413, "RequestTooLargeError")


def test_one_client_that_asks_too_often_is_told_so_alone(
    connection: http.client.HTTPSConnection, png: bytes
) -> None:
    answers: Counter[int] = Counter()
    deadline = time.monotonic() + 20
    while answers[429] < 5 and time.monotonic() < deadline:
        status, answer = ask(connection, "/predictions/mlp", png, "second", **{"Content-Type": "image/png"})
        answers[status] += 1
        if status == 429:
            assert answer["error"]["type"] == "RateLimitError"
    assert set(answers) == {200, 429}
    assert answers[200] >= 100
    status, _ = ask(connection, "/predictions/mlp", png, "first", **{"Content-Type": "image/png"})
    assert status == 200


def test_tls_of_today_and_nothing_without(proxy: Proxy, connection: http.client.HTTPSConnection) -> None:
    connection.connect()
    assert connection.sock.version() == "TLSv1.3"
    with pytest.raises(ssl.SSLCertVerificationError):
        http.client.HTTPSConnection("localhost", proxy.port, timeout=10).connect()
    plain = http.client.HTTPConnection("localhost", proxy.port, timeout=10)
    plain.request("GET", "/healthz")
    assert plain.getresponse().status == 400
    plain.close()


def test_the_projects_client_asks_through_it(
    proxy: Proxy, served: Client, png: bytes, tmp_path: Path
) -> None:
    (tmp_path / "one.png").write_bytes(png)
    (tmp_path / "key.json").write_text(json.dumps({"inference": {"key": TOKENS["first"]}}))
    words = [sys.executable, "-m", "serve.client", "one.png", "--url", proxy.url, "--key-file", "key.json"]
    done = run(words, tmp_path, SSL_CERT_FILE=str(proxy.directory / "certificate.pem"))
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["probabilities"] == served.predict(png)


def test_the_log_tells_who_asked_and_how_long_it_took(
    proxy: Proxy, connection: http.client.HTTPSConnection
) -> None:
    ask(connection, "/healthz?x=1", client="second")
    last = (proxy.directory / "mlp.log").read_text().splitlines()[-1].split()
    assert last[1:5] == ['"second"', "GET", "/healthz", "200"]
    assert 0 <= float(last[-1]) < 30


def test_the_key_of_the_proxy(served: Client, tmp_path: Path) -> None:
    words = [sys.executable, "-m", "serve.proxy_key", "key.conf", "--key-file", str(served.key_file)]
    done = run(words, tmp_path)
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert (told["file"], told["renewed"]) == ("key.conf", False)
    assert served.key_file is not None
    key = read_key(served.key_file).value
    assert (tmp_path / "key.conf").read_text() == f'proxy_set_header Authorization "Bearer {key}";\n'
    assert stat.S_IMODE((tmp_path / "key.conf").stat().st_mode) == 0o600
    missing = subprocess.run(
        [sys.executable, "-m", "serve.proxy_key", "key.conf", "--key-file", "none"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert missing.returncode == 2
    assert "there is no key file; start TorchServe" in missing.stderr
