"""Draw a digit in the browser and see the packaged model's answer.

  python -m serve.draw                the model in model_store/mlp.mar
  python -m serve.draw --port 7870    on another port

The page uses the running TorchServe or starts one, and stops what it started on Ctrl-C.
"""

import importlib.util
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from mlp_dist.console import command, progress
from mlp_dist.core.errors import ServerError, UsageError
from mlp_dist.core.spec import EXACT
from serve.archive import MAR, Archive, read_archive
from serve.client import Client
from serve.server import launch
from serve.torchserve import server_process as torchserve
from serve.torchserve.ports import HOST, is_free, owner_of


@contextmanager
def _torchserve_with(archive: Archive) -> Iterator[Client]:
    """A client of the server that runs here, else of a new one with `archive`, stopped at the end."""
    client, run_id = Client.find(model=archive.name), None
    with suppress(ServerError):
        run_id = client.ask(archive.golden, preprocess=EXACT, timeout=5).run_id
    if run_id is None:
        state = launch(archive.path)
        try:
            print(f"TorchServe is ready at {state.url}", flush=True)
            yield Client.of(state)
        finally:
            torchserve.stop(state)
    elif run_id == archive.spec.run_id:
        print(f"using the TorchServe at {client.url}", flush=True)
        yield client
    else:
        raise ServerError(
            f"{client.url} serves run {run_id}, but {archive.path} holds run {archive.spec.run_id}: "
            f"python -m serve.server deploy {archive.path}, or stop the server and start this again"
        )


def main() -> None:
    parser = command.Parser(prog="python -m serve.draw", description=__doc__)
    add = parser.add_argument_group("archive and page").add_argument
    add("--mar", type=Path, default=MAR, metavar="FILE", help=f"archive ({MAR})")
    add("--port", type=int, metavar="N", help="port of the page (the first free one from 7860 on)")
    args = parser.parse_args()
    archive, port = read_archive(args.mar), args.port
    if port is not None and not 1 <= port <= 65535:
        raise UsageError(f"port is {port}; give one from 1 to 65535")
    if port is not None and not is_free(port):
        raise ServerError(f"port {port} is taken by {owner_of(port)}; give another --port, or omit it")
    # Closing the terminal ends it like Ctrl-C.
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    # Without these, importing gradio sends usage statistics, and it checks its own address through a proxy.
    os.environ |= {"GRADIO_ANALYTICS_ENABLED": "False", "HF_HUB_OFFLINE": "1"}
    os.environ["no_proxy"] = f"{os.environ.get('no_proxy') or os.environ.get('NO_PROXY', '')},{HOST}"
    if importlib.util.find_spec("gradio") is None:
        raise ServerError("the page needs gradio: make demo installs it, or pip install 'mlp_dist[demo]'")
    with progress.stages("preparing the page"):
        from serve import page
    with _torchserve_with(archive) as client, page.opened(archive, client, port) as url:
        with suppress(KeyboardInterrupt):
            print(f"draw a digit at {url} (stop with Ctrl-C)", flush=True)
            signal.pause()
        # A second Ctrl-C would leave servers running.
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(signum, signal.SIG_IGN)
        print("\nstopping", flush=True)


if __name__ == "__main__":
    command.run(main)
