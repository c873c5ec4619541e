"""TorchServe's HTTP interfaces: its keys, requests that renew an expired key, and the management API."""

import http.client
import json
import os
import urllib.error
import urllib.request
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.message import Message
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from mlp_dist.core.errors import ServerError
from serve.torchserve.server_state import KEY_FILE, ROOT, ServerState

KEY_VARIABLE = "MLP_DIST_KEY_FILE"

LOOPBACK = ("127.0.0.1", "localhost", "::1")


class KeyFileError(ServerError):
    """A file that is not TorchServe's key file."""


@dataclass(frozen=True)
class Key:
    """`value` authorizes requests until `expires`; `api` renews it."""

    value: str
    expires: datetime | None = None
    api: str | None = None

    @property
    def has_expired(self) -> bool:
        return self.expires is not None and self.expires <= datetime.now(UTC)


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Message
    body: bytes


def find_key_file() -> Path | None:
    """The file in $MLP_DIST_KEY_FILE, else in the current directory or the project's root."""
    named = os.environ.get(KEY_VARIABLE)
    candidates = [Path(named)] if named else [place / KEY_FILE for place in (Path(), ROOT)]
    return next((path for path in candidates if path.is_file()), None)


def read_key(path: Path, kind: str = "inference") -> Key:
    """Read the "inference" or "management" key. Raises KeyFileError."""
    try:
        values = json.loads(path.read_text())
        expires = values[kind].get("expiration time")
        end = datetime.fromisoformat(expires) if expires else None
        return Key(str(values[kind]["key"]), end, values.get("API", {}).get("key"))
    except OSError as error:
        raise KeyFileError(f"cannot read the key file {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KeyFileError(
            f"{path} is not a key file of TorchServe: it has no {kind} key; give the key_file.json in the "
            "directory where TorchServe was started"
        ) from error


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """urllib would send the key to the redirect's target."""

    def redirect_request(self, *_: Any) -> None:
        return None


def send(url: str, key: str = "", *, timeout: float = 30.0, **request: Any) -> Reply:
    """One request; `request` goes to urllib's Request. Raises OSError or HTTPException for no answer."""
    headers = request.pop("headers", {}) | ({"Authorization": f"Bearer {key}"} if key else {})
    # A proxy cannot reach this machine's loopback.
    proxies = urllib.request.ProxyHandler({} if urlsplit(url).hostname in LOOPBACK else None)
    opener = urllib.request.build_opener(proxies, _NoRedirects)
    try:
        with opener.open(urllib.request.Request(url, headers=headers, **request), timeout=timeout) as answer:
            return Reply(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.headers, error.read())


def send_with_key(
    url: str, key_file: Path | None, management: str, kind: str = "inference", **request: Any
) -> Reply:
    """`send`, and once more if the key had expired and can be renewed at `management`, whoever renews it.

    Raises KeyFileError, OSError or HTTPException.
    """
    if key_file is None:
        return send(url, **request)
    key = read_key(key_file, kind)
    reply = send(url, key.value, **request)
    if reply.status != 400 or b"InvalidKeyException" not in reply.body or not key.has_expired:
        return reply
    # On failure the rejected key is reported.
    with suppress(OSError, http.client.HTTPException):
        send(f"{management}/token?type={kind}", key.api or "")
    renewed = read_key(key_file, kind)
    return send(url, renewed.value, **request) if renewed != key else reply


def ask(state: ServerState, path: str, **request: Any) -> Any:
    """The JSON of the management API. Raises ServerError for an error or no answer."""
    url = f"{state.management_url}{path}"
    try:
        reply = send_with_key(url, state.key_file, state.management_url, "management", **request)
        values = json.loads(reply.body or b"{}")
    except (OSError, http.client.HTTPException) as error:
        reason = str(getattr(error, "reason", error)) or type(error).__name__
        raise ServerError(f"no answer from {state.management_url} ({reason})") from error
    except ValueError as error:
        raise ServerError(f"{url} answered {reply.body[:200]!r}") from error
    if reply.status >= 400:
        asked, reason = f"{request.get('method', 'GET')} {path}", values.get("message", reply.body)
        raise ServerError(f"{asked} was answered {reply.status}: {reason}")
    return values


def describe_version(state: ServerState, version: str = "") -> dict[str, Any]:
    """TorchServe's description of a version of the model; "": the default one. Raises ServerError."""
    [found] = ask(state, "/".join(filter(None, ("/models", state.model, version))), timeout=10)
    values: dict[str, Any] = found
    return values


def registered_versions(state: ServerState) -> set[str]:
    """Raises ServerError."""
    return {found["modelVersion"] for found in ask(state, f"/models/{state.model}/all", timeout=10)}
