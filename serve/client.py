"""Ask a running TorchServe what its model sees in images.

  python -m serve.client outputs/*/bundle/golden.png
  python -m serve.client .serve/golden.png --url http://127.0.0.1:8080

Prints one line of JSON an image: image, label, probability, probabilities. The key is read from
key_file.json in the current directory, else in the project's root; it is sent to this machine
alone, and to another one where --key-file or MLP_DIST_KEY_FILE names it.
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
from datetime import timedelta
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote, urlsplit

from mlp_dist.console import colors, command, progress
from mlp_dist.core.errors import ServerError, UsageError
from serve.keys import KEY_FILE, KEY_VARIABLE, KeyFileError, candidates, read_key, renew
from serve.state import find_state

URL = "http://127.0.0.1:8080"

START_SECONDS = 60.0
"""How long a server that has written its keys may take to load its model."""

KEY_SECONDS = 5.0
"""How long a server that was just started may take to write its keys, and to know its models."""

RECOVERY_SECONDS = 20.0
"""How long a server that is there may fail to answer: a worker that died is replaced in some four."""

_FAILING = (500, 502, 503, 504, 507)
"""A worker that died or is loaded, or a queue that is full. Asking again changes nothing on the server."""

_HINTS = {
    "InvalidKeyException": f"; the key is read from {KEY_FILE} in the current directory, else in the "
    "project's root: ask from where the server was started, or name the file with --key-file",
    "ModelNotFoundException": "; name the one that is served with --model",
}
"""What to do about TorchServe's own errors, by their type."""


class NotReadyError(ServerError):
    """The server is not there, or has not loaded the model yet."""


class BusyError(NotReadyError):
    """The server is there, but could not answer just now."""


class UnknownModelError(NotReadyError):
    """The server is there, but does not know the model."""


class InvalidKeyError(ServerError):
    """The server wants another key, or one at all."""


@dataclass(frozen=True)
class Answer:
    """`values` is its JSON, `run_id` the run of the model that gave it, "" where the server does not say."""

    values: dict[str, Any]
    run_id: str


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would take the key along to wherever it is sent."""

    def redirect_request(self, *_: Any) -> None:
        return None


class Client:
    """Asks one model of one server; the key is read anew for each question, and renewed when it has expired.

    `key_file`: where TorchServe wrote its keys; None: in the current directory, else in the project's root,
    and not for another machine. `management`: the address that renews keys; None: the port after `url`'s.

    Raises UsageError for a `url` that is none.
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
        # A proxy is for other machines: through one, this machine's own server is not to be found.
        self._local = host in ("127.0.0.1", "localhost", "::1")
        self.management = management or f"http://{host}:{port + 1}"
        proxies = urllib.request.ProxyHandler({} if self._local else None)
        self._opener = urllib.request.build_opener(proxies, _NoRedirects)

    @classmethod
    def find(cls, url: str | None = None, model: str = "mlp", key_file: Path | None = None) -> Self:
        """Of the server that serve.server started here, where `url` is its address or None; else of the one
        at `url`, or URL.
        """
        state = find_state()
        if (
            state is not None
            and key_file is None
            and (url is None or _is_same(url, state.url))
            and state.runs()
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
        """Class name -> probability for the bytes of an image file: the values of `ask`."""
        given = {"X-Top-K": top_k, "X-Preprocess": preprocess, "X-Background": background}
        headers = {name: str(value) for name, value in given.items() if value is not None}
        return self.ask(image, headers=headers, timeout=timeout).values

    def ask(
        self,
        image: bytes,
        question: str = "predictions",
        *,
        headers: Mapping[str, str] | None = None,
        timeout: float = 30.0,
    ) -> Answer:
        """What the server says to the bytes of an image file, asked for "predictions" or "explanations".

        A server that is there but cannot answer, since a worker died or too many ask, is asked again for
        RECOVERY_SECONDS at most. `timeout` is that of one try, in seconds.

        Raises NotReadyError where no model answers, ServerError with the server's own words for any
        other answer that is not a prediction.
        """
        deadline, pause = time.monotonic() + RECOVERY_SECONDS, 0.05
        while True:
            try:
                return self._ask(question, image, headers or {}, timeout)
            except BusyError:
                if time.monotonic() + pause > deadline:
                    raise
            time.sleep(pause)
            pause = min(2 * pause, 1.0)

    def wait_and_predict(
        self,
        image: bytes,
        *,
        seconds: float = START_SECONDS,
        preprocess: str | None = None,
        check: Callable[[], None] = lambda: None,
    ) -> dict[str, float]:
        """`predict`, tried again until the model is loaded; `check` may raise to end the wait."""
        started = time.monotonic()
        headers = {"X-Preprocess": preprocess} if preprocess else {}
        while True:
            check()
            try:
                # TorchServe keeps a request while the model loads, for ever where it fails to.
                return self._ask("predictions", image, headers, timeout=5).values
            except (NotReadyError, InvalidKeyError, KeyFileError) as error:
                # A server that starts may be about to know the model, or to write its keys.
                soon = isinstance(error, UnknownModelError | KeyFileError)
                if time.monotonic() - started > (min(seconds, KEY_SECONDS) if soon else seconds):
                    raise
            time.sleep(0.1)

    def find_key_file(self) -> Path | None:
        if self.key_file is not None:
            return self.key_file if self.key_file.is_file() else None
        if not self._local and not os.environ.get(KEY_VARIABLE):
            return None
        return next((path for path in candidates() if path.is_file()), None)

    def renew_key(self, key_file: Path, margin: timedelta) -> bool:
        """Whether the key was renewed, as one is that expires within `margin`. Raises KeyFileError."""
        return renew(key_file, self._renew, margin=margin)

    def _ask(self, question: str, image: bytes, headers: Mapping[str, str], timeout: float) -> Answer:
        """One try, or two where the key had expired."""
        path = self.find_key_file()
        try:
            return self._post(question, image, headers, timeout, path)
        except InvalidKeyError:
            if path is None or not renew(path, self._renew):
                raise
        return self._post(question, image, headers, timeout, path)

    def _post(
        self, question: str, image: bytes, headers: Mapping[str, str], timeout: float, key_file: Path | None
    ) -> Answer:
        sent = {"Content-Type": "application/octet-stream", **headers}
        if key_file is not None:
            sent["Authorization"] = f"Bearer {read_key(key_file).value}"
        request = urllib.request.Request(f"{self.url}/{question}/{quote(self.model)}", image, sent)
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                return Answer(json.load(answer), answer.headers.get("X-Run-Id", ""))
        except urllib.error.HTTPError as error:
            with error:
                raise _told(self.url, error.code, error.read()) from error
        except (OSError, http.client.HTTPException, json.JSONDecodeError) as error:
            reason = getattr(error, "reason", error)
            message = f"no answer from {self.url} ({reason or type(reason).__name__})"
            # A connection that was made and broke off is that of a server which lost a worker.
            if isinstance(reason, ConnectionResetError | BrokenPipeError | http.client.HTTPException):
                raise BusyError(message) from error
            raise NotReadyError(
                f"{message}; start the server: torchserve --start --models mlp.mar"
            ) from error

    def _renew(self, path: str, key: str) -> None:
        headers = {"Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{self.management}{path}", headers=headers)
        # Where it cannot be had, what the server says of the old key is what is to be told.
        with suppress(OSError, http.client.HTTPException), self._opener.open(request, timeout=10) as answer:
            answer.read()


def _host_and_port(url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise UsageError(f"url {url!r} is no address: {error}; it looks like {URL}") from error
    if parts.scheme not in ("http", "https") or not host:
        raise UsageError(f"url {url!r} is no address of a server; it looks like {URL}")
    return host, port or (443 if parts.scheme == "https" else 80)


def _is_same(url: str, other: str) -> bool:
    """Whether two addresses are of one server, however this machine is called in them."""
    first, second = (
        (host.replace("localhost", "127.0.0.1"), port) for host, port in map(_host_and_port, (url, other))
    )
    return first == second


def _told(url: str, status: int, body: bytes) -> ServerError:
    """The message in the handler's or TorchServe's JSON, else the body's beginning."""
    try:
        values = json.loads(body)
        error = values.get("error")
        said = str(error["message"]) if error is not None else f"{values['type']}: {values['message']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        said = body[:200].decode(errors="replace") or "an empty body"
    kind = said.partition(":")[0]
    message = f"{url} answered {status}: {said}{_HINTS.get(kind, '')}"
    if kind == "InvalidKeyException":
        return InvalidKeyError(message)
    if status == 404:
        return UnknownModelError(message)
    return BusyError(message) if status in _FAILING else ServerError(message)


def main() -> int:
    parser = command.Parser(prog="python -m serve.client", description=__doc__)
    what = parser.add_argument_group("what is asked")
    what.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="PNG, JPEG, GIF, BMP, WebP or TIFF"
    )
    whom = parser.add_argument_group("who is asked")
    whom.add_argument("--url", help=f"its address for predictions (that of serve.server start, else {URL})")
    whom.add_argument("--model", default="mlp", metavar="NAME", help="the model's name there (mlp)")
    whom.add_argument(
        "--key-file", type=Path, metavar="FILE", help="TorchServe's keys (found, or $MLP_DIST_KEY_FILE)"
    )
    args = parser.parse_args()
    missing = [str(path) for path in [*args.images, args.key_file] if path and not path.is_file()]
    if directories := [path for path in args.images if path.is_dir()]:
        raise UsageError(f"{directories[0]} is a directory; name the images in it, as {directories[0]}/*.png")
    if missing:
        raise UsageError(f"no such file: {', '.join(missing)}")

    client = Client.find(args.url, args.model, args.key_file)
    # Keys are written before the model is loaded: where they lie, the server is worth a longer wait.
    seconds = START_SECONDS if client.find_key_file() else KEY_SECONDS
    failed = False
    for path in args.images:
        try:
            with progress.stages(f"asking {client.url}"):
                probabilities = client.wait_and_predict(path.read_bytes(), seconds=seconds)
        except (NotReadyError, InvalidKeyError):
            raise
        except ServerError as error:
            print(colors.error(f"{path}: {error}"), file=sys.stderr)
            failed = True
            continue
        label = max(probabilities, key=probabilities.__getitem__)
        answer = {"image": str(path), "label": label, "probability": probabilities[label]}
        print(json.dumps({**answer, "probabilities": probabilities}, ensure_ascii=False), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    command.run(main)
