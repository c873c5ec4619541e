"""What a started server is doing: asked, not believed."""

import time
from typing import Any

from mlp_dist.core.errors import MlpDistError, ServerError
from mlp_dist.core.spec import EXACT
from serve.archive import read_archive
from serve.management import describe_version
from serve.state import STORE, State
from serve.torchserve import client_of

_SECONDS = 5.0


def describe(state: State | None) -> dict[str, Any]:
    """What `status` prints as JSON. `ready`: the golden image is answered rightly at this moment."""
    if state is None or not state.runs():
        return {"running": False, "ready": False}
    values: dict[str, Any] = {
        "running": True,
        "ready": False,
        "model": state.model,
        "version": None,
        "run_id": None,
        "workers": 0,
        "url": state.url,
        "management_url": state.management_url,
        "metrics_url": state.metrics_url,
        "deployable": state.deployable,
        "pid": state.session,
        "uptime_seconds": round(time.time() - state.started, 1),
        "directory": str(state.directory),
        "log": str(state.log),
    }
    try:
        version = describe_version(state)
        values["version"] = version["modelVersion"]
        values["workers"] = sum(worker["status"] == "READY" for worker in version["workers"])
        archive = read_archive(state.directory / STORE / version["modelUrl"])
        values["run_id"] = archive.spec.run_id
        if not values["workers"]:
            raise ServerError("no worker is ready")
        archive.check(client_of(state).predict(archive.golden, timeout=_SECONDS, preprocess=EXACT))
        values["ready"] = True
    except MlpDistError as error:
        values["reason"] = str(error)
    return values


def in_words(values: dict[str, Any]) -> str:
    """Some lines for people."""
    if not values["running"]:
        return "no server runs that was started here; python -m serve.server start"
    state = "answers rightly" if values["ready"] else f"does not answer rightly: {values.get('reason')}"
    deployable = ", new versions can be deployed" if values["deployable"] else ""
    return (
        f"{values['model']} at {values['url']} {state}\n"
        f"version {values['version']} of run {values['run_id']}, workers ready: {values['workers']}\n"
        f"process {values['pid']}, started {values['uptime_seconds']:.0f} s ago{deployable}"
    )
