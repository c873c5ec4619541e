"""The commands to run next, printed at the end of a command."""

import os
import re
import shlex
from pathlib import Path

from mlp_dist.tracking.run_dir import Uploaded, has_record
from mlp_dist.tracking.store import hide_password

SERVE = "python -m serve.server start"

_STORE = "MLFLOW_TRACKING_URI"

_RUNS = (
    "{server}/#/experiments/{experiment_id}/runs?workflowType=machine_learning"
    "&orderByKey=metrics.%60best_val_accuracy%60&orderByAsc=false"
)
"""MLflow's list of runs, the best one first; without workflowType the page shows traces."""


def after_training(run_id: str | None, output_dir: str, experiment: str | None) -> str:
    """See, compare, package and serve; `run_id` None: first send the run to MLflow, which assigns the id."""
    named = [] if experiment is None else ["--experiment", experiment]
    compare = _with_store(shlex.join(["python", "-m", "mlp_dist.compare", *named]))
    if run_id is None:
        # A nested run is sent together with its parent.
        parent = Path(output_dir).parent
        sync = f"python -m mlp_dist.sync {_relative(parent if has_record(parent) else output_dir)}"
        return _format_steps(**{"send to MLflow": _with_store(sync)}, compare=compare)
    see = _see_runs(Uploaded.load(Path(output_dir)).experiment_id)
    package = _with_store(f"python -m serve.package --run-id {run_id}")
    return _format_steps(see=see, compare=compare, package=package, serve=SERVE)


def _see_runs(experiment_id: str) -> str:
    """The address of the experiment's runs, after the command that starts MLflow's page where none runs."""
    uri = os.environ.get(_STORE, "")
    if uri.startswith("http"):
        # A server's address without user and password.
        server = re.sub("//[^/]*@", "//", uri.rstrip("/"))
        return _RUNS.format(server=server, experiment_id=experiment_id)
    named = shlex.quote(uri) if uri == hide_password(uri) else f'"${_STORE}"'
    start = f"mlflow ui --backend-store-uri {named}" if uri else "mlflow ui"
    return f"{start}, then {_RUNS.format(server='http://127.0.0.1:5000', experiment_id=experiment_id)}"


def after_packaging(mar: Path, default: Path) -> str:
    """Serve the archive; `default` is the one served when none is named."""
    return _format_steps(serve=SERVE if mar == default else f"{SERVE} {shlex.quote(str(mar))}")


def after_starting(image: Path, model: str) -> str:
    """Send an image to the server, and stop it."""
    named = "" if model == "mlp" else f" --model {shlex.quote(model)}"
    ask = f"python -m serve.client {_relative(image)}{named}"
    return _format_steps(ask=ask, stop="python -m serve.server stop")


def _format_steps(**steps: str) -> str:
    width = max(map(len, steps)) + 1
    return "\n".join(["next", *(f"  {f'{what}:':{width}} {command}" for what, command in steps.items())])


def _with_store(command: str) -> str:
    """The command with this process's MLFLOW_TRACKING_URI, unless that contains a password."""
    uri = os.environ.get(_STORE, "")
    return f"{_STORE}={shlex.quote(uri)} {command}" if uri and uri == hide_password(uri) else command


def _relative(path: str | Path) -> str:
    """The path from the working directory, quoted."""
    path = Path(path)
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))
