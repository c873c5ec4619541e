"""Replaces the served version of a model without losing requests."""

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from mlp_dist.console import progress
from mlp_dist.core.errors import BundleError, ServerError, UsageError
from mlp_dist.core.io import replacing_file
from mlp_dist.core.spec import EXACT
from serve.archive import Archive, read_archive
from serve.client import Client
from serve.torchserve.api import ask, describe_version, registered_versions
from serve.torchserve.server_process import wait_for_workers
from serve.torchserve.server_state import STORE, ServerState, exclusive, find_state

DRAIN_SECONDS = 60.0
"""Limit for the answers to requests that the old version has accepted."""

_HAND_OVER_SECONDS = 0.5
"""Within it, a request routed to the old version is in its queue."""

_REST_SECONDS = 0.3


def deploy(mar: Path) -> dict[str, Any]:
    """Load the archive's version, check its answer, make it the default and remove the others.

    Raises UsageError if no deployable server runs here or the archive is not another version of its model,
    and ServerError if the new version fails to load or gives a wrong answer. After any failure or
    interruption the old version keeps answering.
    """
    started = time.monotonic()
    archive = read_archive(mar)
    state, old = _deployable(archive)
    with exclusive(state.directory):
        file_name = f"{archive.name}-{archive.version}.mar"
        with replacing_file(state.directory / STORE / file_name) as temporary:
            shutil.copyfile(archive.path, temporary)
        with progress.stages("deploying") as begin, _rollback(state, old, archive):
            begin("loading the new version")
            _register(state, archive, file_name)
            progress.tell(f"version {archive.version} passed its check; replacing {old}")
            begin("draining the old version")
            ask(state, f"/models/{state.model}/{archive.version}/set-default", method="PUT")
            _drain(state, old, archive.golden)
        for other in registered_versions(state) - {archive.version}:
            ask(state, f"/models/{state.model}/{other}", method="DELETE", timeout=DRAIN_SECONDS)
        for file in (state.directory / STORE).iterdir():
            if file.name != file_name:
                file.unlink()
    return {
        "model": state.model,
        "version": archive.version,
        "run_id": archive.spec.run_id,
        "replaced": old,
        "url": state.url,
        "seconds": round(time.monotonic() - started, 1),
    }


def _deployable(archive: Archive) -> tuple[ServerState, str]:
    """The running server, and its default version. Raises UsageError if it does not take the archive."""
    state = find_state()
    if state is None or not state.is_running():
        raise UsageError("no server is running here: python -m serve.server start --deployable")
    if not state.deployable:
        raise UsageError(
            f"the server at {state.url} was started without --deployable; stop it and start it again: "
            "python -m serve.server start --deployable"
        )
    if archive.name != state.model:
        raise UsageError(
            f"{archive.path} holds the model {archive.name!r}, but {state.model!r} is served at {state.url}; "
            f"package it with --model-name {state.model}"
        )
    old: str = describe_version(state)["modelVersion"]
    if old == archive.version:
        raise UsageError(f"version {old} is already served at {state.url}")
    return state, old


def _register(state: ServerState, archive: Archive, file_name: str) -> None:
    """Register the new version and check its answer to the golden image."""
    if archive.version in registered_versions(state):
        # A killed deployment left it.
        ask(state, f"/models/{state.model}/{archive.version}", method="DELETE")
    workers = describe_version(state)["minWorkers"]
    offset = state.log.stat().st_size
    # A synchronous call would block other connections of the same server thread.
    ask(state, f"/models?url={file_name}&initial_workers={workers}&synchronous=false", method="POST")
    if describe_version(state, archive.version)["minWorkers"] < workers:
        # The archive's own number takes precedence; fewer workers might not keep up.
        scaled = f"/models/{state.model}/{archive.version}?min_worker={workers}&max_worker={workers}"
        ask(state, scaled, method="PUT")
    wait_for_workers(state, version=archive.version, offset=offset)
    archive.check(Client.of(state, archive.version).predict(archive.golden, preprocess=EXACT))


@contextmanager
def _rollback(state: ServerState, old: str, new: Archive) -> Iterator[None]:
    """On any exception, make the old version the default again and remove the new one."""
    try:
        yield
    except BaseException as error:
        with suppress(ServerError):
            if describe_version(state)["modelVersion"] != old:
                ask(state, f"/models/{state.model}/{old}/set-default", method="PUT")
                _drain(state, new.version, new.golden)
            ask(state, f"/models/{state.model}/{new.version}", method="DELETE")
        message = f"version {new.version} was not deployed; version {old} is still served"
        if isinstance(error, ServerError | BundleError):
            raise ServerError(f"{message}: {error}") from error
        error.add_note(message)
        raise


def _drain(state: ServerState, version: str, golden: bytes) -> None:
    """Wait until a version that is no longer the default has answered all its requests.

    TorchServe stops the workers of an unregistered version at once and never answers their requests.
    """
    deadline = time.monotonic() + DRAIN_SECONDS
    time.sleep(_HAND_OVER_SECONDS)
    while time.monotonic() < deadline:
        known = describe_version(state, version)
        if not known["jobQueueStatus"]["pendingRequests"]:
            break
        time.sleep(0.05)
    # A worker answers in order: after this request, all earlier ones are done.
    for worker in known["workers"]:
        if worker["status"] == "READY":
            with suppress(ServerError):
                Client.of(state, version).predict(golden, timeout=DRAIN_SECONDS)
    # One of several workers may have answered all of these while another is still busy.
    with suppress(psutil.NoSuchProcess):
        processes = [psutil.Process(worker["pid"]) for worker in known["workers"]]
        while len(processes) > 1 and time.monotonic() < deadline:
            before = [process.cpu_times() for process in processes]
            time.sleep(_REST_SECONDS)
            if before == [process.cpu_times() for process in processes]:
                break
