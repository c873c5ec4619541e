"""What can be typed next: the commands that go on from here, as they are typed in this directory."""

import os
import shlex
from collections.abc import Mapping
from pathlib import Path

from mlp_dist.config import DEFAULT_EXPERIMENT
from mlp_dist.tracking.run_dir import has_record
from mlp_dist.tracking.store import shown as without_password

SERVE = "python -m serve.server start"

_STORE = "MLFLOW_TRACKING_URI"


def after_training(run_id: str | None, output_dir: str, experiment: str) -> str:
    """To compare, package and serve the run; None: MLflow, which gives the id, has not got it yet."""
    compare = ["python", "-m", "mlp_dist.compare"]
    if experiment != DEFAULT_EXPERIMENT:
        compare += ["--experiment", experiment]
    steps = {"compare": _stored(compare)}
    if run_id is None:
        # With the run that it is nested in come all the others.
        around = Path(output_dir).parent
        sync = ["python", "-m", "mlp_dist.sync", _short(around if has_record(around) else output_dir)]
        return _told({"send to MLflow": _stored(sync), **steps})
    package = ["python", "-m", "serve.package", "--run-id", run_id]
    return _told({**steps, "package": _stored(package), "serve": SERVE})


def after_packaging(mar: Path, default: Path) -> str:
    """To serve an archive; `default` is the one that is served where none is named."""
    named = "" if mar == default else f" {shlex.quote(str(mar))}"
    return _told({"serve": f"{SERVE}{named}"})


def after_starting(image: Path, model: str) -> str:
    """To ask a server about an image, and to end it."""
    named = [] if model == "mlp" else ["--model", model]
    ask = shlex.join(["python", "-m", "serve.client", _short(image), *named])
    return _told({"ask": ask, "stop": "python -m serve.server stop"})


def _told(steps: Mapping[str, str]) -> str:
    width = max(map(len, steps)) + 1
    lines = (f"  {f'{what}:':{width}} {command}" for what, command in steps.items())
    return "\n".join(["next", *lines])


def _stored(words: list[str]) -> str:
    """The command with the store that this one was given; one with a password in it is not shown."""
    uri = os.environ.get(_STORE, "")
    store = f"{_STORE}={shlex.quote(uri)} " if uri and uri == without_password(uri) else ""
    return store + shlex.join(words)


def _short(path: str | Path) -> str:
    """From the current directory, where that is above it."""
    path = Path(path)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
