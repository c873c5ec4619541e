"""A contestant's process: it prepares itself, then trains once for each line that it is sent.

Started once a case, so that no contestant's threads meet another's, and what was compiled stays compiled.
"""

import importlib
import json
import os
import pty
import subprocess
import sys
import tempfile
import termios
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from benchmarks.peers import PEERS
from benchmarks.peers.cases import Case, Train, Trained
from mlp_dist.core.errors import TrainingError
from mlp_dist.data.datasets import default_data_dir

_ROOT = Path(__file__).resolve().parents[2]


class Worker:
    """The contestant `name` in a process and a directory of its own, until this is closed.

    Its stderr is a terminal that nobody looks at: progress bars are drawn, and cost what they cost a person.
    """

    def __init__(self, name: str, case: Case) -> None:
        self.name = name
        self._directory = tempfile.TemporaryDirectory()
        terminal, its_end = pty.openpty()
        termios.tcsetwinsize(its_end, (24, 100))
        self._process = subprocess.Popen(
            [sys.executable, "-m", "benchmarks.peers.worker", name, json.dumps(asdict(case))],
            cwd=self._directory.name,
            env={
                **os.environ,
                "PYTHONPATH": os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")]),
                "MLP_DIST_DATA": str(default_data_dir().absolute()),
            },
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=its_end,
            text=True,
        )
        os.close(its_end)
        self._last: deque[bytes] = deque(maxlen=30)
        self._reader = threading.Thread(target=self._read, args=(terminal,))
        self._reader.start()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        # What has failed is not waited for.
        if error is not None:
            self._process.terminate()
        self._process.communicate()
        self._reader.join()
        self._directory.cleanup()

    def _read(self, terminal: int) -> None:
        with open(terminal, "rb", buffering=0) as stream:
            try:
                while told := stream.read(4096):
                    self._last.append(told)
            except OSError:  # Linux's way to say that the other end is closed
                return

    def ready(self) -> None:
        """Wait until it is prepared. Raises TrainingError where it ended instead."""
        self._answer()

    def train(self, seed: int, num_epochs: int) -> Trained:
        """Raises TrainingError, with the last that it said, where it failed."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps([seed, num_epochs]) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # its answer tells
        return Trained(**self._answer())

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._process.wait()
            self._reader.join()
            said = b"".join(self._last).decode(errors="replace").replace("\r", "")
            raise TrainingError(f"{self.name} ended with exit code {self._process.returncode}:\n{said}")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _prepare(name: str, values: dict[str, Any]) -> Train:
    peer = PEERS[name]
    module = importlib.import_module(f"benchmarks.peers.{peer.module}")
    prepare: Callable[..., Train] = module.prepare
    return prepare(Case(**{**values, "hidden_sizes": tuple(values["hidden_sizes"])}), **peer.options)


def main() -> None:
    # Answers have stdout for themselves: what is printed goes where stderr does.
    with os.fdopen(os.dup(1), "w") as answers:
        os.dup2(2, 1)
        train = _prepare(sys.argv[1], json.loads(sys.argv[2]))
        print("{}", file=answers, flush=True)
        for line in sys.stdin:
            print(json.dumps(asdict(train(*json.loads(line)))), file=answers, flush=True)


if __name__ == "__main__":
    main()
