"""TorchServe's key file: where it is, reading it, renewing an expired key."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from mlp_dist.core.errors import ServerError

KEY_FILE = "key_file.json"
"""TorchServe writes it to the directory it is started in."""

KEY_VARIABLE = "MLP_DIST_KEY_FILE"

ROOT = Path(__file__).resolve().parents[2]
"""The project's root, where commands look after the current directory."""


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
        return Key(
            str(values[kind]["key"]),
            datetime.fromisoformat(expires) if expires else None,
            values.get("API", {}).get("key"),
        )
    except OSError as error:
        raise KeyFileError(f"cannot read the key file {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KeyFileError(
            f"{path} is not a key file of TorchServe: it has no {kind} key; give the key_file.json in the "
            "directory where TorchServe was started"
        ) from error


def renew_key(path: Path, request: Callable[[str, str], None], kind: str = "inference") -> bool:
    """Renew an expired key; returns True if the file then holds a new one, whoever renewed it.

    `request` sends a GET to a path of the management API, with a key.
    """
    old = read_key(path, kind)
    if not old.has_expired or old.api is None:
        return False
    request(f"/token?type={kind}", old.api)
    return read_key(path, kind) != old
