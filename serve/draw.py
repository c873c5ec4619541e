"""Draw a digit in the browser, and see how the packaged model answers it.

  python -m serve.draw                  needs model_store/mlp.mar: python -m serve.package
  python -m serve.draw --port 7870      at an address of its own

The page asks the TorchServe that runs here. Where none does, one is started, which Ctrl-C ends
with the page.
"""

import signal
import threading
from contextlib import suppress
from functools import partial
from pathlib import Path

from mlp_dist.console import command, progress
from mlp_dist.core.errors import ServerError, UsageError
from serve.archive import MAR, read_archive
from serve.drawing import page
from serve.ports import one_port

FIRST_PORT = 7860


def main() -> None:
    parser = command.Parser(
        prog="python -m serve.draw", usage="python -m serve.draw [FLAG ...]", description=__doc__
    )
    what = parser.add_argument_group("what is asked, and where")
    what.add_argument("--mar", type=Path, default=MAR, metavar="FILE", help=f"the archive ({MAR})")
    what.add_argument(
        "--port", type=int, metavar="N", help=f"the page's (the first that is free from {FIRST_PORT} on)"
    )
    args = parser.parse_args()
    if not args.mar.is_file():
        raise UsageError(
            f"no model has been packaged yet: there is no {args.mar}; train one and package it: "
            "accelerate launch -m mlp_dist.train && python -m serve.package"
        )
    archive, port = read_archive(args.mar), one_port(args.port, FIRST_PORT)
    # A terminal that is closed ends it as Ctrl-C does.
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    print("preparing the page", flush=True)
    with progress.stages("importing"):
        page.load_gradio()
        # mlflow and torch take seconds to import.
        from serve.drawing.answer import ask
        from serve.drawing.examples import examples_of
        from serve.drawing.servers import mlflow_pages, torchserve_with

    with mlflow_pages() as pages, torchserve_with(archive) as client:
        with progress.stages("the first explanation, MLflow's pages"):
            # The first explanation imports what it needs.
            with suppress(ServerError):
                client.ask(archive.golden, "explanations")
            contents = page.Contents(archive, examples_of(archive), partial(ask, client, pages.run_page))
            there_are_pages = pages.wait()
        if not there_are_pages:
            print("MLflow's pages do not come up: the page tells the run without a link", flush=True)
        with page.opened(contents, port) as url:
            with suppress(KeyboardInterrupt):
                print(f"draw a digit at {url} (Ctrl-C ends it)", flush=True)
                threading.Event().wait()
            # Who asks twice would leave servers behind.
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_IGN)
            print("\nending what was started", flush=True)


if __name__ == "__main__":
    command.run(main)
