"""MLflow, imported when it is needed first, which takes seconds; and what it raises, in words."""

import fcntl
import hashlib
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from types import ModuleType

from mlp_dist.core.errors import MlpDistError, TrackingError

BUNDLE = "bundle"
CONFIG = "config.json"


def load_mlflow() -> ModuleType:
    # MLflow reports usage from its import on, unless this is set; a user's own choice stands.
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    # Its own default of 7 makes a server that is not there a wait of four minutes.
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "3")
    # A bar for a megabyte says nothing, and stays as a line of its own in logs.
    os.environ.setdefault("MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR", "false")
    import mlflow

    return mlflow


def import_ahead() -> None:
    """Import what opening a run will need."""
    if load_mlflow().get_tracking_uri().startswith("sqlite"):
        import_module("mlflow.store.tracking.sqlalchemy_store")


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Two trainings that start together would both make a new database's tables, and one of them fail."""
    name = hashlib.sha256(uri.encode()).hexdigest()[:16]
    with (Path(tempfile.gettempdir()) / f"mlp_dist-{os.getuid()}-{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
        reason = (str(error) or repr(error)).splitlines()[0]
        raise TrackingError(f"MLflow at {uri} cannot {what}: {reason}; see MLFLOW_TRACKING_URI") from error


@contextmanager
def one_asking_to(what: str) -> Iterator[str]:
    with asking_to(what) as uri, _one_at_a_time(uri):
        yield uri
