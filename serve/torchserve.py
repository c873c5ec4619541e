"""TorchServe's processes: started in a directory of their own, awaited, and ended for certain."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from mlp_dist.console import progress
from mlp_dist.core.errors import BundleError, ServerError
from mlp_dist.core.spec import EXACT
from serve.client import Client
from serve.java import java_home
from serve.keys import KEY_FILE
from serve.logs import last_words, why_loading_failed
from serve.management import describe_version
from serve.ports import HOST, free_ports
from serve.state import LOG, STORE, State

HERE = Path(__file__).resolve().parent
CONFIG = HERE / "config.properties"
LOG_CONFIG = HERE / "log4j2.xml"

START_SECONDS = 120.0
STOP_SECONDS = 20.0

_LONGEST_SOCKET = 80
"""Characters of a directory in which a Unix socket still can have a name of its own, of 104 in all."""


def start(
    directory: Path, mar: Path, model: str, ports: Sequence[int], settings: Mapping[str, object]
) -> tuple[State, subprocess.Popen[bytes]]:
    """Start a server of its own in `directory`, with an archive of the model `model`; returns at once.

    `ports`: for predictions, management and metrics. `settings` go before those of config.properties.
    Raises ServerError where TorchServe or Java is missing.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = directory / STORE
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    # What serves is not changed where a new archive is put in the old one's place.
    shutil.copyfile(mar, store / f"{model}.mar")
    addresses = [f"http://{HOST}:{port}" for port in ports]
    _configure(directory, addresses, {"model_store": store, **settings})
    (directory / KEY_FILE).unlink(missing_ok=True)
    temporary = _temporary(directory)
    _keep_log(directory / LOG)
    with (directory / LOG).open("ab") as log:
        process = _launch(directory, temporary, f"{model}.mar", log.fileno())
    deployable = str(settings.get("enable_model_api", "false")) == "true"
    state = State(
        directory=directory,
        session=process.pid,
        temporary=str(temporary),
        model=model,
        url=addresses[0],
        management_url=addresses[1],
        metrics_url=addresses[2],
        deployable=deployable,
        started=time.time(),
    )
    state.save()
    return state, process


def client_of(state: State) -> Client:
    return Client(state.url, state.model, state.key_file, state.management_url)


def wait_until_ready(
    state: State,
    process: subprocess.Popen[bytes],
    golden: bytes,
    seconds: float = START_SECONDS,
    check: Callable[[dict[str, float]], None] = lambda answer: None,
) -> None:
    """Return once the image `golden` is answered, with what `check` raises no error for.

    Raises ServerError with the worker's own words.
    """
    deadline = time.monotonic() + seconds
    with progress.stages("TorchServe") as begin:
        begin("starts")
        loading = False

        def alive() -> None:
            nonlocal loading
            if process.poll() is not None:
                raise ServerError(f"it ended with code {process.returncode}\n{last_words(state.log)}")
            if not loading and state.key_file.is_file():
                loading = True
                begin("loads the model")

        try:
            wait_for_workers(state, seconds, check=alive)
            begin("answers")
            left = max(0, deadline - time.monotonic())
            check(client_of(state).wait_and_predict(golden, seconds=left, preprocess=EXACT))
        except (ServerError, BundleError) as error:
            raise ServerError(f"TorchServe did not come up: {error}") from error


def wait_for_workers(
    state: State,
    seconds: float,
    *,
    version: str = "",
    offset: int = 0,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Return once all workers of a version, "" the default one, have loaded the model.

    A request that came before would wait in TorchServe, for ever where no worker comes: it starts one that
    dies again for minutes, and calls itself healthy. Raises ServerError with what such a worker wrote into
    the log, from `offset` on. `check` may raise to end the wait.
    """
    deadline = time.monotonic() + seconds
    while not _has_workers(state, version):
        check()
        failure = why_loading_failed(state.log, version, offset)
        if failure is not None:
            raise ServerError(f"its worker died while it loaded the model\n{failure}")
        if time.monotonic() > deadline:
            said = last_words(state.log, version, offset)
            raise ServerError(f"no model was loaded in {seconds:.0f} s\n{said}")
        time.sleep(0.05)


def _has_workers(state: State, version: str) -> bool:
    try:
        workers = describe_version(state, version)["workers"]
        return bool(workers) and all(worker["status"] == "READY" for worker in workers)
    except ServerError:
        return False


def stop(state: State, process: subprocess.Popen[bytes] | None = None) -> None:
    """End launcher, Java and workers, and wait until they are gone; without them only clear up."""
    for signum in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + STOP_SECONDS
        signalled: set[psutil.Process] = set()
        while time.monotonic() < deadline:
            if process is not None:
                process.poll()
            running = state.processes()
            if not running:
                break
            for each in set(running) - signalled:
                with suppress(psutil.Error):
                    each.send_signal(signum)
                signalled.add(each)
            time.sleep(0.05)
    state.forget()
    shutil.rmtree(state.temporary, ignore_errors=True)


def _configure(directory: Path, addresses: list[str], settings: Mapping[str, object]) -> None:
    """Write the project's settings with other addresses into `directory`."""
    grpc_inference, grpc_management, worker = free_ports(3)
    inference, management, metrics = addresses
    changed = {
        "inference_address": inference,
        "management_address": management,
        "metrics_address": metrics,
        "grpc_inference_port": grpc_inference,
        "grpc_management_port": grpc_management,
        "initial_worker_port": worker,
        **settings,
    }
    kept = [line for line in CONFIG.read_text().splitlines() if line.partition("=")[0] not in changed]
    lines = kept + [f"{name}={value}" for name, value in changed.items()]
    (directory / CONFIG.name).write_text("\n".join(lines) + "\n")


def _keep_log(log: Path) -> None:
    """A start begins a log; the one before, which may tell of a crash, gets the name that rolling gives."""
    if log.exists() and log.stat().st_size:
        log.replace(log.with_name(f"{log.name}.1"))


def _temporary(directory: Path) -> Path:
    """TorchServe allows one server a temporary directory; its own lets it run beside others."""
    place = directory / "tmp"
    if len(str(place)) > _LONGEST_SOCKET:
        return Path(tempfile.mkdtemp(prefix="mlp-"))
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


def _launch(directory: Path, temporary: Path, mar: str, log: int) -> subprocess.Popen[bytes]:
    places = {"TMPDIR": str(temporary), "TEMP": str(temporary), "TS_CONFIG_FILE": CONFIG.name}
    home = java_home()
    environment = {**os.environ, **places, **({"JAVA_HOME": home} if home else {})}
    # A checkout on PYTHONPATH would be used in place of what the archive brings.
    environment.pop("PYTHONPATH", None)
    torchserve = shutil.which(
        "torchserve", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    )
    if torchserve is None:
        raise ServerError("torchserve is not installed in this environment: make setup")
    return subprocess.Popen(
        [torchserve, "--start", "--foreground", "--ncs", "--models", mar, "--log-config", str(LOG_CONFIG)],
        cwd=directory,
        env=environment,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
