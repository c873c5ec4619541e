"""Running the project's commands in this process."""

import importlib
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from mlp_dist.console import command
from mlp_dist.core.errors import MlpDistError
from mlp_dist.tracking.run_dir import has_record, runs_in
from mlp_dist.tracking.upload import upload

Call = Callable[..., "subprocess.CompletedProcess[str]"]


class UploadAtEnd:
    """In place of the process that follows a training, whose imports would take seconds in each test."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory.absolute()

    def wait(self) -> None:
        for directory in runs_in(self.directory) if has_record(self.directory) else []:
            try:
                upload(directory)
            except MlpDistError as error:
                print(f"warning: {error}", file=sys.stderr)

    def stop(self) -> None:
        pass


def main_of(module: str) -> Callable[[], int | None]:
    """The function that `python -m module` runs."""
    main: Callable[[], int | None] = importlib.import_module(
        module.replace("mlp_dist.", "mlp_dist.cli.")
    ).main
    return main


def forget_precision() -> None:
    """Let the next training in this process choose its own."""
    if "accelerate" in sys.modules:
        from accelerate.state import AcceleratorState

        AcceleratorState._reset_state(reset_partial_state=True)


def call(
    line: str, cwd: Path, capture: pytest.CaptureFixture[str], **variables: str
) -> "subprocess.CompletedProcess[str]":
    """Run a command such as "mlp_dist.train --epochs 3" in `cwd`, with these environment variables."""
    words = shlex.split(line)
    forget_precision()
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(cwd)
        patch.setattr(sys, "argv", words)
        for module in ("mlp_dist.training.run", "mlp_dist.cli.sweep", "mlp_dist.training.report"):
            patch.setattr(f"{module}.Follower", UploadAtEnd)
        for name in ("MLFLOW_TRACKING_URI", "ACCELERATE_MIXED_PRECISION"):
            patch.delenv(name, raising=False)
        for name, value in variables.items():
            patch.setenv(name, value)
        capture.readouterr()
        with pytest.raises(SystemExit) as raised:
            command.run(main_of(words[0]))
    output, errors = capture.readouterr()
    code = raised.value.code
    assert isinstance(code, int)
    return subprocess.CompletedProcess(words, code, output, errors)
