"""Each prints a table for people, and as its last line one JSON object for machines."""

import os
import subprocess
from argparse import ArgumentTypeError
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mlp_dist.console.process import limit_spinning
from mlp_dist.core.errors import TrainingError

ROOT = Path(__file__).resolve().parents[1]

# Before any benchmark imports torch.
limit_spinning()


def at_least(least: float) -> Callable[[str], Any]:
    """The `type` of a flag for finite numbers of the type of `least`, from `least` up."""

    def number(text: str) -> float:
        value = type(least)(text)
        if not least <= value < float("inf"):
            raise ArgumentTypeError(f"{text} is not {least} or more")
        return value

    return number


def run(words: list[str], directory: Path, **variables: str) -> list[str]:
    """The lines on stdout of a command in `directory`, in an MLflow store there.

    Raises TrainingError if it fails.
    """
    variables |= {"PYTHONPATH": str(ROOT), "MLFLOW_TRACKING_URI": f"sqlite:///{directory}/mlflow.db"}
    done = subprocess.run(words, cwd=directory, env=os.environ | variables, capture_output=True, text=True)
    if done.returncode != 0:
        raise TrainingError(f"{' '.join(words[:3])} failed: {done.stderr[-2000:]}")
    return done.stdout.splitlines()
