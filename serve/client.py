"""Ask a running TorchServe.

python -m serve.client IMAGE...        one line of JSON an image: image, label, probability, probabilities
"""

import json
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, urlsplit

from mlp_dist import command
from mlp_dist.core.errors import ServerError, UsageError

KEY_FILE = "key_file.json"
URL = "http://127.0.0.1:8080"

START_SECONDS = 60.0
"""How long a server that has written its keys may take to load its model."""

KEY_SECONDS = 5.0
"""How long a server that was just started may take to write its keys."""

_LOADING = (404, 503)

_HINTS = {
    "InvalidKeyException": f"; the key is read from {KEY_FILE} in the current directory, else in the "
    "project's root: ask from where the server was started",
    "ModelNotFoundException": "; name the one that is served with --model",
}
"""What to do about TorchServe's own errors, by their type."""


class NotReadyError(ServerError):
    """The server is not there, or has not loaded the model yet."""


class Client:
    """Asks one model of one server; the key is read anew when the server refuses it.

    `key_file`: where TorchServe wrote its keys; None: in the current directory, else in the project's root.
    """

    def __init__(self, url: str = URL, model: str = "mlp", key_file: Path | None = None) -> None:
        self.url, self.model, self.key_file = url.rstrip("/"), model, key_file
        # A proxy is for other machines: through one, this machine's own server is not to be found.
        local = urlsplit(self.url).hostname in ("127.0.0.1", "localhost", "::1")
        proxies = urllib.request.ProxyHandler({} if local else None)
        self._opener = urllib.request.build_opener(proxies)

    def predict(self, image: bytes, *, timeout: float = 30.0) -> dict[str, float]:
        """Class name -> probability for the bytes of an image file.

        Raises NotReadyError where no model answers, ServerError with the server's own words for any
        other answer that is not a prediction.
        """
        request = urllib.request.Request(
            f"{self.url}/predictions/{quote(self.model)}", data=image, headers=self._headers()
        )
        try:
            with self._opener.open(request, timeout=timeout) as answer:
                probabilities: dict[str, float] = json.load(answer)
                return probabilities
        except urllib.error.HTTPError as error:
            with error:
                said = _message(error.read())
                message = f"{self.url} answered {error.code}: {said}{_HINTS.get(said.partition(':')[0], '')}"
            raise (NotReadyError if error.code in _LOADING else ServerError)(message) from error
        except (OSError, json.JSONDecodeError) as error:
            reason = getattr(error, "reason", error)
            raise NotReadyError(
                f"no answer from {self.url} ({reason}); start the server: torchserve --start --models mlp.mar"
            ) from error

    def wait_and_predict(
        self, image: bytes, *, seconds: float = START_SECONDS, check: Callable[[], None] = lambda: None
    ) -> dict[str, float]:
        """`predict`, tried again until the model is loaded; `check` may raise to end the wait."""
        deadline = time.monotonic() + seconds
        while True:
            check()
            try:
                # TorchServe keeps a request while the model loads, for ever where it fails to.
                return self.predict(image, timeout=5)
            except ServerError as error:
                refused_key = "InvalidKeyException" in str(error)
                starting = isinstance(error, NotReadyError) or refused_key
                if not starting or time.monotonic() > deadline:
                    raise
            time.sleep(0.1)

    def find_key_file(self) -> Path | None:
        candidates = [self.key_file] if self.key_file else [Path(KEY_FILE), _root() / KEY_FILE]
        return next((path for path in candidates if path.is_file()), None)

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/octet-stream"}
        path = self.find_key_file()
        if path is not None:
            try:
                headers["Authorization"] = f"Bearer {json.loads(path.read_text())['inference']['key']}"
            except (OSError, KeyError, TypeError, json.JSONDecodeError) as error:
                raise NotReadyError(f"{path} is not a key file of TorchServe ({error!r})") from error
        return headers


def _root() -> Path:
    return Path(__file__).resolve().parents[1]


def _message(body: bytes) -> str:
    """The message in the handler's or TorchServe's JSON, else the body's beginning."""
    try:
        values = json.loads(body)
        error = values.get("error")
        if error is not None:
            return str(error["message"])
        return f"{values['type']}: {values['message']}"
    except (ValueError, KeyError, TypeError, AttributeError):
        return body[:200].decode(errors="replace") or "an empty body"


def main() -> int:
    parser = command.Parser(
        prog="python -m serve.client",
        description=__doc__,
    )
    parser.add_argument(
        "images", type=Path, nargs="+", metavar="IMAGE", help="PNG, JPEG, GIF, BMP, WebP or TIFF"
    )
    parser.add_argument("--url", default=URL, help=f"the server's inference address ({URL})")
    parser.add_argument("--model", default="mlp", metavar="NAME", help="the model's name on the server (mlp)")
    args = parser.parse_args()
    missing = [str(path) for path in args.images if not path.is_file()]
    if missing:
        raise UsageError(f"no such file: {', '.join(missing)}")

    client = Client(args.url, args.model)
    # Keys are written before the model is loaded: where they lie, the server is worth a longer wait.
    seconds = START_SECONDS if client.find_key_file() else KEY_SECONDS
    failed = False
    for path in args.images:
        try:
            probabilities = client.wait_and_predict(path.read_bytes(), seconds=seconds)
        except NotReadyError:
            raise
        except ServerError as error:
            print(f"error: {path}: {error}", file=sys.stderr)
            failed = True
            continue
        label = max(probabilities, key=probabilities.__getitem__)
        answer = {"image": str(path), "label": label, "probability": probabilities[label]}
        print(json.dumps({**answer, "probabilities": probabilities}), flush=True)
    return 1 if failed else 0


if __name__ == "__main__":
    command.run(main)
