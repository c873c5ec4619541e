"""MLflow, imported when it is needed first, which takes seconds; and what it raises, in words."""

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


def load_mlflow() -> ModuleType:
    # MLflow reports usage from its import on, unless this is set; a user's own choice stands.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its own defaults make a server that is not there a wait of four minutes, and one that hangs of two.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "1")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("PGCONNECT_TIMEOUT", "10")
    # A new database is no news, and what goes wrong is told here.
    os.environ.setdefault("MLFLOW_LOGGING_LEVEL", "ERROR")
    os.environ.setdefault("MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT", "true")
    # A bar for a megabyte says nothing, and stays as a line of its own in logs.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    return mlflow


def import_ahead() -> None:
    """Import what opening a run will need."""
    if load_mlflow().get_tracking_uri().startswith(("sqlite", "postgresql")):
        import_module("mlflow.store.tracking.sqlalchemy_store")


def one_at_a_time(key: str) -> AbstractContextManager[None]:
    """A lock that all processes of this user and machine share under `key`."""
    name = hashlib.sha256(key.encode()).hexdigest()[:16]
    return locked(Path(tempfile.gettempdir()) / f"mlp_dist-{os.getuid()}-{name}.lock")


@contextmanager
def asking_to(what: str) -> Iterator[str]:
    """Makes a TrackingError of what a store raises that is damaged or cannot be reached; yields its URI."""
    uri = load_mlflow().get_tracking_uri()
    try:
        yield uri
    except MlpDistError:
        raise
    # A damaged database is no MlflowException, but what the store's library makes of it.
    except Exception as error:
        problem = f"MLflow at {shown(uri)} cannot {what}: {reason(error)}; see MLFLOW_TRACKING_URI"
        raise TrackingError(problem) from error


@contextmanager
def making_tables(uri: str) -> Iterator[None]:
    """Two that come to a new database together would both make its tables, and one of them fail.

    A server sees to that itself.
    """
    if uri.startswith("http"):
        yield
        return
    # MLflow stores points first and looks for those it has when that fails: psycopg tells of each failure.
    logging.getLogger("psycopg").setLevel(logging.ERROR)
    # Ten times, for which there is no setting, take 100 seconds where nothing answers.
    databases: Any = import_module("mlflow.store.db.utils")
    databases.MAX_RETRY_COUNT = _DATABASE_TRIES
    with one_at_a_time(uri):
        if uri.startswith("sqlite:"):
            _make_whole(uri)
        yield


def _make_whole(uri: str) -> None:
    """Make a file of SQLite's that is not there. MLflow makes its tables in many steps: where a kill comes
    between two of them, nothing can ever open the file again."""
    from sqlalchemy.engine import make_url

    if (missing := _missing_file(uri)) is not None:
        with replacing_file(missing) as path:
            url = make_url(uri).set(database=str(path))
            load_mlflow().MlflowClient(url.render_as_string(hide_password=False))


def _missing_file(uri: str) -> Path | None:
    """The file of a store that SQLite has, where it is not there."""
    from sqlalchemy.engine import make_url

    database = make_url(uri).database if uri.startswith("sqlite:") else None
    if database in (None, "", ":memory:") or Path(database).exists():
        return None
    return Path(database)


@contextmanager
def one_asking_to(what: str) -> Iterator[str]:
    """Of a store that is there: none is made. Raises UsageError where none is."""
    with asking_to(what) as uri:
        if (missing := _missing_file(uri)) is not None:
            raise UsageError(
                f"there are no runs in {missing.absolute().parent}: it has no {missing.name}; "
                "go to where the training was started, or name its store by MLFLOW_TRACKING_URI"
            )
        with making_tables(uri):
            yield uri


def shown(uri: str) -> str:
    """Without the password that may stand in it."""
    return re.sub(r"(//[^:/@]*:)[^@/]*(?=@)|([?&]password=)[^&]*", r"\1\2***", uri)


def reason(error: BaseException) -> str:
    """What has gone wrong, in few words: the system's own where a server cannot be reached."""
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, TimeoutError):
            return "it does not answer"
        if isinstance(cause, OSError) and cause.strerror and not cause.filename:
            return cause.strerror
        cause = cause.__cause__ or cause.__context__
    return (str(error) or repr(error)).splitlines()[0]
