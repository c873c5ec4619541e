"""Access to MLflow's store: late import, locks around the creation of a database, readable errors."""

import hashlib
import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from mlp_dist.core.errors import MlpDistError, TrackingError, UsageError
from mlp_dist.core.io import locked, replacing_file

_DATABASE_TRIES = 3

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
def tracking_errors(problem: str) -> Iterator[str]:
    """Yield the store's URI; turn its errors into TrackingError, "MLflow at URI `problem`: REASON"."""
    uri = load_mlflow().get_tracking_uri()
    try:
        yield uri
    except MlpDistError:
        raise
    # A damaged database raises SQLAlchemy's errors.
    except Exception as error:
        message = f"MLflow at {hide_password(uri)} {problem}: {_reason(error)}; see MLFLOW_TRACKING_URI"
        raise TrackingError(message) from error


@contextmanager
def creating_tables(uri: str) -> Iterator[None]:
    """Let one process at a time open a database: MLflow's migrations fail if two processes run them at once.

    A server runs its own.
    """
    if uri.startswith("http"):
        yield
        return
    # MLflow inserts metrics first and looks for duplicates on failure; psycopg logs each of these failures.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    # No setting for this; MLflow's ten attempts take 100 seconds if nothing answers.
    databases: Any = import_module("mlflow.store.db.utils")
    databases.MAX_RETRY_COUNT = _DATABASE_TRIES
    with machine_lock(uri):
        if (missing := _missing_file(uri)) is not None:
            _create_database(uri, missing)
        yield


def _create_database(uri: str, path: Path) -> None:
    """Create an SQLite file in one step, since a kill during MLflow's migrations would leave it unusable."""
    from sqlalchemy.engine import make_url

    with replacing_file(path) as temporary:
        url = make_url(uri).set(database=str(temporary))
        load_mlflow().MlflowClient(url.render_as_string(hide_password=False))


def _missing_file(uri: str) -> Path | None:
    """The SQLite file that `uri` names, if it does not exist."""
    from sqlalchemy.engine import make_url

    database = make_url(uri).database if uri.startswith("sqlite:") else None
    if database in (None, "", ":memory:") or Path(database).exists():
        return None
    return Path(database)


@contextmanager
def existing_store(problem: str = "cannot be read") -> Iterator[str]:
    """Like `tracking_errors`, but raises UsageError rather than create a database that does not exist."""
    with tracking_errors(problem) as uri:
        if (missing := _missing_file(uri)) is not None:
            raise UsageError(
                f"there are no runs in {missing.absolute().parent}: it has no {missing.name}; "
                "change to the directory the training was started in, or set MLFLOW_TRACKING_URI"
            )
        with creating_tables(uri):
            yield uri


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
    return (str(error) or repr(error)).splitlines()[0]
