"""Requests to the management API of a local server."""

import http.client
import json
from typing import Any
from urllib.parse import urlsplit

from mlp_dist.core.errors import ServerError
from serve.torchserve.keys import read_key, renew_key
from serve.torchserve.server_state import ServerState


class ManagementError(ServerError):
    """A refused request, with the server's message and HTTP `status`."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


def ask(state: ServerState, path: str, *, method: str = "GET", timeout: float = 30.0) -> Any:
    """Send a request; returns its JSON. Raises ManagementError for an error and ServerError for no answer."""
    status, body = _send(state, path, method, read_key(state.key_file, "management").value, timeout)
    if status == 400 and b"InvalidKeyException" in body:

        def send(token_path: str, key: str) -> None:
            _send(state, token_path, "GET", key, timeout)

        if renew_key(state.key_file, send, "management"):
            status, body = _send(state, path, method, read_key(state.key_file, "management").value, timeout)
    try:
        values = json.loads(body) if body else {}
    except ValueError as error:
        raise ServerError(f"{state.management_url}{path} answered {body[:200]!r}") from error
    if status >= 400:
        reason = values.get("message", body.decode(errors="replace"))
        raise ManagementError(f"{method} {path} was answered {status}: {reason}", status)
    return values


def _send(state: ServerState, path: str, method: str, key: str, timeout: float) -> tuple[int, bytes]:
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


def describe_version(state: ServerState, version: str = "") -> dict[str, Any]:
    """TorchServe's description of a version of the model; "": the default one. Raises ServerError."""
    [found] = ask(state, "/".join(filter(None, ("/models", state.model, version))), timeout=10)
    values: dict[str, Any] = found
    return values


def registered_versions(state: ServerState) -> set[str]:
    """Raises ServerError."""
    return {found["modelVersion"] for found in ask(state, f"/models/{state.model}/all", timeout=10)}
