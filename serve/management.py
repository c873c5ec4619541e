"""TorchServe's management API, which only this machine's own server is asked by."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from mlp_dist.core.errors import ServerError
from serve.keys import read_key, renew
from serve.state import State


class ManagementError(ServerError):
    """What was asked for was refused, in the server's own words; `status` is HTTP's."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def ask(state: State, path: str, *, method: str = "GET", timeout: float = 30.0) -> Any:
    """The JSON of an answer. Raises ManagementError where it is an error, ServerError where there is none."""
    status, body = _send(state, path, method, read_key(state.key_file, "management").value, timeout)
    if status == 400 and b"InvalidKeyException" in body:

        def send(token_path: str, key: str) -> None:
            _send(state, token_path, "GET", key, timeout)

        if renew(state.key_file, send, "management"):
            status, body = _send(state, path, method, read_key(state.key_file, "management").value, timeout)
    try:
        values = json.loads(body) if body else {}
    except ValueError as error:
        raise ServerError(f"{state.management_url}{path} answered {body[:200]!r}") from error
    if status >= 400:
        said = values.get("message", body.decode(errors="replace"))
        raise ManagementError(f"{method} {path} was answered {status}: {said}", status)
    return values


def _send(state: State, path: str, method: str, key: str, timeout: float) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection(urlsplit(state.management_url).netloc, timeout=timeout)
    try:
        connection.request(method, path, headers={"Authorization": f"Bearer {key}"})
        answer = connection.getresponse()
        return answer.status, answer.read()
    except (OSError, http.client.HTTPException) as error:
        reason = str(error) or type(error).__name__
        raise ServerError(f"no answer from {state.management_url} ({reason})") from error
    finally:
        connection.close()


def describe_version(state: State, version: str = "") -> dict[str, Any]:
    """A version of the model as TorchServe describes it; "": the one that is asked where none is named.

    Raises ServerError.
    """
    [found] = ask(state, "/".join(filter(None, ("/models", state.model, version))), timeout=10)
    values: dict[str, Any] = found
    return values


def versions(state: State) -> set[str]:
    """Those of the model that are registered. Raises ServerError."""
    return {found["modelVersion"] for found in ask(state, f"/models/{state.model}/all", timeout=10)}
