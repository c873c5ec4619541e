"""The keys that TorchServe writes where it is started, and how an expired one is renewed."""

import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from mlp_dist.core.errors import ServerError

KEY_FILE = "key_file.json"

STATE = ".serve"
"""The directory in which serve.server keeps what belongs to the server that it started."""

KEY_VARIABLE = "MLP_DIST_KEY_FILE"


class KeyFileError(ServerError):
    """A file that is not TorchServe's, or whose key cannot be renewed."""


@dataclass(frozen=True)
class Key:
    """`value` is sent with each question. `expires` has a time zone; `api` is what renews the key."""

    value: str
    expires: datetime | None = None
    api: str | None = None

    def expires_within(self, margin: timedelta) -> bool:
        return self.expires is not None and self.expires - margin <= datetime.now(UTC)


def candidates() -> list[Path]:
    """Where key files may lie: named by the environment, in the current directory, in the project's root."""
    named = os.environ.get(KEY_VARIABLE)
    if named:
        return [Path(named)]
    return [place / KEY_FILE for place in (Path(), Path(__file__).resolve().parents[1])]


def read_key(path: Path, kind: str = "inference") -> Key:
    """The key of `kind`, "inference" or "management". Raises KeyFileError."""
    try:
        values = json.loads(path.read_text())
        expires = values[kind].get("expiration time")
        return Key(
            str(values[kind]["key"]),
            datetime.fromisoformat(expires) if expires else None,
            values.get("API", {}).get("key"),
        )
    except OSError as error:
        raise KeyFileError(f"the key file {path} cannot be read: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise KeyFileError(
            f"{path} is not a key file of TorchServe: no {kind} key is found in it; "
            "name TorchServe's key_file.json, which lies where it was started"
        ) from error


def renew(
    path: Path,
    ask: Callable[[str, str], None],
    kind: str = "inference",
    margin: timedelta = timedelta(),
) -> bool:
    """Whether a key that expires within `margin` was replaced in the file, by whoever did it.

    `ask` is given a path of the management API and the key to go with it.
    """
    old = read_key(path, kind)
    if not old.expires_within(margin) or old.api is None:
        return False
    ask(f"/token?type={kind}", old.api)
    return read_key(path, kind) != old
