import importlib
import shlex
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from mlp_dist.console import command

Call = Callable[..., "subprocess.CompletedProcess[str]"]


def main_of(module: str) -> Callable[[], int | None]:
    """The function that `python -m module` runs."""
    main: Callable[[], int | None] = importlib.import_module(
        module.replace("mlp_dist.", "mlp_dist.cli.")
    ).main
    return main


@pytest.fixture
def call(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Call]:
    """A function that runs a command in this process, in `tmp_path`: `call("mlp_dist.train --epochs 3")`.

    Keyword arguments are environment variables. MLflow's store is `tmp_path`/mlflow.db.
    """
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM)}

    def run(line: str, **variables: str) -> subprocess.CompletedProcess[str]:
        words = shlex.split(line)
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path)
            patch.setattr(sys, "argv", words)
            for name in ("MLFLOW_TRACKING_URI", "ACCELERATE_MIXED_PRECISION"):
                patch.delenv(name, raising=False)
            for name, value in variables.items():
                patch.setenv(name, value)
            capfd.readouterr()
            with pytest.raises(SystemExit) as raised:
                command.run(main_of(words[0]))
        output, errors = capfd.readouterr()
        code = raised.value.code
        assert isinstance(code, int)
        return subprocess.CompletedProcess(words, code, output, errors)

    yield run
    for signum, handler in before.items():
        signal.signal(signum, handler)
