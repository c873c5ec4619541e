"""Ask a running TorchServe about images.

  python -m serve.client outputs/*/bundle/golden.png
  python -m serve.client .serve/golden.png --url http://127.0.0.1:8080

Prints one line of JSON per image: image, label, probability, probabilities. The key is read from
key_file.json in the current directory, else in the project's root. It is sent to this machine only,
unless --key-file or MLP_DIST_KEY_FILE names the file.
"""

import argparse
import http.client
import json
import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

from mlp_dist.console import command, progress
from mlp_dist.core.errors import ServerError, UsageError
from serve.torchserve.api import KEY_VARIABLE, LOOPBACK, KeyFileError, Reply, find_key_file, send_with_key
from serve.torchserve.server_state import KEY_FILE, ServerState, find_state

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


class Client:
    """Asks one model of one server, with the key in `key_file`, which is renewed after it has expired.

    None: for a server on this machine, the file in the current directory or the project's root. `management`
    is the address that renews keys; "": the port after `url`'s. Raises UsageError for an invalid `url`.
    """

    def __init__(
        self, url: str = URL, model: str = "mlp", key_file: Path | None = None, management: str = ""
    ) -> None:
        self.url, self.model, self.key_file = url.rstrip("/"), model, key_file
        self._host, port = _host_and_port(self.url)
        self.management = management or f"http://{self._host}:{port + 1}"

    @classmethod
    def of(cls, state: ServerState, version: str = "") -> Self:
        """A client of a server started by serve.server, for a version of its model or the default one."""
        model = f"{state.model}/{version}" if version else state.model
        return cls(state.url, model, state.key_file, state.management_url)

    @classmethod
    def find(cls, url: str | None = None, model: str = "mlp", key_file: Path | None = None) -> Self:
        """A client of `url`; by default of the server that serve.server started here, else of URL."""
        state = None if key_file else find_state()
        if state and (url is None or _host_and_port(url) == _host_and_port(state.url)) and state.is_running():
            return cls(state.url, model, state.key_file, state.management_url)
        return cls(url or URL, model, key_file)

    def predict(self, image: bytes, *, timeout: float = 30.0, **options: object) -> dict[str, float]:
        """Class name -> probability; `options` are top_k, preprocess and background. Raises as `ask` does."""
        return self.ask(image, "predictions", timeout=timeout, **options).values

    def ask(
        self, image: bytes, endpoint: str = "predictions", *, timeout: float = 30.0, **options: object
    ) -> Answer:
        """Send the bytes of an image file to the endpoint "predictions" or "explanations".

        Repeats the request for up to RECOVERY_SECONDS while the server is busy or replaces a worker.
        `timeout` is in seconds, for each try.

        Raises NotReadyError if no model answers, and ServerError with the server's message otherwise.
        """
        deadline = time.monotonic() + RECOVERY_SECONDS
        while True:
            try:
                return self._ask(endpoint, image, timeout, **options)
            except BusyError:
                if time.monotonic() > deadline:
                    raise
            time.sleep(0.2)

    def wait_and_predict(
        self, image: bytes, *, seconds: float = LOADING_SECONDS, **options: object
    ) -> dict[str, float]:
        """`predict`, repeated until the model is loaded."""
        started = time.monotonic()
        while True:
            try:
                # A short timeout: TorchServe holds requests while the model loads, forever if loading fails.
                return self._ask("predictions", image, 5.0, **options).values
            except (NotReadyError, InvalidKeyError, KeyFileError) as error:
                is_start = isinstance(error, UnknownModelError | KeyFileError)
                if time.monotonic() - started > (min(seconds, KEY_SECONDS) if is_start else seconds):
                    raise
            time.sleep(0.1)

    def find_key_file(self) -> Path | None:
        if self.key_file is not None:
            return self.key_file if self.key_file.is_file() else None
        return find_key_file() if self._host in LOOPBACK or os.environ.get(KEY_VARIABLE) else None

    def _ask(self, endpoint: str, image: bytes, timeout: float, **options: object) -> Answer:
        """One try."""
        url = f"{self.url}/{endpoint}/{quote(self.model)}"
        headers = {f"X-{name.replace('_', '-')}": str(value) for name, value in options.items()}
        headers["Content-Type"] = "application/octet-stream"
        try:
            reply = send_with_key(
                url, self.find_key_file(), self.management, data=image, headers=headers, timeout=timeout
            )
            if reply.status != 200:
                raise _error_from(self.url, reply)
            return Answer(json.loads(reply.body), reply.headers.get("X-Run-Id", ""))
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            reason = getattr(error, "reason", error)
            message = f"no answer from {self.url} ({reason or type(reason).__name__})"
            # A broken connection, unlike a refused one, means that the server lost a worker.
            if isinstance(reason, ConnectionResetError | BrokenPipeError | http.client.HTTPException):
                raise BusyError(message) from error
            raise NotReadyError(
                f"{message}; start the server: torchserve --start --models mlp.mar"
            ) from error


def _host_and_port(url: str) -> tuple[str, int]:
    """With 127.0.0.1 for localhost. Raises UsageError."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError as error:
        raise UsageError(f"invalid url {url!r}: {error}; it looks like {URL}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"invalid url {url!r}; it looks like {URL}")
    return "127.0.0.1" if host == "localhost" else host, port


def _error_from(url: str, reply: Reply) -> ServerError:
    """The error for a response: the message in the handler's or TorchServe's JSON, else the body's start."""
    try:
        values = json.loads(reply.body)
        error = values.get("error")
        text = str(error["message"]) if error is not None else f"{values['type']}: {values['message']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        text = reply.body[:200].decode(errors="replace") or "an empty body"
    kind = text.partition(":")[0]
    message = f"{url} answered {reply.status}: {text}{_HINTS.get(kind, '')}"
    if kind == "InvalidKeyException":
        return InvalidKeyError(message)
    if reply.status == 404:
        return UnknownModelError(message)
    return BusyError(message) if reply.status in _TRANSIENT else ServerError(message)


def _parse() -> argparse.Namespace:
    parser = command.Parser(prog="python -m serve.client", description=__doc__)
    request, server = parser.add_argument_group("request"), parser.add_argument_group("server")
    formats = "PNG, JPEG, GIF, BMP, WebP or TIFF file"
    request.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help=formats)
    server.add_argument("--url", help=f"inference address (that of serve.server start, else {URL})")
    server.add_argument("--model", default="mlp", metavar="NAME", help="name of the served model (mlp)")
    server.add_argument(
        "--key-file", type=Path, metavar="FILE", help="TorchServe's keys (found, or $MLP_DIST_KEY_FILE)"
    )
    args = parser.parse_args()
    for path in filter(None, [*args.images, args.key_file]):
        if path.is_dir():
            raise UsageError(f"{path} is a directory; name the images in it, as {path}/*.png")
        if not path.is_file():
            raise UsageError(f"no such file: {path}")
    return args


def main() -> int:
    args = _parse()
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
