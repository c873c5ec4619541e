"""A new version of the served model in the place of the old one, while requests are answered."""

import hashlib
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
from serve.management import ask, describe_version, versions
from serve.state import STORE, State, alone, find_state
from serve.torchserve import START_SECONDS, client_of, wait_for_workers

DRAIN_SECONDS = 60.0
"""How long requests that the old version was given before may take to be answered."""

_HAND_OVER_SECONDS = 0.5
"""Within it a request that found the old version to be the default stands in its queue."""

_REST_SECONDS = 0.3


def deploy(mar: Path) -> dict[str, Any]:
    """Load, ask and make the default the archive's version, then end the others; returns what was done.

    Raises UsageError where there is no server that was started for it, or the archive is not another version
    of its model; ServerError where the new version does not load or answers wrongly. In that case, and when
    interrupted, the old version goes on answering.
    """
    started = time.monotonic()
    archive, state = read_archive(mar), _deployable()
    with alone(state.directory):
        old = _old_version(state, archive)
        url = _put_in_store(state, archive)
        with progress.stages("deploying") as begin, _rolled_back(state, old, archive):
            begin("the new version loads")
            _register(state, archive, url)
            progress.tell(f"version {archive.version} answers rightly; it takes the place of {old}")
            begin("the old one answers what it was asked")
            ask(state, f"/models/{state.model}/{archive.version}/set-default", method="PUT")
            _drain(state, old, archive.golden)
        for other in versions(state) - {archive.version}:
            ask(state, f"/models/{state.model}/{other}", method="DELETE", timeout=DRAIN_SECONDS)
        for file in (state.directory / STORE).iterdir():
            if file.name != url:
                file.unlink()
    return {
        "model": state.model,
        "version": archive.version,
        "run_id": archive.spec.run_id,
        "replaced": old,
        "url": state.url,
        "seconds": round(time.monotonic() - started, 1),
    }


def _deployable() -> State:
    state = find_state()
    if state is None or not state.runs():
        raise UsageError("no server runs that was started here: python -m serve.server start --deployable")
    if not state.deployable:
        raise UsageError(
            f"the server at {state.url} was not started with --deployable; end it, and start it with that: "
            "python -m serve.server start --deployable"
        )
    return state


def _old_version(state: State, archive: Archive) -> str:
    if archive.name != state.model:
        raise UsageError(
            f"{archive.path} holds the model {archive.name!r}, but {state.model!r} is served at {state.url}; "
            f"package it with --model-name {state.model}"
        )
    old: str = describe_version(state)["modelVersion"]
    if old == archive.version:
        raise UsageError(f"version {old} is what is served at {state.url}; nothing was changed")
    return old


def _put_in_store(state: State, archive: Archive) -> str:
    """Copy the archive under a name that no other one has; returns the name."""
    digest = hashlib.sha256(archive.path.read_bytes()).hexdigest()[:8]
    name = f"{archive.name}-{archive.version}-{digest}.mar"
    with replacing_file(state.directory / STORE / name) as temporary:
        shutil.copyfile(archive.path, temporary)
    return name


def _register(state: State, archive: Archive, url: str) -> None:
    """Return once the new version has answered the golden image rightly, asked by its number."""
    if archive.version in versions(state):
        # Left by a deployment that was killed.
        ask(state, f"/models/{state.model}/{archive.version}", method="DELETE")
    workers = describe_version(state)["minWorkers"]
    offset = state.log.stat().st_size
    # Synchronous, it would hold up the requests of all connections that share a thread with this one.
    ask(state, f"/models?url={url}&initial_workers={workers}&synchronous=false", method="POST")
    if describe_version(state, archive.version)["minWorkers"] < workers:
        # The archive's own number goes first, and fewer workers than now might not keep up.
        scaled = f"/models/{state.model}/{archive.version}?min_worker={workers}&max_worker={workers}"
        ask(state, scaled, method="PUT")
    wait_for_workers(state, START_SECONDS, version=archive.version, offset=offset)
    archive.check(_client(state, archive.version).predict(archive.golden, preprocess=EXACT))


@contextmanager
def _rolled_back(state: State, old: str, new: Archive) -> Iterator[None]:
    """Whatever goes wrong, an interruption too, leaves the old version as the only one."""
    try:
        yield
    except BaseException as error:
        with suppress(ServerError):
            if describe_version(state)["modelVersion"] != old:
                ask(state, f"/models/{state.model}/{old}/set-default", method="PUT")
                _drain(state, new.version, new.golden)
            ask(state, f"/models/{state.model}/{new.version}", method="DELETE")
        message = f"version {new.version} was not deployed, {old} goes on answering"
        if isinstance(error, ServerError | BundleError):
            raise ServerError(f"{message}: {error}") from error
        error.add_note(message)
        raise


def _drain(state: State, version: str, golden: bytes) -> None:
    """Wait until a version that is not the default any more has answered all that it was given.

    TorchServe ends a version's workers at once, and requests that wait for them are never answered.
    """
    deadline = time.monotonic() + DRAIN_SECONDS
    time.sleep(_HAND_OVER_SECONDS)
    while time.monotonic() < deadline:
        known = describe_version(state, version)
        if not known["jobQueueStatus"]["pendingRequests"]:
            break
        time.sleep(0.05)
    # A worker answers in turn: once it has answered this, nothing that came before is left with it.
    for worker in known["workers"]:
        if worker["status"] == "READY":
            with suppress(ServerError):
                _client(state, version).predict(golden, timeout=DRAIN_SECONDS)
    # Of several, another one may be at work on what came before that.
    pids = [worker["pid"] for worker in known["workers"]]
    while len(pids) > 1 and time.monotonic() < deadline and not _at_rest(pids):
        pass


def _at_rest(pids: list[int]) -> bool:
    """Whether processes wait, and have not worked for _REST_SECONDS. A process that has ended does."""
    before = _cpu_seconds(pids)
    time.sleep(_REST_SECONDS)
    return before is not None and before == _cpu_seconds(pids)


def _cpu_seconds(pids: list[int]) -> list[float] | None:
    """None where one is running at this moment."""
    used = []
    for pid in pids:
        with suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if process.status() == psutil.STATUS_RUNNING:
                return None
            used.append(sum(process.cpu_times()[:2]))
    return used


def _client(state: State, version: str) -> Client:
    client = client_of(state)
    return Client(client.url, f"{client.model}/{version}", state.key_file, state.management_url)
