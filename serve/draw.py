"""Draw a digit in the browser and see the packaged model's answer.

  python -m serve.draw                  needs model_store/mlp.mar: python -m serve.package
  python -m serve.draw --port 7870      on another port

The page uses the running TorchServe or starts one, and stops what it started on Ctrl-C.
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
from serve.torchserve.ports import one_port

FIRST_PORT = 7860


def main() -> None:
    parser = command.Parser(
        prog="python -m serve.draw", usage="python -m serve.draw [FLAG ...]", description=__doc__
    )
    parser.add_argument("--mar", type=Path, default=MAR, metavar="FILE", help=f"archive ({MAR})")
    parser.add_argument(
        "--port", type=int, metavar="N", help=f"port of the page (the first free one from {FIRST_PORT} on)"
    )
    args = parser.parse_args()
    if not args.mar.is_file():
        raise UsageError(
            f"no packaged model: there is no {args.mar}; train one and package it: "
            "accelerate launch -m mlp_dist.train && python -m serve.package"
        )
    archive, port = read_archive(args.mar), one_port(args.port, FIRST_PORT)
    # Closing the terminal ends it like Ctrl-C.
    signal.signal(signal.SIGHUP, signal.getsignal(signal.SIGTERM))
    print("preparing the page", flush=True)
    with progress.stages("importing"):
        page.load_gradio()
        # These import mlflow and torch, which takes seconds.
        from serve.drawing.content import answer_html, examples_of
        from serve.drawing.servers import mlflow_pages, torchserve_with

    with mlflow_pages() as pages, torchserve_with(archive) as client:
        with progress.stages("preparing explanations and MLflow"):
            # The server imports Captum at the first explanation.
            with suppress(ServerError):
                client.ask(archive.golden, "explanations")
            ask = partial(answer_html, client, pages.run_url)
            contents = page.Contents(archive, examples_of(archive), ask)
            mlflow_runs = pages.wait()
        if not mlflow_runs:
            print("MLflow did not start: the page shows runs without links", flush=True)
        with page.opened(contents, port) as url:
            with suppress(KeyboardInterrupt):
                print(f"draw a digit at {url} (stop with Ctrl-C)", flush=True)
                threading.Event().wait()
            # A second Ctrl-C would leave servers running.
            for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                signal.signal(signum, signal.SIG_IGN)
            print("\nstopping", flush=True)


if __name__ == "__main__":
    command.run(main)
