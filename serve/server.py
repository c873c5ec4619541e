"""A TorchServe of one's own, which answers rightly or does not start.

  python -m serve.server start --deployable       serve model_store/mlp.mar in the background
  python -m serve.server status                   whether it answers rightly, and with which model
  python -m serve.server stop                     end it, and wait until it is gone

It listens at 127.0.0.1:8080 and the two ports after it, or where these are taken at the first free
ones of 8090, 8100 and so on. What belongs to it lies in .serve in the current directory, and is
found from there, or from the project's root. The last line of start, status, stop and deploy is one
JSON object.
"""

import argparse
import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlp_dist.console import command, progress
from mlp_dist.core.errors import ServerError, UsageError
from mlp_dist.core.golden import GOLDEN
from mlp_dist.tracking import next_steps
from serve import torchserve
from serve.archive import MAR, Archive, model_name, read_archive
from serve.client import Client
from serve.deploy import deploy
from serve.keys import STATE
from serve.logs import print_log
from serve.ports import free_ports, is_free, three_ports
from serve.state import LOG, State, alone, find_state
from serve.status import describe, in_words

START = """Start a server in the background; return once it has answered rightly, else end it.

  python -m serve.server start
  python -m serve.server start --deployable --port 8090
"""

STATUS = """Ask the server whether it answers rightly: exit code 0 where it does, else 1.

  python -m serve.server status
"""

LOGS = """Show what the server and its worker write.

  python -m serve.server logs
  python -m serve.server logs --follow        until Ctrl-C
"""

STOP = """End the server and wait until it is gone.

  python -m serve.server stop
"""

DEPLOY = """Put another version in the place of the served one, which goes on answering until then.

  python -m serve.server deploy model_store/mlp.mar

The archive is that of another run, and the server was started with --deployable.
"""


@contextmanager
def running(
    mar: Path, golden: bytes, *, seconds: float = torchserve.START_SECONDS, **settings: object
) -> Iterator[Client]:
    """Serve `mar` on free loopback ports; yields a client once the image `golden` is really answered.

    `settings` go before those of config.properties. Raises ServerError with the end of the server's log
    where that does not come to pass. On leaving, the server and its workers have ended.
    """
    with tempfile.TemporaryDirectory(prefix="mlp-") as name:
        state, process = torchserve.start(Path(name), mar, model_name(mar), free_ports(3), settings)
        try:
            torchserve.wait_until_ready(state, process, golden, seconds)
            yield torchserve.client_of(state)
        finally:
            torchserve.stop(state, process)


def start(mar: Path, first_port: int | None, *, deployable: bool) -> int:
    state = launch(mar, first_port, deployable=deployable)
    return status(state, next_steps.after_starting(Path(STATE).resolve() / GOLDEN, state.model))


def launch(mar: Path, first_port: int | None = None, *, deployable: bool = False) -> State:
    """Serve `mar` in the background, for the current directory; returns once its golden image is answered.

    Raises UsageError where a server runs here already, ServerError where none comes up.
    """
    archive = read_archive(mar)
    directory = Path(STATE).resolve()
    with alone(directory):
        old = State.load(directory)
        if old is not None:
            if old.runs():
                raise UsageError(
                    f"a server already runs here, at {old.url} as process {old.session}; "
                    "end it first: python -m serve.server stop"
                )
            torchserve.stop(old)
        ports, taken = three_ports(first_port)
        while True:
            if taken:
                print(taken, flush=True)
            print(f"starting TorchServe with {mar}", flush=True)
            try:
                state = _started(directory, archive, ports, deployable=deployable)
            except ServerError:
                if all(map(is_free, ports)):
                    raise
            else:
                (directory / GOLDEN).write_bytes(archive.golden)
                return state
            # Another program has taken them while TorchServe started.
            ports, taken = three_ports(first_port)


def _started(directory: Path, archive: Archive, ports: list[int], *, deployable: bool) -> State:
    settings = {"enable_model_api": "true"} if deployable else {}
    state, process = torchserve.start(directory, archive.path, archive.name, ports, settings)
    try:
        torchserve.wait_until_ready(state, process, archive.golden, check=archive.check)
    except BaseException:
        torchserve.stop(state, process)
        raise
    return state


def status(state: State | None, next_told: str = "") -> int:
    values = describe(state)
    print("\n".join(filter(None, [in_words(values), next_told])))
    print(json.dumps(values))
    return 0 if values["ready"] else 1


def stop() -> None:
    state = find_state()
    stopped = False
    if state is not None:
        with alone(state.directory):
            stopped = bool(state.processes())
            with progress.stages("TorchServe ends"):
                torchserve.stop(state)
    print(
        f"the server at {state.url} has ended"
        if stopped and state
        else "no server runs that was started here"
    )
    print(json.dumps({"stopped": stopped}))


def logs(*, follow: bool) -> None:
    places = [Path.cwd() / STATE, Path(__file__).resolve().parents[1] / STATE]
    found = next((place / LOG for place in places if (place / LOG).is_file()), None)
    if found is None:
        raise UsageError("no server was started here: python -m serve.server start")
    # Interrupting is how one stops to follow.
    with suppress(KeyboardInterrupt):
        print_log(found, follow=follow)


def _parse() -> argparse.Namespace:
    parser = command.Parser(
        prog="python -m serve.server", usage="python -m serve.server ACTION [FLAG ...]", description=__doc__
    )
    actions = parser.add_subparsers(
        dest="action",
        required=True,
        title="actions (ACTION --help tells more)",
        metavar="ACTION",
        prog="python -m serve.server",
    )
    starting = actions.add_parser("start", help="start a server in the background", description=START)
    starting.add_argument("mar", type=Path, nargs="?", default=MAR, metavar="MAR", help=f"({MAR})")
    starting.add_argument(
        "--port", type=int, metavar="N", help="predictions at N, management at N+1, metrics at N+2 (8080)"
    )
    starting.add_argument(
        "--deployable", action="store_true", help="new versions can be deployed while it answers"
    )
    actions.add_parser("status", help="whether it answers rightly", description=STATUS)
    following = actions.add_parser("logs", help="what it and its worker write", description=LOGS)
    following.add_argument("-f", "--follow", action="store_true", help="go on with what comes")
    actions.add_parser("stop", help="end it", description=STOP)
    deploying = actions.add_parser(
        "deploy", help="put another version in its place, without a gap", description=DEPLOY
    )
    deploying.add_argument("mar", type=Path, metavar="MAR", help="as python -m serve.package made it")
    return parser.parse_args()


def main() -> int | None:
    args = _parse()
    if args.action == "start":
        return start(args.mar, args.port, deployable=args.deployable)
    if args.action == "status":
        return status(find_state())
    if args.action == "logs":
        logs(follow=args.follow)
    elif args.action == "deploy":
        print(json.dumps(deploy(args.mar)))
    else:
        stop()
    return None


if __name__ == "__main__":
    command.run(main)
