"""The client against a fake server with TorchServe's observed answers; test_server uses a real one."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlp_dist.core.errors import ServerError, UsageError
from serve.client import BusyError, Client, InvalidKeyError
from serve.torchserve.api import KEY_VARIABLE

ANSWER = (200, {"3": 0.75, "5": 0.25})
REFUSED = (400, {"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed."})
DIED = (507, {"code": 507, "type": "InternalServerException", "message": "Worker died."})
BAD = (400, {"error": {"type": "ImageError", "message": "the image is empty"}})

Respond = Callable[[BaseHTTPRequestHandler, int], tuple[int, object] | None]


@contextmanager
def fake_server(respond: Respond) -> Iterator[str]:
    """The URL of a server; `respond` gets the request and its number and returns None to disconnect."""
    number = iter(range(1_000_000))

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            answer = respond(self, next(number))
            if answer is None:
                self.close_connection = True
                return
            body = json.dumps(answer[1]).encode()
            self.send_response(answer[0])
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_GET = do_POST  # noqa: N815

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def write_keys(path: Path, key: str, minutes: float = 60) -> Path:
    expires = datetime.now(UTC) + timedelta(minutes=minutes)
    # TorchServe writes nanoseconds.
    text = expires.strftime("%Y-%m-%dT%H:%M:%S.%f") + "123Z"
    path.write_text(
        json.dumps({"inference": {"key": key, "expiration time": text}, "API": {"key": "the API's"}})
    )
    return path


def test_retries_while_a_worker_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = [DIED, None, (503, {}), ANSWER]
    with fake_server(lambda _, number: answers[number]) as url:
        assert Client(url).predict(b"x") == ANSWER[1]
    monkeypatch.setattr("serve.client.RECOVERY_SECONDS", 0.3)
    with (
        fake_server(lambda *_: DIED) as url,
        pytest.raises(BusyError, match="answered 507: InternalServerException: Worker died"),
    ):
        Client(url).predict(b"x")


def test_permanent_errors_are_not_retried() -> None:
    requests = []
    raises = pytest.raises(ServerError, match="answered 400: the image is empty")
    with fake_server(lambda _, number: (requests.append(number), BAD)[1]) as url, raises:
        Client(url).predict(b"x")
    assert requests == [0]


@pytest.mark.parametrize(("minutes", "is_renewed"), [(-1, True), (60, False)])
def test_only_an_expired_key_is_renewed(minutes: float, is_renewed: bool, tmp_path: Path) -> None:
    """A rejected key that has not expired belongs to another server."""
    file, renewals = write_keys(tmp_path / "key_file.json", "old", minutes), []

    def respond(request: BaseHTTPRequestHandler, _: int) -> tuple[int, object]:
        if request.path == "/token?type=inference":
            assert request.headers["Authorization"] == "Bearer the API's"
            renewals.append(write_keys(file, "new"))
            return 200, {}
        return ANSWER if request.headers["Authorization"] == "Bearer new" else REFUSED

    with fake_server(respond) as url:
        client = Client(url, key_file=file, management=url)
        if is_renewed:
            assert client.predict(b"x") == ANSWER[1]
        else:
            with pytest.raises(InvalidKeyError):
                client.predict(b"x")
    assert bool(renewals) == is_renewed


def test_key_is_sent_to_this_machine_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_keys(tmp_path / "key_file.json", "secret")
    assert Client("http://127.0.0.1:8080").find_key_file() == Path("key_file.json")
    assert Client("http://example.invalid:8080").find_key_file() is None
    assert Client("http://example.invalid:8080", key_file=file).find_key_file() == file
    monkeypatch.setenv(KEY_VARIABLE, str(file))
    assert Client("http://example.invalid:8080").find_key_file() == file


def test_key_is_not_sent_to_a_redirect(tmp_path: Path) -> None:
    file, requests = write_keys(tmp_path / "key_file.json", "secret"), []

    with fake_server(lambda _, number: (requests.append(number), ANSWER)[1]) as other:

        def redirect(request: BaseHTTPRequestHandler, _: int) -> tuple[int, object]:
            request.send_response_only(302)
            request.send_header("Location", other)
            return 302, {}

        with fake_server(redirect) as url, pytest.raises(ServerError, match="answered 302"):
            Client(url, key_file=file).predict(b"x")
    assert requests == []


@pytest.mark.parametrize("url", ["127.0.0.1:8080", "http://x:port"])
def test_invalid_url(url: str) -> None:
    with pytest.raises(UsageError, match=r"it looks like http://127\.0\.0\.1:8080"):
        Client(url)
