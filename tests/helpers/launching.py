"""Running the project's commands as a person does, in a directory of their own."""

import json
import os
import socket
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

ROOT = Path(__file__).resolve().parents[2]
BIN = Path(sys.executable).parent

QUICK = ("--recipe", "mnist-quick", "--dataset", "digits")
NOTHING_ELSE = ("--mixed_precision", "no", "--dynamo_backend", "no")
"""Words for `accelerate launch`, which warns of settings that it has to guess."""


def processes(number: int) -> tuple[str, ...]:
    """Words for `accelerate launch` that start processes on this machine."""
    several = ("--multi_gpu", "--main_process_port", "0") if number > 1 else ()
    return (*several, "--num_processes", str(number))


def environment(**changes: str) -> dict[str, str]:
    """This process's, with the project's commands on PATH and MLflow's store in the current directory."""
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("MLFLOW_", "ACCELERATE_"))
    }
    path = f"{BIN}{os.pathsep}{kept['PATH']}"
    return {**kept, "PATH": path, "MLFLOW_DISABLE_TELEMETRY": "true", **changes}


def run(
    words: list[str], cwd: Path, *, timeout: float = 240, **changes: str
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        words, cwd=cwd, env=environment(**changes), capture_output=True, text=True, timeout=timeout
    )


def train(*flags: str, cwd: Path, **changes: str) -> subprocess.CompletedProcess[str]:
    """launch/train.py as one process, without a launcher before it."""
    return run([sys.executable, str(ROOT / "launch/train.py"), *flags], cwd, **changes)


def launch(
    *flags: str, cwd: Path, launcher: tuple[str, ...], **changes: str
) -> subprocess.CompletedProcess[str]:
    """launch/train.py under `accelerate launch`."""
    words = ["accelerate", "launch", *launcher, str(ROOT / "launch/train.py"), *flags]
    return run(words, cwd, **changes)


@contextmanager
def printing(words: list[str], cwd: Path, start: str, **changes: str) -> Iterator["subprocess.Popen[str]"]:
    """A command that has printed a line that begins with `start`; it is killed, with all its processes."""
    pipe, out = subprocess.PIPE, subprocess.STDOUT
    process = subprocess.Popen(words, cwd=cwd, env=environment(**changes), stdout=pipe, stderr=out, text=True)
    everyone: list[Any] = [process]
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith(start):
                break
        everyone += psutil.Process(process.pid).children(recursive=True)
        yield process
    finally:
        for each in everyone:
            with suppress(psutil.NoSuchProcess):
                each.kill()
        process.communicate()


def result(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The JSON object in the last line of a command that succeeded."""
    assert done.returncode == 0, done.stdout + done.stderr
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


def wait_until(happened: Callable[[], Any], seconds: float = 240) -> None:
    deadline = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def make_store(path: Path) -> None:
    """An MLflow database with no runs, so that not every training has to make its tables."""
    from mlflow import MlflowClient

    MlflowClient(f"sqlite:///{path}").search_experiments()
    # MLflow makes the default experiment again where a copy is opened: it has an absolute path.
    with closing(sqlite3.connect(path)) as database, database:
        database.execute("DELETE FROM experiments")


def objects(output: str) -> list[dict[str, Any]]:
    """The JSON objects that the processes printed, by their rank."""
    found = [json.loads(line) for line in output.splitlines() if line.startswith("{")]
    return sorted(found, key=lambda values: int(values["rank"]))


@dataclass(frozen=True)
class Trained:
    """A finished training: its directory, which holds mlflow.db too, and what its last line said."""

    directory: Path
    result: dict[str, Any]

    @property
    def bundle(self) -> Path:
        return Path(self.result["output_dir"]) / "bundle"
