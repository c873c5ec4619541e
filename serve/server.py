"""Start, check and stop a TorchServe server, and deploy to it.

  python -m serve.server start --deployable    serve model_store/mlp.mar
  python -m serve.server status                check its answer to a known image
  python -m serve.server stop                  stop it and wait for its end

It listens on 127.0.0.1:8080 and the next two ports, or on 8090, 8100, ... if these are taken. Its
files are in .serve in the current directory. Other actions look there, else in the project's root.
The last line of start, status, stop and deploy is one JSON object.
"""

import argparse
import json
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from mlp_dist.console import command, progress
from mlp_dist.core.errors import MlpDistError, ServerError, UsageError
from mlp_dist.core.spec import EXACT, GOLDEN
from mlp_dist.tracking import next_steps
from mlp_dist.tracking.store import machine_lock
from serve.archive import MAR, read_archive
from serve.client import Client
from serve.torchserve import server_process as torchserve
from serve.torchserve.api import describe_version
from serve.torchserve.deploy import deploy
from serve.torchserve.ports import free_ports, three_ports
from serve.torchserve.server_state import LOG, ROOT, STATE, STORE, ServerState, exclusive, find_state


@contextmanager
def running(mar: Path, golden: bytes, **settings: object) -> Iterator[Client]:
    """Serve `mar` on free loopback ports; yields a client once the image `golden` gets an answer.

    `settings` override config.properties. Raises ServerError with the worker's error.
    """
    with tempfile.TemporaryDirectory(prefix="mlp-") as name:
        state, process = torchserve.start(Path(name), mar, mar.stem, free_ports(3), settings)
        try:
            torchserve.wait_until_ready(state, process, golden)
            yield Client.of(state)
        finally:
            torchserve.stop(state, process)


def launch(
    mar: Path, first_port: int | None = None, *, deployable: bool = False, low_latency: bool = False
) -> ServerState:
    """Serve `mar` in the background, for the current directory; returns once its answer is correct.

    With `low_latency` no request waits for others to form a batch.

    Raises UsageError if a server already runs here and ServerError if none starts.
    """
    archive = read_archive(mar)
    directory = Path(STATE).resolve()
    # A port is taken only seconds after it was found free.
    with exclusive(directory), machine_lock("TorchServe's ports"):
        old = ServerState.load(directory)
        if old is not None and old.is_running():
            raise UsageError(
                f"a server is already running here, at {old.url} as process {old.session}; "
                "stop it first: python -m serve.server stop"
            )
        if old is not None:
            torchserve.stop(old)
        ports, message = three_ports(first_port)
        if message:
            print(message, flush=True)
        print(f"starting TorchServe with {mar}", flush=True)
        settings = {"enable_model_api": "true"} if deployable else {}
        if low_latency:
            settings["model_snapshot"] = archive.snapshot(batchSize=1)
        state, process = torchserve.start(directory, mar, archive.name, ports, settings)
        try:
            torchserve.wait_until_ready(state, process, archive.golden, archive.check)
        except BaseException:
            torchserve.stop(state, process)
            raise
        (directory / GOLDEN).write_bytes(archive.golden)
        return state


def describe(state: ServerState | None) -> dict[str, Any]:
    """The JSON of `status`. `ready`: the golden image gets the right answer at this moment."""
    if state is None or not state.is_running():
        return {"running": False, "ready": False}
    names = ("model", "url", "management_url", "metrics_url", "deployable")
    values: dict[str, Any] = {
        **{"running": True, "ready": False, "version": None, "run_id": None, "workers": 0},
        **{name: getattr(state, name) for name in names},
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
        archive.check(Client.of(state).predict(archive.golden, timeout=5, preprocess=EXACT))
        values["ready"] = True
    except MlpDistError as error:
        values["reason"] = str(error)
    return values


def _print_status(state: ServerState | None, hints: str = "") -> int:
    values = describe(state)
    if values["running"]:
        health = "healthy" if values["ready"] else f"unhealthy: {values['reason']}"
        deployable = ", deployable" if values["deployable"] else ""
        print(f"{values['model']} at {values['url']} is {health}")
        print(f"version {values['version']} of run {values['run_id']}, workers ready: {values['workers']}")
        print(f"process {values['pid']}, started {values['uptime_seconds']:.0f} s ago{deployable}")
    else:
        print("no server is running here; python -m serve.server start")
    if hints:
        print(hints)
    print(json.dumps(values))
    return 0 if values["ready"] else 1


def stop() -> None:
    state = find_state()
    stopped = False
    if state is not None:
        with exclusive(state.directory), progress.stages("stopping TorchServe"):
            stopped = bool(state.processes())
            torchserve.stop(state)
    print(f"stopped the server at {state.url}" if stopped and state else "no server is running here")
    print(json.dumps({"stopped": stopped}))


def print_logs(*, follow: bool) -> None:
    logs = [place / STATE / LOG for place in (Path.cwd(), ROOT)]
    found = next((log for log in logs if log.is_file()), None)
    if found is None:
        raise UsageError("no server was started here: python -m serve.server start")
    # Ctrl-C ends it.
    with suppress(KeyboardInterrupt):
        subprocess.run(["tail", "--lines=+1", *(["-F"] if follow else []), str(found)], check=False)


def _parse() -> argparse.Namespace:
    name = "python -m serve.server"
    parser = command.Parser(prog=name, usage=f"{name} ACTION [FLAG ...]", description=__doc__)
    actions = parser.add_subparsers(
        dest="action", required=True, title="actions (see ACTION --help)", metavar="ACTION", prog=name
    )

    def add(action: str, text: str) -> argparse.ArgumentParser:
        return actions.add_parser(action, help=text, description=text)

    starting = add("start", "start a server in the background; returns once its answer is correct")
    starting.add_argument("mar", type=Path, nargs="?", default=MAR, metavar="MAR", help=f"({MAR})")
    starting.add_argument(
        "--port", type=int, metavar="N", help="predictions at N, management at N+1, metrics at N+2 (8080)"
    )
    mode = starting.add_mutually_exclusive_group()
    mode.add_argument("--deployable", action="store_true", help="allow `deploy` while it runs")
    mode.add_argument(
        "--low-latency", action="store_true", help="do not batch requests: faster for one client at a time"
    )
    add("status", "check the server's answer to a known image: exit code 0 if it is correct, else 1")
    following = add("logs", "show the log of the server and its workers")
    following.add_argument("-f", "--follow", action="store_true", help="print new lines until Ctrl-C")
    add("stop", "stop the server and wait for its end")
    deploying = add("deploy", "replace the version of a --deployable server without losing requests")
    deploying.add_argument("mar", type=Path, metavar="MAR", help="archive made by python -m serve.package")
    return parser.parse_args()


def main() -> int | None:
    args = _parse()
    if args.action == "start":
        state = launch(args.mar, args.port, deployable=args.deployable, low_latency=args.low_latency)
        return _print_status(state, next_steps.after_starting(state.directory / GOLDEN, state.model))
    if args.action == "status":
        return _print_status(find_state())
    if args.action == "logs":
        print_logs(follow=args.follow)
    elif args.action == "deploy":
        print(json.dumps(deploy(args.mar)))
    else:
        stop()
    return None


if __name__ == "__main__":
    command.run(main)
