"""Ask a running TorchServe about images.

  python -m serve.client outputs/*/bundle/golden.png
  python -m serve.client .serve/golden.png --url http://127.0.0.1:8080

Prints one line of JSON per image: image, label, probability, probabilities. The key is read from
key_file.json in the current directory, else in the project's root. It is sent to this machine only,
unless --key-file or MLP_DIST_KEY_FILE names the file.
"""

import http.client
import json
import os
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

from mlp_dist.console import command, progress
from mlp_dist.core.errors import ServerError, UsageError
from serve.torchserve.keys import (
    KEY_FILE,
    KEY_VARIABLE,
    KeyFileError,
    find_key_file,
    read_key,
    renew_key,
)
from serve.torchserve.server_state import ServerState, find_state

URL = "http://127.0.0.1:8080"

LOADING_SECONDS = 60.0
"""Wait for the model of a server that has written its key file."""

KEY_SECONDS = 5.0
"""Wait for a new server's key file and list of models."""

RECOVERY_SECONDS = 20.0
"""Wait for a running server that fails to answer. A dead worker is replaced in about 4 s."""

_TRANSIENT = (500, 502, 503, 504, 507)
"""A worker died or is loading, or the queue is full. Repeating a prediction is safe."""

_HINTS = {
    "InvalidKeyException": f"; the key is read from {KEY_FILE} in the current directory, else in the "
    "project's root: run this where the server was started, or pass --key-file",
    "ModelNotFoundException": "; name the served model with --model",
}
"""By type of TorchServe's own error."""


class NotReadyError(ServerError):
    """No server, or its model is not loaded yet."""


class BusyError(NotReadyError):
    """The server runs but could not answer now."""


class UnknownModelError(NotReadyError):
    """The server does not know the model."""


class InvalidKeyError(ServerError):
    """The server rejected the key, or there was none."""


@dataclass(frozen=True)
class Answer:
    """The response's JSON and the model's run ID ("" if the server does not send it)."""

    values: dict[str, Any]
    run_id: str


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would send the key to the redirect's target."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Client:
    """Asks one model of one server. Reads the key for each request and renews it after it has expired.

    Args:
        key_file: TorchServe's key file; None: for a server on this machine, the file in the current
            directory or the project's root.
        management: address that renews keys; None: the port after `url`'s.

    Raises UsageError for an invalid `url`.
    """

    def __init__(
        self,
        url: str = URL,
        model: str = "mlp",
        key_file: Path | None = None,
        management: str | None = None,
    ) -> None:
        self.url, self.model, self.key_file = url.rstrip("/"), model, key_file
        host, port = _host_and_port(self.url)
        self._local = host in ("127.0.0.1", "localhost", "::1")
        self.management = management or f"http://{host}:{port + 1}"
        # A proxy cannot reach this machine's loopback.
        proxies = urllib.request.ProxyHandler({} if self._local else None)
        self._opener = urllib.request.build_opener(proxies, _NoRedirects)

    @classmethod
    def of(cls, state: ServerState, version: str = "") -> Self:
        """A client of a server started by serve.server, for a version of its model or the default one."""
        model = f"{state.model}/{version}" if version else state.model
        return cls(state.url, model, state.key_file, state.management_url)

    @classmethod
    def find(cls, url: str | None = None, model: str = "mlp", key_file: Path | None = None) -> Self:
        """A client of `url`; by default of the server that serve.server started here, else of URL."""
        state = find_state()
        if (
            state is not None
            and key_file is None
            and (url is None or _is_same(url, state.url))
            and state.is_running()
        ):
            return cls(state.url, model, state.key_file, state.management_url)
        return cls(url or URL, model, key_file)

    def predict(
        self,
        image: bytes,
        *,
        timeout: float = 30.0,
        top_k: int | None = None,
        preprocess: str | None = None,
        background: str | None = None,
    ) -> dict[str, float]:
        """Class name -> probability for the bytes of an image file. Raises what `ask` raises."""
        options = {"X-Top-K": top_k, "X-Preprocess": preprocess, "X-Background": background}
        headers = {name: str(value) for name, value in options.items() if value is not None}
        return self.ask(image, headers=headers, timeout=timeout).values

    def ask(
        self,
        image: bytes,
        endpoint: str = "predictions",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """Send the bytes of an image file to the endpoint "predictions" or "explanations".

        Repeats the request for up to RECOVERY_SECONDS while the server is busy or replaces a worker.
        `timeout` is in seconds, for each try.

        Raises NotReadyError if no model answers, and ServerError with the server's message for any other
        error.
        """
        deadline, pause = time.monotonic() + RECOVERY_SECONDS, 0.05
        while True:
            try:
                return self._ask(endpoint, image, headers or {}, timeout)
            except BusyError:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def wait_and_predict(
        self,
        image: bytes,
        *,
        seconds: float = LOADING_SECONDS,
        preprocess: str | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """`predict`, repeated until the model is loaded. `check` may raise to stop the wait."""
        started = time.monotonic()
        headers = {"X-Preprocess": preprocess} if preprocess else {}
        while True:
            check()
            try:
                # A short timeout: TorchServe holds requests while the model loads, forever if loading fails.
                return self._ask("predictions", image, headers, timeout=5).values
            except (NotReadyError, InvalidKeyError, KeyFileError) as error:
                is_start = isinstance(error, UnknownModelError | KeyFileError)
                if time.monotonic() - started > (min(seconds, KEY_SECONDS) if is_start else seconds):
                    raise
            time.sleep(0.1)

    def find_key_file(self) -> Path | None:
        if self.key_file is not None:
            return self.key_file if self.key_file.is_file() else None
        if not self._local and not os.environ.get(KEY_VARIABLE):
            return None
        return find_key_file()

    def _ask(self, endpoint: str, image: bytes, headers: Mapping[str, str], timeout: float) -> Answer:
        """One try, or a second one after renewing the key."""
        path = self.find_key_file()
        try:
            return self._post(endpoint, image, headers, timeout, path)
        except InvalidKeyError:
            if path is None or not renew_key(path, self._renew):
                raise
        return self._post(endpoint, image, headers, timeout, path)

    def _post(
        self, endpoint: str, image: bytes, headers: Mapping[str, str], timeout: float, key_file: Path | None
    ) -> Answer:
        sent = {"Content-Type": "application/octet-stream", **headers}
        if key_file is not None:
            sent["Authorization"] = f"Bearer {read_key(key_file).value}"
        request = urllib.request.Request(f"{self.url}/{endpoint}/{quote(self.model)}", image, sent)
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                return Answer(json.load(answer), answer.headers.get("X-Run-Id", ""))
        except urllib.error.HTTPError as error:
            with error:
                raise _error_from(self.url, error.code, error.read()) from error
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            reason = getattr(error, "reason", error)
            message = f"no answer from {self.url} ({reason or type(reason).__name__})"
            # A broken connection, unlike a refused one, means that the server lost a worker.
            if isinstance(reason, ConnectionResetError | BrokenPipeError | http.client.HTTPException):
                raise BusyError(message) from error
            raise NotReadyError(
                f"{message}; start the server: torchserve --start --models mlp.mar"
            ) from error

    def _renew(self, path: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{self.management}{path}", headers=headers)
        # On failure the caller reports the rejected key.
        with suppress(OSError, http.client.HTTPException), self._opener.open(request, timeout=10) as answer:
            answer.read()


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"invalid url {url!r}: {error}; it looks like {URL}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"invalid url {url!r}; it looks like {URL}")
    return host, port or (443 if parts.scheme == "https" else 80)


def _is_same(url: str, other: str) -> bool:
    """Compare host and port, with localhost as 127.0.0.1."""
    first, second = (
        (host.replace("localhost", "127.0.0.1"), port) for host, port in map(_host_and_port, (url, other))
    )
    return first == second


def _error_from(url: str, status: int, body: bytes) -> ServerError:
    """The error for a response: the message in the handler's or TorchServe's JSON, else the body's start."""
    try:
        values = json.loads(body)
        error = values.get("error")
        text = str(error["message"]) if error is not None else f"{values['type']}: {values['message']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        text = body[:200].decode(errors="replace") or "an empty body"
    kind = text.partition(":")[0]
    message = f"{url} answered {status}: {text}{_HINTS.get(kind, '')}"
    if kind == "InvalidKeyException":
        return InvalidKeyError(message)
    if status == 404:
        return UnknownModelError(message)
    return BusyError(message) if status in _TRANSIENT else ServerError(message)


def main() -> int:
    parser = command.Parser(prog="python -m serve.client", description=__doc__)
    request = parser.add_argument_group("request")
    request.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="PNG, JPEG, GIF, BMP, WebP or TIFF file"
    )
    server = parser.add_argument_group("server")
    server.add_argument("--url", help=f"inference address (that of serve.server start, else {URL})")
    server.add_argument("--model", default="mlp", metavar="NAME", help="name of the served model (mlp)")
    server.add_argument(
        "--key-file", type=Path, metavar="FILE", help="TorchServe's keys (found, or $MLP_DIST_KEY_FILE)"
    )
    args = parser.parse_args()
    missing = [str(path) for path in [*args.images, args.key_file] if path and not path.is_file()]
    if directories := [path for path in args.images if path.is_dir()]:
        raise UsageError(f"{directories[0]} is a directory; name the images in it, as {directories[0]}/*.png")
    if missing:
        raise UsageError(f"no such file: {', '.join(missing)}")

    client = Client.find(args.url, args.model, args.key_file)
    # A key file means that a server has started, perhaps without a model yet.
    seconds = LOADING_SECONDS if client.find_key_file() else KEY_SECONDS
    failed = False
    for path in args.images:
        try:
            with progress.stages(f"asking {client.url}"):
                probabilities = client.wait_and_predict(path.read_bytes(), seconds=seconds)
        except (NotReadyError, InvalidKeyError):
            raise
        except ServerError as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            failed = True
            continue
        label = max(probabilities, key=probabilities.__getitem__)
        answer = {"image": str(path), "label": label, "probability": probabilities[label]}
        print(json.dumps({**answer, "probabilities": probabilities}, ensure_ascii=False), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    command.run(main)
