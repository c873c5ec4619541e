"""Access to MLflow's store: late import, locks around the creation of a database, readable errors."""

import hashlib
import logging
import os
import re
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from mlp_dist.console import progress
from mlp_dist.core.errors import MlpDistError, TrackingError, UsageError
from mlp_dist.core.io import locked, replacing_file

if TYPE_CHECKING:
    from mlflow import MlflowClient

_DATABASE_TRIES = 3

_LOCATIONS = (
    ("experiments", "artifact_location"),
    ("runs", "artifact_uri"),
    ("logged_models", "artifact_location"),
    ("model_versions", "storage_location"),
)
"""Tables and columns in which MLflow keeps places of artifacts."""

_DEFAULTS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # MLflow's own defaults wait four minutes for an absent server and two for one that hangs.
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "1",
    "MLFLOW_HTTP_REQUEST_TIMEOUT": "10",
    "PGCONNECT_TIMEOUT": "10",
    # MLflow reports the creation of a database and its own retries; errors are reported by this package.
    "MLFLOW_LOGGING_LEVEL": "ERROR",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Environment variables set before mlflow is imported, unless the user set them."""


class TrashedError(TrackingError):
    """A run that was deleted in MLflow, where it is kept until `mlflow gc`."""

    def __init__(self, run_id: str, name: str) -> None:
        super().__init__(
            f"the run {name} ({run_id}) is in MLflow's trash and stays there; to bring it back: "
            f"mlflow runs restore --run-id {run_id}"
        )


def load_mlflow() -> ModuleType:
    """Import mlflow, which takes seconds."""
    for name, value in _DEFAULTS.items():
        os.environ.setdefault(name, value)
    import mlflow

    return mlflow


def import_ahead() -> None:
    """Import the modules that opening a run needs."""
    if load_mlflow().get_tracking_uri().startswith(("sqlite", "postgresql")):
        import_module("mlflow.store.tracking.sqlalchemy_store")


def machine_lock(key: str) -> AbstractContextManager[None]:
    """A lock that all processes of this user and machine share under `key`."""
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return locked(Path(tempfile.gettempdir()) / f"mlp_dist-{os.getuid()}-{name}.lock")


@contextmanager
def opened_store(problem: str = "cannot be read", *, create: bool = False) -> Iterator["MlflowClient"]:
    """Yield a client; turn the store's errors into TrackingError, "MLflow at URI `problem`: REASON".

    A database that does not exist is created, or raises UsageError.
    """
    uri = load_mlflow().get_tracking_uri()
    try:
        file = _file(uri)
        if file is not None and not file.exists() and not create:
            raise UsageError(
                f"there are no runs in {file.absolute().parent}: it has no {file.name}; "
                "change to the directory the training was started in, or set MLFLOW_TRACKING_URI"
            )
        yield _client(uri, file)
    except MlpDistError:
        raise
    # A damaged database raises SQLAlchemy's errors.
    except Exception as error:
        shown = hide_password(uri)
        reason = _reason(error).replace("<database_uri>", shown)
        raise TrackingError(f"MLflow at {shown} {problem}: {reason}; see MLFLOW_TRACKING_URI") from error


def _client(uri: str, file: Path | None) -> "MlflowClient":
    """A client. One process at a time opens a database: MLflow's migrations fail if two run at once.

    A server runs its own.
    """
    from mlflow import MlflowClient

    if uri.startswith("http"):
        return MlflowClient()
    # MLflow inserts metrics first and looks for duplicates on failure; psycopg logs each of these failures.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    # No setting for this; MLflow's ten attempts take 100 seconds if nothing answers.
    databases: Any = import_module("mlflow.store.db.utils")
    databases.MAX_RETRY_COUNT = _DATABASE_TRIES
    with machine_lock(uri):
        if file is not None and file.exists():
            follow_move(file)
        elif file is not None:
            _create_database(uri, file)
        return MlflowClient()


def _create_database(uri: str, path: Path) -> None:
    """Create an SQLite file in one step, since a kill during MLflow's migrations would leave it unusable."""
    from sqlalchemy.engine import make_url

    with replacing_file(path) as temporary:
        url = make_url(uri).set(database=str(temporary))
        load_mlflow().MlflowClient(url.render_as_string(hide_password=False))


def _file(uri: str) -> Path | None:
    """The SQLite file that `uri` names."""
    from sqlalchemy.engine import make_url

    database = make_url(uri).database if uri.startswith("sqlite:") else None
    return None if database in (None, "", ":memory:") else Path(database)


def follow_move(database: Path) -> None:
    """Let a database that was moved or copied together with its mlruns find the artifacts there.

    MLflow keeps their locations as absolute paths, and has no command that changes them.
    """
    home = database.absolute().parent / "mlruns"
    with closing(sqlite3.connect(database, timeout=20)) as connection, connection:
        found = connection.execute("SELECT artifact_location FROM experiments").fetchall()
        locations = [Path(each) for (each,) in found if each and Path(each).parent.name == "mlruns"]
        for location in locations:
            root, there = location.parent, home / location.name
            # Another project's experiments may be in the same database.
            if root == home or (root.parent.exists() and not there.exists()):
                continue
            for table, column in _LOCATIONS:
                connection.execute(
                    f"UPDATE {table} SET {column} = ? || substr({column}, ?) "
                    f"WHERE {column} = ? OR substr({column}, 1, ?) = ?",
                    (str(there), len(str(location)) + 1, str(location), len(f"{location}/"), f"{location}/"),
                )
            progress.tell_beside(f"note: MLflow kept the artifacts' old place {location}; it is {there} now")


def hide_password(uri: str) -> str:
    return re.sub(r"(//[^:/@]*:)[^@/]*(?=@)|([?&]password=)[^&]*", r"\1\2***", uri)


def _reason(error: BaseException) -> str:
    """One line; the system's own message if a server cannot be reached."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return "it does not answer"
        if isinstance(cause, OSError) and cause.strerror and not cause.filename:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    text = str(error) or repr(error)
    if (found := re.search(r"schema \(found version (\w+),", text)) and _is_newer(found[1]):
        return "a newer version of MLflow wrote this database; upgrade it: pip install --upgrade mlflow"
    if "error code 401" in text:
        return "it asks for a user and a password; set MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD"
    return text.splitlines()[0]


def _is_newer(revision: str) -> bool:
    """Whether this MLflow does not know a revision of its database's tables."""
    migrations = Path(load_mlflow().__file__ or "").parent / "store/db_migrations/versions"
    known = {path.name.partition("_")[0] for path in migrations.glob("*.py")}
    return bool(known) and revision not in known
