"""The client against a server that answers as TorchServe was seen to; test_server asks a real one."""

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from mlp_dist.core.errors import ServerError, UsageError
from serve import keys
from serve.client import BusyError, Client, InvalidKeyError, NotReadyError, UnknownModelError
from serve.proxy_key import write_key

ANSWER = (200, {"3": 0.75, "5": 0.25})
REFUSED = (400, {"code": 400, "type": "InvalidKeyException", "message": "Token Authorization failed."})
DIED = (507, {"code": 507, "type": "InternalServerException", "message": "Worker died."})
FULL = (503, {"code": 503, "type": "ServiceUnavailableException", "message": 'Model "mlp" has no worker'})
UNKNOWN = (404, {"code": 404, "type": "ModelNotFoundException", "message": "Model not found: nope"})
BAD = (400, {"error": {"type": "ImageError", "message": "the image is empty"}})

Respond = Callable[[BaseHTTPRequestHandler, int], tuple[int, object] | None]


@contextmanager
def answering(respond: Respond) -> Iterator[str]:
    """A server's address; `respond` is told the request and its number and gives None to break off."""
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

        def do_GET(self) -> None:
            self.do_POST()

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


@pytest.mark.parametrize("failures", [[DIED], [FULL, FULL, DIED], [(500, {}), None, (503, {})], [None, None]])
def test_what_a_worker_that_died_costs_is_asked_again(failures: list[tuple[int, object] | None]) -> None:
    answers = [*failures, ANSWER]
    with answering(lambda _, number: answers[number]) as url:
        assert Client(url).predict(b"x") == ANSWER[1]


def test_asking_again_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("serve.client.RECOVERY_SECONDS", 0.3)
    asked = []
    told = pytest.raises(BusyError, match="answered 507: InternalServerException: Worker died")
    with answering(lambda _, number: (asked.append(number), DIED)[1]) as url, told:
        Client(url).predict(b"x")
    assert 2 <= len(asked) <= 4


@pytest.mark.parametrize(
    ("answer", "kind", "message"),
    [
        (BAD, ServerError, "answered 400: the image is empty"),
        (UNKNOWN, UnknownModelError, "ModelNotFoundException: .*; name the one that is served with --model"),
        (REFUSED, InvalidKeyError, "InvalidKeyException: .*; the key is read from key_file.json"),
    ],
)
def test_what_will_not_change_is_told_at_once(
    answer: tuple[int, object], kind: type[Exception], message: str
) -> None:
    asked = []
    told = pytest.raises(kind, match=message)
    with answering(lambda _, number: (asked.append(number), answer)[1]) as url, told:
        Client(url).predict(b"x")
    assert asked == [0]


def test_no_server_is_told_at_once() -> None:
    with answering(lambda *_: ANSWER) as url:
        pass
    with pytest.raises(NotReadyError, match=r"no answer from .*; start the server: torchserve --start"):
        Client(url).predict(b"x")


def test_options_travel_as_headers() -> None:
    seen = {}

    def respond(request: BaseHTTPRequestHandler, _: int) -> tuple[int, object]:
        seen.update({name.lower(): value for name, value in request.headers.items()})
        return ANSWER

    with answering(respond) as url:
        Client(url).predict(b"x", top_k=2, preprocess="auto", background="white")
    assert (seen["x-top-k"], seen["x-preprocess"], seen["x-background"]) == ("2", "auto", "white")


def keyed(right: Callable[[], str], renewed: Callable[[], None]) -> Respond:
    def respond(request: BaseHTTPRequestHandler, _: int) -> tuple[int, object]:
        if request.path == "/token?type=inference":
            assert request.headers["Authorization"] == "Bearer the API's"
            renewed()
            return 200, {}
        return ANSWER if request.headers["Authorization"] == f"Bearer {right()}" else REFUSED

    return respond


def test_a_key_that_has_expired_is_renewed(tmp_path: Path) -> None:
    file = write_keys(tmp_path / "key_file.json", "old", minutes=-1)
    respond = keyed(lambda: "new", lambda: [write_keys(file, "new")].clear())
    with answering(respond) as url:
        assert Client(url, key_file=file, management=url).predict(b"x") == ANSWER[1]


def test_a_key_that_has_not_expired_is_another_servers_and_is_not_renewed(tmp_path: Path) -> None:
    file, renewals = write_keys(tmp_path / "key_file.json", "other"), []
    with (
        answering(keyed(lambda: "new", lambda: renewals.append(1))) as url,
        pytest.raises(InvalidKeyError),
    ):
        Client(url, key_file=file, management=url).predict(b"x")
    assert renewals == []


@pytest.mark.parametrize(("minutes", "key"), [(90, "new"), (180, "old")])
def test_a_proxys_key_is_renewed_before_it_expires(minutes: float, key: str, tmp_path: Path) -> None:
    file = write_keys(tmp_path / "key_file.json", "old", minutes)
    respond = keyed(lambda: "new", lambda: [write_keys(file, "new")].clear())
    with answering(respond) as url:
        told = write_key(Client(url, key_file=file, management=url), tmp_path / "key.conf")
    assert told["renewed"] is (key == "new")
    assert (tmp_path / "key.conf").read_text() == f'proxy_set_header Authorization "Bearer {key}";\n'


def test_the_key_goes_to_this_machine_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = write_keys(tmp_path / "key_file.json", "secret")
    assert Client("http://127.0.0.1:8080").find_key_file() == Path("key_file.json")
    assert Client("http://example.invalid:8080").find_key_file() is None
    assert Client("http://example.invalid:8080", key_file=file).find_key_file() == file
    monkeypatch.setenv(keys.KEY_VARIABLE, str(file))
    assert Client("http://example.invalid:8080").find_key_file() == file


def test_the_key_does_not_go_where_a_server_sends_the_client(tmp_path: Path) -> None:
    file, asked = write_keys(tmp_path / "key_file.json", "secret"), []

    with answering(lambda _, number: (asked.append(number), ANSWER)[1]) as other:

        def away(request: BaseHTTPRequestHandler, _: int) -> tuple[int, object]:
            request.send_response_only(302)
            request.send_header("Location", other)
            return 302, {}

        with answering(away) as url, pytest.raises(ServerError, match="answered 302"):
            Client(url, key_file=file).predict(b"x")
    assert asked == []


@pytest.mark.parametrize("url", ["", "127.0.0.1:8080", "ftp://x", "http://", "http://x:port", "http://[::1"])
def test_an_address_that_is_none(url: str) -> None:
    with pytest.raises(UsageError, match=r"it looks like http://127\.0\.0\.1:8080"):
        Client(url)


def test_a_file_that_holds_no_keys(tmp_path: Path) -> None:
    (tmp_path / "key_file.json").write_text("[]")
    with pytest.raises(ServerError, match="is not a key file of TorchServe"):
        Client(key_file=tmp_path / "key_file.json").predict(b"x")
