"""The process that records runs in MLflow and draws their pictures; `recorder.Recorder` starts it.

  python -m mlp_dist.recording FD

FD is a connection: a request is (the run's number, what to do, its arguments), and each is answered with
what came of it, or with the error. torch is never imported here: while the trainer does that, mlflow and
matplotlib are imported.
"""

import gc
import os
import sys
from collections import defaultdict
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from multiprocessing.connection import Connection
from typing import Any

from mlp_dist.core.errors import MlpDistError, TrackingError
from mlp_dist.tracking import client, send

Request = tuple[int, str, tuple[Any, ...]]


class Recording:
    """The runs that are open. MLflow has one open run a thread, so that each is in a thread of its own."""

    def __init__(self) -> None:
        self._runs: dict[int, send.OpenRun] = {}
        self._threads: defaultdict[int, ThreadPoolExecutor] = defaultdict(partial(ThreadPoolExecutor, 1))

    def start(self, request: Request) -> "Future[Any]":
        return self._threads[request[0]].submit(self._answer, *request)

    def _answer(self, number: int, what: str, arguments: tuple[Any, ...]) -> Any:
        try:
            with client.asking_to("record the run"):
                return self._do(number, what, arguments)
        except MlpDistError as error:
            return error
        except Exception as error:
            return TrackingError(f"the run cannot be recorded: {error!r}")

    def _do(self, number: int, what: str, arguments: tuple[Any, ...]) -> Any:
        if what == "open":
            where, *named = arguments
            _move(**where)
            run = self._runs[number] = send.open_run(*named)
            return run.run_id, run.is_described
        if what == "log_figure":
            from mlp_dist import figures

            name, *shown = arguments
            return self._runs[number].log_figure(name, figures.FIGURES[name](*shown))
        getattr(self._runs[number], what)(*arguments)
        if what == "end":
            del self._runs[number]
            self._threads.pop(number).shutdown(wait=False)
        return None


def _move(cwd: str, words: list[str], variables: dict[str, str]) -> None:
    """To where the trainer is now: MLflow's store may be named from there, and the run after its command."""
    os.chdir(cwd)
    sys.argv = words
    for name in [name for name in os.environ if name.startswith("MLFLOW_")]:
        del os.environ[name]
    os.environ.update(variables)


def _get_ready() -> None:
    client.import_ahead()
    from mlp_dist import figures

    figures.warm_up()


def main() -> None:
    trainer = Connection(int(sys.argv[1]))
    # What imports make stays to the end.
    gc.disable()
    # What fails here fails again, and is told, where it is needed.
    with suppress(Exception):
        _get_ready()
    gc.freeze()
    gc.enable()
    recording = Recording()
    # The trainer sends a request when it has the answer to the one before.
    with suppress(EOFError, OSError):
        while True:
            recording.start(trainer.recv()).add_done_callback(lambda done: trainer.send(done.result()))
    # Runs that are open stay so, which MLflow would end: the trainer was killed, and may be resumed.
    os._exit(0)


if __name__ == "__main__":
    main()
