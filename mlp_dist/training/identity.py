"""What a run is called, and what is said of it beside its figures."""

import os
import platform
import shlex
import socket
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import mlp_dist
from mlp_dist.console.processes import launch_command
from mlp_dist.data.batches import usual_val_size
from mlp_dist.recipes import overrides

if TYPE_CHECKING:
    from mlp_dist.training.trainer import Trainer

_VERSIONS = ("torch", "accelerate")
_GIT_SECONDS = 5.0


def run_name(config: Any, num_images: int) -> str:
    """The recipe, what was asked for otherwise, and the seed: "mnist lr=0.05 seed=1".

    `num_images` are there to train on and to hold out of.
    """
    asked = overrides(config)
    if config.val_size == usual_val_size(num_images):
        asked.pop("val_size", None)
    told = [f"{name}={_short(value)}" for name, value in {**asked, "seed": config.seed}.items()]
    return " ".join([config.recipe, *told])


def _short(value: Any) -> str:
    """Sizes as 256-64; of the path in folder:/data/pets its last part."""
    if isinstance(value, tuple):
        return "-".join(map(str, value))
    kind, _, path = str(value).rpartition(":")
    return f"{kind}:{Path(path).name}" if kind else str(value)


def description(trainer: "Trainer") -> str:
    """In Markdown, as MLflow shows it above a run's figures."""
    config, data = trainer.config, trainer.data
    images = f"{len(trainer.train_set):,} training, {len(trainer.val_set):,} validation and "
    return (
        f"A perceptron {trainer.spec} ({trainer.spec.num_parameters:,} parameters) on {data.title}: {images}"
        f"{len(trainer.test_set):,} test images, {len(data.classes)} classes. {config.optimizer} at "
        f"{config.lr:g}, batches of {config.batch_size}, {config.epochs} epochs, {trainer.workers}.\n\n"
        f"    {shlex.join(command())}\n\nFiles: `{trainer.output_dir}`"
    )


def command() -> list[str]:
    """What a person typed to start this."""
    return [*launch_command().split(), *sys.argv[1:]]


def tags(trainer: "Trainer") -> dict[str, str]:
    """Where the run was trained, by what."""
    return {
        **started_by(command()),
        "recipe": trainer.config.recipe,
        "device": _device(trainer),
        "num_processes": str(trainer.world_size),
    }


def started_by(words: list[str]) -> dict[str, str]:
    """The tags of what this command starts here and now; MLflow's page has a place for those that begin with
    mlflow."""
    commit, dirty = git_state(Path(mlp_dist.__file__).parent)
    found = {
        "mlflow.source.name": shlex.join(words),
        "mlflow.source.type": "LOCAL",
        "mlflow.user": _user(),
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "mlp_dist": mlp_dist.__version__,
        **{name: version(name) for name in _VERSIONS},
    }
    if commit:
        found |= {"mlflow.source.git.commit": commit, "git.dirty": str(dirty).lower()}
    return found


def git_state(directory: Path) -> tuple[str, bool]:
    """The commit of the repository that the directory is in, and whether tracked files differ from it.

    ("", False) where it is in none, or git cannot tell.
    """
    try:
        commit = _git(directory, "rev-parse", "HEAD")
        return commit, bool(_git(directory, "status", "--porcelain", "--untracked-files=no"))
    except (OSError, subprocess.SubprocessError):
        return "", False


def _git(directory: Path, *words: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(directory), *words],
        capture_output=True,
        text=True,
        check=True,
        timeout=_GIT_SECONDS,
        # It must not wait for, or write, the index of someone who works there.
        env={**os.environ, "GIT_OPTIONAL_LOCKS": "0"},
    )
    return done.stdout.strip()


def _user() -> str:
    import getpass

    try:
        return getpass.getuser()
    # Of a container's user there may be nothing but a number.
    except (KeyError, OSError):
        return str(os.getuid())


def _device(trainer: "Trainer") -> str:
    import torch

    if trainer.device.type == "cuda":
        return torch.cuda.get_device_name(trainer.device)
    return _processor() or platform.machine()


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
