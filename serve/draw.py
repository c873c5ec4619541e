"""Draw a digit in the browser and see the packaged model's answer.

  python -m serve.draw                the model in model_store/mlp.mar
  python -m serve.draw --port 7870    on another port

The page uses the running TorchServe or starts one, and stops what it started on Ctrl-C.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

from mlp_dist.console import command, progress
from mlp_dist.core.errors import ServerError, UsageError
from mlp_dist.core.spec import EXACT
from serve.archive import MAR, Archive, read_archive
from serve.client import Client
from serve.drawing import page
from serve.server import describe, launch
from serve.torchserve import server_process as torchserve
from serve.torchserve.server_state import find_state


@contextmanager
def torchserve_with(archive: Archive) -> Iterator[Client]:
    """A client of the server that runs here, else of a new one with `archive`, stopped at the end.

    Raises ServerError if none starts, or if the running one is unhealthy or serves another run.
    """
    client = _running_client(archive)
    if client is not None:
        print(f"using the TorchServe at {client.url}", flush=True)
        yield client
        return
    state = launch(archive.path)
    try:
        print(f"TorchServe is ready at {state.url}", flush=True)
        yield Client.of(state)
    finally:
        torchserve.stop(state)


def _running_client(archive: Archive) -> Client | None:
    state = find_state()
    if state is not None and state.is_running():
        values = describe(state)
        if not values["ready"]:
            raise ServerError(
                f"the server at {state.url} is unhealthy: {values.get('reason')}; stop it and start again: "
                "python -m serve.server stop"
            )
        _check_run(values["run_id"], archive, state.url)
        return Client.of(state)
    # `torchserve --start` leaves a key file here.
    client = Client(model=archive.name)
    if client.find_key_file() is None:
        return None
    try:
        answer = client.ask(archive.golden, headers={"X-Preprocess": EXACT}, timeout=5)
    except ServerError:
        return None
    _check_run(answer.run_id, archive, client.url)
    return client


def _check_run(run_id: str, archive: Archive, url: str) -> None:
    """The page shows the archive's metadata beside the server's answers."""
    if run_id and run_id != archive.spec.run_id:
        raise ServerError(
            f"the server at {url} serves run {run_id}, but {archive.path} holds run {archive.spec.run_id}: "
            "stop the server (python -m serve.server stop, or torchserve --stop) and start again, or "
            f"python -m serve.server deploy {archive.path}"
        )


def main() -> None:
    parser = command.Parser(
        prog="python -m serve.draw", usage="python -m serve.draw [FLAG ...]", description=__doc__
    )
    add = parser.add_argument_group("archive and page").add_argument
    add("--mar", type=Path, default=MAR, metavar="FILE", help=f"archive ({MAR})")
    add("--port", type=int, metavar="N", help="port of the page (the first free one from 7860 on)")
    args = parser.parse_args()
    if not args.mar.is_file():
        raise UsageError(
            f"no packaged model: there is no {args.mar}; train one and package it: "
            "accelerate launch -m mlp_dist.train && python -m serve.package"
        )
    archive = read_archive(args.mar)
    page.check_port(args.port)
    # Closing the terminal ends it like Ctrl-C.
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    print("preparing the page", flush=True)
    with progress.stages("importing"):
        page.load_gradio()
        # Imports mlflow and torch, which takes seconds.
        from serve.drawing.content import answer_html, examples_of

    with torchserve_with(archive) as client:
        with progress.stages("preparing explanations"):
            # The server imports Captum at the first explanation.
            with suppress(ServerError):
                client.ask(archive.golden, "explanations")
            contents = page.Contents(archive, examples_of(archive), partial(answer_html, client))
        with page.opened(contents, args.port) as url:
            with suppress(KeyboardInterrupt):
                print(f"draw a digit at {url} (stop with Ctrl-C)", flush=True)
                threading.Event().wait()
            # A second Ctrl-C would leave servers running.
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_IGN)
            print("\nstopping", flush=True)


if __name__ == "__main__":
    command.run(main)
